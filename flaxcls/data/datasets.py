"""Random access to examples: split[i] -> (image, label).

An image is a uint8 array [H, W, C] of 1 or 3 channels, or the bytes of an image file.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
import xxhash

from flaxcls.errors import RunError, UserError


class Split(Protocol):
    """One part of a data set, such as its training examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray | bytes, int]: ...

    def name(self, index: int) -> str:
        """Returns what a person would look for: the file, or the split's record."""


class Listing(NamedTuple):
    """What makes a split what it is, wherever it lies.

    Attributes:
      names: of its parts, relative to the source: files, or what holds many examples.
      labels: of each; -1: of a part with many.
      sizes: bytes of each.
      digests: of the content, in hexadecimal; '': it has not been read.
    """

    names: list[str]
    labels: list[int]
    sizes: list[int]
    digests: list[str]


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """Examples in memory: uint8 images [N, H, W, C] and int32 labels [N]."""

    images: np.ndarray
    labels: np.ndarray

    def listing(self) -> Listing:
        digest = xxhash.xxh3_64(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels))
        return Listing(['images'], [-1], [self.images.nbytes], [digest.hexdigest()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def name(self, index: int) -> str:
        return f'example {index}'


@dataclasses.dataclass(frozen=True)
class FileSplit:
    """Image files, read when asked for, with int32 labels [N].

    Attributes:
      paths: of the files.
      labels: of each.
      root: folder of the source, which the names of files are relative to.
      digests: uint64 [N] of the files' contents, 0 where unknown; None: none has been read.
    """

    paths: Sequence[str]
    labels: np.ndarray
    root: str = ''
    digests: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        with open(self.paths[index], 'rb') as file:
            return file.read(), int(self.labels[index])

    def name(self, index: int) -> str:
        return self.paths[index]

    def take(self, rows: np.ndarray) -> 'FileSplit':
        """Returns the examples for which bool [N] is True."""
        kept = np.nonzero(rows)[0]
        digests = None if self.digests is None else self.digests[rows]
        return FileSplit([self.paths[row] for row in kept], self.labels[rows], self.root, digests)

    def relative_names(self) -> list[str]:
        """Returns the paths below the root; others as they are."""
        start = os.path.join(self.root, '')
        return [path.removeprefix(start) for path in self.paths]

    def listing(self) -> Listing:
        digests = [0] * len(self) if self.digests is None else self.digests.tolist()
        return Listing(
            self.relative_names(),
            self.labels.tolist(),
            [_size(path) for path in self.paths],
            [f'{digest:016x}' if digest else '' for digest in digests],
        )

    def fingerprints(self) -> np.ndarray:
        """Returns uint64 [N] that change with a file's path, size or time of change."""
        return np.array([_fingerprint(path) for path in self.paths], np.uint64)

    def identity(self) -> str:
        return hashlib.sha256(self.fingerprints().tobytes() + self.labels.tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class RecordSplit:
    """Records of a TFDS set, read when asked for."""

    records: Sequence[dict]
    describe: Callable[[int], str]
    prepared_in: pathlib.Path
    split: str  # Its name, or a slice.

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        record = self.records[index]
        return record['image'], int(record['label'])

    def name(self, index: int) -> str:
        return self.describe(index)

    def listing(self) -> Listing:
        """Returns the shards of the split, whose content is not read for this alone."""
        name = self.split.partition('[')[0]
        shards = sorted(self.prepared_in.glob(f'*-{name}.array_record*'))
        sizes = [shard.stat().st_size for shard in shards]
        names = [f'{shard.name} ({self.split})' for shard in shards]
        return Listing(names, [-1] * len(shards), sizes, [''] * len(shards))

    def identity(self) -> str:
        changed = (self.prepared_in / 'dataset_info.json').stat().st_mtime_ns
        return f'{self.prepared_in} {changed} {len(self)} {self.describe(0)}'


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some examples of another split, in the order of `indices`."""

    split: Split
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray | bytes, int]:
        return self.split[self.indices[index]]

    def name(self, index: int) -> str:
        return self.split.name(self.indices[index])

    def listing(self) -> Listing:
        whole = list_examples(self.split)
        digest = xxhash.xxh3_64_hexdigest(np.asarray(self.indices, np.int64))
        return whole._replace(names=[f'{len(self)} ({digest}) of {n}' for n in whole.names])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set: its two splits, the names of its classes in the order of the labels, notes.

    Notes say what was left out or decided while looking at the data; they are printed. Where the
    source has no splits, validation `is_held_out` of it.
    """

    train: Split
    val: Split
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    is_held_out: bool = False

    def replace(self, **changes: Any) -> 'Dataset':
        """Returns the data set with other fields."""
        return dataclasses.replace(self, **changes)


def list_examples(split: Split) -> Listing:
    """Returns what makes a split what it is; of an extension's, the names of its examples."""
    if hasattr(split, 'listing'):
        return split.listing()
    names = [split.name(index) for index in range(len(split))]
    return Listing(names, [-1] * len(names), [-1] * len(names), [''] * len(names))


class SplitSpec(NamedTuple):
    """How a data set is split into training and validation examples.

    Attributes:
      train: name or slice of the training split; None: train.
      val: likewise; None: the first there is of validation, val, test.
      val_fraction: share held out of every class of a set without splits; None: 0.2.
      seed: from which the held-out examples are drawn.
    """

    train: str | None = None
    val: str | None = None
    val_fraction: float | None = None
    seed: int = 0

    @property
    def train_name(self) -> str:
        return self.train or 'train'

    @property
    def val_names(self) -> Sequence[str]:
        """Names to look for, of which the first that exists counts."""
        return [self.val] if self.val else ['validation', 'val', 'test']

    def require_no_fraction(self, path: str, reason: str) -> None:
        """Raises UserError if a fraction is to be held out of a data set with splits."""
        if self.val_fraction is not None:
            raise UserError(
                f'config.data.val_fraction={self.val_fraction:g} has no meaning for {path!r}, '
                f'{reason}; leave it out.'
            )


def raise_unreadable(split: Split, index: int, error: Exception) -> NoReturn:
    """Raises RunError that names the example which `error` has kept from being decoded."""
    raise RunError(f'{split.name(index)}: {error}; repair it or move it away.') from None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _fingerprint(path: str) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return 0  # Of no file that can be read.
    text = f'{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}'
    digest = hashlib.blake2b(os.fsencode(text), digest_size=8).digest()
    return int.from_bytes(digest, 'little') or 1


def in_order(names: Iterable[str]) -> list[str]:
    """Returns the names of classes in the order of their labels: by number, if all are numbers."""
    names = list(names)
    all_numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if all_numbers else None)
