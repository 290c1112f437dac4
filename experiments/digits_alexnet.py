"""AlexNet on one tower (arXiv:1404.5997) with BatchNorm, a quarter wide, on scikit-learn's digits.

  flaxcls train --config=digits_alexnet

Hardware: one CPU core; half a minute. Expected: over 97 % of the 359 held-out digits.
Run; see RESULTS.md.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'alexnet_bn'
    config.model.width_multiplier = 0.25
    config.data.source = 'digits'
    config.data.image_size = 64  # The smallest that AlexNet's strides take is 63.
    config.batch_size = 64
    config.num_epochs = 15
    config.optimizer.learning_rate = 0.02
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = 'cosine'
    config.schedule.warmup_epochs = 1.0
    return config
