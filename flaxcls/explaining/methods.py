"""What `flaxcls explain` draws, a function for each method."""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from flaxcls.config.workdir import load_stored_config, require_stored_classes
from flaxcls.data.datasets import Dataset, Split, Subset
from flaxcls.data.pipeline import Batch, make_eval_batches
from flaxcls.errors import UserError
from flaxcls.explaining import plots
from flaxcls.explaining.attribution import (
    cam,
    grad_cam,
    integrated_gradients,
    occlusion,
    smooth_grad,
)
from flaxcls.explaining.features import (
    feature_maps,
    first_filters,
    layer_outputs,
    nearest_neighbours,
)
from flaxcls.explaining.plots import TitledImage, overlay
from flaxcls.explaining.signal_propagation import feature_reuse, signal_and_gradient_norms
from flaxcls.inference.classifier import BATCH_SIZE, Classifier
from flaxcls.models.init import init_variables
from flaxcls.system.files import require_place
from flaxcls.system.text import did_you_mean
from flaxcls.training.setup import build_setup

_SHOWN = 12  # Validation images where none are given.


_NEIGHBOURS, _CHANNELS, _DEPTH_IMAGES = 7, 11, 32


class ExplainedImages(NamedTuple):
    """Images to explain, uint8 [N, S, S, 3], and what stands beside them.

    Of validation images labels [N] are known, and their places [N] in the split.
    """

    images: np.ndarray
    names: Sequence[str]
    labels: np.ndarray | None = None
    places: np.ndarray | None = None


class ExplainRequest(NamedTuple):
    """A run, and what is asked about it."""

    classifier: Classifier
    workdir: pathlib.Path
    method: str
    layer: str
    label: int | None  # The class to look for; None: each image's prediction.
    paths: Sequence[str]  # Images; none: take some of the validation images.
    out: pathlib.Path

    def title(self, text: str) -> str:
        return f'{self.classifier.model_name} in {self.workdir}: {text}'

    def open_data(self) -> Dataset:
        """Returns the data of the run, of which the training images are left unread."""
        try:
            config = load_stored_config(self.workdir)
            devices = jax.local_devices()[:1]
            setup = build_setup(config, for_training=False, devices=devices, workdir=self.workdir)
            require_stored_classes(self.workdir, setup.dataset.class_names, setup.source)
        except UserError as error:
            raise UserError(
                f'--method={self.method} looks for validation images, and {error}'
            ) from None
        return setup.dataset

    def batches(self, split: Split) -> Iterator[Batch]:
        """Returns the examples of a split, as the classifier sees them."""
        classifier = self.classifier
        return make_eval_batches(
            split,
            classifier.images.crop,
            batch_size=BATCH_SIZE,
            num_threads=classifier.num_threads,
        )()

    def load(self, dataset: Dataset, places: np.ndarray) -> ExplainedImages:
        """Returns validation images by their places."""
        batches = list(self.batches(Subset(dataset.val, places)))
        images, labels = (
            np.concatenate([batch[key][batch['mask']] for batch in batches])
            for key in ('image', 'label')
        )
        names = [f'is {dataset.class_names[label]}' for label in labels]
        return ExplainedImages(images, names, labels, places)

    def examples(self, count: int = _SHOWN, dataset: Dataset | None = None) -> ExplainedImages:
        """Returns the images that were given, or validation images from all over their order."""
        if self.paths:
            images = np.stack([self.classifier.preprocess(path) for path in self.paths])
            return ExplainedImages(images, [pathlib.Path(path).name[-24:] for path in self.paths])
        dataset = dataset or self.open_data()
        places = np.unique(np.linspace(0, len(dataset.val) - 1, count).astype(int))
        return self.load(dataset, places)


def draw_heat(run: ExplainRequest) -> None:
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
    cells: list[TitledImage] = []
    for row, (image, name) in enumerate(zip(examples.images, examples.names, strict=True)):
        title = f'{classifier.class_names[classes[row]]} ({probabilities[row, classes[row]]:.0%})'
        cells += [(image, name), (overlay(image, heat[row]), title)]
    plots.draw_grid(_in_rows(cells, 8), run.title(run.method), run.out)


def _in_rows(cells: Sequence[TitledImage], columns: int) -> list[Sequence[TitledImage]]:
    return [cells[first : first + columns] for first in range(0, len(cells), columns)]


def draw_feature_maps(run: ExplainRequest) -> None:
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
    plots.draw_grid(rows, run.title(f'{run.layer}, strongest channels'), run.out)


def draw_filters(run: ExplainRequest) -> None:
    """Draws the filters of the first convolution."""
    cells = [(image, '') for image in first_filters(run.classifier)]
    plots.draw_grid(_in_rows(cells, 16), run.title('first convolution'), run.out)


def draw_neighbours(run: ExplainRequest) -> None:
    """Draws images, a row each, and the validation images whose features are most like theirs."""
    dataset = run.open_data()
    examples = run.examples(6, dataset)
    features = np.concatenate(
        [
            layer_outputs(run.classifier, batch['image'], 'features')[batch['mask']]
            for batch in run.batches(dataset.val)
        ]
    )
    queries = layer_outputs(run.classifier, examples.images, 'features')
    found = nearest_neighbours(features, queries, min(_NEIGHBOURS + 1, len(features)))
    if examples.places is not None:  # An image is not a neighbour of itself.
        pairs = zip(found, examples.places, strict=True)
        found = np.stack([places[places != query][: found.shape[1] - 1] for places, query in pairs])
    found = found[:, :_NEIGHBOURS]
    near = run.load(dataset, found.ravel())
    near_cells = _in_rows(list(zip(near.images, near.names, strict=True)), found.shape[1])
    query_cells = zip(examples.images, examples.names, strict=True)
    rows = [[query, *others] for query, others in zip(query_cells, near_cells, strict=True)]
    plots.draw_grid(rows, run.title('nearest in their features'), run.out)


def draw_depth(run: ExplainRequest) -> None:
    """Draws norms of signal and gradient over depth: trained, new, and new without shortcuts."""
    classifier, model = run.classifier, run.classifier.model
    seed = load_stored_config(run.workdir).seed
    examples = run.examples(_DEPTH_IMAGES)
    images = classifier.normalize(examples.images)

    def norms(model, variables=None):
        if variables is None:
            size = classifier.images.crop.size
            variables = init_variables(model, jax.random.key(seed), size)
        return signal_and_gradient_norms(model, variables, images, examples.labels)

    curves = {'trained': norms(model, classifier.variables)}
    curves['at initialisation'] = norms(model)
    if getattr(model, 'shortcut', 'none') != 'none':
        plain = model.clone(shortcut='none')
        curves['without shortcuts, at initialisation'] = norms(plain)
    title = run.title(f'{len(images)} validation images, BatchNorm as in training')
    plots.draw_depth(curves, title, run.out)


def draw_reuse(run: ExplainRequest) -> None:
    """Draws which layers of a DenseNet's blocks read which."""
    tables = feature_reuse(run.classifier.variables['params'])
    plots.draw_reuse(tables, run.title('features read again'), run.out)


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
_SUFFIXES = ('.png', '.jpg', '.svg', '.pdf')


def explain(
    workdir: str | os.PathLike,
    method: str = 'grad_cam',
    images: Sequence[str] = (),
    *,
    checkpoint: str = 'newest',
    layer: str | None = None,
    class_name: str | None = None,
    out: str | os.PathLike | None = None,
) -> pathlib.Path:
    """Draws one method's picture of a run, and returns its file.

    Args:
      workdir: path of the directory that the run was trained in.
      method: a row of METHODS.
      images: files; none: some of the validation images.
      checkpoint: newest, best, or a step.
      layer: such as stage2_block1, of grad_cam and feature_maps; None: the feature map.
      class_name: to look for; None: the predicted class of each image.
      out: the picture; None: METHOD.png in the workdir.

    Raises:
      UserError: there is no such run, method, class or layer, or the method takes no such argument.
    """
    _require_sense(method, images, layer, class_name)
    workdir = pathlib.Path(workdir).expanduser()
    load_stored_config(workdir)  # Raises where there is no run.
    out = require_place(out or workdir / f'{method}.png')
    if out.suffix.lower() not in _SUFFIXES:
        raise UserError(f'--out={out} must end in {", ".join(_SUFFIXES)}.')
    classifier = Classifier.load(workdir, checkpoint=checkpoint, crops='center')
    names, label = classifier.class_names, None
    if class_name is not None:
        _require_known('--class', class_name, names)
        label = names.index(class_name)
    layer = layer or 'feature_map'
    METHODS[method](ExplainRequest(classifier, workdir, method, layer, label, images, out))
    return out


def _require_sense(
    method: str, images: Sequence[str], layer: str | None, class_name: str | None
) -> None:
    """Raises UserError for an unknown method, and for arguments that have no effect on it."""
    _require_known('--method', method, list(METHODS))
    takers = {
        '--layer': (layer, ['grad_cam', 'feature_maps']),
        '--class': (class_name, list(HEAT)),
        'images': (images, [*HEAT, 'feature_maps', 'neighbours']),
    }
    for name, (value, methods) in takers.items():
        if value and method not in methods:
            raise UserError(f'--method={method} takes no {name}; {", ".join(methods)} would.')


def _require_known(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        remedy = did_you_mean(value, known) or f'; choose from {", ".join(known[:20])}'
        raise UserError(f'{flag}={value!r} is unknown{remedy}.')
