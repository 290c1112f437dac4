"""From the file of a sweep to its runs, checked before any of them begins."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from flaxcls.config.config_dict import differences, flatten, from_json
from flaxcls.config.files import as_user_error, load_config, load_module
from flaxcls.config.options import keys_of
from flaxcls.config.validation import validate
from flaxcls.errors import UserError
from flaxcls.sweeping.definition import Cell, Options, Sweep, SweepRun
from flaxcls.sweeping.validation import check_sweep

_CONFIG_FILE = 'config.json'


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


def expand(sweep: Sweep, root: pathlib.Path, overrides: Options | None = None) -> list[SweepRun]:
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
        runs.append(SweepRun(cell, seed, given, config, root / cell.folder / f'seed{seed}'))
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
        other = cells.setdefault(tuple(flatten(config)), cell)
        if other != cell:
            raise UserError(
                f'{other} and {cell} are the same config; change one of them, or leave it out.'
            )


def require_same_configs(runs: Sequence[SweepRun]) -> None:
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
    given = dict(flatten(new))
    for key, (before, now) in differences(old, new).items():
        if key not in keys_of('neutral') and not (key in filled_in and given[key] is None):
            yield key, before, now
