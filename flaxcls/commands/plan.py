"""Tells what a run would be and what it would cost, before it is begun.

  python -m flaxcls.commands.plan --config=experiments/densenet121.py
  python -m flaxcls.commands.plan --config=experiments/resnet50.py --target=tpu:v5e:2x4
  python -m flaxcls.commands.plan --config=experiments/resnet50.py --target=gpu:h100 \\
      --config.batch_size=512

Steps, learning rates, parameters, FLOPs; and from the training step, compiled but not run, the
memory of each device, the traffic, what is sent between devices, and the least time these allow.
With --target it is compiled for devices that need not be there: tpu:v5e, v5p or v6e with a topology
(extra [tpu]), or gpu:h100 with a number of devices (extra [cuda]). A run that cannot be is refused.
A TPU's compiler is asked for little effort, which saves four fifths of its minutes; the memory that
it then tells is up to a tenth more than a run's own program takes, the traffic up to 40 % less.
Of well-known data sets that are not prepared, the published sizes are taken.
"""

import argparse
from collections.abc import Sequence

from flaxcls.config.files import load_config
from flaxcls.config.options import describe_options
from flaxcls.errors import UserError
from flaxcls.planning import hardware
from flaxcls.system.cli import CommandParser, parse_overrides, run_command


def main(argv: Sequence[str]) -> None:
    parser = CommandParser(
        'flaxcls.commands.plan', __doc__, epilog='options:\n' + describe_options()
    )
    parser.add_argument('--config', help='Python file with get_config(), or FILE:VARIANT')
    parser.add_argument('--target', help='tpu:v5e:2x4, gpu:h100:8 ...; default: the devices here')
    parser.add_argument(
        '--effort',
        type=float,
        help="of a TPU's compiler: -1, the quickest and default, to 0, a run's",
    )
    flags, rest = parser.parse_known_args(argv)
    effort = _effort(flags)
    config = load_config(flags.config, parse_overrides(rest, ['--config', '--target', '--effort']))
    hardware.prepare_environment(flags.target)  # Before JAX is imported.
    from flaxcls.planning import estimate  # noqa: PLC0415

    plan = estimate.create_plan(config, flags.target)
    for line in estimate.describe_plan(plan):
        print(line, flush=True)
    if hardware.is_tpu(flags.target) and effort < 0:
        print(f'Note: compiled with effort {effort:g}; --effort=0 does as a run, in minutes.')
    for line in estimate.describe_resources(estimate.compile_plan(plan, effort=effort)):
        print(line)


def _effort(flags: argparse.Namespace) -> float:
    if flags.effort is None:
        return hardware.LEAST_EFFORT
    if not hardware.is_tpu(flags.target):
        raise UserError(f'--effort={flags.effort:g} belongs to --target=tpu:...; leave it out.')
    if not -1 <= flags.effort <= 0:
        raise UserError(f'--effort={flags.effort:g} must lie between -1 and 0.')
    return flags.effort


if __name__ == '__main__':
    run_command(main)
