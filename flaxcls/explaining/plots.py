"""Pictures of what networks see and hold: from arrays to PNG."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from flaxcls.explaining.signal_propagation import SignalStats
from flaxcls.system.files import naming

_OPACITY = 0.7  # Of the hottest place, so that what lies below stays visible.
TitledImage = tuple[np.ndarray, str]  # A picture, uint8 [H, W, 3] or float in 0..1, and its title.


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns an image with its heat laid over it in viridis, the less heat the fainter.

    Args:
      image: uint8 [S, S, 3].
      heat: [h, w], from the same corners; upsampled bilinearly. What is negative counts as none,
        and the hottest place as 1, whatever it is.

    Returns:
      uint8 [S, S, 3].
    """
    import matplotlib  # noqa: PLC0415 - slow to import

    heat = np.maximum(np.asarray(heat, np.float32), 0)
    size = image.shape[1], image.shape[0]
    heat = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR))
    heat = heat / heat.max() if heat.max() > 0 else heat
    color = matplotlib.colormaps['viridis'](heat)[..., :3] * 255
    opacity = _OPACITY * heat[..., None]
    return np.round((1 - opacity) * image + opacity * color).astype(np.uint8)


def draw_grid(rows: Sequence[Sequence[TitledImage]], title: str, path: pathlib.Path) -> None:
    """Writes a picture of rows of pictures, which may be of different lengths."""
    columns = max(map(len, rows))
    figure = _figure(1.5 * columns, 1.75 * len(rows), title)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for row, cells in zip(axes, rows, strict=True):
        for axis, (image, name) in zip(row, cells, strict=False):
            axis.imshow(image, vmin=0, vmax=1, interpolation='nearest')
            axis.set_title(name, fontsize=8, parse_math=False)
    _save(figure, path)


def draw_depth(curves: Mapping[str, Sequence[SignalStats]], title: str, path: pathlib.Path) -> None:
    """Writes a picture of signals and gradients over depth, a line for each of `curves`."""
    figure = _figure(12, 4.5, title)
    quantities = {'signal': 'RMS of the activations', 'gradient': 'norm of the loss gradient'}
    for axis, (quantity, label) in zip(figure.subplots(1, 2), quantities.items(), strict=True):
        for name, norms in curves.items():
            values = [getattr(layer, quantity) for layer in norms]
            axis.plot(values, marker='.', label=name)
        layers = [layer.layer for layer in next(iter(curves.values()))]
        every = -(-len(layers) // 24)  # As many names as can be read.
        axis.set_xticks(range(0, len(layers), every), layers[::every], rotation=90, fontsize=7)
        axis.set_yscale('log')
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend()
    _save_chart(figure, path)


def draw_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]], title: str, path: pathlib.Path
) -> None:
    """Writes a picture of loss and accuracy over the epochs, a colour for each of `histories`.

    Args:
      histories: name -> the records of a run, as `train_and_evaluate` returns them. Validation is
        drawn strong, training dashed.
      title: above the picture.
      path: of the PNG file to write.
    """
    figure = _figure(10, 3.6, title)
    for axis, quantity in zip(figure.subplots(1, 2), ('loss', 'accuracy'), strict=True):
        for index, (name, history) in enumerate(histories.items()):
            for part, style in (('train', '--'), ('val', '.-')):
                points = [
                    (record['epoch'], record[f'{part}/{quantity}'])
                    for record in history
                    if f'{part}/{quantity}' in record
                ]
                label = name if part == 'val' else None
                axis.plot(*zip(*points, strict=True), style, color=f'C{index}', label=label)
        axis.set_xlabel('epoch')
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylabel(f'{quantity} (dashed: training)')
        axis.grid(alpha=0.3)
        axis.legend()
        if quantity == 'loss':
            axis.set_yscale('log')
    _save_chart(figure, path)


def draw_reuse(tables: Sequence[np.ndarray], title: str, path: pathlib.Path) -> None:
    """Writes a picture of `depth.feature_reuse`, a square for each block.

    Columns are scaled by their largest values, since weights of other fan-in have another size.
    """
    figure = _figure(4.2 * len(tables), 4, title)
    for block, (axis, table) in enumerate(
        zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, strict=True), start=1
    ):
        largest = np.maximum(np.nanmax(table, axis=0), np.finfo(np.float32).tiny)
        shown = axis.imshow(table / largest, vmin=0, vmax=1, interpolation='nearest')
        label = "mean absolute weight, of the column's largest"
        figure.colorbar(shown, ax=axis, shrink=0.7).set_label(label, fontsize=7)
        last = len(table) - 1
        every = -(-last // 12)
        places = list(range(0, last, every))
        end = 'classifier' if block == len(tables) else 'transition'
        axis.set_xticks([*places, last], [*(place + 1 for place in places), end], rotation=90)
        axis.set_yticks(range(0, last + 1, every), ['input', *range(every, last + 1, every)])
        axis.set_title(f'block {block}')
        axis.set_xlabel('read by layer')
        axis.set_ylabel('made by layer')
    _save_chart(figure, path)


def _figure(width: float, height: float, title: str) -> Any:
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    figure = Figure(figsize=(width, height), layout='constrained')
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def _save(figure: Any, path: pathlib.Path) -> None:
    with naming(path):
        figure.savefig(path, dpi=110)


def _save_chart(figure: Any, path: pathlib.Path) -> None:
    """Saves a picture of few colours; a PNG gets a palette of them, and a third of the bytes."""
    _save(figure, path)
    if pathlib.Path(path).suffix.lower() == '.png':
        with Image.open(path) as image:
            few = image.convert('RGB').quantize(128, dither=Image.Dither.NONE)
        with naming(path):
            few.save(path, optimize=True)
