"""Shows what a run would be and what it would cost, before it starts.

  flaxcls plan --config=densenet121
  flaxcls plan --config=resnet50 --target=tpu:v5e:2x4
  flaxcls plan --config=resnet50 --target=gpu:h100 --config.batch_size=512

Steps, learning rates, parameters, FLOPs; and from the training step, compiled but not run, the
memory of each device, the traffic, what is sent between devices, and the least time these allow.
With --target it is compiled for devices that need not be there: tpu:v5e, v5p or v6e with a topology
(extra [tpu]), or gpu:h100 with a number of devices (extra [cuda]). A config that cannot run is
refused. A TPU's compiler is asked for little effort, which saves four fifths of its minutes; the
memory is then up to a tenth more than a run's own program takes, the traffic up to 40 % less.
Of well-known data sets that are not prepared, the published sizes are taken.
"""

import argparse
from collections.abc import Sequence

from flaxcls.commands.flags import add_config
from flaxcls.config.options import describe_options
from flaxcls.errors import UserError
from flaxcls.planning import hardware
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls plan', __doc__, epilog='options:\n' + describe_options())
    add_config(parser)
    parser.add_argument('--target', help='tpu:v5e:2x4, gpu:h100:8 ...; default: the devices here')
    parser.add_argument(
        '--effort',
        type=float,
        help="of a TPU's compiler: from -1, the fastest and default, to 0, as in a run",
    )
    flags, overrides = parser.parse_with_overrides(argv)
    effort = _effort(flags)
    hardware.prepare_environment(flags.target)  # Before JAX is imported, which extensions do.
    from flaxcls.config.files import load_config

    config = load_config(flags.config, overrides)
    from flaxcls.planning import estimate

    plan = estimate.create_plan(config, flags.target)
    for line in estimate.describe_plan(plan):
        print(line, flush=True)
    if hardware.is_tpu(flags.target) and effort < 0:
        print(
            f'Note: compiled with effort {effort:g}; --effort=0 compiles as a run does, in minutes.'
        )
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
