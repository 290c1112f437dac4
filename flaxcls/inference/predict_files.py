"""Predictions for any number of image files, read ahead by threads."""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from flaxcls.data.paths import Found
from flaxcls.errors import RunError
from flaxcls.inference.classifier import BATCH_SIZE, Classifier, UnreadableImage
from flaxcls.inference.writers import Prediction
from flaxcls.system.threads import map_in_threads

TOPK = 5


def predict_files(
    classifier: Classifier,
    files: Iterable[Found],
    *,
    topk: int = TOPK,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Prediction]:
    """Yields a prediction for each file, in order; threads read a few hundred ahead, no more.

    Args:
      classifier: what is asked.
      files: as `find_files` gives them; there may be any number.
      topk: how many classes are told, at most as many as there are.
      batch_size: how many images go through the network at once.

    Raises:
      RunError: the network's answers are no numbers.
    """
    prepare = functools.partial(_prepare, classifier)
    with contextlib.closing(map_in_threads(prepare, files, classifier.num_threads)) as prepared:
        while batch := list(itertools.islice(prepared, batch_size)):
            yield from _predict_batch(classifier, batch, topk)


def _prepare(classifier: Classifier, file: Found) -> tuple[str, np.ndarray | str]:
    """Returns the path, and the image or why there is none."""
    if file.problem:
        return file.path, file.problem
    try:
        return file.path, classifier.preprocess(file.path)
    except UnreadableImage as error:
        return file.path, error.reason


def _predict_batch(
    classifier: Classifier, batch: Sequence[tuple[str, np.ndarray | str]], topk: int
) -> Iterator[Prediction]:
    images = [image for _, image in batch if not isinstance(image, str)]
    rows: Iterator[np.ndarray] = iter(())
    if images:
        probabilities = classifier.to_probabilities(classifier.classify(np.stack(images)))
        if not np.isfinite(probabilities).all():
            raise RunError(
                f"the network's answers are no numbers; its training has failed by step "
                f'{classifier.step}: try another --checkpoint.'
            )
        rows = iter(probabilities)
    for path, image in batch:
        if isinstance(image, str):
            yield Prediction(path, error=image)
            continue
        row = next(rows)
        order = np.argsort(-row, kind='stable')[:topk]
        names = classifier.class_names
        yield Prediction(path, tuple((names[label], float(row[label])) for label in order))
