"""Runs that go on until all have ended, and their jobs on this machine, through submitit."""

import contextlib
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from flaxcls.errors import Stopped
from flaxcls.interrupts import SignalFlag
from flaxcls.sweeping.commands import (
    command_of,
    new_folder,
    require_submitit,
    share_of_accelerators,
)
from flaxcls.sweeping.definition import Run
from flaxcls.sweeping.job import Job

_LOOK_SECONDS = 0.2
_FOREVER_MINUTES = 60 * 24 * 365


class Executor(Protocol):
    """Takes runs, and tells which have ended."""

    def start(self, runs: Sequence[Run]) -> None:
        """Begins, or puts into a queue."""

    def ended(self) -> list[Run]:
        """Returns the runs that have ended since the last call, in whatever way."""

    def cancel(self) -> None:
        """Asks all to save and stop, and begins no others; they still have to end."""

    @property
    def going_on(self) -> bool:
        """Whether any has not ended."""

    def said(self, run: Run) -> str:
        """Returns what a job left that has not come to the point of writing its log."""


def run_all(executor: Executor, runs: Sequence[Run], on_end: Callable[[Run], None]) -> None:
    """Runs all; calls `on_end` with each that has ended, in whatever way.

    Raises:
      UserError: they cannot be begun.
      Stopped: SIGINT, SIGTERM or SIGUSR1 came, and all have saved and ended.
    """
    with SignalFlag() as stop:
        executor.start(runs)
        cancelled = False
        while executor.going_on:
            if stop.signal and not cancelled:
                executor.cancel()
                cancelled = True
            for run in executor.ended():
                if not cancelled:
                    on_end(run)
            time.sleep(_LOOK_SECONDS)
    if cancelled:
        raise Stopped(
            f'{signal.Signals(stop.signal).name}: the runs that went on have saved and stopped; '
            'the same command goes on from there.',
            stop.signal,
        )


class Local:
    """Jobs on this machine, at most `jobs` at a time."""

    def __init__(self, root: pathlib.Path, config: str, jobs: int):
        self._folder = new_folder(root, 'local')
        self._config, self._jobs = config, jobs
        self._waiting: list[Run] = []
        self._slots: list[tuple[Run, Any] | None] = [None] * jobs
        self._last: dict[Run, Any] = {}

    def start(self, runs: Sequence[Run]) -> None:
        submitit = require_submitit()
        self._executor = submitit.LocalExecutor(self._folder)
        self._executor.update_parameters(timeout_min=_FOREVER_MINUTES)
        self._waiting = list(runs)
        self._fill()

    def ended(self) -> list[Run]:
        found = []
        for slot, going in enumerate(self._slots):
            if going and going[1].done():
                found.append(going[0])
                self._slots[slot] = None
        self._fill()
        return found

    def cancel(self) -> None:
        self._waiting = []
        for going in filter(None, self._slots):
            # submitit hands SIGTERM on to the job; its own `cancel` kills after a second.
            going[1]._process.terminate()

    @property
    def going_on(self) -> bool:
        return any(self._slots) or bool(self._waiting)

    def said(self, run: Run) -> str:
        return self._last[run].stderr() or ''

    def _fill(self) -> None:
        for slot in range(self._jobs):
            if self._slots[slot] is None and self._waiting:
                run = self._waiting.pop(0)
                environment = share_of_accelerators(slot, self._jobs, os.environ)
                job = Job(
                    command_of(run, self._config),
                    run.workdir,
                    environment=environment,
                    starter=os.getpid(),
                )
                with _kept_from_children(signal.SIGINT):
                    self._last[run] = self._executor.submit(job)
                self._slots[slot] = run, self._last[run]


@contextlib.contextmanager
def _kept_from_children(number: signal.Signals) -> Iterator[None]:
    """Blocks a signal in processes started within; this one gets it afterwards."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
