"""Recomputes BatchNorm's statistics for the weights of a run, exactly, from its training images.

  flaxcls precise-bn --workdir=runs/digits_resnet20 --out=runs/precise_bn

The running statistics of training lag behind the weights, and those that go with averaged weights
(config.ema) are right to first order only. Here every training image is counted once, as evaluation
shows it: not augmented, and without dropout. Each BatchNorm normalises with the statistics of its
group, as in training, and its new mean and variance are those of all that it saw (PreciseBN,
arXiv:2105.07576, section 3). --out is a run like any other: to be evaluated, or to start from.
"""

from collections.abc import Sequence

from flaxcls.commands.flags import add_checkpoint, add_workdir
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls precise-bn', __doc__)
    add_workdir(parser)
    parser.add_argument('--out', required=True, help='workdir to write')
    add_checkpoint(parser)
    flags, overrides = parser.parse_with_overrides(argv)
    from flaxcls.training.evaluation import describe_evaluation
    from flaxcls.training.precise_bn import precise_bn_workdir

    before, after = precise_bn_workdir(
        flags.workdir, flags.out, checkpoint=flags.checkpoint, overrides=overrides
    )
    print(f'before: {describe_evaluation(before)}\nafter:  {describe_evaluation(after)}')
    print(f'wrote {flags.out}')
