"""AlexNet of two groups (Krizhevsky et al. 2012) on ImageNet, by the paper's recipe.

  flaxcls data prepare --name=imagenet2012 --manual_dir=DIR_WITH_THE_TAR_FILES
  flaxcls train --config=alexnet_2012

The first command is needed once, with the extra [prepare]. The paper lowered the rate by hand,
three times in about 90 epochs, when the validation error stood still; the epochs here are ours.
Hardware: one GPU (time not measured).
Expected: 59.3 % top-1, 81.8 % top-5 (errors 40.7 % and 18.2 % of one network, table 2). Not run.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'alexnet_2012'
    config.data.source = 'tfds:imagenet2012'
    config.data.image_size = 227  # Section 3.5 says 224, which does not give 55 x 55 positions.
    config.data.eval_crop_fraction = 227 / 256
    config.data.eval_crops = 'ten'
    config.data.std = (1 / 255, 1 / 255, 1 / 255)  # Pixels of 0 to 255, the mean subtracted.
    config.augment.crop = 'random'
    config.augment.flip = True
    config.augment.lighting = 0.1
    config.batch_size = 128
    config.num_epochs = 90
    config.log_every_steps = 100
    config.optimizer.learning_rate = 0.01
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = 'step'
    config.schedule.milestones = (30, 55, 75)
    return config
