"""The runs of a sweep that are not finished, one after another or side by side."""

import contextlib
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import tqdm

from flaxcls.config.workdir import METRICS_FILE
from flaxcls.errors import RunError, Stopped
from flaxcls.sweeping import costs
from flaxcls.sweeping.commands import last_line, require_submitit
from flaxcls.sweeping.definition import SweepRun
from flaxcls.sweeping.executors import Executor, Local, run_all
from flaxcls.sweeping.job import LOG_FILE
from flaxcls.sweeping.results import ACCURACY, Outcome, read_outcome, read_outcomes
from flaxcls.sweeping.slurm import Slurm, require_slurm
from flaxcls.system.files import locked_folder
from flaxcls.system.text import clock


def make_executor(
    name: str,
    root: pathlib.Path,
    config: str,
    jobs: int | None = None,
    slurm: Mapping[str, str] | None = None,
) -> Executor:
    """Returns what starts the runs.

    Args:
      name: local or slurm.
      root: the sweep's folder.
      config: path of the experiment file that the runs share.
      jobs: at a time; None: one, and with Slurm as many as there is room.
      slurm: options of sbatch.

    Raises:
      UserError: it is not installed.
    """
    require_submitit()
    if name == 'local':
        return Local(root, config, jobs or 1)
    require_slurm()
    return Slurm(root, config, jobs, dict(slurm or {}))


def describe_plan(runs: Sequence[SweepRun]) -> list[str]:
    """Returns lines with the runs of a sweep, their state, and what they cost."""
    planned = costs.plan_cells(runs)
    return costs.describe_runs(read_outcomes(runs), planned)


# Prints and writes the tables, the plots and the page, of the costs and of the runs that failed;
# see `page.write_all`.
Conclude = Callable[[costs.Costs, Mapping[SweepRun, str]], None]


def report(runs: Sequence[SweepRun], conclude: Conclude) -> None:
    """Concludes from what is there; runs nothing."""
    planned = costs.plan_or_note(runs)
    with _stopped_by_ctrl_c(_TABLES):
        conclude(planned, {})


def run_sweep(
    runs: Sequence[SweepRun], root: pathlib.Path, executor: Executor, conclude: Conclude
) -> None:
    """Runs what is not finished, then concludes.

    Args:
      runs: every run of the sweep; finished ones are skipped.
      root: folder of the sweep, with a workdir for each run.
      executor: from `make_executor`.
      conclude: prints and writes the tables, the plots and the page.

    Raises:
      UserError: another sweep is running in the folder, or the runs cannot be started.
      Stopped: a signal came; the tables are written nevertheless.
      RunError: a run has failed.
    """
    planned = costs.plan_cells(runs)
    failed: dict[SweepRun, str] = {}
    stopped = None
    with locked_folder(root, 'sweep is running'):
        with _stopped_by_ctrl_c(_RUNS):
            try:
                run_unfinished(runs, executor, failed)
            except Stopped as stop:  # All have saved, which does not stop the tables.
                stopped = stop
        with _stopped_by_ctrl_c(_TABLES):
            conclude(planned, failed)
    if stopped:
        raise stopped
    if failed:
        raise RunError(
            f'{len(failed)} of {len(runs)} runs have failed, see above; the same command tries '
            'them again.'
        )


_RUNS = 'no longer waits for the runs, which may still be saving; the same command resumes them.'
_TABLES = 'not all tables and plots are written; the same command with --report writes them.'


@contextlib.contextmanager
def _stopped_by_ctrl_c(otherwise: str) -> Iterator[None]:
    """Raises Stopped, with what follows from it, if Ctrl-C interrupts the block."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f'SIGINT: {otherwise}', signal.SIGINT) from None


def run_unfinished(
    runs: Sequence[SweepRun], executor: Executor, failed: dict[SweepRun, str]
) -> None:
    """Runs what is not finished.

    Args:
      runs: every run of the sweep; finished ones are skipped.
      executor: without any runs yet.
      failed: gets {failed run: sentence}, whatever is raised.

    Raises:
      UserError: the runs cannot be begun.
      Stopped: a signal came, and all have saved.
    """
    before = read_outcomes(runs)
    done = sum(outcome.finished for outcome in before.values())
    print(f'{len(runs)} runs, {done} of them finished before', flush=True)
    _refuse_without_metrics(before, failed)
    left = [run for run in runs if not before[run].finished and run not in failed]
    logged = {run: _log_size(run) for run in left}
    bar = tqdm.tqdm(initial=done, total=len(runs), unit='run', disable=None, dynamic_ncols=True)
    ended = 0

    def on_end(run: SweepRun, stopping: bool) -> None:
        nonlocal ended
        if stopping and _was_stopped(run, logged[run]):
            return
        ended += 1
        outcome = read_outcome(run)
        if outcome.finished:
            took = f' in {clock(outcome.seconds)}' if outcome.seconds else ''
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


def _refuse_without_metrics(outcomes: dict[SweepRun, Outcome], failed: dict[SweepRun, str]) -> None:
    for run, outcome in outcomes.items():
        if outcome.lacks_metrics:
            failed[run] = (
                f'it has made all its steps, but its {METRICS_FILE} is gone or cut short; put it '
                f'back, or remove {str(run.workdir)!r}, and it runs again.'
            )
            print(f'{run}: not started: {failed[run]}', flush=True)


def _log_size(run: SweepRun) -> int:
    path = run.workdir / LOG_FILE
    return path.stat().st_size if path.exists() else 0


def _said(run: SweepRun, logged: int) -> str:
    """Returns what a run has said since its log had the size `logged`."""
    path = run.workdir / LOG_FILE
    return path.read_bytes()[logged:].decode(errors='backslashreplace') if path.exists() else ''


def _was_stopped(run: SweepRun, logged: int) -> bool:
    """Returns whether a run, of those asked to stop, has neither finished nor failed by itself."""
    if read_outcome(run).finished:
        return False
    last = last_line(_said(run, logged))
    return not last or last.startswith('$ ') or bool(re.match(r'SIG\w+: stopped ', last))


def _why(run: SweepRun, executor: Executor, logged: int) -> str:
    """Returns the last that a failed run has said since its log had the size `logged`."""
    last = last_line(_said(run, logged) or executor.said(run))
    if not last or last.startswith('$ '):
        return 'it has ended without a word.'
    return last.removeprefix('error: ')
