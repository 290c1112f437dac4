"""A DenseNet-BC (arXiv:1608.06993) of 40 layers, k = 12, on scikit-learn's digits.

  flaxcls train --config=digits_densenet

Hardware: one CPU core; about three minutes. Expected: over 97 % of the 359 held-out digits.
Run; see RESULTS.md.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'densenet_bc_100_12'
    config.model.block_sizes = (6, 6, 6)  # 2 convolutions each, stem, 2 transitions, head: 40.
    config.data.source = 'digits'
    config.data.image_size = 16
    config.batch_size = 64
    config.num_epochs = 15
    config.optimizer.learning_rate = 0.1
    config.schedule.name = 'cosine'
    return config
