"""What a network consists of and what it costs; counted, with nothing computed."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxcls.models.graph import Layer
from flaxcls.models.trace import trace_layers
from flaxcls.ops.forms import reference
from flaxcls.system.garbage_collection import garbage_collection_paused


class Cost(NamedTuple):
    """Of one forward pass of one image.

    Attributes:
      parameters: trainable ones.
      macs: multiply-adds of convolutions and fully connected layers; each is two FLOPs.
      activations: numbers that these layers put out (arXiv:2003.13678, section 3.1).
    """

    parameters: int
    macs: int
    activations: int


def list_layers(model: nn.Module, image_size: int) -> list[Layer]:
    """Returns the layers in the order in which an image meets them.

    They are those with parameters, pooling, LRN and dropout, without what joins them.
    """
    return [layer for layer in trace_layers(model, image_size) if not layer.is_arithmetic]


@garbage_collection_paused()
def count_cost(model: nn.Module, image_size: int) -> Cost:
    """Returns the cost of an image of `image_size` x `image_size` pixels."""
    # Which runs the network, and draws its weights without any product.
    init = lambda x: model.init(jax.random.key(0), x, train=False)  # noqa: E731
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with reference():
        program, variables = jax.make_jaxpr(init, return_shape=True)(images)
    products = [_cost_of_product(equation) for equation in _flatten(program.jaxpr)]
    return Cost(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables['params'])),
        macs=sum(macs for macs, _ in products),
        activations=sum(size for _, size in products),
    )


def _flatten(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in jax.tree.leaves(parameter, is_leaf=lambda p: hasattr(p, 'eqns')):
                inner = getattr(inner, 'jaxpr', inner)
                if hasattr(inner, 'eqns'):
                    yield from _flatten(inner)


def _cost_of_product(equation: Any) -> tuple[int, int]:
    """Returns multiply-adds and size of the result of a convolution or matrix product, or 0, 0."""
    result = equation.outvars[0].aval
    if equation.primitive.name == 'conv_general_dilated':
        kernel = equation.invars[1].aval.shape
        outputs = equation.params['dimension_numbers'].rhs_spec[0]
        return result.size * math.prod(kernel) // kernel[outputs], result.size
    if equation.primitive.name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        left = equation.invars[0].aval.shape
        return result.size * math.prod(left[axis] for axis in contracted), result.size
    return 0, 0
