"""flaxcls: AlexNet, ResNet and DenseNet in JAX, trained, proven and shipped.

The names below are the public API. They load on first use, so that `import flaxcls` costs little.
"""

import importlib

__version__ = '0.1.0'

_HOME = {
    'Option': 'flaxcls.config.option',
    'add_option': 'flaxcls.config.registry',
    'MODELS': 'flaxcls.models.registry',
    'OPTIMIZERS': 'flaxcls.training.optimizers',
    'SCHEDULES': 'flaxcls.training.schedules',
    'LOSSES': 'flaxcls.training.losses',
    'SOURCES': 'flaxcls.data.sources',
    'AUGMENTATIONS': 'flaxcls.augment.transforms',
    'TRACKERS': 'flaxcls.training.logging',
    'default_config': 'flaxcls.config.config_dict',
    'load_config': 'flaxcls.config.files',
    'create_model': 'flaxcls.models.registry',
    'to_nnx': 'flaxcls.models.nnx_network',
    'to_linen': 'flaxcls.models.nnx_network',
    'train_and_evaluate': 'flaxcls.training.loop',
    'evaluate_workdir': 'flaxcls.training.restore',
    'Classifier': 'flaxcls.inference.classifier',
    'UserError': 'flaxcls.errors',
    'RunError': 'flaxcls.errors',
}

__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
    return sorted([*globals(), *_HOME])
