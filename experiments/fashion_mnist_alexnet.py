"""AlexNet on one tower (arXiv:1404.5997) with BatchNorm, half as wide, on Fashion-MNIST.

  flaxcls train --config=fashion_mnist_alexnet

Hardware: one CPU core; about 50 minutes. Expected: over 91 % of the 10,000 test images.
Run; see RESULTS.md.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'alexnet_bn'
    config.model.width_multiplier = 0.5
    config.data.source = 'fashion_mnist'
    config.data.image_size = 64  # Of 28; the smallest that AlexNet's strides take is 63.
    config.data.mean = (0.286, 0.286, 0.286)
    config.data.std = (0.353, 0.353, 0.353)
    config.augment.crop = 'pad'
    config.augment.pad = 4
    config.augment.flip = True
    config.batch_size = 128
    config.num_epochs = 12
    config.log_every_steps = 100
    config.optimizer.learning_rate = 0.02
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = 'cosine'
    config.schedule.warmup_epochs = 1.0
    return config
