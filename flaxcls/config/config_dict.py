"""The options of a run as one ConfigDict: made, set, flattened, compared, written and read."""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from flaxcls.config.options import OPTIONS
from flaxcls.errors import UserError
from flaxcls.system.text import did_you_mean

# How values were once stored -> what they are now.
_STORED_AS = {'model.remat': {True: 'norm', False: 'none'}}


def default_config() -> ConfigDict:
    """Returns the locked config that holds every option; experiments change values, not keys.

    An option whose value is None is filled in, or left to the model's paper.
    """
    config = ConfigDict()
    for key, row in OPTIONS.items():
        *parents, name = key.split('.')
        section = config
        for parent in parents:
            if parent not in section:
                section[parent] = ConfigDict()
            section = section[parent]
        section[name] = placeholder(row.kind) if row.default is None else row.default
    return config.lock()


def flatten(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every option."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def set_option(config: ConfigDict, key: str, value: Any) -> None:
    """Sets the option with dotted name `key`, converting `value` to the option's type.

    Raises:
      UserError: there is no such option, or the value is of another type.
    """
    if key not in OPTIONS:
        raise UserError(f'there is no option config.{key}{did_you_mean(key, list(OPTIONS))}.')
    *parents, name = key.split('.')
    section = functools.reduce(lambda section, parent: section[parent], parents, config)
    section[name] = OPTIONS[key].parse(value)


def to_json(config: ConfigDict) -> str:
    """Returns the config as JSON text that `from_json` reads back."""
    return config.to_json(indent=2) + '\n'


def from_json(text: str) -> ConfigDict:
    """Returns the config written by `to_json`, by this version or an earlier one.

    Raises:
      UserError: the text is not JSON, or has a key that this version does not know.
    """
    try:
        stored = dict(flatten(ConfigDict(json.loads(text))))
    except (ValueError, AttributeError, TypeError):
        raise UserError(
            'the stored config is damaged; put back a copy of config.json, or train in a new '
            'workdir.'
        ) from None
    config = default_config()
    for key, value in stored.items():
        if isinstance(value, bool):
            value = _STORED_AS.get(key, {}).get(value, value)
        set_option(config, key, value)
    return config


def differences(old: ConfigDict, new: ConfigDict) -> Mapping[str, tuple[Any, Any]]:
    """Returns the options that differ: dotted key -> (old value, new value)."""
    new_values = dict(flatten(new))
    return {
        key: (value, new_values[key]) for key, value in flatten(old) if value != new_values[key]
    }
