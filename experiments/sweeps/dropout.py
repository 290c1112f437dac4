"""Dropout in AlexNet's two hidden layers, with and without BatchNorm.

Claims: without dropout the network overfits substantially (NIPS 2012, section 4.2); with BatchNorm
dropout can be reduced or left out (arXiv:1502.03167, section 3.4).

  flaxcls sweep --sweep=dropout

24 runs of half a minute, two at a time on two cores. Run; see docs/ablations.md.
"""

from flaxcls.sweeping.definition import Sweep, values


def get_sweep():
    return Sweep(
        config='digits_alexnet',
        overrides={'optimizer.learning_rate': 0.005},  # At more, AlexNet needs BatchNorm.
        axes={
            'dropout': values('model.dropout_rate', [0.0, 0.25, 0.5, 0.75]),
            'network': values('model.name', ['alexnet', 'alexnet_bn']),
        },
        baseline={'dropout': '0.0'},  # The same network without it.
        seeds=3,
    )
