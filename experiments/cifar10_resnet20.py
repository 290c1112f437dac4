"""ResNet-20 (arXiv:1512.03385, section 4.2) on CIFAR-10, by the paper's recipe.

  flaxcls data prepare --name=cifar10        (once; needs the extra [prepare])
  flaxcls train --config=cifar10_resnet20

The paper trains for 64,000 steps and divides the rate at 32,000 and 48,000, which are epochs 164,
82 and 123 of 390 steps; ResNet-32, -44 and -56 share the recipe (--config.model.name=resnet56).
Hardware: one GPU (time not measured). Expected: 91.25 % (error 8.75 %, table 6). Not run.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'resnet20'
    config.data.source = 'tfds:cifar10'
    config.data.mean = (0.4914, 0.4822, 0.4465)  # Of the training images.
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.crop = 'pad'
    config.augment.flip = True
    config.batch_size = 128
    config.num_epochs = 164
    config.log_every_steps = 100
    config.optimizer.learning_rate = 0.1
    config.optimizer.nesterov = False
    config.optimizer.decay_all = True
    config.schedule.name = 'step'
    config.schedule.milestones = (82, 123)
    return config
