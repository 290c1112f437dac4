"""Predictions for any number of image files, read ahead by threads."""

import contextlib
import functools
import itertools
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tqdm

from flaxcls.data.paths import Found
from flaxcls.errors import RunError, Stopped
from flaxcls.inference.classifier import BATCH_SIZE, Classifier, UnreadableImage
from flaxcls.inference.writers import Prediction, open_writers, printable, say
from flaxcls.system.threads import map_in_threads


def predict_files(
    classifier: Classifier,
    files: Iterable[Found],
    *,
    topk: int = 5,
    batch_size: int = BATCH_SIZE,
    min_probability: float = 0.0,
) -> Iterator[Prediction]:
    """Yields a prediction for each file, in order; threads read a few hundred ahead, no more.

    Args:
      classifier: of a trained run.
      files: as `find_files` gives them; there may be any number.
      topk: how many classes a prediction has, at most as many as there are.
      batch_size: how many images go through the network at once.
      min_probability: of the likeliest class, below which a prediction is marked as withheld.

    Raises:
      RunError: the network's predictions are not finite.
    """
    prepare = functools.partial(_prepare, classifier)
    with contextlib.closing(map_in_threads(prepare, files, classifier.num_threads)) as prepared:
        while batch := list(itertools.islice(prepared, batch_size)):
            yield from _predict_batch(classifier, batch, topk, min_probability)


def _prepare(classifier: Classifier, file: Found) -> tuple[str, np.ndarray | str]:
    """Returns the path, and the image or why there is none."""
    if file.problem:
        return file.path, file.problem
    try:
        return file.path, classifier.preprocess(file.path)
    except UnreadableImage as error:
        return file.path, error.reason


def _predict_batch(
    classifier: Classifier,
    batch: Sequence[tuple[str, np.ndarray | str]],
    topk: int,
    min_probability: float,
) -> Iterator[Prediction]:
    images = [image for _, image in batch if not isinstance(image, str)]
    rows: Iterator[np.ndarray] = iter(())
    if images:
        probabilities = classifier.to_probabilities(classifier.classify(np.stack(images)))
        if not np.isfinite(probabilities).all():
            raise RunError(
                f"the network's predictions are not finite; its training has failed by step "
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
        classes = tuple((names[label], float(row[label])) for label in order)
        yield Prediction(path, classes, withheld=float(row.max()) < min_probability)


def write_predictions(
    classifier: Classifier,
    files: Sequence[Found],
    outputs: Mapping[str, str | None],
    *,
    topk: int,
    batch_size: int,
    min_probability: float = 0.0,
) -> int:
    """Writes a prediction for each file as it comes, and returns how many could not be read.

    Args:
      classifier, files, topk, batch_size, min_probability: as `predict_files` takes them.
      outputs: {'json': file, - or None, 'csv': likewise}.

    Raises:
      Stopped: by Ctrl-C; what was written is whole.
      RunError: as `predict_files`.
    """
    unreadable = done = 0
    predictions = predict_files(
        classifier, files, topk=topk, batch_size=batch_size, min_probability=min_probability
    )
    raw_to_terminal = '-' in outputs.values() and sys.stdout.isatty()
    show_bar = sys.stderr.isatty() and not raw_to_terminal
    paths = [file.path for file in files]
    with (
        tqdm.tqdm(total=len(files), unit=' images', disable=not show_bar, leave=False) as bar,
        open_writers(outputs, paths, classifier.class_names) as writers,
        contextlib.closing(predictions),
    ):
        try:
            for prediction in predictions:
                if prediction.error:
                    unreadable += 1
                    say(f'{printable(prediction.file)}: {prediction.error}', sys.stderr)
                for write in writers:
                    write(prediction)
                done += 1
                bar.update()
        except KeyboardInterrupt:
            message = f'Interrupted after {done:,} of {len(files):,} files.'
            raise Stopped(message, signal.SIGINT) from None
    return unreadable
