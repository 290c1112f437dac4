"""What libraries report of files that they cannot read or write, in fewer words."""

import contextlib
import logging as standard_logging
import re
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def errors_alone() -> Iterator[None]:
    """Keeps the warnings of libraries from notebooks, as commands do all the time."""
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def log_no_exceptions() -> None:
    """Keeps libraries from logging, with a traceback, an exception that they raise as well."""
    standard_logging.getLogger('absl').addFilter(lambda record: not record.exc_info)


def place_and_reason(error: Exception, folder: object) -> tuple[str, str]:
    """Returns the file, or else the folder, and why it could not be read or written.

    TensorStore tells of one fault several times over, with names of its own and the whole of a
    file's specification.
    """
    first_line = str(error).strip().split('\n')[0].partition(' [tensorstore_spec')[0]
    found = re.search(r'local file "([^"]+)".*: ([^:[]+) \[os_error_code', first_line)
    return found.groups() if found else (str(folder), first_line)
