"""From the file of a sweep to its runs, checked before any of them begins."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flaxcls.config.config_dict import flatten
from flaxcls.config.files import as_user_error, default_workdir, load_config, load_module
from flaxcls.config.options import keys_of
from flaxcls.config.validation import validate
from flaxcls.config.workdir import CONFIG_FILE, load_stored_config
from flaxcls.errors import UserError
from flaxcls.sweeping.definition import Cell, Options, Sweep, SweepRun
from flaxcls.sweeping.validation import check_sweep


def load_sweep(path: str) -> Sweep:
    """Returns the sweep that `get_sweep()` of a file returns, with the file's docstring.

    Raises:
      UserError: there is no such file, or no sweep in it.
    """
    module = load_module(path, 'sweep', 'get_sweep')
    with as_user_error(path, 'sweep'):
        sweep = module.get_sweep()
    if not isinstance(sweep, Sweep):
        raise UserError(
            f'get_sweep() of {path!r} returns {type(sweep).__name__}; let it return '
            'flaxcls.sweeping.Sweep(...).'
        )
    title, _, text = (module.__doc__ or pathlib.Path(path).stem).strip().partition('\n')
    return dataclasses.replace(sweep, title=title.strip(), text=text.strip())


def open_sweep(
    path: str, workdir: str | None = None, overrides: Options | None = None
) -> tuple[Sweep, list[SweepRun], pathlib.Path]:
    """Returns a sweep, its runs, and the folder of their workdirs.

    Args:
      path: a sweep of `flaxcls configs`, or a file.
      workdir: the folder; None: runs/sweeps/ and a name that follows from the other arguments.
      overrides: {dotted key: value}, set in every run.

    Raises:
      UserError: there is no such sweep, or something in it does not fit, or the folder has others.
    """
    sweep = load_sweep(path)
    name = pathlib.Path(default_workdir(path, overrides or {})).name
    root = pathlib.Path(workdir or f'runs/sweeps/{name}').expanduser()
    runs = expand(sweep, root, overrides)
    require_same_configs(runs)
    return sweep, runs, root


def expand(sweep: Sweep, root: pathlib.Path, overrides: Options | None = None) -> list[SweepRun]:
    """Returns all runs, seed by seed, so that a sweep that is stopped has something of each cell.

    Args:
      sweep: as the file defines it.
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
    options = {cell: _load_options(sweep, cell, common) for cell in cells}
    _require_different(options)
    # Some file systems take 'a' and 'A' for one.
    if len({cell.folder.casefold() for cell in cells}) < len(cells):
        raise UserError(
            'two levels have names that are the same in names of files; use letters and digits, '
            'and not the same word in capital and small letters.'
        )
    runs = []
    for seed, cell in itertools.product(sweep.seed_list, cells):
        given = {**common, **_level_options(sweep, cell), 'seed': seed}
        workdir = root / cell.folder / f'seed{seed}'
        all_options = options[cell] | {'seed': seed}
        runs.append(SweepRun(cell, seed, sweep.config, given, all_options, workdir))
    return runs


def _load_options(sweep: Sweep, cell: Cell, common: Options) -> dict[str, Any]:
    try:
        config = load_config(sweep.config, {**common, **_level_options(sweep, cell)})
        validate(config)
    except UserError as error:
        raise UserError(f'at {cell}: {error}') from None
    return dict(flatten(config))


def _level_options(sweep: Sweep, cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for axis, level in cell.levels:
        found |= sweep.axes[axis][level]
    return found


def _require_different(options: Mapping[Cell, Options]) -> None:
    cells: dict[tuple, Cell] = {}
    for cell, values in options.items():
        other = cells.setdefault(tuple(values.items()), cell)
        if other != cell:
            raise UserError(
                f'{other} and {cell} are the same config; change one of them, or leave it out.'
            )


def require_same_configs(runs: Sequence[SweepRun]) -> None:
    """Raises UserError if a workdir has another run already, before any of them begins."""
    for run in runs:
        if not (run.workdir / CONFIG_FILE).is_file():
            continue
        stored = dict(flatten(load_stored_config(run.workdir)))
        for key, old, new in _changes(stored, run.options):
            raise UserError(
                f'config.{key} is {new!r}, but the run in {str(run.workdir)!r} has {old!r}; choose '
                'another --workdir, or remove that one.'
            )


def _changes(old: Options, new: Options) -> Iterator[tuple[str, Any, Any]]:
    """Yields (option, old, new) of what makes another run; what the data fills in is left out."""
    filled_in = {key for key in ('model.num_classes', 'data.image_size') if new.get(key) is None}
    for key in old:
        if old[key] != new.get(key) and key not in keys_of('neutral') | filled_in:
            yield key, old[key], new[key]
