"""A small network of each family, with variables and images for it."""

import jax
import numpy as np

import flaxcls
from flaxcls.models.init import init_variables
from flaxcls.training.from_config import create_network

# Of each family, with every kind of shortcut, convolution, pooling and place of BatchNorm.
NETWORKS = {
    'alexnet_2012': {'model.name': 'alexnet_2012', 'model.width_multiplier': 0.0625},
    'alexnet': {'model.name': 'alexnet', 'model.width_multiplier': 0.0625},
    'alexnet_bn': {'model.name': 'alexnet_bn', 'model.width_multiplier': 0.0625},
    'vgg16_bn': {'model.name': 'vgg16_bn', 'model.width_multiplier': 0.0625},
    'mobilenet_v2': {
        'model.name': 'mobilenet_v2',
        'model.stage_sizes': '1,1,2',
        'model.width_multiplier': 0.5,
    },
    'resnet20': {'model.name': 'resnet20', 'model.stage_sizes': '1,1,1'},
    'resnet50': {'model.name': 'resnet50', 'model.stage_sizes': '1,2,1,1'},
    'resnet50_d': {'model.name': 'resnet50_d', 'model.stage_sizes': '1,1,1,1'},
    'resnet18_v2': {'model.name': 'resnet18_v2', 'model.stage_sizes': '1,1,1,1'},
    'resnext50_32x4d': {'model.name': 'resnext50_32x4d', 'model.stage_sizes': '1,1,1,1'},
    'densenet121': {'model.name': 'densenet121', 'model.block_sizes': '2,1,1,1'},
    'densenet_40_12': {'model.name': 'densenet_40_12', 'model.block_sizes': '2,2,2'},
    'densenet_bc_100_12': {'model.name': 'densenet_bc_100_12', 'model.block_sizes': '2,2,2'},
}


def make_config(name, **options):
    size = {'alexnet_2012': 67, 'alexnet': 67, 'alexnet_bn': 67, 'vgg16_bn': 32}.get(name, 32)
    return flaxcls.load_config(
        None,
        {'data.source': 'synthetic:10', 'model.num_classes': 10, 'data.image_size': size}
        | NETWORKS[name]
        | options,
    )


def draw_variables(config, seed=0):
    """Returns variables of which none has the value that makes its place of no account."""
    model, rng = create_network(config), np.random.default_rng(seed)

    def draw(path, value):
        if path[-1].key == 'kernel':  # As large as keeps what comes in; some begin smaller.
            deviation = (2 / np.prod(value.shape[:-1])) ** 0.5
            return rng.normal(0, deviation, value.shape).astype(np.float32)
        if path[-1].key == 'var':
            return rng.uniform(0.5, 2, value.shape).astype(np.float32)
        return (value + rng.normal(0, 0.3, value.shape)).astype(np.float32)

    variables = init_variables(model, jax.random.key(seed), config.data.image_size)
    return jax.tree.map_with_path(draw, variables)


def draw_images(config, count, seed=1):
    shape = (count, config.data.image_size, config.data.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
