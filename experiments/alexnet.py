"""AlexNet on one tower (arXiv:1404.5997) on ImageNet, by torchvision's recipe.

  flaxcls data prepare --name=imagenet2012 --manual_dir=DIR_WITH_THE_TAR_FILES
  flaxcls train --config=alexnet

The first command is needed once, with the extra [prepare]. On TPU and recent GPUs add
--config.model.dtype=bfloat16.
Hardware: one GPU (time not measured). Expected: 56.5 % top-1, 79.1 % top-5 (torchvision). Not run.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'alexnet'
    config.data.source = 'tfds:imagenet2012'
    config.data.eval_crop_fraction = 224 / 256
    config.augment.crop = 'random_resized'
    config.augment.flip = True
    config.batch_size = 256
    config.num_epochs = 90
    config.log_every_steps = 100
    config.optimizer.learning_rate = 0.01
    config.optimizer.base_batch_size = 256
    config.optimizer.nesterov = False
    config.optimizer.decay_all = True
    config.schedule.name = 'step'
    config.schedule.milestones = (30, 60)
    return config
