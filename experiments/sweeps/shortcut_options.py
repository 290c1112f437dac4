"""Options A, B and C of the shortcuts between stages (arXiv:1512.03385, section 4.1, table 3).

Claim: B (projections where shapes change) is slightly better than A (padding with zeros, without
parameters), C (projections everywhere) marginally better than B; the differences are small, so
that projections are not essential against degradation.

  flaxcls sweep --sweep=shortcut_options

9 runs of a minute and a quarter, two at a time on two cores. Run; see docs/ablations.md.
"""

from flaxcls.sweeping.definition import Sweep, values


def get_sweep():
    return Sweep(
        config='digits_resnet20',
        axes={'shortcut': values('model.shortcut', ['A', 'B', 'C'])},
        seeds=3,
    )
