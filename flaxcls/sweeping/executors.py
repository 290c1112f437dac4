"""Runs until all have ended, and their jobs on this machine, through submitit."""

import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tqdm

from flaxcls.errors import Stopped
from flaxcls.sweeping.commands import (
    command_of,
    kept_from_children,
    new_folder,
    require_submitit,
    share_of_accelerators,
)
from flaxcls.sweeping.definition import SweepRun
from flaxcls.sweeping.job import Job
from flaxcls.system.files import naming
from flaxcls.system.signals import SignalFlag

_LOOK_SECONDS = 0.2
ASK_AGAIN_SECONDS = 5.0  # A job that has not quite begun may not hear that it is to stop.
_FOREVER_MINUTES = 60 * 24 * 365


class Executor(Protocol):
    """Starts runs, and reports which have ended."""

    def start(self, runs: Sequence[SweepRun]) -> None:
        """Begins, or puts into a queue."""

    def ended(self) -> list[SweepRun]:
        """Returns the runs that have ended since the last call, in whatever way."""

    def cancel(self) -> None:
        """Asks all to save and stop, and begins no others; they still have to end.

        It may be called again and again.
        """

    @property
    def running_count(self) -> int:
        """How many have begun, or are in a queue, and have not ended."""

    def said(self, run: SweepRun) -> str:
        """Returns what a job left that has not come to the point of writing its log."""


def run_all(
    executor: Executor, runs: Sequence[SweepRun], on_end: Callable[[SweepRun, bool], None]
) -> None:
    """Runs all; calls `on_end(run, stopping)` with each that has ended, in whatever way.

    Args:
      executor: that has none yet.
      runs: to begin.
      on_end: is also called with whether the runs have been asked to stop.

    Raises:
      UserError: they cannot be begun.
      Stopped: SIGINT, SIGTERM or SIGUSR1 came, and all have saved and ended.
    """
    with SignalFlag() as stop:
        executor.start(runs)
        cancelled = None
        while executor.running_count:
            now = time.monotonic()
            if stop.signal and (cancelled is None or now > cancelled + ASK_AGAIN_SECONDS):
                executor.cancel()
                if cancelled is None:
                    _print_stopping(stop.signal, executor.running_count)
                cancelled = now
            for run in executor.ended():
                on_end(run, cancelled is not None)
            time.sleep(_LOOK_SECONDS)
    if cancelled is not None:
        raise Stopped(
            f'{signal.Signals(stop.signal).name}: the runs in progress have saved and stopped; '
            'the same command resumes them.',
            stop.signal,
        )


def _print_stopping(number: int, count: int) -> None:
    runs = '1 run, which saves' if count == 1 else f'{count} runs, which save'
    tqdm.tqdm.write(f'{signal.Signals(number).name}: stopping {runs} first ...')
    sys.stdout.flush()


class Local:
    """Jobs on this machine, at most `jobs` at a time."""

    def __init__(self, root: pathlib.Path, config: str, jobs: int):
        self._folder = new_folder(root, 'local')
        self._config, self._jobs = config, jobs
        self._waiting: list[SweepRun] = []
        self._slots: list[tuple[SweepRun, Any] | None] = [None] * jobs
        self._last: dict[SweepRun, Any] = {}

    def start(self, runs: Sequence[SweepRun]) -> None:
        submitit = require_submitit()
        self._executor = submitit.LocalExecutor(self._folder)
        self._executor.update_parameters(timeout_min=_FOREVER_MINUTES)
        self._waiting = list(runs)
        self._fill()

    def ended(self) -> list[SweepRun]:
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
    def running_count(self) -> int:
        return sum(going is not None for going in self._slots) + len(self._waiting)

    def said(self, run: SweepRun) -> str:
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
                with kept_from_children(signal.SIGINT), naming(self._folder):
                    self._last[run] = self._executor.submit(job)
                self._slots[slot] = run, self._last[run]
