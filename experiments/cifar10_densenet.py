"""DenseNet (40, 12) (arXiv:1608.06993, section 4.2) on CIFAR-10, by the paper's recipe.

  flaxcls data prepare --name=cifar10        (once; needs the extra [prepare])
  flaxcls train --config=cifar10_densenet
  flaxcls train --config=cifar10_densenet:plain

The variant plain has no augmentation and a dropout of 0.2 after each convolution but the first.
(100, 12) and (100, 24) share the recipe (--config.model.name=densenet_100_24).
Hardware: one GPU (time not measured).
Expected: 94.76 % (error 5.24 % of C10+), plain 93.00 % (7.00 % of C10, table 2). Not run.
"""

import pathlib

import flaxcls

VARIANTS = ('augmented', 'plain')


def get_config(variant='augmented'):
    config = flaxcls.load_config(pathlib.Path(__file__).with_name('cifar10_densenet_bc.py'))
    config.model.name = 'densenet_40_12'
    if variant == 'plain':
        config.augment.crop = 'none'
        config.augment.flip = False
        config.model.dropout_rate = 0.2
    return config
