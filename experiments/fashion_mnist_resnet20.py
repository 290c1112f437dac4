"""ResNet-20 (arXiv:1512.03385, section 4.2) on Fashion-MNIST (arXiv:1708.07747).

  flaxcls train --config=fashion_mnist_resnet20

Hardware: one CPU core; about 70 minutes. Expected: over 93 % of the 10,000 test images.
Run; see RESULTS.md.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'resnet20'
    config.data.source = 'fashion_mnist'
    config.data.image_size = 28
    config.data.mean = (0.286, 0.286, 0.286)  # Of the training images.
    config.data.std = (0.353, 0.353, 0.353)
    config.augment.crop = 'pad'
    config.augment.pad = 2
    config.augment.flip = True
    config.batch_size = 128
    config.num_epochs = 8
    config.log_every_steps = 100
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = 'cosine'
    config.schedule.warmup_epochs = 0.5
    return config
