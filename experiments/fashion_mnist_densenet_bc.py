"""DenseNet-BC (100, 12) (arXiv:1608.06993, table 2) on Fashion-MNIST.

  python -m flaxcls.main --config=experiments/fashion_mnist_densenet_bc.py

Hardware: one GPU (time not measured). Expected: about 94 % of the 10,000 test images. Not run.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'densenet_bc_100_12'
    config.data.source = 'fashion_mnist'
    config.data.image_size = 28
    config.data.mean = (0.286, 0.286, 0.286)
    config.data.std = (0.353, 0.353, 0.353)
    config.augment.crop = 'pad'
    config.augment.pad = 2
    config.augment.flip = True
    config.batch_size = 64
    config.num_epochs = 40
    config.log_every_steps = 100
    config.optimizer.learning_rate = 0.1
    config.schedule.name = 'step'
    config.schedule.milestones = (20, 30)
    return config
