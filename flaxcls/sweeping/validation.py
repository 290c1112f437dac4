"""What the file of a sweep has to be, before its runs are made."""

from collections.abc import Mapping
from typing import Any

from flaxcls.config.options import OPTIONS
from flaxcls.errors import UserError
from flaxcls.sweeping.definition import Options, Sweep, axis_file
from flaxcls.system.text import did_you_mean


def check_sweep(sweep: 'Sweep', overrides: 'Options') -> None:
    """Raises UserError at the first axis, level, option or seed that does not fit.

    Args:
      sweep: as its file defines it.
      overrides: of the command, for every run.
    """
    _check_axes(sweep.axes)
    _check_parts(sweep)
    _check_seeds(sweep)
    _check_options(sweep, overrides)


def _check_axes(axes: Any) -> None:
    _require_mapping('axes', axes, '{axis: {level: {option: value}}}')
    if not axes:
        raise UserError('the sweep has no axes; name at least one, with its levels.')
    for axis, levels in axes.items():
        _require_name(axis)
        _require_mapping(f'the axis {axis!r}', levels, '{level: {option: value}}')
        if not levels:
            raise UserError(f'the axis {axis!r} has no levels; name at least one.')
        for level, chosen in levels.items():
            _require_name(level)
            _require_mapping(f'the level {level!r} of {axis!r}', chosen, '{option: value}')
            for option in chosen:
                if not isinstance(option, str):
                    raise UserError(f'{option!r} is not an option; name one, as in num_epochs.')
    files = [axis_file(axis).casefold() for axis in axes]
    if len(set(files)) < len(files):
        raise UserError(
            f'two of the axes {", ".join(axes)} are the same in names of files; rename one of them.'
        )


def _require_mapping(what: str, value: Any, form: str) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f'{what} is {value!r}; write it as {form}.')


def _require_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise UserError(f'{name!r} is not the name of an axis or a level; write it as text.')


def _check_parts(sweep: 'Sweep') -> None:
    _require_mapping('overrides', sweep.overrides, '{option: value}')
    parts = [('baseline', sweep.base), *(('skip', part) for part in sweep.skip)]
    for what, part in parts:
        _require_mapping(what, part, '{axis: level}')
        for axis, level in part.items():
            if axis not in sweep.axes:
                raise UserError(
                    f'{what} names {axis!r}, which is not an axis{_near(axis, sweep.axes)}.'
                )
            if not isinstance(level, str) or level not in sweep.axes[axis]:
                remedy = _near(level, sweep.axes[axis])
                raise UserError(
                    f'{what} names {level!r}, which is not a level of {axis!r}{remedy}.'
                )


def _near(word: Any, known: Mapping[str, Any]) -> str:
    return did_you_mean(str(word), list(known)) or f'; there are {", ".join(known)}'


def _check_seeds(sweep: 'Sweep') -> None:
    try:
        seeds = sweep.seed_list
    except TypeError:
        seeds = [sweep.seeds]
    if not all(type(seed) is int and OPTIONS['seed'].accepts(seed) for seed in seeds):
        raise UserError(
            f'seeds={sweep.seeds!r} must be how many there are, or a list of whole numbers '
            f'{OPTIONS["seed"].requirement}.'
        )
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f'seeds={sweep.seeds!r} must be at least one seed, and none twice.')


def _check_options(sweep: 'Sweep', overrides: 'Options') -> None:
    """Refuses an option that two axes set, or an axis and the command line."""
    owner: dict[str, str] = {}
    for axis, levels in sweep.axes.items():
        for key in {key for chosen in levels.values() for key in chosen}:
            if key == 'seed':
                raise UserError(f'the axis {axis!r} sets the seed; give seeds=... for that.')
            if key in owner:
                raise UserError(
                    f'{key} is set by the axes {owner[key]!r} and {axis!r}; make one of them.'
                )
            if key in overrides:
                raise UserError(f'--config.{key} is set by the axis {axis!r}; leave it out.')
            owner[key] = axis
    for where in (sweep.overrides, overrides):
        if 'seed' in where:
            raise UserError('a sweep does not override the seed; give seeds=... in its file.')
