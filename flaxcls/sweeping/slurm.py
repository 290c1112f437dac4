"""Runs as arrays of jobs of a Slurm cluster, through submitit."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flaxcls.errors import UserError
from flaxcls.sweeping.commands import (
    command_of,
    kept_from_children,
    last_line,
    new_folder,
    require_submitit,
    without_caches_of_this_machine,
)
from flaxcls.sweeping.definition import SweepRun
from flaxcls.sweeping.job import Job
from flaxcls.system.files import write_atomically

_TRIES = 5
_ARRAY_FILE = 'slurm_jobs.json'
_MINUTES = 240  # A run that takes longer goes back into the queue, and continues.
# What submitit itself counts with; it hands everything else to sbatch.
_COUNTED = ('time', 'nodes', 'ntasks_per_node', 'signal_delay_s')


class Slurm:
    """Arrays of jobs, at most `jobs` of them at a time; a single array where it has room for all.

    Slurm limits what runs of one array, and not of several. So, with a limit, an array waits in the
    queue until an earlier one has ended: this process need not live for that, and no more than
    `jobs` ever run, at the price of places that stay empty while the last runs of an array end.

    The ids are kept in the sweep's folder: where this process dies, the arrays run on, and the same
    command finds them again.
    """

    def __init__(
        self,
        root: pathlib.Path,
        config: str,
        jobs: int | None,
        parameters: Mapping[str, str],
        *,
        ask_seconds: float = 4.0,  # Between questions to the scheduler, which all its users ask.
    ):
        self._root, self._config, self._jobs = root, config, jobs
        self._parameters = slurm_parameters(parameters)
        self._queued: dict[SweepRun, str] = {}
        self._last: dict[SweepRun, pathlib.Path] = {}
        self._asked, self._ask_seconds = 0.0, ask_seconds

    def start(self, runs: Sequence[SweepRun]) -> None:
        queued = _require_queued_jobs(self._ask_seconds)
        stored = {name: job for name, job in self._read().items() if job in queued}
        names = {_name_in(self._root, run): run for run in runs}
        self._queued = {names[name]: job for name, job in stored.items() if name in names}
        if self._queued:
            print(f'{len(self._queued)} of the runs are in the queue already.', flush=True)
        rest = [run for run in runs if run not in self._queued]
        # sbatch would die of Ctrl-C, and leave an array that nobody knows of.
        with kept_from_children(signal.SIGINT):
            self._keep(stored)
            if rest:
                self._submit(rest, stored)

    def _submit(self, runs: Sequence[SweepRun], stored: Mapping[str, str]) -> None:
        submitit = require_submitit()
        limit = _max_array_size()
        folder = new_folder(self._root, 'slurm')
        # A job may be preempted or run out of time as often as it comes.
        executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6)
        executor.update_parameters(**self._parameters)
        ids: list[str] = []
        for part in split(runs, limit):
            behind = _array_to_wait_for(ids, self._jobs, limit)
            others = self._parameters['additional_parameters'] | behind
            executor.update_parameters(
                array_parallelism=min(self._jobs or len(part), len(part)),
                additional_parameters=others,
            )
            ids.append(self._submit_array(executor, part))
            self._keep(stored)  # At once: the next array may be refused.

    def _submit_array(self, executor: Any, runs: Sequence[SweepRun]) -> str:
        """Returns the id of the array."""
        submitit = require_submitit()
        environment = without_caches_of_this_machine(os.environ)
        jobs = [
            Job(command_of(run, self._config), run.workdir, environment=environment, starter=None)
            for run in runs
        ]
        try:
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(
                f'sbatch refuses {len(runs)} jobs ({last_line(str(error))}); {self._remedy()}.'
            ) from None
        for run, job in zip(runs, submitted, strict=True):
            self._queued[run], self._last[run] = job.job_id, job.paths.stderr
        return _array_of(submitted[0].job_id)

    def _remedy(self) -> str:
        if not self._queued:
            return 'change --slurm KEY=VALUE'
        return (
            f'{len(self._queued)} are in the queue and stay there, and when they have ended, the '
            'same command submits the rest'
        )

    def _keep(self, stored: Mapping[str, str]) -> None:
        jobs = {_name_in(self._root, run): job for run, job in self._queued.items()}
        write_atomically(self._root / _ARRAY_FILE, json.dumps(stored | jobs, indent=1) + '\n')

    def ended(self) -> list[SweepRun]:
        if time.monotonic() < self._asked + self._ask_seconds:
            return []
        queued, self._asked = _queued_jobs(), time.monotonic()
        if queued is None:
            return []
        found = [run for run, job in self._queued.items() if job not in queued]
        for run in found:
            del self._queued[run]
        return found

    def cancel(self) -> None:
        if self._queued:  # Without a name, scancel only complains.
            _ask('scancel', *self._queued.values())

    @property
    def running_count(self) -> int:
        return len(self._queued)

    def said(self, run: SweepRun) -> str:
        path = self._last.get(run)
        return path.read_text(errors='backslashreplace') if path and path.exists() else ''

    def _read(self) -> dict[str, str]:
        try:
            return json.loads((self._root / _ARRAY_FILE).read_text(encoding='utf-8'))
        except (FileNotFoundError, ValueError):
            return {}


def _name_in(root: pathlib.Path, run: SweepRun) -> str:
    return str(run.workdir.relative_to(root))


def _queued_jobs() -> set[str] | None:
    """Returns the ids of all jobs of this user in the queue; None: Slurm does not respond now.

    squeue, and not submitit's sacct, which needs a data base that not every cluster has.
    """
    result = _ask('squeue', f'--user={os.getuid()}', '--noheader', '--array', '--format=%i')
    return set(result.stdout.split()) if result.returncode == 0 else None


def _require_queued_jobs(ask_seconds: float) -> set[str]:
    """Returns what `_queued_jobs` does, after a few questions; raises UserError if in vain."""
    for _ in range(_TRIES):
        queued = _queued_jobs()
        if queued is not None:
            return queued
        time.sleep(ask_seconds)
    raise UserError(
        f'squeue has not responded in {_TRIES} tries, and which runs are in the queue already is '
        'not known; start the same command when Slurm responds again.'
    )


def _max_array_size() -> int | None:
    """Returns how many jobs an array of this cluster may have; None: Slurm does not say.

    A cluster without arrays says 0, and takes each job alone.
    """
    found = re.search(r'^MaxArraySize\s*=\s*(\d+)', _ask('scontrol', 'show', 'config').stdout, re.M)
    return max(1, int(found[1])) if found else None


def split(runs: Sequence[SweepRun], limit: int | None) -> list[Sequence[SweepRun]]:
    """Returns the runs in their order, in parts of at most `limit`; None: in one part."""
    limit = limit or len(runs)
    return [runs[start : start + limit] for start in range(0, len(runs), limit)]


def _array_to_wait_for(ids: Sequence[str], jobs: int | None, limit: int | None) -> dict[str, str]:
    """Returns the option of sbatch that lets an array wait for an earlier one.

    Args:
      ids: of the arrays before it; the first has waited for what the user has named.
      jobs: at a time; None: nothing waits.
      limit: jobs of an array at most; so many arrays as `jobs` has room for run at once.
    """
    if jobs is None or limit is None or len(ids) < (beside := max(1, jobs // limit)):
        return {}
    return {'dependency': f'afterany:{ids[-beside]}'}


def _array_of(job: str) -> str:
    """Returns 7 for the job 7_12."""
    return job.partition('_')[0]


def _ask(*words: str) -> subprocess.CompletedProcess:
    """Runs a command of Slurm, which does not hear the terminal's Ctrl-C."""
    return subprocess.run(
        words, capture_output=True, text=True, check=False, start_new_session=True
    )


def slurm_parameters(given: Mapping[str, str]) -> dict[str, Any]:
    """Returns what submitit's executor takes, of options of sbatch such as partition=main.

    Raises:
      UserError: a number is none.
    """
    counted: dict[str, Any] = {'time': _MINUTES, 'job_name': 'flaxcls-sweep'}
    others = {}
    for key, value in given.items():
        key = key.replace('-', '_')
        if key not in _COUNTED:
            # submitit writes a flag without a value for True, as sbatch wants --exclusive.
            flag = value.lower() in ('true', '')
            others[key.replace('_', '-')] = True if flag else value
            continue
        if not value.isdigit() or int(value) < 1:
            unit = ', in minutes' if key == 'time' else ''
            raise UserError(f'--slurm {key}={value} must be a positive whole number{unit}.')
        counted[key] = int(value)
    return counted | {'additional_parameters': {'requeue': True} | others}


def require_slurm() -> None:
    """Raises UserError if there is no Slurm, or it does not respond."""
    if not shutil.which('sbatch') or not shutil.which('srun'):
        raise UserError(
            '--executor=slurm needs sbatch and srun, which are not here; run it where jobs are '
            'submitted, or with --executor=local.'
        )
    if _queued_jobs() is None:
        raise UserError('--executor=slurm: squeue gets no response; is Slurm running?')
