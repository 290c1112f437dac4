"""The runs of a sweep that are not finished, one after another or side by side."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import tqdm

from flaxcls.sweeping.commands import require_submitit
from flaxcls.sweeping.costs import as_duration
from flaxcls.sweeping.definition import Run
from flaxcls.sweeping.executors import Executor, Local, run_all
from flaxcls.sweeping.job import LOG_FILE
from flaxcls.sweeping.results import ACCURACY, Outcome, read_outcome
from flaxcls.sweeping.slurm import Slurm, require_slurm


def make_executor(flags: argparse.Namespace, root: pathlib.Path, config: str) -> Executor:
    """Returns what flags ask for; raises UserError if it is not there."""
    require_submitit()
    if flags.executor == 'local':
        return Local(root, config, flags.jobs or 1)
    require_slurm()
    return Slurm(root, config, flags.jobs, dict(given.split('=', 1) for given in flags.slurm))


def read_outcomes(runs: Sequence[Run]) -> dict[Run, Outcome]:
    """Returns what each run has left."""
    return {run: read_outcome(run) for run in runs}


def run_unfinished(runs: Sequence[Run], executor: Executor) -> dict[Run, str]:
    """Runs what is not finished; returns {failed run: sentence}.

    Raises:
      UserError: the runs cannot be begun.
      Stopped: a signal came, and all have saved.
    """
    left = [run for run in runs if not read_outcome(run).finished]
    done = len(runs) - len(left)
    print(f'{len(runs)} runs, {done} of them finished before', flush=True)
    logged = {run: _log_size(run) for run in left}
    failed: dict[Run, str] = {}
    bar = tqdm.tqdm(initial=done, total=len(runs), unit='run', disable=None, dynamic_ncols=True)
    ended = 0

    def on_end(run: Run) -> None:
        nonlocal ended
        ended += 1
        outcome = read_outcome(run)
        if outcome.finished:
            took = f' in {as_duration(outcome.seconds)}' if outcome.seconds else ''
            text = f'{ACCURACY.title} {outcome.values[ACCURACY.key]:.2%}{took}'
        else:
            failed[run] = _why(run, executor, logged[run])
            text = f'failed: {failed[run]} Its log: {run.workdir / LOG_FILE}'
        bar.update()
        tqdm.tqdm.write(f'[{done + ended}/{len(runs)}] {run}: {text}')
        sys.stdout.flush()

    try:
        if left:
            run_all(executor, left, on_end)
    finally:
        bar.close()
    return failed


def _log_size(run: Run) -> int:
    path = run.workdir / LOG_FILE
    return path.stat().st_size if path.exists() else 0


def _why(run: Run, executor: Executor, logged: int) -> str:
    """Returns the last that a failed run has said since its log had the size `logged`."""
    path = run.workdir / LOG_FILE
    said = path.read_bytes()[logged:].decode(errors='backslashreplace') if path.exists() else ''
    lines = [line.strip() for line in (said or executor.said(run)).splitlines() if line.strip()]
    if not lines or lines[-1].startswith('$ '):
        return 'it has ended without a word.'
    return lines[-1].removeprefix('error: ')
