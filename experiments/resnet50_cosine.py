"""ResNet-50 v1.5 (arXiv:1512.03385, table 1) on ImageNet, by the recipe of flax's ImageNet example.

  flaxcls data prepare --name=imagenet2012 --manual_dir=DIR_WITH_THE_TAR_FILES
  flaxcls train --config=resnet50_cosine --config.model.dtype=bfloat16

The rate grows with the batch (arXiv:1706.02677); up to 8,192 examples the accuracy stays.
Hardware: 8 GPUs or a TPU v3-8 (time not measured).
Expected: 76.5 % top-1 (flax's example: 76.4 to 76.7). Not run.
"""

import pathlib

import flaxcls


def get_config():
    config = flaxcls.load_config(pathlib.Path(__file__).with_name('resnet50.py'))
    config.model.zero_init_residual = True
    config.batch_size = 1024
    config.batch_norm.group_size = 128  # Of each of the 8 cores of a TPU v3-8.
    config.num_epochs = 100
    config.optimizer.nesterov = True
    config.optimizer.decay_all = False
    config.schedule.name = 'cosine'
    config.schedule.milestones = ()
    config.schedule.warmup_epochs = 5
    return config
