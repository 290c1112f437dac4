"""Max pooling with a gradient that XLA's CPU backend runs fast.

XLA hands a window's gradient to its maximum by a search over the window for each output, one
number at a time on CPU. The same is done there by whole slices: one for each place in a window,
which holds that place's pixel of every window.
"""

import ctypes
import functools
import itertools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxcls.ops import native
from flaxcls.ops.forms import use_reference


def max_pool(x: jax.Array, window: int, strides: int, padding: int) -> jax.Array:
    """Returns the maxima of square windows of x [B, H, W, C], of the same dtype.

    The gradient goes to a window's first maximum, row by row. The padding never wins.
    """
    if use_reference():
        pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
        padded = jnp.pad(x, pads, constant_values=-jnp.inf) if padding else x
        return nn.max_pool(padded, window_shape=(window, window), strides=(strides, strides))
    if native.takes(x):
        return _max_pool_by_kernel(x, window, strides, padding)
    return _max_pool(x, window, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, strides, padding):
    by_xla = functools.partial(_by_xla, window=window, strides=strides, padding=padding)
    by_slices = functools.partial(_by_slices, window=window, strides=strides, padding=padding)
    return lax.platform_dependent(x, cpu=by_slices, default=by_xla)


def _by_xla(x, *, window, strides, padding):
    pads = [(padding, padding)] * 2
    return nn.max_pool(x, (window, window), strides=(strides, strides), padding=pads)


def _by_slices(x, *, window, strides, padding):
    slices = _slices(x, window, strides, padding)
    return functools.reduce(jnp.maximum, (values for _, values in slices))


def _slices(x, window, strides, padding) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields (row, column) in the window, and the pixels [B, H', W', C] that windows have there."""
    pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    padded = jnp.pad(x, pads, constant_values=-jnp.inf)
    spans = [(size - window) // strides * strides + 1 for size in padded.shape[1:3]]
    for row, column in itertools.product(range(window), repeat=2):
        rows = slice(row, row + spans[0], strides)
        columns = slice(column, column + spans[1], strides)
        yield (row, column), padded[:, rows, columns]


def _forward(x, window, strides, padding):
    return _max_pool(x, window, strides, padding), x


def _backward(window, strides, padding, x, gradient):
    options = {'window': window, 'strides': strides, 'padding': padding}
    by_slices = functools.partial(_gradient_by_slices, **options)
    by_xla = functools.partial(xla_gradient, **options)
    return (lax.platform_dependent(x, gradient, cpu=by_slices, default=by_xla),)


def xla_gradient(x, gradient, **options):
    return jax.vjp(functools.partial(_by_xla, **options), x)[1](gradient)[0]


def _gradient_by_slices(x, gradient, *, window, strides, padding):
    # The places are found anew: x, computed twice, may be another number in the last bit, which
    # equals no maximum that was kept.
    places, slices = zip(*_slices(x, window, strides, padding), strict=True)
    maxima, winner = slices[0], jnp.zeros(gradient.shape, jnp.int16)
    for index, values in enumerate(slices[1:], start=1):
        winner = jnp.where(values > maxima, jnp.int16(index), winner)
        maxima = jnp.maximum(maxima, values)
    return sum(
        _spread(jnp.where(winner == index, gradient, 0), x.shape, place, strides, padding)
        for index, place in enumerate(places)
    )


def _spread(values, shape, place, strides, padding):
    """Returns zeros of `shape` but for `values`, at the place that each window has them."""
    pads = []
    for first, size, count in zip(place, shape[1:3], values.shape[1:3], strict=True):
        before = first - padding
        pads.append((before, size - before - (count - 1) * strides - 1, strides - 1))
    return lax.pad(values, jnp.zeros((), values.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


_max_pool.defvjp(_forward, _backward)


# The kernels, of which the first keeps the place in its window of each maximum, as a byte.


def _places_by_slices(x, **options):
    slices = [values for _, values in _slices(x, **options)]
    maxima, winner = slices[0], jnp.zeros(slices[0].shape, jnp.uint8)
    for index, values in enumerate(slices[1:], start=1):
        winner = jnp.where(values > maxima, jnp.uint8(index), winner)
        maxima = jnp.maximum(maxima, values)
    return maxima, winner


def _spread_to_places(gradient, winner, *, window, size, strides, padding):
    shape = (len(gradient), *size, gradient.shape[3])
    places = itertools.product(range(window), repeat=2)
    return (
        sum(
            _spread(jnp.where(winner == index, gradient, 0), shape, place, strides, padding)
            for index, place in enumerate(places)
        ),
    )


def _shapes(x, *, window, strides, padding):
    size = [(length + 2 * padding - window) // strides + 1 for length in x.shape[1:3]]
    shape = (x.shape[0], *size, x.shape[3])
    return jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.uint8)


def _gradient_shape(gradient, winner, *, size, **_):
    shape = (gradient.shape[0], *size, gradient.shape[3])
    return (jax.ShapeDtypeStruct(shape, gradient.dtype),)


def _supports(x, *, window, strides, padding):
    y, _ = _shapes(x, window=window, strides=strides, padding=padding)
    shapes = [(ctypes.c_int64 * 4)(*value.shape) for value in (x, y)]
    numbers = [ctypes.c_int64(number) for number in (window, strides, padding)]
    return bool(
        native.library().flaxcls_supports_max_pool(x.dtype == jnp.bfloat16, *shapes, *numbers)
    )


def _supports_gradient(gradient, winner, **options):
    (x,) = _gradient_shape(gradient, winner, **options)
    return _supports(x, **{name: value for name, value in options.items() if name != 'size'})


_max_and_places = native.define(
    'max_pool',
    _places_by_slices,
    _shapes,
    attributes=('window', 'strides', 'padding'),
    supports=_supports,
)
_to_places = native.define(
    'max_pool_gradient',
    _spread_to_places,
    _gradient_shape,
    attributes=('window', 'strides', 'padding'),
    supports=_supports_gradient,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool_by_kernel(x, window, strides, padding):
    return _max_and_places(x, window=window, strides=strides, padding=padding)[0]


def _kernel_forward(x, window, strides, padding):
    maxima, places = _max_and_places(x, window=window, strides=strides, padding=padding)
    # The height and width of x alone, as an array of nothing.
    return maxima, (places, jnp.zeros((0, *x.shape[1:3]), jnp.uint8))


def _kernel_backward(window, strides, padding, saved, gradient):
    places, like = saved
    options = {'window': window, 'strides': strides, 'padding': padding, 'size': like.shape[1:]}
    return tuple(_to_places(gradient, places, **options))


_max_pool_by_kernel.defvjp(_kernel_forward, _kernel_backward)
