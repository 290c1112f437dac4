"""The two ways a command ends badly, how each is shown, and the parser that all commands use."""

import re
import signal

PEER_LOST = (
    'another process of this run has died; start all of them again, and they resume from the '
    'newest checkpoint.'
)


_LOST = re.compile(
    r'gloo|nccl|coordination|barrier|heartbeat|connection (closed|reset)', re.IGNORECASE
)


class UserError(Exception):
    """A mistake in what was asked for: one sentence with the value and the remedy. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """A run that could not continue: one sentence; what was saved stays usable. Exit code 1."""

    exit_code = 1


class Stopped(Exception):
    """A run that was asked to stop by a signal and has saved its state.

    Exit code 130 after Ctrl-C, and 75 (EX_TEMPFAIL: try again later) after the signals that
    schedulers send, so that a batch script knows what to put back into the queue.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 130 if signal_number == signal.SIGINT else 75


def is_peer_lost(error: Exception) -> bool:
    """Returns whether JAX, or what waits for other processes through it, has missed one of them."""
    return type(error).__name__ == 'JaxRuntimeError' and bool(_LOST.search(str(error)))
