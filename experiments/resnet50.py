"""ResNet-50 v1.5 (arXiv:1512.03385, table 1) on ImageNet, by torchvision's V1 recipe.

  flaxcls data prepare --name=imagenet2012 --manual_dir=DIR_WITH_THE_TAR_FILES
  flaxcls train --config=resnet50

The first command is needed once, with the extra [prepare]. On TPU and recent GPUs add
--config.model.dtype=bfloat16.
Hardware: 8 GPUs or a TPU v3-8 (time not measured).
Expected: 76.1 % top-1, 92.9 % top-5 (torchvision). Not run.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'resnet50'
    config.data.source = 'tfds:imagenet2012'
    config.data.eval_crop_fraction = 224 / 256
    config.augment.crop = 'random_resized'
    config.augment.flip = True
    config.batch_size = 256
    config.batch_norm.group_size = 32  # Of each of the 8 GPUs that it was trained on.
    config.num_epochs = 90
    config.log_every_steps = 100
    config.optimizer.learning_rate = 0.1
    config.optimizer.base_batch_size = 256
    config.optimizer.nesterov = False
    config.optimizer.decay_all = True
    config.schedule.name = 'step'
    config.schedule.milestones = (30, 60)
    return config
