"""Runs an ablation: the product of named axes and seeds, its table, its plots, and a page.

  flaxcls sweep --sweep=shortcuts --dry_run
  flaxcls sweep --sweep=shortcuts --jobs=2
  flaxcls sweep --sweep=my_sweep.py --executor=slurm --jobs=8 \\
      --slurm partition=gpu --slurm gpus-per-node=1 --slurm time=120
  flaxcls sweep --sweep=shortcuts --report

The same command resumes a sweep: finished runs stay, unfinished ones resume, failed ones are tried
again. A run that fails is reported and does not stop the others. Ctrl-C lets running ones save, and
stops, as does a terminal that is closed; with Slurm it cancels the array, which saves as well.
Where the connection breaks, the array continues, and the same command finds it again. What is more
than the cluster lets into one array (MaxArraySize) becomes several, which wait for one another
where --jobs limits them. One sweep at a time runs in a folder. --dry_run shows what would be run
and what it costs, --report shows what is there. --config.KEY=VALUE changes an option of all runs. A
run that has no --slurm time=MINUTES is given four hours at a time.
"""

import argparse
import functools
from collections.abc import Sequence

from flaxcls.errors import UserError
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls sweep', __doc__)
    add = parser.add_argument
    add('--sweep', required=True, help='a sweep of `flaxcls configs`, or a file with get_sweep()')
    add('--workdir', help='where the runs live; default: runs/sweeps/ and its name')
    add('--executor', default='local', help='local (the default) or slurm')
    add('--jobs', type=int, help='at a time; default: one, and with Slurm as many as there is room')
    add('--slurm', action='append', default=[], metavar='KEY=VALUE', help='an option of sbatch')
    add('--dry_run', action='store_true', help='show runs and costs')
    add('--report', action='store_true', help='show results, run nothing')
    flags, overrides = parser.parse_with_overrides(argv)
    _require_sense(flags)
    from flaxcls.sweeping.expand import open_sweep

    sweep, runs, root = open_sweep(flags.sweep, flags.workdir, overrides)
    # The above is checked before these imports, which take seconds.
    import jax

    jax.config.update('jax_platforms', 'cpu')  # The accelerators are for the runs.
    from flaxcls.sweeping import page, run

    conclude = functools.partial(page.write_all, sweep, runs, root, overrides=overrides)
    if flags.dry_run:
        for line in run.describe_plan(runs):
            print(line)
    elif flags.report:
        run.report(runs, conclude)
    else:
        slurm = dict(given.split('=', 1) for given in flags.slurm)
        executor = run.make_executor(flags.executor, root, sweep.config, flags.jobs, slurm)
        run.run_sweep(runs, root, executor, conclude)


def _require_sense(flags: argparse.Namespace) -> None:
    if flags.executor not in ('local', 'slurm'):
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
