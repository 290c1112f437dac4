"""Where a command is to write: looked at before anything is computed, and names of folders."""

import hashlib
import os
import pathlib

from flaxcls.errors import UserError

LONGEST_NAME = 100  # Characters of a folder's name, which some file systems bound.


def shorten(name: str, exact: str) -> str:
    """Returns the beginning of a name, with 8 hex digits of all that it stands for."""
    return f'{name[:90]}-{hashlib.sha256(os.fsencode(exact)).hexdigest()[:8]}'


def require_place(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a file to write; raises UserError if it is a folder, or has none."""
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        raise UserError(f'{str(path)!r} is a folder; name a file in it.')
    if not path.parent.is_dir():
        raise UserError(f'there is no folder {str(path.parent)!r} for {path.name}; create it.')
    return path
