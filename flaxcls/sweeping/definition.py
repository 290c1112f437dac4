"""What a sweep is, and the runs that follow from it, checked before any of them begins."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flaxcls.errors import UserError
from flaxcls.system.files import LONGEST_NAME, shorten


def axis_file(axis: str) -> str:
    """Returns the name of an axis in names of files."""
    return re.sub(r'[^\w.-]+', '_', axis)


Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs of one config that differ in the levels of named axes, and in their seeds.

    Attributes:
      config: an experiment, as for `flaxcls train --config`: NAME, FILE, or either:VARIANT.
      axes: {axis: {level: {option: value}}}; runs are made of the product of all axes. `values` and
        `zipped` write levels shortly.
      overrides: {option: value} of all runs.
      baseline: {axis: level} that differences are taken from. Axes that are not named stay as they
        are, so that {'shortcut': 'A'} compares each depth with the same depth. None: the first
        level of every axis.
      seeds: how many, from 0 on; or which.
      skip: combinations that are left out, each {axis: level}; the axes not named are free.
      title, text: of the file's docstring; `load_sweep` fills them in.
    """

    config: str
    axes: Mapping[str, Mapping[str, Options]]
    overrides: Options = dataclasses.field(default_factory=dict)
    baseline: Mapping[str, str] | None = None
    seeds: int | Sequence[int] = 3
    skip: Sequence[Mapping[str, str]] = ()
    title: str = ''
    text: str = ''

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @property
    def cells(self) -> list['Cell']:
        """Every combination of levels that is not skipped."""
        product = itertools.product(*self.axes.values())
        cells = [Cell(tuple(zip(self.axes, levels, strict=True))) for levels in product]
        return [cell for cell in cells if not any(cell.matches(part) for part in self.skip)]

    def base_of(self, cell: 'Cell') -> 'Cell':
        """Returns the cell that this one is compared with; it may be itself, or skipped."""
        return Cell(tuple((axis, self.base.get(axis, level)) for axis, level in cell.levels))

    @property
    def base(self) -> Mapping[str, str]:
        """The baseline, filled in: {axis: level}."""
        if self.baseline is not None:
            return self.baseline
        return {axis: next(iter(levels)) for axis, levels in self.axes.items()}

    def common_options(self, overrides: Options | None = None) -> dict[str, Any]:
        """Returns the options of all runs, with further ones of the command."""
        return {**self.overrides, **(overrides or {})}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A combination of levels: ((axis, level), ...)."""

    levels: tuple[tuple[str, str], ...]

    def matches(self, part: Mapping[str, str]) -> bool:
        """Returns whether it has all the levels of `part`."""
        return part.items() <= dict(self.levels).items()

    @property
    def folder(self) -> str:
        """A name that file systems take, which may be that of another cell."""
        name = re.sub(r'[^\w.=,+-]+', '_', str(self))
        return shorten(name, str(self)) if len(name) > LONGEST_NAME else name

    def __str__(self) -> str:
        return ','.join(f'{axis}={level}' for axis, level in self.levels)


@dataclasses.dataclass(frozen=True, eq=False)
class SweepRun:
    """One run of a sweep, equal to itself alone.

    Attributes:
      cell: the level of each axis.
      seed: from which weights, order and random draws of the run follow.
      experiment: the sweep's config file, as for `load_config`.
      overrides: of its config, with the seed.
      options: all, by dotted key, as these make them.
      workdir: where it lives.
    """

    cell: Cell
    seed: int
    experiment: str
    overrides: Options
    options: Options
    workdir: pathlib.Path

    def __str__(self) -> str:
        return f'{self.cell}, seed {self.seed}'


def values(option: str, choices: Sequence[Any]) -> dict[str, Options]:
    """Returns levels that set one option, named as the values are.

    Raises:
      UserError: a value comes twice.
    """
    return zipped([_name(choice) for choice in choices], {option: choices})


def zipped(names: Sequence[str], choices: Mapping[str, Sequence[Any]]) -> dict[str, Options]:
    """Returns levels that set several options, which change together.

    Args:
      names: what each level is called.
      choices: {option: its value at each level}.

    Raises:
      UserError: a name comes twice, or an option has fewer or more values than there are names.
    """
    for name in names:
        if list(names).count(name) > 1:
            raise UserError(
                f'the level {name!r} comes twice among {", ".join(names)}; once will do.'
            )
    for option, each in choices.items():
        if len(each) != len(names):
            raise UserError(
                f'{option} has {len(each)} values for the {len(names)} levels {", ".join(names)}; '
                'give one for each.'
            )
    return {
        name: {option: each[place] for option, each in choices.items()}
        for place, name in enumerate(names)
    }


def _name(value: Any) -> str:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return '-'.join(map(str, value)) if several else str(value)
