"""Images of a run's data, to calibrate and to compare exported networks with."""

from typing import NamedTuple

import numpy as np

from flaxcls.data.datasets import Split, raise_unreadable
from flaxcls.errors import RunError
from flaxcls.inference.classifier import Classifier
from flaxcls.system.threads import map_in_threads


class Samples(NamedTuple):
    """Images as a network takes them.

    Attributes:
      images: uint8 [N, S, S, 3].
      labels: int32 [N].
      source: where they are from, as config.data.source.
    """

    images: np.ndarray
    labels: np.ndarray
    source: str = ''


def take_samples(classifier: Classifier, split: Split, count: int, source: str = '') -> Samples:
    """Returns `count` examples, or all if there are fewer, evenly spread over a split.

    Raises:
      RunError: one cannot be read.
    """
    count = min(count, len(split))
    # Splits are often in the order of the classes.
    indices = [int(index) for index in np.linspace(0, len(split) - 1, count).round()]

    def load(index: int) -> tuple[np.ndarray, int]:
        try:
            image, label = split[index]
        except (ValueError, OSError) as error:
            raise_unreadable(split, index, error)
        try:
            return classifier.preprocess(image), label
        except RunError as error:
            raise_unreadable(split, index, error)

    loaded = list(map_in_threads(load, indices, classifier.num_threads))
    images, labels = zip(*loaded, strict=True)
    return Samples(np.stack(images), np.array(labels, np.int32), source)
