"""A DenseNet-BC (arXiv:1608.06993) of 40 layers, k = 12, on Fashion-MNIST (arXiv:1708.07747).

  flaxcls train --config=fashion_mnist_densenet_bc

Hardware: one CPU core; about two and a half hours. Expected: over 93 % of the 10,000 test images.
Run; see RESULTS.md.

On a GPU, --config.model.block_sizes=16,16,16 makes it the paper's (100, 12), of table 2.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'densenet_bc_100_12'
    config.model.block_sizes = (6, 6, 6)  # 2 convolutions each, stem, 2 transitions, head: 40.
    config.data.source = 'fashion_mnist'
    config.data.image_size = 28
    config.data.mean = (0.286, 0.286, 0.286)  # Of the training images.
    config.data.std = (0.353, 0.353, 0.353)
    config.augment.crop = 'pad'
    config.augment.pad = 2
    config.augment.flip = True
    config.batch_size = 32  # On CPUs half as many again a second as with 128.
    config.num_epochs = 8
    config.log_every_steps = 100
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = 'cosine'
    config.schedule.warmup_epochs = 0.5
    return config
