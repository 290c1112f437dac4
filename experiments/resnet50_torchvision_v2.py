"""ResNet-50 v1.5 on ImageNet by the recipe of the weights that torchvision calls IMAGENET1K_V2.

  flaxcls data prepare --name=imagenet2012 --manual_dir=DIR_WITH_THE_TAR_FILES
  flaxcls train --config=resnet50_torchvision_v2

ResNet-101 and -152 (81.9 % and 82.3 %) were trained without repeats, and on 224 pixels:
--config.model.name=resnet101 --config.augment.repeats=1 --config.data.train_image_size=224.
Hardware: 8 GPUs or a TPU v3-8 (time not measured).
Expected: 80.9 % top-1 (torchvision). Not run.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'resnet50'
    config.model.dtype = 'bfloat16'
    config.data.source = 'tfds:imagenet2012'
    config.data.train_image_size = 176
    config.data.image_size = 224
    config.data.eval_crop_fraction = 224 / 232
    config.augment.crop = 'random_resized'
    config.augment.flip = True
    config.augment.policy = 'trivialaugment'
    config.augment.erase = 0.1
    config.augment.mixup = 0.2
    config.augment.cutmix = 1.0
    config.augment.repeats = 4
    config.label_smoothing = 0.1
    config.batch_size = 1024
    config.batch_norm.group_size = 128  # Of each of its 8 GPUs.
    config.num_epochs = 600
    config.log_every_steps = 100
    config.eval_every_epochs = 5
    config.optimizer.learning_rate = 0.5
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 2e-5
    config.schedule.name = 'cosine'
    config.schedule.warmup_epochs = 5
    config.schedule.warmup_start = 0.01
    # 0.99998 as torchvision counts: once in 32 steps, 1024 * 32 / 600 times as fast.
    config.ema.decay = 1 - 2e-5 * 1024 / 600
    return config
