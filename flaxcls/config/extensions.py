"""Extensions: Python files that add networks, losses, sources and the like, and their options.

config.extensions names files or modules. Loaded, each is called NAME.py@HASH, after its content. A
run keeps a copy, from which every command loads what the run was made with. Code that another user
has written is not run unasked: an extension of a run is loaded if this user has named that very
content before, or with --trust_extensions.
"""

import collections
import contextlib
import hashlib
import importlib.util
import os
import pathlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import platformdirs

from flaxcls.errors import UserError

FOLDER = 'extensions'  # Of a workdir.
TRUST = 'FLAXCLS_TRUST_EXTENSIONS'  # Environment variable that --trust_extensions sets.
_HASH_DIGITS = 16


class Extension(NamedTuple):
    """A file as it was read.

    Attributes:
      name: of the file, without folders.
      source: its content.
      path: where it was; for messages.
    """

    name: str
    source: bytes
    path: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest()

    @property
    def label(self) -> str:
        """How a config calls it: NAME.py@HASH."""
        return f'{self.name}@{self.sha256[:_HASH_DIGITS]}'


_being_loaded = ''
_undo: dict[str, list[Callable[[], Any]]] = collections.defaultdict(list)  # By name.
_read: dict[str, Extension] = {}  # By label; all that this process has loaded.
_loaded: dict[str, tuple[str, types.ModuleType]] = {}  # Name -> (label, module) that counts now.


def load_extensions(text: str, beside: str | os.PathLike | None = None) -> str:
    """Loads what config.extensions names, for the user who names it; returns their labels.

    Args:
      text: files, modules, or labels of what was loaded before or lies where a file of that name
        is looked for; comma-separated.
      beside: an experiment file, whose folder is searched after the current one.

    Raises:
      UserError: there is no such file, it fails, or is not what its label says.
    """
    labels = []
    for part in split(text):
        extension = _read.get(part) or _find(part, beside)
        _trust(extension)
        _load(extension)
        labels.append(extension.label)
    names = [label.partition('@')[0] for label in labels]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'config.extensions has two files named {name}; rename one of them.')
    return ','.join(labels)


def load_extensions_of_run(text: str, workdir: pathlib.Path) -> None:
    """Loads the extensions of a run from the copies that it keeps.

    Args:
      text: config.extensions of its config: labels.
      workdir: of the run.

    Raises:
      UserError: a copy is missing, changed or fails, or this user does not trust it.
    """
    for label in split(text):
        if label in _read:
            _load(_read[label])
            continue
        path = workdir / FOLDER / label.partition('@')[0]
        extension = _read_file(path, f'the run in {str(workdir)!r} takes its extension from there')
        _require_label(extension, label)
        if not _is_trusted(extension):
            raise UserError(
                f'the run in {str(workdir)!r} has an extension that you have not run before, '
                f'{str(path)!r}; read it, and add --trust_extensions if its code is to be run.'
            )
        _load(extension)


def load_again(text: str) -> None:
    """Has the extensions of a config, which are loaded, count where names are looked up."""
    for label in split(text):
        if label not in _read:
            raise UserError(
                f'the extension {label} is not loaded; let flaxcls.load_config read the config.'
            )
        _load(_read[label])


def store(text: str, workdir: pathlib.Path) -> None:
    """Writes the extensions of a config, which are loaded, into a workdir."""
    from flaxcls.system.files import write_atomically  # noqa: PLC0415 - NumPy, for --help

    for label in split(text):
        folder = workdir / FOLDER
        folder.mkdir(exist_ok=True)
        write_atomically(folder / _read[label].name, _read[label].source)


def run_file(path: str, kind: str) -> types.ModuleType:
    """Returns the module of a Python file, such as a config, that may be an extension as well.

    A file that has not changed since it was run is not run again.

    Args:
      path: of the file.
      kind: what it is, for messages.
    """
    return _load(_read_file(pathlib.Path(path).absolute(), 'it is to be run'), kind)


def split(text: str) -> list[str]:
    """Returns the parts of config.extensions."""
    return [part.strip() for part in text.split(',') if part.strip()]


def names_of(text: str) -> list[str]:
    """Returns the names of the files that config.extensions, as it is stored, stands for."""
    return [label.partition('@')[0] for label in split(text)]


def _find(part: str, beside: str | os.PathLike | None) -> Extension:
    path, _, digest = part.partition('.py@')
    path += '.py' if digest else ''
    if path.endswith('.py'):
        folders = ['', *([os.path.dirname(beside)] if beside else [])]
        found = [place for folder in folders if os.path.isfile(place := os.path.join(folder, path))]
        extension = _read_file(
            pathlib.Path(found[0] if found else path).absolute(), 'config.extensions names it'
        )
        if digest:
            _require_label(extension, f'{extension.name}@{digest}')
        return extension
    sys.path.insert(0, os.getcwd())  # As `python -m` finds modules.
    try:
        spec = importlib.util.find_spec(path)
    except (ImportError, ValueError, AttributeError):
        spec = None
    finally:
        sys.path.remove(os.getcwd())
    if spec is None or not (spec.origin or '').endswith('.py'):
        raise UserError(
            f'config.extensions={part!r} is neither a file that ends in .py nor a module that can '
            'be imported.'
        )
    return _read_file(pathlib.Path(spec.origin), 'config.extensions names it')


def _read_file(path: pathlib.Path, why: str) -> Extension:
    try:
        return Extension(path.name, path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f'{str(path)!r} cannot be read ({error.strerror}), and {why}.') from None


def _require_label(extension: Extension, label: str) -> None:
    if extension.label != label:
        raise UserError(
            f'{extension.path!r} has changed: it is {extension.label}, and the run was made with '
            f'{label}; put that file back.'
        )


def _load(extension: Extension, kind: str = 'extension') -> types.ModuleType:
    """Runs an extension, unless it is what counts already."""
    label, module = _loaded.get(extension.name, (None, None))
    if label == extension.label:
        return module
    name = f'flaxcls_extension_{pathlib.Path(extension.name).stem}'
    module = types.ModuleType(name)
    # Without a package: the copy in a run has none that relative imports could start from.
    module.__file__, module.__package__ = extension.path, ''
    with _additions_of(extension.name), as_user_error(extension.path, kind):
        sys.modules[name] = module  # Where dataclasses and pickle look.
        exec(compile(extension.source, extension.path, 'exec'), module.__dict__)
    _read[extension.label] = extension
    _loaded[extension.name] = extension.label, module
    return module


@contextlib.contextmanager
def _additions_of(name: str) -> Iterator[None]:
    """Has what is registered in the block replace what the extension has registered before."""
    global _being_loaded
    before = _being_loaded
    unload(name)
    _being_loaded = name
    try:
        yield
    except BaseException:
        unload(name)
        raise
    finally:
        _being_loaded = before


def unload(name: str) -> None:
    """Takes back what an extension has added; `load_again` brings it back."""
    _loaded.pop(name, None)
    for undo in _undo.pop(name, []):
        undo()


def unload_all() -> None:
    """Takes back what all extensions have added, as if this process had loaded none."""
    for name in list(_loaded):
        unload(name)
    _read.clear()


def adds(name: str) -> bool:
    """Returns whether the file of this name has registered something."""
    return bool(_undo.get(name))


def being_loaded() -> str:
    """Returns the name of the extension that is being loaded; '' if none is."""
    return _being_loaded


def on_removal(undo: Callable[[], Any]) -> None:
    """Has `undo` called when another version of the extension being loaded takes its place."""
    _undo[_being_loaded].append(undo)


@contextlib.contextmanager
def as_user_error(path: str, kind: str) -> Iterator[None]:
    """Turns whatever a file's code raises into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise UserError(f'the {kind} file {path!r} does not run ({what}).') from error


def _trust(extension: Extension) -> None:
    """Takes down that this user has named an extension, so that runs with it may be opened."""
    if _is_trusted(extension):
        return
    with contextlib.suppress(OSError):  # In a home that cannot be written, the flag has to do.
        _trusted_file().parent.mkdir(parents=True, exist_ok=True)
        with _trusted_file().open('a', encoding='utf-8') as file:
            file.write(f'{extension.sha256}  {extension.path}\n')


def _is_trusted(extension: Extension) -> bool:
    if os.environ.get(TRUST) == '1':
        return True
    try:
        lines = _trusted_file().read_text(encoding='utf-8').splitlines()
    except OSError:
        return False
    return any(line.partition(' ')[0] == extension.sha256 for line in lines)


def _trusted_file() -> pathlib.Path:
    return platformdirs.user_data_path('flaxcls') / 'trusted_extensions.txt'
