"""The two ways a command ends badly, how each is shown, and the parser that all commands use."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import logging


class UserError(Exception):
    """A mistake in what was asked for: one sentence with the value and the remedy. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """A run that could not go on: one sentence; what was saved stays usable. Exit code 1."""

    exit_code = 1


class Stopped(Exception):
    """A run that was asked to stop by a signal and has saved its state. Exit code 128 + signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class CommandParser(argparse.ArgumentParser):
    """A parser for `python -m MODULE`, described by its docstring; a wrong flag is a UserError."""

    def __init__(self, module: str, description: str, **options):
        super().__init__(
            f'python -m {module}',
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; {self.prog} --help lists the arguments.')


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main(argv)` as a process: expected errors become a sentence and an exit code."""
    logging.set_verbosity(logging.ERROR)  # Orbax's and TFDS's remarks would bury the run's lines.
    sys.stdout.reconfigure(errors='backslashreplace')  # Names of files need not be valid text.
    sys.unraisablehook = _show_unraisable
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except (UserError, RunError) as error:
        _exit(f'error: {error}', error.exit_code)
    except Stopped as stop:
        _exit(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        _exit('Interrupted before anything was left to save.', 128 + signal.SIGINT)
    except BrokenPipeError:  # The reader of a pipe, such as `head`, has gone; nothing to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        _exit(f'error: {error.strerror}: {error.filename or "while writing the run"}', 1)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        _exit(
            'error: the memory of the device is too small for this run; choose a smaller '
            '--config.batch_size or --config.data.image_size, or --config.model.dtype=bfloat16.',
            1,
        )


def _show_unraisable(unraisable) -> None:
    # TensorStore's threads report to the event loop that a failed read or write has closed.
    if 'Event loop is closed' not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _is_out_of_memory(error: Exception) -> bool:
    # By its name, since the mistakes above should be told without importing jax first.
    return type(error).__name__ == 'JaxRuntimeError' and 'RESOURCE_EXHAUSTED' in str(error)


def _exit(message: str, code: int) -> None:
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)
