"""What a job does, in a process that submitit starts: one run, as a child, until it ends."""

import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from flaxcls.system import files
from flaxcls.system.distributed import end_with_parent

LOG_FILE = 'log.txt'
_SAVED = 75  # What a run exits with that was asked to stop, and has saved.
_LOOK_SECONDS = 0.5
_WAIT_FOR_OTHER = 60  # Seconds.


class Job:
    """Runs a command, and keeps what it says in log.txt of its workdir.

    SIGTERM lets the run save and stop. A Slurm job that was preempted, or is out of time, goes back
    into the queue then, and continues.
    """

    def __init__(
        self,
        command: Sequence[str],
        workdir: pathlib.Path,
        *,
        environment: Mapping[str, str | None],
        starter: int | None,
    ):
        """Stores the arguments; the run starts when it is called.

        Args:
          command: program and arguments of the job.
          workdir: path of the directory that the run trains in.
          environment: variables to set, or, where None, to remove.
          starter: process whose end stops the run as well; None: the run outlives it.
        """
        self._command, self._workdir = list(command), pathlib.Path(workdir)
        self._environment, self._starter = dict(environment), starter
        self._child: subprocess.Popen | None = None
        self._asked = False

    def __call__(self) -> int:
        """Returns the exit code of a run that has ended by itself."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        # A closed terminal ends the sweep, which `_wait` finds out, so that the run saves.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._wait_until_free()
        if self._asked:
            self._leave()
        with (self._workdir / LOG_FILE).open('a', encoding='utf-8') as log:
            print(f'$ {shlex.join(self._command)}', file=log, flush=True)
            self._child = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._make_environment(),
                start_new_session=True,  # Ctrl-C at a terminal is for the sweep, which signals us.
                preexec_fn=_prepare_run,
            )
            if self._asked:  # Before there was a child to hand it on to.
                self._child.terminate()
            code = self._wait()
            if code < 0:
                print(self._describe_signal(-code), file=log)
        if self._asked and code != 0:
            self._leave()
        return code

    def checkpoint(self) -> Any:
        """Stops the run, which saves; returns what submitit puts into the queue again."""
        import submitit  # noqa: PLC0415 - an extra

        self._stop()
        if self._child is not None:
            self._child.wait()
        return submitit.helpers.DelayedSubmission(self)

    def _stop(self) -> None:
        if not self._asked and self._child is not None:
            self._child.terminate()
        self._asked = True  # A second signal would end the run at once.

    def _leave(self) -> NoReturn:
        """Ends this process without a result: the job has not come to its end."""
        if self._starter is None:  # The allocation that a local sweep runs in is its user's.
            _requeue_if_preempted()
        raise SystemExit(_SAVED)

    def _describe_signal(self, number: int) -> str:
        name = signal.Signals(number).name
        if self._asked and number == signal.SIGTERM:
            return f'{name}: stopped where nothing can be saved; what was saved before stays.'
        remedy = 'is the memory too small?' if number == signal.SIGKILL else 'try it again.'
        return f'error: the run was ended by {name}; {remedy}'

    def _wait(self) -> int:
        while True:
            try:
                return self._child.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                self._stop_without_starter()

    def _stop_without_starter(self) -> None:
        if self._starter is not None and not _is_alive(self._starter):
            self._stop()

    def _wait_until_free(self) -> None:
        """Waits for a run that a sweep before this one has left, and that may still be saving."""
        lock = files.folder_lock(self._workdir)
        try:
            lock.acquire(_WAIT_FOR_OTHER, _LOOK_SECONDS, cancel_check=self._is_to_stop)
            lock.release()
        except OSError:  # It is still there, or there are no locks: the run says which.
            return

    def _is_to_stop(self) -> bool:
        self._stop_without_starter()
        return self._asked

    def _make_environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        for name, value in self._environment.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        return environment

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_child': None, '_asked': False}


def _prepare_run() -> None:
    # submitit's signal for a job that is out of time, which Slurm sends to all.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    end_with_parent(signal.SIGTERM)  # Where the job itself is killed, the run saves and stops.


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _requeue_if_preempted() -> None:
    """Puts a Slurm job back into the queue, unless it was cancelled."""
    job = os.environ.get('SLURM_JOB_ID')
    if job is None or os.environ.get('SLURM_PROCID', '0') != '0':
        return
    ask = ['squeue', '--noheader', f'--jobs={job}', '--format=%T']
    state = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    if state == 'RUNNING':  # Of one that is cancelled, it is COMPLETING.
        subprocess.run(['scontrol', 'requeue', job], check=False)
        time.sleep(60)  # The requeue ends this process.
