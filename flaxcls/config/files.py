"""Loading of configs: experiment files, their variants, overrides; and where such a run lives."""

import ast
import os
import pathlib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from flaxcls.config.config_dict import add_missing_options, default_config, flatten, set_option
from flaxcls.config.extensions import as_user_error, load_extensions, names_of, run_file
from flaxcls.config.options import OPTIONS, options_with
from flaxcls.errors import UserError
from flaxcls.system.files import LONGEST_NAME, shorten
from flaxcls.system.text import did_you_mean

_PACKAGE = pathlib.Path(__file__).parents[1]
_KINDS = {'config': 'experiments', 'sweep': 'experiments/sweeps'}  # Where flaxcls has its own.


class Experiment(NamedTuple):
    """An experiment or sweep that comes with flaxcls: its name, first line, and variants."""

    name: str
    title: str
    variants: tuple[str, ...]


def load_config(
    path: str | os.PathLike | None, overrides: Mapping[str, Any] | None = None
) -> ConfigDict:
    """Returns the config of the experiment `path` with overrides.

    Args:
      path: the name of an experiment that comes with flaxcls, such as resnet50, or a Python file
        that defines `get_config()`. NAME:VARIANT and FILE:VARIANT choose one of its `VARIANTS`,
        which `get_config(variant)` takes. None and default: the defaults of all options.
      overrides: dotted key -> value, or the value's text as on the command line.

    Raises:
      UserError: no such experiment, file or variant, an unknown key, or a value of another type.
    """
    overrides = dict(overrides or {})
    if path in (None, 'default'):
        config, file = default_config(), None
    else:
        config, file = _experiment(os.fspath(path))
    # First, since others may be the extensions' own.
    config.extensions = load_extensions(overrides.pop('extensions', config.extensions), file)
    add_missing_options(config, names_of(config.extensions))
    for key, value in overrides.items():
        set_option(config, key, value)
    return config


def split_variant(path: str) -> tuple[str, str | None]:
    """Returns (file or name, variant); the variant is None where there is none."""
    file, colon, variant = path.rpartition(':')
    return (file, variant) if colon and not os.path.exists(path) else (path, None)


def list_experiments(kind: str = 'config') -> list[Experiment]:
    """Returns what comes with flaxcls, by name; nothing is imported.

    Args:
      kind: config, or sweep.
    """
    found = []
    for path in sorted(_shipped_folder(kind).glob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        variants = next(
            (
                ast.literal_eval(node.value)
                for node in tree.body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'VARIANTS'
            ),
            (),
        )
        title = (ast.get_docstring(tree) or '').partition('\n')[0]
        found.append(Experiment(path.stem, title, tuple(variants)))
    return found


def _shipped_folder(kind: str) -> pathlib.Path:
    """Returns the folder in the installed package, or in a checkout the one beside the package."""
    installed = _PACKAGE / _KINDS[kind]
    return installed if installed.is_dir() else _PACKAGE.parent / _KINDS[kind]


def _find_file(path: str, kind: str) -> str:
    """Returns the file that a name or path stands for.

    A file in its place is taken first. experiments/NAME.py, where there is none, is flaxcls's own.

    Raises:
      UserError: there is no such file.
    """
    if os.path.isfile(path):
        return path
    shipped = {entry.name: f'{_KINDS[kind]}/{entry.name}.py' for entry in list_experiments(kind)}
    name = pathlib.Path(path).stem
    if path in shipped or path == shipped.get(name):
        return str(_shipped_folder(kind) / f'{name}.py')
    if os.path.dirname(path) or path.endswith('.py'):
        folder = os.path.dirname(path) or '.'
        files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        names = [os.path.join(folder, file) for file in files if file.endswith('.py')]
        raise UserError(
            f'there is no {kind} file {path!r}{did_you_mean(path, [*names, *shipped.values()])}.'
        )
    raise UserError(
        f'there is no {kind} {path!r}{did_you_mean(path, list(shipped))}; flaxcls configs lists '
        'them, and a file ends in .py.'
    )


def _experiment(path: str) -> tuple[ConfigDict, str]:
    """Returns the config of an experiment, and its file."""
    path, variant = split_variant(path)
    module = load_module(path, 'config', 'get_config')
    with as_user_error(path, 'config'):
        if variant is not None:
            _require_variant(path, variant, getattr(module, 'VARIANTS', ()))
        config = module.get_config() if variant is None else module.get_config(variant)
    _require_all_options(config, path)
    return config, _find_file(path, 'config')


def load_module(path: str, kind: str, function: str) -> types.ModuleType:
    """Returns the Python file that `path` stands for, run.

    Args:
      path: the file, or the name of one that comes with flaxcls.
      kind: config or sweep.
      function: that it has to define.

    Raises:
      UserError: there is no such file, it does not run, or has no such function.
    """
    path = _find_file(path, kind)
    if not path.endswith('.py'):
        raise UserError(f'{path!r} is not a Python file with a {function}() function.')
    module = run_file(path, kind)
    if not hasattr(module, function):
        raise UserError(f'the {kind} file {path!r} has no {function}() function; define it.')
    return module


def _require_variant(path: str, variant: str, variants: Iterable[str]) -> None:
    variants = list(variants)
    if not variants:
        raise UserError(f'{path!r} has no variants; leave {":" + variant!r} out.')
    if variant not in variants:
        remedy = did_you_mean(variant, variants) or f'; choose from {", ".join(variants)}'
        raise UserError(f'{path!r} has no variant {variant!r}{remedy}.')


def _require_all_options(config: Any, path: str) -> None:
    if not isinstance(config, ConfigDict):
        raise UserError(
            f'get_config() of {path!r} returns {type(config).__name__}; let it return '
            'flaxcls.default_config(), modified.'
        )
    theirs = dict(flatten(config))
    for key in theirs:
        if key not in OPTIONS:
            raise UserError(
                f'{path!r} adds the key {key!r}, which flaxcls does not know; add it with '
                'flaxcls.add_option in an extension.'
            )
    for key in options_with(()):
        if key not in theirs:
            raise UserError(
                f'the config of {path!r} lacks {key!r}; begin with flaxcls.default_config().'
            )


def default_workdir(path: str | None, overrides: Mapping[str, str]) -> str:
    """Returns a folder below runs/ that differs wherever the experiment does.

    So another override is another run, and the same command resumes the same one.
    """
    file, variant = split_variant(path) if path else ('default', None)
    parts = [pathlib.Path(file).stem, *([variant] if variant else [])]
    parts += [f'{key}={value}' for key, value in sorted(overrides.items())]
    exact = '-'.join(parts)
    name = re.sub(r'[^\w.=,-]+', '_', exact)
    if name != exact or len(name) > LONGEST_NAME:  # Two names may have become one.
        name = shorten(name, exact)
    return f'runs/{name}'
