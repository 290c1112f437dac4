"""Computes BatchNorm's statistics anew for the weights of a run, exactly, from its training images.

  python -m flaxcls.commands.precise_bn --workdir=runs/digits_resnet20 --out=runs/recalibrated

The running statistics of training lag behind the weights, and those that go with averaged weights
(config.ema) are right to first order only. Here every training image is counted once, as evaluation
shows it: not augmented, and without dropout. Each BatchNorm normalises with the statistics of its
group, as in training, and its new mean and variance are those of all that it saw (PreciseBN,
arXiv:2105.07576, section 3). --out is a run like any other: to be evaluated, or to start from.
"""

from collections.abc import Sequence

from flaxcls.system.cli import CommandParser, parse_overrides, run_command
from flaxcls.training.evaluation import describe_evaluation
from flaxcls.training.precise_bn import precise_bn_workdir


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.commands.precise_bn', __doc__)
    parser.add_argument('--workdir', required=True, help='of the run')
    parser.add_argument('--out', required=True, help='workdir to write')
    parser.add_argument('--checkpoint', default='newest', help='newest (the default), best or step')
    flags, rest = parser.parse_known_args(argv)
    before, after = precise_bn_workdir(
        flags.workdir,
        flags.out,
        checkpoint=flags.checkpoint,
        overrides=parse_overrides(rest, ['--workdir', '--out', '--checkpoint']),
    )
    print(f'before: {describe_evaluation(before)}\nafter:  {describe_evaluation(after)}')
    print(f'wrote {flags.out}')


if __name__ == '__main__':
    run_command(main)
