"""The options of a run as one ConfigDict: made, set, flattened, compared, written and read."""

import functools
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from flaxcls.config.extensions import load_extensions, names_of
from flaxcls.config.options import options_with
from flaxcls.errors import UserError
from flaxcls.system.text import did_you_mean

# What options were once called, and how their values were stored -> what they are now.
_RENAMED = {'tensorboard': 'trackers'}
_STORED_AS = {
    'model.remat': {True: 'norm', False: 'none'},
    'trackers': {True: 'tensorboard', False: ''},
}


def default_config(extensions: str = '') -> ConfigDict:
    """Returns the locked config that holds every option; experiments change values, not keys.

    An option whose value is None is filled in, or left to the model's paper.

    Args:
      extensions: files or modules, see config.extensions, whose options it has as well.

    Raises:
      UserError: an extension cannot be loaded.
    """
    return _config_of(load_extensions(extensions))


def _config_of(extensions: str) -> ConfigDict:
    """Returns the default config with these extensions, which are loaded."""
    config = ConfigDict().lock()
    add_missing_options(config, names_of(extensions))
    config.extensions = extensions
    return config


def add_missing_options(config: ConfigDict, extensions: Collection[str]) -> None:
    """Adds the defaults of those options of flaxcls and of extensions that a config lacks."""
    present = dict(flatten(config))
    with config.unlocked():
        for key, row in options_with(extensions).items():
            if key in present:
                continue
            *parents, name = key.split('.')
            section = config
            for parent in parents:
                if parent not in section:
                    section[parent] = ConfigDict()
                section = section[parent]
            section[name] = placeholder(row.kind) if row.default is None else row.default


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
    known = options_with(names_of(config.extensions))
    if key not in known:
        new = f'; it is config.{_RENAMED[key]} now' if key in _RENAMED else ''
        raise UserError(f'there is no option config.{key}{new or did_you_mean(key, list(known))}.')
    *parents, name = key.split('.')
    section = functools.reduce(lambda section, parent: section[parent], parents, config)
    section[name] = known[key].parse(value)


def to_json(config: ConfigDict) -> str:
    """Returns the config as JSON text that `from_json` reads back."""
    return config.to_json(indent=2) + '\n'


def from_json(text: str) -> ConfigDict:
    """Returns the config written by `to_json`, by this version or an earlier one.

    Its extensions have to be loaded.

    Raises:
      UserError: the text is not JSON, or has a key that this version does not know.
    """
    stored = _parse(text)
    config = _config_of(stored.pop('extensions', ''))
    for key, value in stored.items():
        key = _RENAMED.get(key, key)
        if isinstance(value, bool):
            value = _STORED_AS.get(key, {}).get(value, value)
        set_option(config, key, value)
    return config


def stored_extensions(text: str) -> str:
    """Returns config.extensions of the config written by `to_json`; errors as `from_json`."""
    return _parse(text).get('extensions', '')


def _parse(text: str) -> dict[str, Any]:
    try:
        return dict(flatten(ConfigDict(json.loads(text))))
    except (ValueError, AttributeError, TypeError):
        raise UserError(
            'the stored config is damaged; put back a copy of config.json, or train in a new '
            'workdir.'
        ) from None


def differences(old: ConfigDict, new: ConfigDict) -> Mapping[str, tuple[Any, Any]]:
    """Returns the options that differ: dotted key -> (old value, new value)."""
    new_values = dict(flatten(new))
    return {
        key: (value, new_values.get(key))
        for key, value in flatten(old)
        if value != new_values.get(key)
    }
