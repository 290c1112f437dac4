"""Signals as a request to save and stop: SIGINT, SIGTERM, SIGUSR1, SIGHUP, and a closed pipe."""

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# A signal to a group of processes may reach one of them twice.
_SECOND_COUNTS_AFTER = 1.0


class SignalFlag:
    """Notes these signals instead of dying of them; a second one, a while later, kills as usual.

    Nor is a run lost with the reader of its output: that counts as SIGPIPE.
    """

    def __enter__(self):
        self.signal = None
        self._old = {}
        self._stdout = sys.stdout
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout = _Output(sys.stdout, self)
        try:
            for number in _STOPPING:
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # As nohup has it.
                self._old[number] = signal.signal(number, self.note)
        except ValueError:  # Not the main thread, as in some notebooks: the owner takes signals.
            pass
        return self

    def note(self, number: int, frame: object = None) -> None:
        """Takes a signal down."""
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
        sys.stdout = self._stdout
        # The second of two signals in a row may come when the run has been saved: what takes it
        # stays, and gives way to what was there before as soon as one counts again.
        if self.signal is None:
            self._restore()


class _Output:
    """Standard output that goes nowhere once its reader has gone, which counts as a signal."""

    def __init__(self, stream: io.TextIOWrapper, flag: SignalFlag):
        self._stream, self._flag = stream, flag

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._closed_is_a_signal():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._closed_is_a_signal():
            self._stream.flush()

    @contextlib.contextmanager
    def _closed_is_a_signal(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._flag.note(signal.SIGPIPE)


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
