"""What all commands share: their parser, overrides of the config, and how they end."""

import argparse
import logging as standard_logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import logging

from flaxcls.errors import PEER_LOST, RunError, Stopped, UserError, is_peer_lost
from flaxcls.system.compilation_cache import keep_compiled_programs
from flaxcls.system.library_errors import log_no_exceptions
from flaxcls.system.text import did_you_mean

_NO_MEMORY = (
    'the memory of the device is too small for this run; choose a smaller --config.batch_size or '
    '--config.data.image_size, or --config.model.dtype=bfloat16.'
)


def parse_overrides(arguments: Sequence[str], flags: Sequence[str]) -> dict[str, str]:
    """Returns {KEY: VALUE} of arguments --config.KEY=VALUE and --config.KEY VALUE.

    Args:
      arguments: of the command line, without the command's own flags.
      flags: the command's own, to suggest the closest to a misspelt one.

    Raises:
      UserError: an argument is of neither form.
    """
    # ml_collections' config_flags would report a mistake with a traceback or absl's usage.
    overrides, arguments = {}, list(arguments)
    while arguments:
        argument = arguments.pop(0)
        match = re.fullmatch(r'--config\.([\w.]+)(?:=(.*))?', argument, re.DOTALL)
        if not match:
            remedy = did_you_mean(argument.partition('=')[0], flags)
            raise UserError(f'the argument {argument!r} is unknown{remedy}.')
        key, value = match.groups()
        if value is None:
            if not arguments:
                raise UserError(f'--config.{key} needs a value, as in --config.{key}=VALUE.')
            value = arguments.pop(0)
        overrides[key] = value
    return overrides


class CommandParser(argparse.ArgumentParser):
    """A parser for a command such as `flaxcls train`; a wrong flag is a UserError."""

    def __init__(self, prog: str, description: str, *, epilog: str = ''):
        super().__init__(
            prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_with_overrides(
        self, argv: Sequence[str]
    ) -> tuple[argparse.Namespace, dict[str, str]]:
        """Returns the flags, and {KEY: VALUE} of all --config.KEY=VALUE."""
        flags, rest = self.parse_known_args(argv)
        return flags, parse_overrides(rest, list(self._option_string_actions))

    def parse_known_args(self, args=None, namespace=None):
        self._argv = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        # A misspelt flag explains what is missing without it.
        flags = [word.partition('=')[0] for word in self._argv if re.match(r'--\w', word)]
        for flag in flags:
            if flag not in self._option_string_actions and not flag.startswith('--config.'):
                remedy = did_you_mean(flag, list(self._option_string_actions))
                message = f'the argument {flag} is unknown{remedy}'
                break
        raise UserError(f'{message}; {self.prog} --help lists the arguments.')


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main(argv)` as a process: expected errors become a sentence and an exit code."""
    _open_closed_streams()
    keep_compiled_programs()
    logging.set_verbosity(logging.ERROR)  # Orbax's and TFDS's remarks would bury the run's lines.
    log_no_exceptions()
    # What Orbax's readers of a damaged checkpoint report once more, when it has been reported.
    standard_logging.getLogger('asyncio').setLevel(standard_logging.CRITICAL)
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
    except BrokenPipeError:  # The reader of a pipe, such as `head`, has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno is None:
            raise
        _exit(f'error: {error.strerror}: {error.filename or "while reading or writing"}', 1)
    except MemoryError:
        _exit(f'error: {_NO_MEMORY}', 1)
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        _exit(f'error: {message}', 1)


def _open_closed_streams() -> None:
    """Gives the process streams that lead nowhere in the place of those it was started without."""
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        if getattr(sys, name) is None:
            mode = 'w' if number else 'r'
            setattr(sys, name, open(os.devnull, mode, encoding='utf-8'))  # noqa: SIM115


def _show_unraisable(unraisable) -> None:
    # TensorStore's threads report to the event loop that a failed read or write has closed.
    if 'Event loop is closed' not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _explain(error: Exception) -> str | None:
    """Returns a sentence about what JAX reports of the world outside; None: a fault of ours."""
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "no more threads can be started; raise the limit of processes, as of 'ulimit -u'."
    # By its name, so that the mistakes above are reported without importing jax.
    if type(error).__name__ != 'JaxRuntimeError':
        return None
    if 'RESOURCE_EXHAUSTED' in str(error):
        return _NO_MEMORY
    return PEER_LOST if is_peer_lost(error) else None


def _exit(message: str, code: int) -> None:
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)
