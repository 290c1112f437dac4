"""What a sweep is, and the runs that follow from it, checked before any of them begins."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from flaxcls.config import OBSERVING_OPTIONS, differences, from_json, options
from flaxcls.errors import UserError
from flaxcls.experiment_files import load_config, load_module, told_of
from flaxcls.output_files import LONGEST_NAME, shorten
from flaxcls.sweeping.checks import check_sweep
from flaxcls.validation import validate

Options = Mapping[str, Any]
_CONFIG_FILE = 'config.json'


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs of one config that differ in the levels of named axes, and in their seeds.

    Attributes:
      config: an experiment file, or FILE:VARIANT, as for `flaxcls.main --config`.
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
        """Tells whether it has all the levels of `part`."""
        return part.items() <= dict(self.levels).items()

    @property
    def folder(self) -> str:
        """A name that file systems take, which may be that of another cell."""
        name = re.sub(r'[^\w.=,+-]+', '_', str(self))
        return shorten(name, str(self)) if len(name) > LONGEST_NAME else name

    def __str__(self) -> str:
        return ','.join(f'{axis}={level}' for axis, level in self.levels)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run of a sweep, equal to itself alone.

    Attributes:
      cell: its levels.
      seed: of the run.
      overrides: of the sweep's config, with the seed.
      config: that they make.
      workdir: where it lives.
    """

    cell: Cell
    seed: int
    overrides: Options
    config: ConfigDict
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
      names: of the levels.
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


def load_sweep(path: str) -> Sweep:
    """Returns the sweep that `get_sweep()` of a file returns, with the file's docstring.

    Raises:
      UserError: there is no such file, or no sweep in it.
    """
    module = load_module(path, 'sweep', 'get_sweep')
    with told_of(path, 'sweep'):
        sweep = module.get_sweep()
    if not isinstance(sweep, Sweep):
        raise UserError(
            f'get_sweep() of {path!r} returns {type(sweep).__name__}; let it return '
            'flaxcls.sweeping.Sweep(...).'
        )
    title, _, text = (module.__doc__ or pathlib.Path(path).stem).strip().partition('\n')
    return dataclasses.replace(sweep, title=title.strip(), text=text.strip())


def expand(sweep: Sweep, root: pathlib.Path, overrides: Options | None = None) -> list[Run]:
    """Returns all runs, seed by seed, so that a sweep that is stopped has something of each cell.

    Args:
      sweep: of a file.
      root: the folder of the sweep's workdirs.
      overrides: further ones for every run.

    Raises:
      UserError: an axis, a level, an option, a value or a seed does not fit.
    """
    check_sweep(sweep, overrides or {})
    common = sweep.common_options(overrides)
    cells = sweep.cells
    if not cells:
        raise UserError('all combinations of the axes are skipped; leave some.')
    configs = {cell: _load(sweep, cell, common) for cell in cells}
    _require_different(configs)
    # Some file systems take 'a' and 'A' for one.
    if len({cell.folder.casefold() for cell in cells}) < len(cells):
        raise UserError(
            'two levels have names that are the same in names of files; use letters and digits, '
            'and not the same word in capital and small letters.'
        )
    runs = []
    for seed, cell in itertools.product(sweep.seed_list, cells):
        given = {**common, **_level_options(sweep, cell), 'seed': seed}
        config = configs[cell].copy_and_resolve_references()
        config.seed = seed
        runs.append(Run(cell, seed, given, config, root / cell.folder / f'seed{seed}'))
    return runs


def _load(sweep: Sweep, cell: Cell, common: Options) -> ConfigDict:
    try:
        config = load_config(sweep.config, {**common, **_level_options(sweep, cell)})
        validate(config)
    except UserError as error:
        raise UserError(f'at {cell}: {error}') from None
    return config


def _level_options(sweep: Sweep, cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for axis, level in cell.levels:
        found |= sweep.axes[axis][level]
    return found


def _require_different(configs: Mapping[Cell, ConfigDict]) -> None:
    cells: dict[tuple, Cell] = {}
    for cell, config in configs.items():
        other = cells.setdefault(tuple(options(config)), cell)
        if other != cell:
            raise UserError(
                f'{other} and {cell} are the same config; change one of them, or leave it out.'
            )


def require_same_configs(runs: Sequence[Run]) -> None:
    """Raises UserError if a workdir has another run already, before any of them begins."""
    for run in runs:
        path = run.workdir / _CONFIG_FILE
        if not path.is_file():
            continue
        for key, old, new in _changes(from_json(path.read_text(encoding='utf-8')), run.config):
            raise UserError(
                f'config.{key} is {new!r}, but the run in {str(run.workdir)!r} has {old!r}; choose '
                'another --workdir, or remove that one.'
            )


def _changes(old: ConfigDict, new: ConfigDict) -> Iterator[tuple[str, Any, Any]]:
    """Yields (option, old, new) of what makes another run; what the data fills in is not told."""
    filled_in = {'model.num_classes', 'data.image_size'}
    given = dict(options(new))
    for key, (before, now) in differences(old, new).items():
        if key not in OBSERVING_OPTIONS and not (key in filled_in and given[key] is None):
            yield key, before, now
