"""ResNet-152 v1.5 (arXiv:1512.03385, table 1) on ImageNet, by ResNet-50's recipe.

  flaxcls data prepare --name=imagenet2012 --manual_dir=DIR_WITH_THE_TAR_FILES
  flaxcls train --config=resnet152

Hardware: 8 GPUs or a TPU v3-8 (time not measured).
Expected: 78.3 % top-1, 94.0 % top-5 (torchvision). Not run.
"""

import pathlib

import flaxcls


def get_config():
    config = flaxcls.load_config(pathlib.Path(__file__).with_name('resnet50.py'))
    config.model.name = 'resnet152'
    return config
