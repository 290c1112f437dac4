"""A network as it is exported: one function of images, BatchNorm folded away."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.explaining.attribution import cam
from flaxcls.inference import export_function, fold_batch_norm
from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.layers import Conv
from flaxcls.training.from_config import create_network, eval_images
from tests.helpers.networks import NETWORKS, draw_images, draw_variables, make_config
from tests.helpers.unpack import classifier_of, make_classify

# The BatchNorm layers that neither come right after a convolution nor, but for a ReLU, before one.
NOT_FOLDED = {
    'resnet18_v2': {'bn_final'},
    'densenet121': {'bn_final'},
    'densenet_40_12': {'bn_final'},
    'densenet_bc_100_12': {'bn_final'},
}


def make_inference(config, variables, **options):
    images = eval_images(config)
    return export_function.make_inference(create_network(config), variables, images, **options)


@pytest.mark.parametrize('name', NETWORKS)
def test_folded_network_is_the_network(name):
    config = make_config(name)
    variables, images = draw_variables(config), draw_images(config, 3)
    classify = jax.jit(make_classify(config, create_network(config)))
    infer = jax.jit(make_inference(config, variables, temperature=2.0))
    logits = classify(variables, images)
    expected = jax.nn.softmax(logits / 2)
    assert np.ptp(expected, axis=0).max() > 1e-3  # The images matter.
    np.testing.assert_allclose(infer(images)['probabilities'], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', NETWORKS)
def test_batch_norm_is_folded_wherever_it_can_be(name):
    config = make_config(name)
    model = create_network(config)
    norms = fold_batch_norm.fold_batch_norm(
        model, draw_variables(config), config.data.image_size
    ).norms
    left = {path[-1] for path, (factor, _) in norms.items() if factor is not None}
    assert left == NOT_FOLDED.get(name, set())
    assert not left & {path[-1] for path, (factor, _) in norms.items() if factor is None}


@pytest.mark.parametrize('name', NETWORKS)
def test_reference_ops_are_one_native_operation_each(name):
    config = make_config(name)
    infer = make_inference(config, draw_variables(config))
    program = str(jax.make_jaxpr(infer)(draw_images(config, 1)))
    for other in ('platform_index', 'custom_vjp', 'optimization_barrier'):
        assert other not in program


@pytest.mark.parametrize('crops', ['flip', 'ten'])
def test_tta_crops_are_averaged_as_in_evaluation(crops):
    config = make_config('resnet20', **{'data.eval_crops': crops, 'data.eval_crop_fraction': 0.875})
    variables = draw_variables(config)
    classifier = classifier_of(config, variables, map(str, range(10)), temperature=1.5)
    images = np.random.default_rng(2).integers(
        0, 256, (2, classifier.side, classifier.side, 3), np.uint8
    )
    infer = make_inference(config, variables, temperature=1.5, with_maps=True)
    expected = classifier.to_probabilities(classifier.classify(images))
    found = infer(images)
    np.testing.assert_allclose(found['probabilities'], expected, rtol=1e-4, atol=1e-6)
    assert set(found) == {'probabilities'}


@pytest.mark.parametrize('name', ['resnet20', 'densenet_bc_100_12', 'alexnet'])
def test_maps_are_those_of_cam(name):
    config = make_config(name)
    variables, images = draw_variables(config), draw_images(config, 2)
    found = make_inference(config, variables, with_maps=True)(images)
    if name == 'alexnet':
        assert set(found) == {'probabilities'}
        return
    classifier = classifier_of(config, variables, map(str, range(10)))
    expected = cam(classifier, images, np.array([3, 7]))
    np.testing.assert_allclose(found['maps'][[0, 1], ..., [3, 7]], expected, rtol=1e-3, atol=1e-4)


def test_a_network_of_half_precision_is_exported_in_float32():
    config = make_config('resnet20', **{'model.dtype': 'bfloat16', 'model.remat': 'block'})
    variables, images = draw_variables(config), draw_images(config, 2)
    infer = make_inference(config, variables)
    exact = make_inference(make_config('resnet20'), variables)
    np.testing.assert_array_equal(infer(images)['probabilities'], exact(images)['probabilities'])


class _SharedConvolution(nn.Module):
    """A convolution that BatchNorm does not see alone."""

    @nn.compact
    def __call__(self, x, *, train):
        x = Conv(4, 3, padding=1, name='conv')(x)
        return BatchNorm(name='bn')(x, train=train) + x


class _SharedReLU(nn.Module):
    """BatchNorm and a ReLU that not only a convolution sees."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(BatchNorm(name='bn')(x, train=train))
        return Conv(3, 3, padding=1, name='conv')(x) + x


class _SharedNorm(nn.Module):
    """BatchNorm that not only a ReLU sees."""

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(name='bn')(x, train=train)
        return Conv(3, 3, padding=1, name='conv')(nn.relu(x)) + x


class _OtherActivation(nn.Module):
    """BatchNorm before an activation that factors cannot pass."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.gelu(BatchNorm(name='bn')(x, train=train))
        return Conv(3, 3, padding=1, name='conv')(x)


class _Groups(nn.Module):
    """BatchNorm and a ReLU before a convolution of several groups."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(BatchNorm(name='bn')(x, train=train))
        return Conv(3, 3, padding=1, groups=3, name='conv')(x)


class _PreActivation(nn.Module):
    """BatchNorm and a ReLU before two convolutions, which can take its factors if these fit."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(BatchNorm(name='bn')(x, train=train))
        return Conv(3, 3, padding=1, name='conv')(x) + Conv(3, 1, name='other')(x)


@pytest.mark.parametrize(
    ('model', 'scale', 'is_folded'),
    [
        (_SharedConvolution(), 1.5, False),
        (_SharedReLU(), 1.5, False),
        (_SharedNorm(), 1.5, False),
        (_OtherActivation(), 1.5, False),
        (_Groups(), 1.5, False),
        (_PreActivation(), 1.5, True),
        (_PreActivation(), [0.5, 1.5, 0.02], True),
        (_PreActivation(), [0.5, 1.5, -0.5], False),
        (_PreActivation(), [0.5, 0.0, 1.5], False),
        (_PreActivation(), [0.5, 1.5, 0.01], False),
        (_PreActivation(), 0.0, False),
        (_PreActivation(), -1.0, False),
    ],
)
def test_factors_that_no_convolution_can_take_stay(model, scale, is_folded):
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = jax.tree.map(lambda x: x + 0.5, model.init(jax.random.key(1), images, train=False))
    norm = variables['params']['bn']
    norm['scale'] = jnp.broadcast_to(jnp.asarray(scale), norm['scale'].shape)
    folded = fold_batch_norm.fold_batch_norm(model, jax.tree.map(np.asarray, variables), 8)
    assert (folded.norms[('bn',)][0] is None) == is_folded
    with nn.intercept_methods(folded.intercept):
        found = model.apply(folded.variables, images, train=False)
    expected = model.apply(variables, images, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
