"""Finding near-duplicate images, without comparing each to each."""

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

_ROWS, _COLUMNS = 16, 17
# Distinct images agree in the hash now and then, and so do the thumbnails; hardly ever both. Found
# with these two: 10 pairs among Fashion-MNIST's 10,000 test images, 1 among scikit-learn's digits.
_MAX_DISTANCE = 15
_MIN_CORRELATION = 0.995
_BANDS = 16


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Returns uint8 [16, 17], the grey image very small.

    Args:
      image: uint8 RGB [H, W, 3].
    """
    grey = Image.fromarray(image).convert('L')
    return np.asarray(grey.resize((_COLUMNS, _ROWS), Image.Resampling.BOX))


def near_pairs(thumbnails: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields the pairs (i, j), i < j, of images that are alike but for encoding, size or light.

    Candidates differ in at most 15 of the 256 bits that say whether the thumbnail grows brighter
    to the right. Such hashes agree in at least one of sixteen bands, so only those that share a
    band are compared. Of the candidates, the thumbnails have to correlate.

    Args:
      thumbnails: uint8 [N, 16, 17].
    """
    levels = thumbnails.astype(np.int16)
    hashes = np.packbits(levels[..., 1:] > levels[..., :-1], axis=-1).reshape(len(levels), -1)
    flat = levels.reshape(len(levels), -1) - levels.mean((1, 2))[:, None]
    directions = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    seen = set()
    for band in np.split(hashes, _BANDS, axis=1):
        for members in groups_of_equals(band):
            for position, first in enumerate(members[:-1]):
                others = members[position + 1 :]
                bits = np.bitwise_count(hashes[others] ^ hashes[first]).sum(1)
                others = others[bits <= _MAX_DISTANCE]
                alike = others[directions[others] @ directions[first] >= _MIN_CORRELATION]
                for pair in ((int(first), int(other)) for other in alike):
                    if pair not in seen:
                        seen.add(pair)
                        yield pair


def groups_of_equals(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the indices of equal rows of [N, K], in rising order, where there are several."""
    _, labels, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(labels.ravel(), kind='stable')
    for members in np.split(order, np.cumsum(counts)[:-1]):
        if len(members) > 1:
            yield members


def linked(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Returns the groups that pairs (i, j) link together, each in rising order."""
    from scipy.cluster.hierarchy import DisjointSet  # noqa: PLC0415 - slow to import

    groups = DisjointSet()
    for first, other in pairs:
        groups.add(first)
        groups.add(other)
        groups.merge(first, other)
    return sorted(sorted(group) for group in groups.subsets())
