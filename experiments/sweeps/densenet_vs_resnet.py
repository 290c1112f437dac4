"""A DenseNet-BC and ResNet-20 with as many parameters, or with as many FLOPs, on the digits.

Claim: at equal parameters, and at equal FLOPs, a DenseNet is more accurate than a ResNet
(arXiv:1608.06993, section 4.4 and figure 3, on ImageNet). The DenseNets have 40 layers:

  ResNet-20                  269,722 parameters, 10.14 million multiply-adds an image
  DenseNet-BC-40, k = 15     272,980, 1.2 % more; 28.22 million
  DenseNet-BC-40, k = 9      100,396; 10.21 million, 0.7 % more

  flaxcls sweep --sweep=densenet_vs_resnet

15 runs of one to five minutes, two at a time on two cores. Run; see docs/ablations.md.
"""

from flaxcls.sweeping.definition import Sweep


def get_sweep():
    densenet = {'model.name': 'densenet_bc_100_12', 'model.block_sizes': (6, 6, 6)}
    return Sweep(
        config='digits_resnet20',
        axes={
            'network': {
                'ResNet-20': {'model.name': 'resnet20'},
                'DenseNet, same parameters': densenet | {'model.growth_rate': 15},
                'DenseNet, same FLOPs': densenet | {'model.growth_rate': 9},
            }
        },
        seeds=5,  # Differences are small.
    )
