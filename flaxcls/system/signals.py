"""SIGINT, SIGTERM and SIGUSR1 as a request to save and stop."""

import contextlib
import signal
import time
from collections.abc import Iterator

# A signal to a group of processes may reach one of them twice.
_SECOND_COUNTS_AFTER = 1.0


class SignalFlag:
    """Notes these signals instead of dying of them; a second one, a while later, kills as usual."""

    def __enter__(self):
        self.signal = None
        self._old = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._old[number] = signal.signal(number, self._note)
        except ValueError:  # Not the main thread, as in some notebooks: the owner takes signals.
            pass
        return self

    def _note(self, number, frame):
        del frame
        if self.signal is None:
            self.signal, self._noted = number, time.monotonic()
        elif time.monotonic() - self._noted > _SECOND_COUNTS_AFTER:
            self._restore()
            signal.raise_signal(number)

    def _restore(self):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        self._restore()


@contextlib.contextmanager
def interrupts_left_alone() -> Iterator[None]:
    """Keeps asyncio from a SIGINT handler of its own; Ctrl-C raises KeyboardInterrupt as ever.

    When asyncio sets one in place of the default, Python formats the task, with all arrays in its
    arguments: of the time in which Orbax reads a small checkpoint that was a quarter.
    """
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default:
        try:
            signal.signal(signal.SIGINT, lambda *args: signal.default_int_handler(*args))
        except ValueError:  # Not the main thread, where asyncio sets none.
            default = False
    try:
        yield
    finally:
        if default:
            signal.signal(signal.SIGINT, signal.default_int_handler)
