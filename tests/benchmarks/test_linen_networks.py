"""The networks that others are timed beside are the same networks."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import linen_networks
from flaxcls.models.registry import MODELS, create_model
from flaxcls.models.summary import count_cost


@pytest.mark.parametrize('name', linen_networks.NETWORKS)
def test_plain_networks_have_the_parameters_and_products_of_ours(name):
    size = MODELS[name].image_size
    ours = create_model(name, num_classes=MODELS[name].num_classes)
    assert count_cost(linen_networks.NETWORKS[name], size) == count_cost(ours, size)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', linen_networks.NETWORKS)
def test_plain_networks_compute_in_the_dtype_of_their_images(name, dtype):
    model, size = linen_networks.NETWORKS[name], MODELS[name].image_size
    images = jax.ShapeDtypeStruct((2, size, size, 3), dtype)
    init = lambda x: model.init(jax.random.key(0), x, train=False)  # noqa: E731
    program, (variables) = jax.make_jaxpr(init, return_shape=True)(images)
    products = [
        equation.outvars[0].aval.dtype
        for equation in program.eqns
        if equation.primitive.name in ('conv_general_dilated', 'dot_general')
    ]
    assert products and set(products) == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
