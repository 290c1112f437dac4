"""Where the runs of a sweep go: this machine, or a Slurm cluster, both through submitit."""

import contextlib
import datetime
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from flaxcls.errors import Stopped, UserError
from flaxcls.interrupts import SignalFlag
from flaxcls.sweeping.definition import Run
from flaxcls.sweeping.job import Job
from flaxcls.writers import write_atomically

JOBS_FOLDER = 'jobs'
_ARRAY_FILE = 'slurm_jobs.json'
_FOREVER_MINUTES = 60 * 24 * 365
_SLURM_MINUTES = 240  # A run that takes longer goes back into the queue, and continues.
# What submitit itself counts with; it hands everything else to sbatch.
_COUNTED = ('time', 'nodes', 'ntasks_per_node', 'signal_delay_s', 'timeout_min')


class Executor(Protocol):
    """Takes runs, and tells which have ended."""

    look_seconds: float

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
            time.sleep(executor.look_seconds)
    if cancelled:
        raise Stopped(
            f'{signal.Signals(stop.signal).name}: the runs that went on have saved and stopped; '
            'the same command goes on from there.',
            stop.signal,
        )


class Local:
    """Jobs on this machine, at most `jobs` at a time."""

    look_seconds = 0.2

    def __init__(self, root: pathlib.Path, config: str, jobs: int):
        self._folder = _new_folder(root, 'local')
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


class Slurm:
    """One array of jobs, at most `jobs` of them at a time.

    The ids are kept in the sweep's folder: where this process dies, the array goes on, and the same
    command finds it again.
    """

    look_seconds = 2.0

    def __init__(
        self,
        root: pathlib.Path,
        config: str,
        jobs: int | None,
        parameters: Mapping[str, str],
    ):
        self._root, self._config, self._jobs = root, config, jobs
        self._parameters = slurm_parameters(parameters)
        self._going: dict[Run, str] = {}
        self._last: dict[Run, pathlib.Path] = {}

    def start(self, runs: Sequence[Run]) -> None:
        queued, stored = _queued_jobs(), self._read()
        names = {_name_in(self._root, run): run for run in runs}
        for name, job in stored.items():
            if name in names and job in (queued or ()):
                self._going[names[name]] = job
        if self._going:
            print(f'{len(self._going)} of the runs are in the queue already.', flush=True)
        rest = [run for run in runs if run not in self._going]
        if rest:
            self._submit(rest)
        jobs = {_name_in(self._root, run): job for run, job in self._going.items()}
        write_atomically(self._root / _ARRAY_FILE, json.dumps(jobs, indent=1) + '\n')

    def _submit(self, runs: Sequence[Run]) -> None:
        submitit = require_submitit()
        folder = _new_folder(self._root, 'slurm')
        # A job may be preempted or run out of time as often as it comes.
        executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6)
        executor.update_parameters(**self._parameters)
        if self._jobs:
            executor.update_parameters(array_parallelism=self._jobs)
        environment = _without_caches_of_this_machine(os.environ)
        jobs = [
            Job(command_of(run, self._config), run.workdir, environment=environment, starter=None)
            for run in runs
        ]
        try:
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(
                f'sbatch refuses the jobs ({_last_line(str(error))}); change --slurm KEY=VALUE.'
            ) from None
        for run, job in zip(runs, submitted, strict=True):
            self._going[run], self._last[run] = job.job_id, job.paths.stderr

    def ended(self) -> list[Run]:
        queued = _queued_jobs()
        found = [
            run for run, job in self._going.items() if queued is not None and job not in queued
        ]
        for run in found:
            del self._going[run]
        return found

    def cancel(self) -> None:
        subprocess.run(['scancel', *self._going.values()], check=False, capture_output=True)

    @property
    def going_on(self) -> bool:
        return bool(self._going)

    def said(self, run: Run) -> str:
        path = self._last.get(run)
        return path.read_text(errors='backslashreplace') if path and path.exists() else ''

    def _read(self) -> dict[str, str]:
        try:
            return json.loads((self._root / _ARRAY_FILE).read_text(encoding='utf-8'))
        except (FileNotFoundError, ValueError):
            return {}


def _name_in(root: pathlib.Path, run: Run) -> str:
    return str(run.workdir.relative_to(root))


def _queued_jobs() -> set[str] | None:
    """Returns the ids of all jobs of this user in the queue; None: Slurm does not answer now.

    squeue, and not submitit's sacct, which needs a data base that not every cluster has.
    """
    ask = ['squeue', f'--user={os.getuid()}', '--noheader', '--array', '--format=%i']
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    return set(answer.stdout.split()) if answer.returncode == 0 else None


def slurm_parameters(given: Mapping[str, str]) -> dict[str, Any]:
    """Returns what submitit's executor takes, of options of sbatch such as partition=main.

    Raises:
      UserError: a number is none.
    """
    counted: dict[str, Any] = {'time': _SLURM_MINUTES, 'job_name': 'flaxcls-sweep'}
    others = {}
    for key, value in given.items():
        key = key.replace('-', '_')
        if key not in _COUNTED:
            others[key.replace('_', '-')] = value
            continue
        if not value.isdigit() or int(value) < 1:
            unit = ', in minutes' if key == 'time' else ''
            raise UserError(f'--slurm {key}={value} must be a positive whole number{unit}.')
        counted[key] = int(value)
    return counted | {'additional_parameters': {'requeue': True} | others}


def require_submitit() -> Any:
    """Returns the module; raises UserError if the extra is not installed."""
    try:
        import submitit  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError("a sweep is run with submitit; run  pip install 'flaxcls[sweep]'") from None
    return submitit


def require_slurm() -> None:
    """Raises UserError if there is no Slurm, or it does not answer."""
    if not shutil.which('sbatch') or not shutil.which('srun'):
        raise UserError(
            '--executor=slurm needs sbatch and srun, which are not here; run it where jobs are '
            'submitted, or with --executor=local.'
        )
    if _queued_jobs() is None:
        raise UserError('--executor=slurm: squeue gets no answer; is Slurm running?')


def command_of(run: Run, config: str) -> list[str]:
    """Returns the command of a run, which works as well by hand."""
    words = [sys.executable, '-m', 'flaxcls.main', f'--config={config}', f'--workdir={run.workdir}']
    return words + [f'--config.{key}={_as_flag(value)}' for key, value in run.overrides.items()]


def _as_flag(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ','.join(map(str, value)) if value else '()'
    return str(value)


def share_of_accelerators(
    slot: int, jobs: int, environment: Mapping[str, str]
) -> dict[str, str | None]:
    """Returns the variables that give a job its GPUs: all, or its share where several jobs go on.

    submitit hides all GPUs from a job that has not asked for some. Where there are fewer GPUs than
    jobs, each job gets its part of the memory. On a CPU all jobs share all cores, since with other
    numbers of threads a run would end with other roundings.
    """
    visible = environment.get('CUDA_VISIBLE_DEVICES')
    if jobs == 1:
        return {'CUDA_VISIBLE_DEVICES': visible}
    devices = visible.split(',') if visible else _list_gpus()
    if not devices:
        return {'CUDA_VISIBLE_DEVICES': visible}
    if len(devices) >= jobs:
        return {'CUDA_VISIBLE_DEVICES': ','.join(devices[slot::jobs])}
    sharing = -(-jobs // len(devices))
    return {
        'CUDA_VISIBLE_DEVICES': devices[slot % len(devices)],
        'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / sharing:.2f}',
    }


def _list_gpus() -> list[str]:
    try:
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(index) for index, _ in enumerate(listed.stdout.splitlines())]


def _without_caches_of_this_machine(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Lets each node find its own folder of compiled programs: nodes may be of other processors."""
    folder = pathlib.Path(environment.get('JAX_COMPILATION_CACHE_DIR', ''))
    return {'JAX_COMPILATION_CACHE_DIR': None} if folder.name.startswith('xla-') else {}


def _new_folder(root: pathlib.Path, kind: str) -> pathlib.Path:
    """Returns a folder for submitit's files that no other command has: it names them by process."""
    now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
    return root / JOBS_FOLDER / f'{kind}-{now}-{os.getpid()}'


@contextlib.contextmanager
def _kept_from_children(number: signal.Signals) -> Iterator[None]:
    """Blocks a signal in processes started within; this one gets it afterwards."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ''
