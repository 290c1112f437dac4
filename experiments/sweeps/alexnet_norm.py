"""AlexNet without normalisation, with local response normalisation, and with BatchNorm.

Claims: local response normalisation lowers the top-1 error by 1.4 points on ImageNet (NIPS 2012,
section 3.3), which later work did not find (arXiv:1409.1556, section 2.1); BatchNorm learns faster,
and takes learning rates that are too high without it (arXiv:1502.03167, section 4.2).

  flaxcls sweep --sweep=alexnet_norm

27 runs of up to a minute, two at a time on two cores. Run; see docs/ablations.md.
"""

from flaxcls.sweeping.definition import Sweep, values


def get_sweep():
    return Sweep(
        config='digits_alexnet',
        axes={
            'rate': values('optimizer.learning_rate', [0.005, 0.02, 0.08]),
            'normalisation': {
                'none': {'model.name': 'alexnet', 'model.lrn': 'none'},
                'lrn': {'model.name': 'alexnet', 'model.lrn': 'paper'},
                'BatchNorm': {'model.name': 'alexnet_bn'},
            },
        },
        baseline={'normalisation': 'none'},  # At the same rate.
        seeds=3,
    )
