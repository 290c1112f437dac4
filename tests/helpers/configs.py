"""What tests train, and the experiments that are kept here."""

import pathlib

TINY = {
    'model.name': 'resnet20',
    'model.stage_sizes': '1,1',
    'model.width_multiplier': 0.25,
    'data.source': 'digits',
    'data.image_size': 8,
    'batch_size': 64,
    'num_epochs': 2,
    'log_every_steps': 5,
}
# What the runs that tests share are trained with: enough to be right about most digits.
TRAINED = TINY | {
    'data.image_size': 12,
    'augment.crop': 'pad',
    'augment.pad': 1,
    'model.width_multiplier': 0.5,
    'optimizer.learning_rate': 0.3,
}

# Changes of TINY that make it as small a network of another family.
ALEXNET = {
    'model.name': 'alexnet',
    'model.stage_sizes': None,
    'model.width_multiplier': 0.02,
    'data.image_size': 63,
}
DENSENET = {
    'model.name': 'densenet_bc_100_12',
    'model.stage_sizes': None,
    'model.width_multiplier': None,
    'model.block_sizes': '1,1',
    'model.growth_rate': 4,
}

_VARIANTS = {'resnet_strikes_back': ('a1', 'a2', 'a3'), 'cifar10_densenet': ('augmented', 'plain')}
EXPERIMENTS = [
    path
    for file in sorted(pathlib.Path('experiments').glob('*.py'))
    for path in (
        [f'{file}:{variant}' for variant in _VARIANTS[file.stem]]
        if file.stem in _VARIANTS
        else [str(file)]
    )
]
