"""Draws what a trained network sees in images, or what is in the network.

  python -m flaxcls.explain --workdir=runs/digits_resnet20
  python -m flaxcls.explain --workdir=runs/photos --method=occlusion --class=cat a.jpg b.png

Without images it takes some of the run's validation images. The methods:

  grad_cam              where the class is, on the feature map or another --layer (the default)
  cam                   the same, where the classifier is one layer over the means of the map
  integrated_gradients  what each pixel adds to the answer
  smooth_grad           which pixels would move the answer, averaged over noise
  occlusion             what the answer misses when it is covered
  feature_maps          the strongest channels of a --layer
  neighbours            the validation images with the most similar features
  filters               the weights of the first convolution (takes no images)
  depth                 signal and gradient from layer to layer, also without shortcuts (no images)
  reuse                 which layers in the blocks of a DenseNet read which (no images)
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from flaxcls import models, pictures
from flaxcls.attribution import (
    cam,
    grad_cam,
    integrated_gradients,
    occlusion,
    smooth_grad,
)
from flaxcls.classifier import Classifier
from flaxcls.config import nearest as did_you_mean
from flaxcls.data.pipeline import make_eval_batches
from flaxcls.data.splits import Source, Subset
from flaxcls.depth import feature_reuse, signal_and_gradient_norms
from flaxcls.errors import CommandParser, UserError, run_command
from flaxcls.features import feature_maps, first_filters, layer_outputs, nearest
from flaxcls.models.initialization import init_variables
from flaxcls.models.resnet import ResNet
from flaxcls.output_files import require_place
from flaxcls.pictures import Cell, overlay
from flaxcls.run_setup import load_stored_config, prepare, require_stored_classes

_SUFFIXES = ('.png', '.jpg', '.svg', '.pdf')
_SHOWN = 12  # Validation images where none are given.
_NEIGHBOURS, _CHANNELS, _DEPTH_IMAGES = 7, 11, 32


class Examples(NamedTuple):
    """Images to explain, uint8 [N, S, S, 3], and what stands beside them.

    Of validation images labels [N] are known, and their places [N] in the split.
    """

    images: np.ndarray
    names: Sequence[str]
    labels: np.ndarray | None = None
    places: np.ndarray | None = None


class Run(NamedTuple):
    """A run, and what is asked about it."""

    classifier: Classifier
    workdir: pathlib.Path
    method: str
    layer: str
    label: int | None  # The class to look for; None: each image's answer.
    paths: Sequence[str]  # Images; none: take some of the validation images.
    out: pathlib.Path

    def title(self, text: str) -> str:
        return f'{self.classifier.config.model.name} in {self.workdir}: {text}'

    def open_data(self) -> Source:
        """Returns the data of the run, of which the training images are left unread."""
        try:
            config = load_stored_config(self.workdir)
            setup = prepare(config, for_training=False, devices=jax.local_devices()[:1])
            require_stored_classes(setup, self.workdir)
        except UserError as error:
            raise UserError(
                f'--method={self.method} looks for validation images, and {error}'
            ) from None
        return setup.source

    def load(self, source: Source, places: np.ndarray) -> Examples:
        """Returns validation images by their places."""
        batches = list(make_eval_batches(self.classifier.config, Subset(source.val, places))())
        images, labels = (
            np.concatenate([batch[key][batch['mask']] for batch in batches])
            for key in ('image', 'label')
        )
        return Examples(
            images, [f'is {source.class_names[label]}' for label in labels], labels, places
        )

    def examples(self, count: int = _SHOWN, source: Source | None = None) -> Examples:
        """Returns the images that were given, or validation images from all over their order."""
        if self.paths:
            images = np.stack([self.classifier.prepare(path) for path in self.paths])
            return Examples(images, [pathlib.Path(path).name[-24:] for path in self.paths])
        source = source or self.open_data()
        return self.load(source, np.unique(np.linspace(0, len(source.val) - 1, count).astype(int)))


def draw_heat(run: Run) -> None:
    """Draws images beside themselves under the heat of an attribution method."""
    examples, classifier = run.examples(), run.classifier
    probabilities = classifier.to_probabilities(classifier.classify(examples.images))
    classes = probabilities.argmax(-1)
    if run.label is not None:
        classes = np.full_like(classes, run.label)
    options = {'layer': run.layer} if run.method == 'grad_cam' else {}
    heat = HEAT[run.method](classifier, examples.images, classes, **options)
    if heat.ndim == 4:  # Of colours; few pixels are so hot that they would leave the others cold.
        heat = np.abs(heat).sum(-1)
        heat = np.minimum(heat, np.percentile(heat, 99, axis=(1, 2), keepdims=True))
    cells: list[Cell] = []
    for row, (image, name) in enumerate(zip(examples.images, examples.names, strict=True)):
        answer = f'{classifier.class_names[classes[row]]} ({probabilities[row, classes[row]]:.0%})'
        cells += [(image, name), (overlay(image, heat[row]), answer)]
    pictures.draw_grid(_in_rows(cells, 8), run.title(run.method), run.out)


def _in_rows(cells: Sequence[Cell], columns: int) -> list[Sequence[Cell]]:
    return [cells[first : first + columns] for first in range(0, len(cells), columns)]


def draw_feature_maps(run: Run) -> None:
    """Draws the channels of a layer that are strongest in the mean over an image, a row each."""
    examples = run.examples(6)
    rows = []
    outputs = feature_maps(run.classifier, examples.images, run.layer)
    for image, name, output in zip(examples.images, examples.names, outputs, strict=True):
        strength = np.abs(output).mean(axis=(0, 1))
        strongest = np.argsort(-strength, kind='stable')[:_CHANNELS]
        low, span = output.min(axis=(0, 1)), np.maximum(np.ptp(output, axis=(0, 1)), 1e-12)
        scaled = (output - low) / span
        rows.append([(image, name)])
        rows[-1] += [(scaled[..., channel], f'channel {channel}') for channel in strongest]
    pictures.draw_grid(rows, run.title(f'{run.layer}, strongest channels'), run.out)


def draw_filters(run: Run) -> None:
    """Draws the filters of the first convolution."""
    cells = [(image, '') for image in first_filters(run.classifier)]
    pictures.draw_grid(_in_rows(cells, 16), run.title('first convolution'), run.out)


def draw_neighbours(run: Run) -> None:
    """Draws images, a row each, and the validation images whose features are most like theirs."""
    source = run.open_data()
    examples = run.examples(6, source)
    features = np.concatenate(
        [
            layer_outputs(run.classifier, batch['image'], 'features')[batch['mask']]
            for batch in make_eval_batches(run.classifier.config, source.val)()
        ]
    )
    queries = layer_outputs(run.classifier, examples.images, 'features')
    found = nearest(features, queries, min(_NEIGHBOURS + 1, len(features)))
    if examples.places is not None:  # An image is no neighbour of itself.
        pairs = zip(found, examples.places, strict=True)
        found = np.stack([places[places != own][: found.shape[1] - 1] for places, own in pairs])
    found = found[:, :_NEIGHBOURS]
    near = run.load(source, found.ravel())
    near_cells = _in_rows(list(zip(near.images, near.names, strict=True)), found.shape[1])
    own_cells = zip(examples.images, examples.names, strict=True)
    rows = [[own, *others] for own, others in zip(own_cells, near_cells, strict=True)]
    pictures.draw_grid(rows, run.title('nearest in their features'), run.out)


def draw_depth(run: Run) -> None:
    """Draws norms of signal and gradient over depth: trained, new, and new without shortcuts."""
    classifier, config = run.classifier, run.classifier.config
    examples = run.examples(_DEPTH_IMAGES)
    images = classifier.normalize(examples.images)

    def norms(model, variables=None):
        if variables is None:
            key = jax.random.key(config.seed)
            variables = init_variables(model, key, config.data.image_size)
        return signal_and_gradient_norms(model, variables, images, examples.labels)

    curves = {'trained': norms(classifier.model, classifier.variables)}
    curves['at initialisation'] = norms(classifier.model)
    if isinstance(classifier.model, ResNet) and classifier.model.shortcut != 'none':
        plain = config.copy_and_resolve_references().unlock()
        plain.model.shortcut = 'none'
        curves['without shortcuts, at initialisation'] = norms(models.model_from_config(plain))
    title = run.title(f'{len(images)} validation images, BatchNorm as in training')
    pictures.draw_depth(curves, title, run.out)


def draw_reuse(run: Run) -> None:
    """Draws which layers of a DenseNet's blocks read which."""
    tables = feature_reuse(run.classifier.variables['params'])
    pictures.draw_reuse(tables, run.title('features read again'), run.out)


HEAT = {
    'grad_cam': grad_cam,
    'cam': cam,
    'integrated_gradients': integrated_gradients,
    'smooth_grad': smooth_grad,
    'occlusion': occlusion,
}
METHODS = dict.fromkeys(HEAT, draw_heat) | {
    'feature_maps': draw_feature_maps,
    'neighbours': draw_neighbours,
    'filters': draw_filters,
    'depth': draw_depth,
    'reuse': draw_reuse,
}


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.explain', __doc__)
    parser.add_argument('--workdir', required=True, help='of the run')
    parser.add_argument('--checkpoint', default='newest', help='newest (the default), best or step')
    parser.add_argument('--method', default='grad_cam', help='see above (grad_cam)')
    parser.add_argument('--layer', help='such as stage2_block1, of grad_cam and feature_maps')
    parser.add_argument('--class', dest='class_name', help='to look for; else the answer')
    parser.add_argument('--out', help='the picture (METHOD.png in the workdir)')
    parser.add_argument('images', nargs='*', help='files')
    flags = parser.parse_args(argv)
    _require_sense(flags)
    workdir = pathlib.Path(flags.workdir).expanduser()
    load_stored_config(workdir)  # A workdir that is none is told as such.
    out = require_place(flags.out or workdir / f'{flags.method}.png')
    if out.suffix.lower() not in _SUFFIXES:
        raise UserError(f'--out={out} must end in {", ".join(_SUFFIXES)}.')
    classifier = Classifier.load(workdir, checkpoint=flags.checkpoint, crops='center')
    names, label = classifier.class_names, None
    if flags.class_name is not None:
        _require_known('--class', flags.class_name, names)
        label = names.index(flags.class_name)
    layer = flags.layer or 'feature_map'
    run = Run(classifier, workdir, flags.method, layer, label, flags.images, out)
    METHODS[flags.method](run)
    print(f'wrote {out}')


def _require_sense(flags: argparse.Namespace) -> None:
    """Raises UserError for an unknown method, and for what it would not heed."""
    method = flags.method
    _require_known('--method', method, list(METHODS))
    heeded = {
        '--layer': (flags.layer, ['grad_cam', 'feature_maps']),
        '--class': (flags.class_name, list(HEAT)),
        'images': (flags.images, [*HEAT, 'feature_maps', 'neighbours']),
    }
    for name, (value, by) in heeded.items():
        if value and method not in by:
            raise UserError(f'--method={method} takes no {name}; {", ".join(by)} would.')


def _require_known(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        remedy = did_you_mean(value, known) or f'; choose from {", ".join(known[:20])}'
        raise UserError(f'{flag}={value!r} is unknown{remedy}.')


if __name__ == '__main__':
    run_command(main)
