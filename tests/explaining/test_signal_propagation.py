"""Signals and gradients over depth, and which layers of a dense block read which."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcls.errors import UserError
from flaxcls.explaining.signal_propagation import feature_reuse, signal_and_gradient_norms
from flaxcls.models.init import init_variables
from flaxcls.models.intermediates import apply_with_intermediates, layer_names
from flaxcls.models.registry import create_model

NETWORKS = {
    'alexnet': {'width_multiplier': 0.1},
    'vgg16_bn': {'width_multiplier': 0.05, 'stage_sizes': (1, 1), 'hidden': 64},
    'mobilenet_v2': {'width_multiplier': 0.25, 'stage_sizes': (1, 2)},
    'resnet20': {'width_multiplier': 0.25, 'stage_sizes': (1, 1)},
    'densenet_40_12': {'growth_rate': 4, 'block_sizes': (2, 2)},
    'densenet_bc_100_12': {'growth_rate': 4, 'block_sizes': (2, 1)},
}


def _network(name, size=64, batch=4, seed=0, **options):
    model = create_model(name, num_classes=3, **(NETWORKS.get(name, {}) | options))
    variables = init_variables(model, jax.random.key(seed), size)
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3))
    return model, variables, images, jnp.arange(batch) % 3


def _training_keys(images):
    return jax.random.split(jax.random.key(0), len(images))


@pytest.mark.parametrize('name', NETWORKS)
def test_signals_are_those_of_training(name):
    model, variables, images, labels = _network(name)
    apply = functools.partial(
        model.apply,
        train=True,
        mutable=['batch_stats', 'intermediates'],
        capture_intermediates=True,
    )
    logits, state = jax.jit(apply)(variables, images, example_keys=_training_keys(images))
    norms = signal_and_gradient_norms(model, variables, images, labels)
    for layer in norms:
        output = state['intermediates'][layer.layer]['__call__'][0]
        expected = np.sqrt(np.square(np.asarray(output, np.float64)).mean())
        np.testing.assert_allclose(layer.signal, expected, rtol=1e-4)
    # The gradient with respect to the logits has a formula.
    errors = jax.nn.softmax(logits) - jax.nn.one_hot(labels, 3)
    expected = np.sqrt(np.square(errors).sum() / len(images))
    assert norms[-1].layer == 'head'
    np.testing.assert_allclose(norms[-1].gradient, expected, rtol=1e-4)


@pytest.mark.parametrize('name', ['resnet20', 'densenet_40_12'])
def test_gradients_are_those_of_each_layer_by_itself(name):
    model, variables, images, labels = _network(name, size=16)

    @jax.jit
    def loss(perturbations):
        logits, outputs = apply_with_intermediates(
            model,
            variables,
            images,
            list(perturbations),
            perturbations=perturbations,
            training_keys=keys,
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum(), outputs

    keys = _training_keys(images)
    for layer in signal_and_gradient_norms(model, variables, images, labels):
        if 'block' not in layer.layer:
            continue
        _, outputs = apply_with_intermediates(
            model, variables, images, [layer.layer], training_keys=keys
        )
        zeros = jax.tree.map(jnp.zeros_like, outputs)
        gradient = jax.grad(loss, has_aux=True)(zeros)[0][layer.layer]
        length = jnp.sqrt(jnp.square(gradient).sum())
        np.testing.assert_allclose(layer.gradient, length / np.sqrt(len(images)), rtol=1e-4)
        # Along the gradient the loss rises as fast as it is long.
        step = 1e-2 * gradient / length
        rise = loss({layer.layer: step})[0] - loss({layer.layer: -step})[0]
        np.testing.assert_allclose(rise / 2e-2, length, rtol=2e-2)


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
    keys = _training_keys(images)
    evaluated, _ = apply_with_intermediates(model, variables, images, [])
    trained, _ = apply_with_intermediates(model, variables, images, [], training_keys=keys)
    assert jnp.abs(evaluated - trained).max() > 1e-3


def test_gradients_explode_towards_the_first_layer_without_shortcuts():
    """Through BatchNorm at initialisation by a factor for each layer (arXiv:1902.08129)."""

    def growth(shortcut, blocks, seed):
        model, variables, images, labels = _network(
            'resnet20', size=8, batch=16, stage_sizes=(blocks,), shortcut=shortcut, seed=seed
        )
        norms = signal_and_gradient_norms(model, variables, images, labels)
        gradients = [layer.gradient for layer in norms if 'block' in layer.layer]
        return gradients[0] / gradients[-1]

    for seed in range(2):
        plain, residual = growth('none', 12, seed), growth('A', 12, seed)
        assert plain > 5 * residual
        assert plain > 4 * growth('none', 4, seed)


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
