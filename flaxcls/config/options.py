"""Every option of a run: the locked defaults, and how a value is set, stored and compared."""

import ast
import json
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from flaxcls.config.defaults import default_config, default_options, option_comments, options
from flaxcls.errors import UserError
from flaxcls.system.text import did_you_mean


def describe_options() -> str:
    """Returns a line for each option: key, default, and what `default_config` says of it."""
    comments, lines = option_comments(), []
    for key, value in default_options().items():
        lines.append(f'  --config.{key}={value}'.ljust(44) + f'  {comments[key]}')
    return '\n'.join(lines)


def set_option(config: ConfigDict, key: str, value: Any) -> None:
    """Sets the option with dotted name `key`, converting `value` to the option's type.

    Raises:
      UserError: there is no such option, or the value is of another type.
    """
    defaults = default_options()
    if key not in defaults:
        raise UserError(f'there is no option config.{key}{did_you_mean(key, list(defaults))}.')
    *parents, name = key.split('.')
    for parent in parents:
        config = config[parent]
    if (value is None or value == 'None') and defaults[key] is None:
        config[name] = None
        return
    kind = config.get_type(name)
    try:
        config[name] = _convert(value, kind)
    except (ValueError, SyntaxError, TypeError, KeyError, OverflowError):
        raise UserError(
            f'config.{key}={value!r} is not {_KINDS[kind]}; the default is {defaults[key]!r}.'
        ) from None


_KINDS = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    str: 'a text',
    tuple: 'a list of numbers such as 3,4,6',
}


def _convert(value: Any, kind: type) -> Any:
    if kind is str:
        if not isinstance(value, str):
            raise TypeError
        return value
    if kind is tuple:
        value = ast.literal_eval(value) if isinstance(value, str) else value
        value = tuple(value) if isinstance(value, Sequence) else (value,)
        if not all(isinstance(item, int | float) for item in value):
            raise TypeError
        return value
    if kind is bool:
        return {'true': True, '1': True, 'false': False, '0': False}[str(value).lower()]
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if kind is float:
        return number
    if number != int(number):
        raise ValueError
    # Whole numbers beyond 2**53 would lose digits on the way through float.
    return int(value) if str(value).lstrip('+-').isdigit() else int(number)


def to_json(config: ConfigDict) -> str:
    """Returns the config as JSON text that `from_json` reads back."""
    return config.to_json(indent=2) + '\n'


def from_json(text: str) -> ConfigDict:
    """Returns the config written by `to_json`.

    Raises:
      UserError: the text is no JSON, or has a key that this version does not know.
    """
    config = default_config()
    try:
        stored = ConfigDict(json.loads(text))
    except (ValueError, AttributeError, TypeError):
        raise UserError(
            'the stored config is damaged; put back a copy of config.json, or train in a new '
            'workdir.'
        ) from None
    for key, value in options(stored):
        if key == 'model.remat' and isinstance(value, bool):  # As it was once written.
            value = 'norm' if value else 'none'
        set_option(config, key, value)
    return config


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns the options that differ: dotted key -> (old value, new value)."""
    new_values = dict(options(new))
    return {
        key: (value, new_values[key]) for key, value in options(old) if value != new_values[key]
    }


def as_flag(value: Any) -> str:
    """Returns the value of an option as the command line takes it."""
    if isinstance(value, tuple):
        return ','.join(map(str, value)) if value else '()'
    return str(value)
