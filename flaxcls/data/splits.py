"""Random access to examples: split[i] -> (image, label).

An image is a uint8 array [H, W, C] of 1 or 3 channels, or the bytes of an image file.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


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

    paths: Sequence[pathlib.Path]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self.paths[index].read_bytes(), int(self.labels[index])

    def name(self, index: int) -> str:
        return str(self.paths[index])


@dataclasses.dataclass(frozen=True)
class RecordSplit:
    """Records of a TFDS set, read when asked for."""

    records: Sequence[dict]
    describe: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        record = self.records[index]
        return record['image'], int(record['label'])

    def name(self, index: int) -> str:
        return self.describe(index)


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
class Source:
    """A data set: its two splits, the names of its classes in the order of the labels, notes.

    Notes say what was left out or decided while looking at the data; they are printed.
    """

    train: Split
    val: Split
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
