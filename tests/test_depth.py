"""Signals and gradients over depth, and which layers of a dense block read which."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcls.depth import feature_reuse, signal_and_gradient_norms
from flaxcls.errors import UserError
from flaxcls.models import create_model
from flaxcls.models.activations import apply_and_record, layer_names
from flaxcls.models.initialization import init_variables

NETWORKS = {
    'alexnet': {'width_multiplier': 0.1},
    'vgg16_bn': {'width_multiplier': 0.05, 'stage_sizes': (1, 1), 'hidden': 64},
    'resnet20': {'width_multiplier': 0.25, 'stage_sizes': (1, 1)},
    'densenet_40_12': {'growth_rate': 4, 'block_sizes': (2, 2)},
    'densenet_bc_100_12': {'growth_rate': 4, 'block_sizes': (2, 1)},
}


def _network(name, size=64, batch=4, **options):
    model = create_model(name, num_classes=3, **(NETWORKS.get(name, {}) | options))
    variables = init_variables(model, jax.random.key(0), size)
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3))
    return model, variables, images, jnp.arange(batch) % 3


@pytest.mark.parametrize('name', NETWORKS)
def test_the_norms_are_those_of_brute_force(name):
    XX
        'alexnet', 'vgg16_bn', 'densenet_40_12') else _network(name)  # fmt: skip
    norms = {layer.layer: layer for layer in signal_and_gradient_norms(
        model, variables, images, labels)}  # fmt: skip

    def outputs_of_training(variables):
        return model.apply(
            variables, images, train=True, mutable=['batch_stats', 'intermediates'],
            example_keys=jax.random.split(jax.random.key(0), len(images)),
            capture_intermediates=True,
        )  # fmt: skip

    logits, state = outputs_of_training(variables)
    for layer in norms.values():
        output = state['intermediates'][layer.layer]['__call__'][0]
        expected = np.sqrt(np.square(np.asarray(output, np.float64)).mean())
        np.testing.assert_allclose(layer.signal, expected, rtol=1e-4)
    # The logits' gradient has a formula.
    errors = jax.nn.softmax(logits) - jax.nn.one_hot(labels, 3)
    expected = np.sqrt(np.square(errors).sum() / len(images))
    np.testing.assert_allclose(norms['head'].gradient, expected, rtol=1e-4)


def test_gradients_are_differences_of_the_loss():
    """Along the gradient's own direction the loss rises by the norm."""
    model, variables, images, labels = _network('resnet20', size=16)
    keys = jax.random.split(jax.random.key(0), len(images))

    @jax.jit
    def loss(shift):
        with jax.enable_x64(False):
            logits, outputs = apply_and_record(
                model, variables, images, ['stage1_block1'],
                shifts={'stage1_block1': shift}, training_keys=keys,
            )  # fmt: skip
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum(), outputs['stage1_block1']

    zero = jnp.zeros((len(images), 16, 16, 4))
    direction = jax.grad(lambda shift: loss(shift)[0])(zero)
    length = jnp.sqrt(jnp.square(direction).sum())
    step = 1e-2 * direction / length
    slope = (loss(step)[0] - loss(-step)[0]) / 2e-2
    norms = {n.layer: n for n in signal_and_gradient_norms(model, variables, images, labels)}
    gradient = norms['stage1_block1'].gradient * np.sqrt(len(images))
    np.testing.assert_allclose(gradient, slope, rtol=2e-2)


def test_statistics_are_the_batch_s_and_are_not_kept():
    model, variables, images, labels = _network('resnet20', size=16)
    changed = jax.tree.map(lambda x: x + 3, variables['batch_stats'])
    again = signal_and_gradient_norms(
        model, {'params': variables['params'], 'batch_stats': changed}, images, labels
    )
    for one, other in zip(
        signal_and_gradient_norms(model, variables, images, labels), again, strict=True
    ):
        np.testing.assert_allclose(one[1:], other[1:], rtol=1e-4)
    keys = jax.random.split(jax.random.key(0), len(images))
    evaluated, _ = apply_and_record(model, variables, images, [])
    trained, _ = apply_and_record(model, variables, images, [], training_keys=keys)
    assert jnp.abs(evaluated - trained).max() > 1e-3


def test_layers_come_in_the_order_of_the_network():
    model, variables, images, _ = _network('densenet_40_12', size=16)
    names = [n for n in layer_names(model, variables, images) if not n.startswith('bn')]
    assert names == [
        'stem', 'block1_layer1', 'block1_layer2', 'transition1', 'block2_layer1', 'block2_layer2',
        'feature_map', 'features', 'head',
    ]  # fmt: skip


@pytest.mark.parametrize('name', ['densenet_40_12', 'densenet_bc_100_12'])
@pytest.mark.parametrize('block', [1, 2])
def test_a_weight_in_one_link_shows_there_alone(name, block):
    sizes, growth = (3, 2), 4
    model = create_model(name, num_classes=3, growth_rate=growth, block_sizes=sizes)
    params = init_variables(model, jax.random.key(0), 16)['params']
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), params)
    assert [table.shape for table in feature_reuse(zeros)] == [(size + 1,) * 2 for size in sizes]
    given = zeros[f'block{block}_layer1']['conv1']['kernel'].shape[2]
    last = zeros['transition1']['conv'] if block == 1 else zeros['head']['dense']
    kernels = [
        zeros[f'block{block}_layer{i}']['conv1']['kernel'] for i in range(1, sizes[block - 1] + 1)
    ] + [last['kernel']]
    for target, kernel in enumerate(kernels):
        for source in range(target + 1):
            first = given + (source - 1) * growth if source else 0
            width = growth if source else given
            kernel[...] = 0
            kernel[..., first : first + width, :] = -0.5
            tables = feature_reuse(zeros)
            expected = [np.where(np.isnan(table), np.nan, 0) for table in tables]
            expected[block - 1][source, target] = 0.5
            for table, wanted in zip(tables, expected, strict=True):
                np.testing.assert_array_equal(table, wanted)
        kernel[...] = 0
    for table in feature_reuse(params):  # No layer reads a later one.
        np.testing.assert_array_equal(np.isnan(table), np.tri(len(table), k=-1) > 0)


def test_only_dense_blocks_reuse():
    with pytest.raises(UserError, match='take a DenseNet'):
        feature_reuse(_network('resnet20', size=16)[1]['params'])
