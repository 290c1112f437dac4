"""Looking at every image of a data set, for what is wrong with it and what is worth knowing."""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxcls.data import images
from flaxcls.data.datasets import Dataset, Split
from flaxcls.data.near_duplicates import groups_of_equals, linked, near_pairs, thumbnail
from flaxcls.system.text import table
from flaxcls.system.threads import map_in_threads

SPLITS = ('train', 'val')


_SMALL_SIDE = 8


_LONG_RATIO = 10


_FEW_EXAMPLES = 10
_CLASSES_SHOWN, _NAMES_SHOWN = 40, 10


class Look(NamedTuple):
    """What is kept of an image."""

    split: str
    index: int
    name: str
    label: int
    format: str
    height: int
    width: int
    digest: bytes  # Of the pixels, so that the same picture in another format is found.
    thumbnail: np.ndarray


class Unreadable(NamedTuple):
    split: str
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What `inspect_dataset` found. Groups are lists of names.

    Wrong are `unreadable`, `across_splits` (the same pixels in training and in validation) and
    `conflicts` (the same pixels under different labels); the rest are remarks.
    """

    classes: list[dict[str, Any]]  # name, train, val: the numbers of readable images.
    formats: dict[str, int]
    sizes: dict[str, list[int]]  # smallest, median, largest by area: [height, width].
    unreadable: list[Unreadable]
    across_splits: list[list[str]]
    conflicts: list[list[str]]
    within_splits: list[list[str]]
    near_duplicates: list[list[str]]
    odd_sizes: list[str]  # A side below 8 pixels, or one ten times as long as the other.
    few_examples: list[str]  # Classes with fewer than ten training images.
    not_in_validation: list[str]  # Classes.

    @property
    def is_wrong(self) -> bool:
        return bool(self.unreadable or self.across_splits or self.conflicts)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name, and `is_wrong`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields['unreadable'] = [entry._asdict() for entry in self.unreadable]
        return fields | {'is_wrong': self.is_wrong}


def inspect_dataset(
    dataset: Dataset,
    *,
    num_threads: int | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Report:
    """Decodes every image of both splits; a few hundred bytes are kept of each.

    Args:
      dataset: to look through.
      num_threads: for decoding; None: one per core.
      on_progress: called with the number of further images that have been looked at.
    """
    looks, unreadable = [], []
    for name in SPLITS:
        split = getattr(dataset, name)
        look_at = functools.partial(_look_at, name, split)
        for found in map_in_threads(look_at, range(len(split)), num_threads):
            (looks if isinstance(found, Look) else unreadable).append(found)
            on_progress(1)
    return _summarize(dataset, looks, unreadable)


def _look_at(name: str, split: Split, index: int) -> Look | Unreadable:
    try:
        image, label = split[index]
        kind = images.format_of(image) if isinstance(image, bytes) else 'array'
        image = images.decode(image) if isinstance(image, bytes) else images.as_rgb(image)
    except (ValueError, OSError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        return Unreadable(name, split.name(index), reason)
    digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
    height, width = image.shape[:2]
    return Look(
        name, index, split.name(index), label, kind, height, width, digest, thumbnail(image)
    )


def _summarize(dataset: Dataset, looks: list[Look], unreadable: list[Unreadable]) -> Report:
    counts = collections.Counter((look.split, look.label) for look in looks)
    classes = [
        {'name': name} | {split: counts[split, label] for split in SPLITS}
        for label, name in enumerate(dataset.class_names)
    ]
    equal = [[looks[i] for i in group] for group in _equal_groups(looks)]
    differs = lambda group, field: len({getattr(look, field) for look in group}) > 1  # noqa: E731
    by_area = sorted((look.height * look.width, look.height, look.width) for look in looks)
    places = {'smallest': 0, 'median': len(by_area) // 2, 'largest': -1} if by_area else {}
    return Report(
        classes=classes,
        formats=dict(collections.Counter(look.format for look in looks).most_common()),
        sizes={name: list(by_area[place][1:]) for name, place in places.items()},
        unreadable=unreadable,
        across_splits=[_names(group) for group in equal if differs(group, 'split')],
        conflicts=[_names(group) for group in equal if differs(group, 'label')],
        within_splits=[
            _names(group)
            for group in equal
            if not differs(group, 'split') and not differs(group, 'label')
        ],
        near_duplicates=[_names(group) for group in _near_groups(looks)],
        odd_sizes=[look.name for look in looks if _is_odd(look)],
        few_examples=[entry['name'] for entry in classes if entry['train'] < _FEW_EXAMPLES],
        not_in_validation=[entry['name'] for entry in classes if not entry['val']],
    )


def _names(looks: list[Look]) -> list[str]:
    return [f'{look.split}: {look.name}' for look in looks]


def _equal_groups(looks: list[Look]) -> Iterator[np.ndarray]:
    digests = np.frombuffer(b''.join(look.digest for look in looks), np.uint64).reshape(-1, 4)
    return groups_of_equals(digests)


def _near_groups(looks: list[Look]) -> list[list[Look]]:
    """Returns groups of near duplicates; of equal ones, the first stands for all."""
    first_of = {}
    for look in looks:
        first_of.setdefault(look.digest, look)
    unique = list(first_of.values())
    if not unique:
        return []
    pairs = near_pairs(np.stack([look.thumbnail for look in unique]))
    return [[unique[i] for i in group] for group in linked(pairs)]


def _is_odd(look: Look) -> bool:
    shorter, longer = sorted((look.height, look.width))
    return shorter < _SMALL_SIDE or longer >= _LONG_RATIO * shorter


def describe_report(report: Report, classes_shown: int = _CLASSES_SHOWN) -> Iterator[str]:
    """Yields the lines of a report for the terminal."""
    shown = [(entry['name'], *(entry[split] for split in SPLITS)) for entry in report.classes]
    totals = [sum(numbers) for numbers in list(zip(*shown, strict=True))[1:]]
    shown = [*shown[:classes_shown], ('all', *totals)]
    rows = [(name, *(f'{count:,}' for count in counts)) for name, *counts in shown]
    *classes, total = table([('class', *SPLITS), *rows], '<>>')
    yield from classes
    if len(report.classes) > classes_shown:
        yield f'... and {len(report.classes) - classes_shown} more classes; --json has all.'
    yield total
    yield 'formats: ' + ', '.join(f'{count:,} {name}' for name, count in report.formats.items())
    sizes = (f'{name} {h} x {w}' for name, (h, w) in report.sizes.items())
    yield f'height x width: {", ".join(sizes)}'
    unreadable = [f'{entry.split}: {entry.name} ({entry.reason})' for entry in report.unreadable]
    yield from _finding('WRONG', 'files cannot be read', unreadable)
    yield from _finding('WRONG', 'pictures are in training and in validation', report.across_splits)
    yield from _finding('WRONG', 'pictures have several labels', report.conflicts)
    yield from _finding('remark', 'pictures are there more than once', report.within_splits)
    yield from _finding('remark', 'groups look almost the same', report.near_duplicates)
    yield from _finding('remark', 'images are tiny or very long', report.odd_sizes)
    yield from _finding('remark', 'classes have under 10 training images', report.few_examples)
    yield from _finding('remark', 'classes are not in validation', report.not_in_validation)
    yield 'Something is wrong.' if report.is_wrong else 'Nothing is wrong.'


def _finding(kind: str, what: str, items: Sequence[str | list[str]]) -> Iterator[str]:
    if not items:
        return
    yield f'{kind}: {len(items):,} {what}'
    for item in items[:_NAMES_SHOWN]:
        names = [item] if isinstance(item, str) else item
        more = f' = ... {len(names) - 4} more' if len(names) > 4 else ''
        yield f'  {" = ".join(names[:4])}{more}'
    if len(items) > _NAMES_SHOWN:
        yield f'  ... and {len(items) - _NAMES_SHOWN:,} more; --json has all.'
