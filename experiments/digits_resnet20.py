"""ResNet-20 (arXiv:1512.03385, section 4.2) on the handwritten digits inside scikit-learn.

  flaxcls train --config=digits_resnet20

Hardware: one CPU core; a minute and a half. Expected: over 98.5 % of the 359 held-out digits.
Run; see RESULTS.md.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'resnet20'
    config.data.source = 'digits'
    config.data.image_size = 16  # The digits are 8x8; two strided stages need a little more.
    config.augment.crop = 'pad'  # Shifted by half of a pixel of theirs, at most.
    config.augment.pad = 1
    config.batch_size = 64
    config.num_epochs = 20
    config.optimizer.learning_rate = 0.1
    config.schedule.name = 'cosine'
    return config
