"""ResNet-110 (arXiv:1512.03385, section 4.2) on CIFAR-10, by the paper's recipe with its warm-up.

  flaxcls data prepare --name=cifar10        (once; needs the extra [prepare])
  flaxcls train --config=cifar10_resnet110

The paper trains for about 400 steps at a rate of 0.01 and then at 0.1; here the rate rises
over as many steps.
Hardware: one GPU (time not measured).
Expected: 93.39 % (error 6.61 +- 0.16 over five runs, 6.43 the best; table 6). Not run.
"""

import pathlib

import flaxcls


def get_config():
    config = flaxcls.load_config(pathlib.Path(__file__).with_name('cifar10_resnet20.py'))
    config.model.name = 'resnet110'
    config.schedule.warmup_epochs = 1
    config.schedule.warmup_start = 0.1
    return config
