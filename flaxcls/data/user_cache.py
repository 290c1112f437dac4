"""What is worth keeping between runs, in the user's cache folder; all of it can be deleted."""

import hashlib
import os
import pathlib

import numpy as np


def user_cache_path(kind: str, key: str) -> pathlib.Path:
    """Returns the file for `key` in $XDG_CACHE_HOME/flaxcls/KIND, which need not exist."""
    root = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
    return root / 'flaxcls' / kind / hashlib.sha256(os.fsencode(key)).hexdigest()[:16]


def load_or_none(path: pathlib.Path) -> np.ndarray | None:
    """Returns the array that `save_atomically` wrote, or None if there is none to be read."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def save_atomically(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes the array, or nothing where the folder cannot be written: it only saves time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'{path.name}.{os.getpid()}')
        with partial.open('wb') as file:
            np.save(file, array)
        partial.replace(path)
    except OSError:
        return
