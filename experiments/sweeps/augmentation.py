"""Augmentations of the digits, each by itself against none.

Claims: shifted crops (arXiv:1409.5185, as in arXiv:1512.03385, section 4.2), cutout
(arXiv:1708.04552), mixup (arXiv:1710.09412), cutmix (arXiv:1905.04899) and RandAugment
(arXiv:1909.13719) help where the network overfits. Mirrored digits are other signs, so that
flipping should do harm.

  flaxcls sweep --sweep=augmentation

21 runs of a minute, two at a time on two cores. Run; see docs/ablations.md.
"""

from flaxcls.sweeping.definition import Sweep


def get_sweep():
    return Sweep(
        config='digits_resnet20',
        overrides={'augment.crop': 'none'},
        axes={
            'augmentation': {
                'none': {},
                'crop': {'augment.crop': 'pad'},
                'flip': {'augment.flip': True},
                'cutout': {'augment.cutout': 4},
                'mixup': {'augment.mixup': 0.2},
                'cutmix': {'augment.cutmix': 1.0},
                'randaugment': {'augment.policy': 'randaugment'},
            }
        },
        seeds=3,
    )
