"""DenseNet-121 (arXiv:1608.06993, section 4.3) on ImageNet, by the paper's recipe.

  flaxcls data prepare --name=imagenet2012 --manual_dir=DIR_WITH_THE_TAR_FILES
  flaxcls train --config=densenet121

The first command is needed once, with the extra [prepare]. On TPU and recent GPUs add
--config.model.dtype=bfloat16.
Hardware: 8 GPUs or a TPU v3-8 (time not measured).
Expected: 74.98 % top-1 (error 25.02 %, table 3). Not run.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'densenet121'
    config.data.source = 'tfds:imagenet2012'
    config.data.eval_crop_fraction = 224 / 256
    config.augment.crop = 'random_resized'
    config.augment.flip = True
    config.augment.color_jitter = (0.4, 0.4, 0.4, 0.0)
    config.augment.lighting = 0.1
    config.batch_size = 256
    config.num_epochs = 90
    config.log_every_steps = 100
    config.optimizer.learning_rate = 0.1
    config.optimizer.base_batch_size = 256
    config.optimizer.nesterov = True
    config.optimizer.decay_all = True
    config.schedule.name = 'step'
    config.schedule.milestones = (30, 60)
    return config
