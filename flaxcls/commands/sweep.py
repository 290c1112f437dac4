"""Runs an ablation: the product of named axes and seeds, its table, its plots, and a page.

  python -m flaxcls.commands.sweep --sweep=experiments/sweeps/shortcuts.py --dry_run
  python -m flaxcls.commands.sweep --sweep=experiments/sweeps/shortcuts.py --jobs=2
  python -m flaxcls.commands.sweep --sweep=experiments/sweeps/shortcuts.py --executor=slurm \\
      --jobs=8 \\
      --slurm partition=gpu --slurm gpus-per-node=1 --slurm time=120
  python -m flaxcls.commands.sweep --sweep=experiments/sweeps/shortcuts.py --report

The same command goes on where it stopped: finished runs stay, unfinished ones continue, failed ones
are tried again. A run that fails is told, and the others go on. Ctrl-C lets those that go on save,
and stops, as does a terminal that is closed; with Slurm it cancels the array, which saves as well.
Where the connection breaks, the array goes on, and the same command finds it again. One sweep at a
time runs in a folder. --dry_run tells what would be run and what it costs, --report shows what is
there. --config.KEY=VALUE changes an option of all runs. A run that has no --slurm time=MINUTES is
given four hours at a time.
"""

import argparse
import contextlib
import pathlib
import signal
from collections.abc import Callable, Sequence

from flaxcls.config.files import default_workdir
from flaxcls.errors import RunError, Stopped, UserError
from flaxcls.sweeping.expand import expand, load_sweep, require_same_configs
from flaxcls.system.cli import CommandParser, parse_overrides, run_command
from flaxcls.system.files import locked_folder

_FLAGS = ('--sweep', '--workdir', '--executor', '--jobs', '--slurm', '--dry_run', '--report')
_EXECUTORS = ('local', 'slurm')


def main(argv: Sequence[str]) -> None:
    flags, overrides = _parse(argv)
    sweep = load_sweep(flags.sweep)
    named = default_workdir(flags.sweep, overrides)
    root = pathlib.Path(flags.workdir or f'runs/sweeps/{pathlib.Path(named).name}').expanduser()
    runs = expand(sweep, root, overrides)
    require_same_configs(runs)
    # The above is checked before these imports, which take seconds.
    import jax  # noqa: PLC0415

    jax.config.update('jax_platforms', 'cpu')  # The accelerators are for the runs.
    from flaxcls.sweeping import costs, page, results, run  # noqa: PLC0415

    executor = None
    if not flags.dry_run and not flags.report:
        executor = run.make_executor(flags, root, sweep.config)
    planned = costs.plan_or_note(runs) if flags.report else costs.plan_cells(runs)
    if flags.dry_run:
        for line in costs.describe_runs(results.read_outcomes(runs), planned):
            print(line)
        return
    failed, stopped = {}, None
    with locked_folder(root, 'sweep is running') if executor else contextlib.nullcontext():
        if executor:
            stopped = _run(lambda: run.run_unfinished(runs, executor, failed))
        _write(lambda: page.write_all(sweep, runs, root, planned, failed, overrides))
    if stopped:
        raise stopped
    if failed:
        raise RunError(
            f'{len(failed)} of {len(runs)} runs have failed, see above; the same command tries '
            'them again.'
        )


def _run(run_unfinished: Callable[[], None]) -> Stopped | None:
    """Returns what has stopped the runs, which does not stop the tables."""
    try:
        run_unfinished()
    except Stopped as stop:
        return stop
    except KeyboardInterrupt:
        raise Stopped(
            'SIGINT: no longer waits for the runs, which may still be saving; the same command '
            'goes on from there.',
            signal.SIGINT,
        ) from None
    return None


def _write(write_all: Callable[[], None]) -> None:
    try:
        write_all()
    except KeyboardInterrupt:
        raise Stopped(
            'SIGINT: not all tables and plots are written; the same command with --report writes '
            'them.',
            signal.SIGINT,
        ) from None


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = CommandParser('flaxcls.commands.sweep', __doc__)
    parser.add_argument('--sweep', required=True, help='Python file with get_sweep()')
    parser.add_argument('--workdir', help='where the runs live; default: runs/sweeps/ and its name')
    parser.add_argument('--executor', default='local', help='local (the default) or slurm')
    parser.add_argument(
        '--jobs', type=int, help='at a time; default: one, and with Slurm as many as there is room'
    )
    parser.add_argument(
        '--slurm', action='append', default=[], metavar='KEY=VALUE', help='an option of sbatch'
    )
    parser.add_argument('--dry_run', action='store_true', help='show runs and costs')
    parser.add_argument('--report', action='store_true', help='show results, run nothing')
    flags, rest = parser.parse_known_args(argv)
    if flags.executor not in _EXECUTORS:
        raise UserError(f'--executor={flags.executor} is unknown; choose local or slurm.')
    if flags.jobs is not None and flags.jobs < 1:
        raise UserError(f'--jobs={flags.jobs} must be at least 1.')
    if flags.dry_run and flags.report:
        raise UserError('--dry_run and --report both run nothing; give one of them.')
    if flags.slurm and flags.executor != 'slurm':
        raise UserError(f'--slurm {flags.slurm[0]} belongs to --executor=slurm.')
    for given in flags.slurm:
        if '=' not in given.strip('='):
            raise UserError(f'--slurm {given} is not of the form KEY=VALUE, as in partition=main.')
    return flags, parse_overrides(rest, _FLAGS)


if __name__ == '__main__':
    run_command(main)
