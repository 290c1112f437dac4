"""One process at a time in a folder."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator
from typing import IO

from flaxcls.errors import UserError


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
    with open_lock(folder) as file:
        try:
            take(file)
        except BlockingIOError:
            raise UserError(
                f'another {does} in {str(folder)!r}; wait for it, or choose another --workdir.'
            ) from None
        except OSError as error:  # Some network file systems have no locks.
            print(f'Note: {str(folder)!r} cannot be locked ({error.strerror}); run once there.')
        yield


def open_lock(folder: pathlib.Path) -> IO[str]:
    """Returns the open file of a folder's lock, which ends when the file is closed."""
    return (folder / '.lock').open('w')


def take(file: IO[str]) -> None:
    """Takes a lock; raises BlockingIOError if another has it, OSError where there are no locks."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
