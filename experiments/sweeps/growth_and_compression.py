"""Growth rate, bottlenecks and compression of a DenseNet (arXiv:1608.06993, section 3, table 2).

Claims: accuracy grows with the growth rate k, without signs of overfitting; a DenseNet with
bottlenecks and compression (BC) reaches what the plain one does with a fraction of its parameters.
All have 28 layers: 8 convolutions in each block, which with bottlenecks are 4 pairs.

  flaxcls sweep --sweep=growth_and_compression

27 runs. Not run yet; --dry_run estimates what they cost.
"""

from flaxcls.sweeping.definition import Sweep, values


def get_sweep():
    plain = {'model.bottleneck': False, 'model.block_sizes': (8, 8, 8)}
    bottlenecks = {'model.bottleneck': True, 'model.block_sizes': (4, 4, 4)}
    return Sweep(
        config='digits_densenet',
        axes={
            'growth rate': values('model.growth_rate', [4, 8, 16]),
            'kind': {
                'plain': plain | {'model.compression': 1.0},
                'C': plain | {'model.compression': 0.5},
                'BC': bottlenecks | {'model.compression': 0.5},
            },
        },
        baseline={'kind': 'plain'},  # At the same growth rate.
        seeds=3,
    )
