"""What is read from the program of a network: its layers, their windows, and what they see."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flaxcls.models import alexnet, densenet, resnet, vgg
from flaxcls.models.graph import ARITHMETIC
from flaxcls.models.init import abstract_variables
from flaxcls.models.intermediates import apply_with_intermediates
from flaxcls.models.receptive_field import Field, hull
from flaxcls.models.registry import MODELS, create_model
from flaxcls.models.summary import count_cost, list_layers
from flaxcls.models.trace import trace_layers

# Araujo, Norris, Sim, Distill 2019, table 1, of the networks whose strides are those here; v1.5,
# which strides behind 1x1 convolutions, sees less: 7 + 2 * 2 + 3 * 8 + (8 + 3 * 16) +
# (16 + 5 * 32) + (32 + 2 * 64).
PUBLISHED = [
    ('alexnet', 'max_pool3', 195),
    ('vgg16', 'max_pool5', 212),
    ('resnet50_v1', 'stage4_block3/conv3', 483),
    ('resnet101_v1', 'stage4_block3/conv3', 1027),
    ('resnet152_v1', 'stage4_block3/conv3', 1507),
    ('resnet50', 'stage4_block3/conv3', 427),
]


@pytest.mark.parametrize(('name', 'path', 'pixels'), PUBLISHED)
def test_receptive_fields_are_the_published_ones(name, path, pixels):
    layers = list_layers(create_model(name), MODELS[name].image_size)
    (layer,) = (layer for layer in layers if layer.path == path)
    assert layer.receptive_field == pixels


def _add_pool(x, window, strides, padding=0):
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    size, steps = (1, window, window, 1), (1, strides, strides, 1)
    return lax.reduce_window(x, np.array(0, x.dtype), lax.add, size, steps, pads)


@pytest.mark.parametrize(
    ('name', 'options', 'size'),
    [
        ('alexnet_2012', {'width_multiplier': 0.02}, 259),
        ('vgg16', {'width_multiplier': 0.02, 'stage_sizes': (2, 2, 1)}, 56),
        ('mobilenet_v2', {'width_multiplier': 0.25, 'stage_sizes': (1, 2)}, 96),
        ('resnet18', {'width_multiplier': 0.05, 'stage_sizes': (1, 2)}, 128),
        ('resnet18_d', {'width_multiplier': 0.05, 'stage_sizes': (1, 1)}, 128),
        ('resnet50_v1', {'width_multiplier': 0.05, 'stage_sizes': (1, 1)}, 128),
        ('resnet50_v2', {'width_multiplier': 0.05, 'stage_sizes': (1, 1)}, 128),
        ('resnet20', {'width_multiplier': 0.1, 'stage_sizes': (1, 1, 1)}, 96),
        ('densenet121', {'growth_rate': 2, 'block_sizes': (2, 1)}, 128),
        ('densenet_40_12', {'growth_rate': 2, 'block_sizes': (2, 2)}, 96),
    ],
    ids=str,
)
def test_a_receptive_field_is_what_gradients_reach(name, options, size, monkeypatch):
    """Positive weights cancel nothing, and a sum over each window forgets none of its pixels."""
    model = create_model(name, num_classes=2, **options)
    expected = _last_map(trace_layers(model, size)).receptive_field
    model = model.clone(dtype=jnp.float64)
    for module in (alexnet, densenet, resnet, vgg):
        monkeypatch.setattr(module, 'max_pool', _add_pool)
    with jax.enable_x64(True):
        images = jnp.ones((1, size, size, 3), jnp.float64)
        ones = jax.tree.map(
            lambda leaf: jnp.full(leaf.shape, 1 / leaf.shape[-1], jnp.float64),
            abstract_variables(model, size),
        )

        def at_the_middle(images):
            _, outputs = apply_with_intermediates(model, ones, images, ['feature_map'])
            maps = outputs['feature_map']
            return maps[0, maps.shape[1] // 2, maps.shape[2] // 2].sum()

        gradient = np.asarray(jax.jit(jax.grad(at_the_middle))(images))[0].any(-1)
    for axis in (0, 1):
        reached = np.flatnonzero(gradient.any(axis))
        assert reached[0] > 0
        assert reached[-1] < size - 1  # Else padding would hide a part of the field.
        assert reached[-1] - reached[0] + 1 == expected


def _last_map(layers):
    """Returns the layer behind which `feature_map` is; AlexNet and VGG pool it once more."""
    behind = ('MaxPool', 'AdaptiveAvgPool')
    maps = [layer for layer in layers if len(layer.output) == 4]
    return next(layer for layer in reversed(maps) if layer.kind not in behind)


def test_fields_that_are_joined_hold_both():
    assert hull([Field(-3, 7, 2), Field(0, 1, 2)]) == Field(-3, 7, 2)
    assert hull([Field(-3, 4, 1), Field(0, 3, 1)]) == Field(-3, 6, 1)
    assert hull([Field(), None]) is None


@pytest.mark.parametrize(
    'name', ['alexnet_2012', 'vgg16_bn', 'mobilenet_v2', 'resnet20', 'resnet18_d', 'resnet50']
)
@pytest.mark.parametrize('pixels', [0, 13])
def test_costs_are_those_of_the_whole_program(name, pixels):
    """Which `count_cost` sums up without knowing any layer."""
    size = MODELS[name].image_size + pixels
    model = create_model(name)
    layers, cost = trace_layers(model, size), count_cost(model, size)
    assert sum(layer.parameters for layer in layers) == cost.parameters
    # Adaptive pooling, of other sizes than the papers', is a matrix product.
    assert sum(layer.macs for layer in layers) == pytest.approx(
        cost.macs, rel=1e-3 if pixels else 0
    )


def test_windows_are_those_of_the_code():
    layers = {layer.path: layer for layer in list_layers(create_model('alexnet_2012'), 227)}
    known = lambda path: (  # noqa: E731
        layers[path].kernel,
        layers[path].stride,
        layers[path].padding,
        layers[path].groups,
    )
    assert known('conv1') == ((11, 11), 4, (0, 0), 1)
    assert known('conv2') == ((5, 5), 1, (2, 2), 2)
    assert known('max_pool1') == ((3, 3), 2, (0, 0), None)
    assert [path for path, layer in layers.items() if layer.kind == 'LRN'] == ['lrn1', 'lrn2']
    assert {layers[path].rate for path in ('dropout6', 'dropout7')} == {0.5}
    layers = {layer.path: layer for layer in list_layers(create_model('resnet18_d'), 225)}
    assert layers['max_pool'].padding == (1, 1)
    # 29 pixels leave one over, which is averaged by itself.
    assert layers['stage3_block1/avg_pool'].padding == (0, 1)


def test_a_layer_reads_what_the_figures_of_the_papers_say():
    layers = trace_layers(create_model('resnet20', stage_sizes=(1, 1)), 32)
    reads = {
        layer.path: [layers[i].path if i >= 0 else 'image' for i in layer.inputs]
        for layer in layers
    }
    assert reads['stem'] == ['image']
    assert sorted(reads['stage1_block1/add']) == ['relu', 'stage1_block1/bn2']
    assert sorted(reads['stage2_block1/add']) == ['stage2_block1/bn2', 'stage2_block1/pad']
    layers = trace_layers(create_model('densenet_bc_100_12', block_sizes=(3, 1)), 32)
    reads = {layer.path: [layers[i].path for i in layer.inputs if i >= 0] for layer in layers}
    assert reads['block1_layer3/bn1'] == ['stem', 'block1_layer1/conv2', 'block1_layer2/conv2']


class _Other(nn.Module):
    """Layers of Flax, and a parameter that belongs to none."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.GroupNorm(2)(nn.Conv(4, (3, 1), strides=2)(images))
        x = x * self.param('scale', nn.initializers.ones, (4,))
        conv = nn.Conv(4, (3, 3))
        x = nn.silu(conv(conv(x))) * nn.sigmoid(nn.Dense(4)(x.mean((1, 2))))[:, None, None]
        return nn.Dense(3)(nn.avg_pool(x, (2, 2), (2, 2)).reshape(len(x), -1))


def test_any_network_of_linen_can_be_read():
    layers = trace_layers(_Other(), 16)
    assert sum(layer.parameters for layer in layers) == count_cost(_Other(), 16).parameters
    assert sum(layer.macs for layer in layers) == count_cost(_Other(), 16).macs
    kinds = [layer.kind for layer in layers if layer.kind not in ARITHMETIC]
    assert kinds == [
        'Conv',
        'GroupNorm',
        'Conv',
        'Conv',
        'GlobalAvgPool',
        'Dense',
        'AvgPool',
        'Dense',
    ]
    assert layers[0].kernel == (3, 1)
    assert {'SiLU', 'Sigmoid', 'Multiply'} <= {layer.kind for layer in layers}
