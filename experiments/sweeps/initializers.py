"""Initial weights of AlexNet without BatchNorm.

Claim: normals whose variance follows the number of inputs (arXiv:1502.01852, section 2.2) train
where the fixed deviation of 0.01 of the 2012 paper stalls. The narrow layers of this small network
make the fixed deviation too small by far.

  flaxcls sweep --sweep=initializers

12 runs of half a minute, two at a time on two cores. Run; see docs/ablations.md.
"""

from flaxcls.sweeping.definition import Sweep, values


def get_sweep():
    return Sweep(
        config='digits_alexnet',
        overrides={'model.name': 'alexnet'},
        axes={
            'initializer': values('model.initializer', ['paper', 'he']),
            'rate': values('optimizer.learning_rate', [0.001, 0.005]),
        },
        baseline={'initializer': 'paper'},  # At the same rate.
        seeds=3,
    )
