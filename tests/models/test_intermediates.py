"""What layers put out, over all networks, and the gradients with respect to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.errors import UserError
from flaxcls.models.init import abstract_variables, init_variables
from flaxcls.models.intermediates import apply_with_intermediates
from flaxcls.models.registry import MODELS, create_model

TAPS = ['feature_map', 'features']
SMALL = {
    'alexnet': {'width_multiplier': 0.1},
    'vgg16_bn': {'width_multiplier': 0.1},
    'mobilenet_v2': {'width_multiplier': 0.25, 'stage_sizes': (1, 1, 2)},
    'resnet18': {'width_multiplier': 0.1, 'stage_sizes': (1, 1)},
    'resnet18_v2': {'width_multiplier': 0.1, 'stage_sizes': (1, 1)},
    'densenet121': {'growth_rate': 4, 'block_sizes': (2, 2)},
}


def _one_block_a_stage(model):
    """Returns the network without what comes again and again, which takes long to trace."""
    for option in ('stage_sizes', 'block_sizes'):
        if hasattr(model, option):
            return model.clone(**{option: (1,) * len(getattr(model, option))})
    return model


def _last_kernel(params):
    head = params['head']
    return head.get('dense', head)['kernel']


@pytest.mark.parametrize('name', MODELS)
def test_every_network_names_what_its_classifier_sees(name):
    model, size = _one_block_a_stage(create_model(name)), MODELS[name].image_size
    variables = abstract_variables(model, size)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    record = lambda variables, images: apply_with_intermediates(model, variables, images, TAPS)  # noqa: E731
    logits, outputs = jax.eval_shape(record, variables, images)
    assert logits.shape == (2, MODELS[name].num_classes)
    assert outputs['features'].shape == (2, _last_kernel(variables['params']).shape[0])
    assert outputs['feature_map'].ndim == 4 and outputs['feature_map'].shape[1] > 1


@pytest.mark.parametrize('name', SMALL)
def test_the_gradient_of_a_shift_is_that_of_the_output(name):
    model = create_model(name, num_classes=3, **SMALL[name])
    variables = init_variables(model, jax.random.key(0), 64)
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    record = jax.jit(lambda images: apply_with_intermediates(model, variables, images, TAPS))
    logits, outputs = record(images)
    expected = jax.jit(lambda images: model.apply(variables, images, train=False))(images)
    np.testing.assert_array_equal(logits, expected)

    def second_logit(perturbations):
        return apply_with_intermediates(
            model, variables, images, TAPS, perturbations=perturbations
        )[0][:, 1].sum()

    gradients = jax.jit(jax.grad(second_logit))(jax.tree.map(jnp.zeros_like, outputs))
    weights = _last_kernel(variables['params'])[:, 1]
    expected = jnp.broadcast_to(weights, gradients['features'].shape)
    np.testing.assert_allclose(gradients['features'], expected, rtol=1e-6)
    if 'dense' in variables['params']['head']:  # The features are the map's means.
        height, width = gradients['feature_map'].shape[1:3]
        expected = jnp.broadcast_to(weights / (height * width), gradients['feature_map'].shape)
        np.testing.assert_allclose(gradients['feature_map'], expected, rtol=1e-5)
    assert (gradients['feature_map'] != 0).any()


def test_an_unknown_layer_is_refused_naming_the_nearest():
    model = create_model('resnet18', **SMALL['resnet18'])
    variables = init_variables(model, jax.random.key(0), 64)
    with pytest.raises(
        UserError, match=r"no layer 'stage1_blok1' \(did you mean stage1_block1\?\)"
    ):
        apply_with_intermediates(model, variables, jnp.zeros((1, 64, 64, 3)), ['stage1_blok1'])
