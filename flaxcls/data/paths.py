"""From what a person names on the command line to the files that are meant."""

import glob
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flaxcls.data.folder import refuse_loops
from flaxcls.errors import UserError

_NAMED = 3


class Found(NamedTuple):
    """A file that was named, whether it is an image or not."""

    path: str
    problem: str | None = None  # Why it cannot even be opened.


def find_files(arguments: Sequence[str]) -> list[Found]:
    """Returns the files that arguments mean, in their order, each once.

    Folders give all files below them in the order of their paths, but for hidden ones. Where no
    file has the very name of an argument it may be a pattern, with `**` for any folders; `-` stands
    for the lines of stdin. What is not there, and a folder without any file, have a `problem`.

    Raises:
      UserError: there are no arguments, one of them gives nothing, or nothing at all is there.
    """
    if not arguments:
        raise UserError("no image is named; give files, folders, patterns such as '*.png', or -")
    found: dict[str, Found] = {}
    for argument in arguments:
        for name in _names(argument):
            for item in _below(name):
                found.setdefault(item.path, item)
    if all(item.problem for item in found.values()):
        named = [f'{item.path}: {item.problem}' for item in list(found.values())[:_NAMED]]
        more = f', and {len(found) - _NAMED} more' if len(found) > _NAMED else ''
        raise UserError(f'there is nothing to read ({"; ".join(named)}{more}); check the names.')
    return list(found.values())


def _names(argument: str) -> list[str]:
    """Returns the files and folders that an argument stands for."""
    if argument == '-':
        # As bytes, since names of files need not be valid text.
        lines = [os.fsdecode(line.rstrip(b'\r\n')) for line in sys.stdin.buffer]
        if not any(lines):
            raise UserError('- reads paths from stdin, one a line, and none came.')
        return [line for line in lines if line]
    argument = os.path.expanduser(argument)
    if os.path.lexists(argument) or glob.escape(argument) == argument:
        return [argument]
    matches = sorted(glob.glob(argument, recursive=True))
    if not matches:
        raise UserError(f'nothing matches {argument!r}; check the pattern.')
    return matches


def _below(name: str) -> Iterator[Found]:
    if not os.path.isdir(name):
        yield _look_at(name)
        return
    unreadable: list[OSError] = []
    paths = []
    for folder, below, files in os.walk(name, onerror=unreadable.append, followlinks=True):
        below[:] = [entry for entry in below if not entry.startswith('.')]
        refuse_loops(folder, below)
        paths += [os.path.join(folder, file) for file in files if not file.startswith('.')]
    # Reading a pipe would wait for a writer; one that is named, as by <(...), has one.
    yield from (_look_at(path, files_only=True) for path in sorted(paths))
    for error in unreadable:
        yield Found(error.filename, error.strerror)
    if not paths and not unreadable:
        yield Found(name, 'a folder without any image')


def _look_at(path: str, *, files_only: bool = False) -> Found:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return Found(path, error.strerror)
    except ValueError:
        return Found(path, 'no path has a null byte')
    return Found(path, 'no regular file' if files_only and not stat.S_ISREG(mode) else None)
