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

from flaxcls.errors import RunError, UserError

DEFAULT_VAL_FRACTION = 0.2


class Split(Protocol):
    """One part of a data set, such as its training examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray | bytes, int]: ...

    def name(self, index: int) -> str:
        """Returns what a person would look for: the file, or the split's record."""


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """Examples in memory: uint8 images [N, H, W, C] and int32 labels [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def name(self, index: int) -> str:
        return f'example {index}'


@dataclasses.dataclass(frozen=True)
class FileSplit:
    """Image files, read when asked for, with int32 labels [N]."""

    paths: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        with open(self.paths[index], 'rb') as file:
            return file.read(), int(self.labels[index])

    def name(self, index: int) -> str:
        return self.paths[index]

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

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        record = self.records[index]
        return record['image'], int(record['label'])

    def name(self, index: int) -> str:
        return self.describe(index)

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


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set: its two splits, the names of its classes in the order of the labels, notes.

    Notes say what was left out or decided while looking at the data; they are printed.
    """

    train: Split
    val: Split
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def replace(self, **changes: Any) -> 'Dataset':
        """Returns the data set with other fields."""
        return dataclasses.replace(self, **changes)


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


def draw_of_each_class(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Returns bool [N], True for `fraction` of the examples of every class, drawn at random."""
    drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rng = np.random.default_rng((seed, int(label)))
        members = rng.permutation(np.nonzero(labels == label)[0])
        drawn[members[: round(len(members) * fraction)]] = True
    return drawn


def hold_out(every: FileSplit, split_spec: SplitSpec) -> tuple[FileSplit, FileSplit, str]:
    """Returns the training and the validation files, and a note about them.

    Raises:
      UserError: one of the two would have none.
    """
    paths, labels, seed = every.paths, every.labels, split_spec.seed
    fraction = split_spec.val_fraction
    if fraction is None:
        fraction = DEFAULT_VAL_FRACTION
    held_out = draw_of_each_class(labels, fraction, seed)
    if held_out.all() or not held_out.any():
        raise UserError(
            f'config.data.val_fraction={fraction:g} of the {len(labels)} images leaves one side '
            'without any; choose another fraction.'
        )
    train, val = (
        FileSplit([paths[row] for row in np.nonzero(rows)[0]], labels[rows])
        for rows in (~held_out, held_out)
    )
    return train, val, f'{len(val)} of {len(labels)} images held out for validation (seed {seed}).'
