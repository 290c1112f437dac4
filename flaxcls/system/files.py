"""Files and folders: where a command may write, atomic writes, locks, the user's cache."""

import atexit
import contextlib
import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import platformdirs

from flaxcls.errors import UserError

if TYPE_CHECKING:
    import filelock

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


def write_atomically(path: pathlib.Path, content: str | bytes | memoryview) -> None:
    """Writes a file that is, at any moment, either the old one or the new one; text as UTF-8.

    What is no file, such as /dev/stdout or a pipe, is written to as it is.
    """
    content = content.encode() if isinstance(content, str) else content
    with naming(path):
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        temporary = path.with_name(f'.{path.name}.tmp')
        try:
            with temporary.open('wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:  # What has been written would take room that is wanted elsewhere.
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds the file's name to what the system raises while it is written, which has none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def locked_folder(folder: pathlib.Path, does: str) -> Iterator[None]:
    """Creates a folder, and keeps others out of it as long as the block lasts, or this process.

    Args:
      folder: that --workdir has named.
      does: what another process does there, as in 'run is training'.

    Raises:
      UserError: another one has it, or it is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f'--workdir={folder} is a file, or lies below one.') from None
    import filelock  # noqa: PLC0415 - slow to import

    lock = folder_lock(folder)
    pathlib.Path(lock.lock_file).touch()  # Where nothing can be written, locks are not to blame.
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(blocking=False))
        except filelock.Timeout:
            raise UserError(
                f'another {does} in {str(folder)!r}; wait for it, or choose another --workdir.'
            ) from None
        except OSError as error:  # Some network file systems have no locks.
            print(f'Note: {str(folder)!r} cannot be locked ({error.strerror}); run once there.')
        yield


def folder_lock(folder: pathlib.Path) -> 'filelock.FileLock':
    """Returns the lock of a folder, not yet acquired; it ends with the process that has it."""
    import filelock  # noqa: PLC0415 - slow to import

    # A soft lock would outlive a process that is killed.
    return filelock.FileLock(folder / '.lock', fallback_to_soft=False)


def user_cache_path(kind: str, key: str) -> pathlib.Path:
    """Returns the file for `key` in the user's cache of flaxcls, which need not exist."""
    root = user_cache_folder()
    return root / kind / hashlib.sha256(os.fsencode(key)).hexdigest()[:16]


def user_cache_folder() -> pathlib.Path:
    """Returns the user's cache folder; where there is no home, one for this process alone."""
    try:
        return platformdirs.user_cache_path('flaxcls')
    except RuntimeError:  # As in a container, whose user has no name.
        return _cache_of_process()


@functools.cache
def _cache_of_process() -> pathlib.Path:
    folder = tempfile.mkdtemp(prefix='flaxcls-')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    print('Note: there is no home folder, so nothing is kept for the next start.')
    return pathlib.Path(folder)


def load_or_none(path: pathlib.Path) -> np.ndarray | None:
    """Returns the array that `save_atomically` wrote, or None if there is none to be read."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def save_atomically(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes the array, or says that it cannot be kept: all that is lost is time."""
    partial = path.with_name(f'{path.name}.{os.getpid()}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open('wb') as file:
            np.save(file, array)
        partial.replace(path)
    except OSError as error:
        print(f'Note: {str(path)!r} cannot be kept for the next start ({error.strerror}).')
        with contextlib.suppress(OSError):
            partial.unlink()
