"""Depth with and without shortcuts (arXiv:1512.03385, figures 1, 4 and 6), on the digits.

Claim: plain networks get worse with depth, in training already, which is not overfitting; with
shortcuts of option A, which add no parameter, they do not.

  python -m flaxcls.sweep --sweep=experiments/sweeps/shortcuts.py

24 runs of one to four minutes on one core.
"""

from flaxcls.sweeping import Sweep, zipped


def get_sweep():
    return Sweep(
        config='experiments/digits_resnet20.py',
        axes={
            'depth': zipped(
                ['8', '20', '32', '56'],
                {'model.stage_sizes': [(1, 1, 1), (3, 3, 3), (5, 5, 5), (9, 9, 9)]},
            ),
            'shortcut': {'A': {'model.shortcut': 'A'}, 'plain': {'model.shortcut': 'none'}},
        },
        baseline={'depth': '20'},  # Each depth against depth 20 of the same kind.
        seeds=3,
    )
