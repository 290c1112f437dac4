"""Depth with and without shortcuts (arXiv:1512.03385, figures 1, 4 and 6), on the digits.

Claim: plain networks get worse with depth, in training already, which is not overfitting; with
shortcuts of option A, which add no parameter, they do not.

  flaxcls sweep --sweep=shortcuts

40 runs of a quarter of a minute to a minute and a half, two at a time on two cores. Run; see
docs/ablations.md. The networks are half as wide as the paper's. The rate rises over two epochs to
0.05: at 0.1 from the first step on, one of three residual networks of 56 layers stayed at 60 %. The
paper warms up its deepest one as well (section 4.2).
"""

from flaxcls.sweeping.definition import Sweep, zipped


def get_sweep():
    return Sweep(
        config='digits_resnet20',
        overrides={
            'model.width_multiplier': 0.5,
            'optimizer.learning_rate': 0.05,
            'schedule.warmup_epochs': 2,
        },
        axes={
            'depth': zipped(
                ['8', '20', '32', '56'],
                {'model.stage_sizes': [(1, 1, 1), (3, 3, 3), (5, 5, 5), (9, 9, 9)]},
            ),
            'shortcut': {'A': {'model.shortcut': 'A'}, 'plain': {'model.shortcut': 'none'}},
        },
        baseline={'depth': '20'},  # Each depth against depth 20 of the same kind.
        seeds=5,
    )
