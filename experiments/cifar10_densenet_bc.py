"""DenseNet-BC (100, 12) (arXiv:1608.06993, section 4.2) on CIFAR-10, by the paper's recipe.

  flaxcls data prepare --name=cifar10        (once; needs the extra [prepare])
  flaxcls train --config=cifar10_densenet_bc

Hardware: one GPU (time not measured). Expected: 95.49 % (error 4.51 % of C10+, table 2). Not run.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'densenet_bc_100_12'
    config.data.source = 'tfds:cifar10'
    config.data.mean = (0.4914, 0.4822, 0.4465)  # Of the training images.
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.crop = 'pad'
    config.augment.flip = True
    config.batch_size = 64
    config.num_epochs = 300
    config.log_every_steps = 100
    config.optimizer.learning_rate = 0.1
    config.optimizer.decay_all = True
    config.schedule.name = 'step'
    config.schedule.milestones = (150, 225)
    return config
