"""How many examples share BatchNorm's statistics, in one and the same batch of 64.

Claims: with few examples the error rises, since the statistics are poor (arXiv:1803.08494,
figure 1); groups somewhat smaller than the batch ("ghost" batches) do no harm, and may help
(arXiv:1705.08741).

  flaxcls sweep --sweep=batch_norm_groups

18 runs of a minute and a quarter, two at a time on two cores. Run; see docs/ablations.md.
"""

from flaxcls.sweeping.definition import Sweep, values


def get_sweep():
    return Sweep(
        config='digits_resnet20',
        axes={'group size': values('batch_norm.group_size', [2, 4, 8, 16, 32, 64])},
        baseline={'group size': '64'},
        seeds=3,
    )
