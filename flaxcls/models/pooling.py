"""Max pooling with a gradient that XLA's CPU backend runs fast.

XLA hands a window's gradient to its maximum by a search over the window for each output, one
number at a time on CPU. The same is done there by whole slices, along rows after columns: one for
each place along a window, which holds that place's pixel of every window.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, window: int, strides: int, padding: int) -> jax.Array:
    """Returns the maxima of square windows of x [B, H, W, C], of the same dtype.

    The gradient goes to a window's first maximum, row by row. The padding never wins.
    """
    native = functools.partial(_native, window=window, strides=strides, padding=padding)
    by_slices = functools.partial(_by_slices, window=window, strides=strides, padding=padding)
    return lax.platform_dependent(x, cpu=by_slices, default=native)


def _native(x, *, window, strides, padding):
    pads = [(padding, padding)] * 2
    return nn.max_pool(x, (window, window), strides=(strides, strides), padding=pads)


def _by_slices(x, *, window, strides, padding):
    for axis in (2, 1):  # Columns, then rows.
        x = functools.reduce(jnp.maximum, _slices(x, axis, window, strides, padding))
    return x


def _slices(x, axis, window, strides, padding) -> list[jax.Array]:
    """Returns for each place along a window what all windows along the axis have there."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (padding, padding)
    padded = jnp.pad(x, pads, constant_values=-jnp.inf)
    span = (padded.shape[axis] - window) // strides * strides + 1
    return [lax.slice_in_dim(padded, place, place + span, strides, axis) for place in range(window)]


def _forward(x, window, strides, padding):
    return max_pool(x, window, strides, padding), x


def _backward(window, strides, padding, x, gradient):
    options = {'window': window, 'strides': strides, 'padding': padding}
    by_slices = functools.partial(_gradient_by_slices, **options)
    native = functools.partial(_native_gradient, **options)
    return (lax.platform_dependent(x, gradient, cpu=by_slices, default=native),)


def _native_gradient(x, gradient, **options):
    return jax.vjp(functools.partial(_native, **options), x)[1](gradient)[0]


def _gradient_by_slices(x, gradient, *, window, strides, padding):
    # The places are found anew: x, computed twice, may be another number in the last bit, which
    # equals no maximum that was kept.
    column, maxima = _first_maximum(_slices(x, 2, window, strides, padding))
    row, _ = _first_maximum(_slices(maxima, 1, window, strides, padding))
    options = {'window': window, 'strides': strides, 'padding': padding}
    gradient = _hand_back(gradient, row, 1, x.shape[1], **options)
    return _hand_back(gradient, column, 2, x.shape[2], **options)


def _first_maximum(slices: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns the place of each window's first maximum, int8, and the maximum."""
    maxima, place = slices[0], jnp.zeros(slices[0].shape, jnp.int8)
    for index, values in enumerate(slices[1:], start=1):
        place = jnp.where(values > maxima, jnp.int8(index), place)
        maxima = jnp.maximum(maxima, values)
    return place, maxima


def _hand_back(gradient, place, axis, size, *, window, strides, padding):
    """Returns the gradient along `axis` before pooling, of `size` pixels.

    Pixels that are a stride apart see windows likewise, and make up a phase: the sums of a phase
    are made of whole slices, and the phases are interleaved at the end.
    """
    length = -(-(size + 2 * padding) // strides)
    shape = [*gradient.shape[:axis], length, *gradient.shape[axis + 1 :]]
    phases = [jnp.zeros(shape, gradient.dtype)] * strides
    for first in range(strides):
        for index in range(first, window, strides):
            pads = [(0, 0)] * gradient.ndim
            pads[axis] = (index // strides, length - index // strides - gradient.shape[axis])
            phases[first] += jnp.pad(jnp.where(place == index, gradient, 0), pads)
    shape[axis] *= strides
    interleaved = jnp.stack(phases, axis + 1).reshape(shape)
    return lax.slice_in_dim(interleaved, padding, padding + size, 1, axis)


max_pool.defvjp(_forward, _backward)
