"""Convolution in the forms that run fast.

On a CPU, oneDNN's kernels; where these are not built, one of 1x1 pixels is a matrix product, which
XLA's CPU backend runs several times faster than a convolution, and all others are XLA's own.
"""

import ctypes
import functools

import jax
import jax.numpy as jnp
from jax import lax

from flaxcls.ops import native
from flaxcls.ops.forms import use_reference


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> jax.Array:
    """Returns the convolution of x [B, H, W, C] with kernel [h, w, C / groups, O].

    Args:
      x: images or activations.
      kernel: of the same dtype.
      bias: [O], added; None: nothing is.
      strides: step of the window, pixels.
      padding: zeros on every side, pixels.
      groups: blocks of channels that are convolved apart.
    """
    geometry = {'strides': strides, 'padding': padding, 'groups': groups}
    if bias is None:
        return _convolve(x, kernel, **geometry)[0]
    if native.takes(x):
        return convolve_biased(x, kernel, bias.astype(jnp.float32), relu=False, **geometry)[0]
    return plain_convolve(x, kernel, **geometry) + bias.astype(x.dtype)


def plain_convolve(x, kernel, *, strides, padding, groups):
    """The form that XLA runs fast."""
    one_pixel = kernel.shape[:2] == (1, 1) and (padding, groups) == (0, 1)
    if one_pixel and not use_reference():
        return _convolve_1x1(x, kernel, strides)
    return reference_convolve(x, kernel, strides=strides, padding=padding, groups=groups)


def _convolve_1x1(x, kernel, strides):
    """A matrix product, which XLA runs several times faster on CPU."""
    if strides == 1:
        return _multiply(x, kernel)
    convolution = functools.partial(reference_convolve, strides=strides, padding=0, groups=1)
    sliced = lambda x, kernel: _multiply(x[:, ::strides, ::strides], kernel)  # noqa: E731
    return lax.platform_dependent(x, kernel, cpu=sliced, default=convolution)


def _multiply(x, kernel):
    # As matrices, since XLA's CPU backend would copy the gradient transposed for the kernel's.
    product = _multiply_matrices(x.reshape(-1, x.shape[3]), kernel[0, 0])
    return product.reshape(*x.shape[:3], -1)


@jax.custom_vjp
def _multiply_matrices(x, kernel):
    return x @ kernel


def _multiply_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _multiply_backward(saved, gradient):
    x, kernel = saved
    kernel_gradient = lax.platform_dependent(
        x, gradient, cpu=_wider_last, default=lambda x, gradient: x.T @ gradient
    )
    return gradient @ kernel.T, kernel_gradient


def _wider_last(x, gradient):
    """Returns x.T @ gradient, of a matrix product whose right side is the wider one.

    With a wide left side and a narrow right one XLA's CPU backend takes up to twice as long.
    """
    if x.shape[1] <= gradient.shape[1]:
        return x.T @ gradient
    # Without the barrier XLA would undo the transposition.
    return lax.optimization_barrier(gradient.T @ x).T


_multiply_matrices.defvjp(_multiply_forward, _multiply_backward)


def reference_convolve(x, kernel, *, strides, padding, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=[(padding, padding)] * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


# The kernels. Of x, kernel and y any one is made of the other two, so the three operations are one
# another's derivatives.


def _plain(x, kernel, **options):
    return (plain_convolve(x, kernel, **options),)


def _plain_input_gradient(kernel, gradient, *, size, **options):
    x = jnp.zeros((len(gradient), *size, kernel.shape[2] * options['groups']), gradient.dtype)
    return jax.vjp(lambda x: plain_convolve(x, kernel, **options), x)[1](gradient)


def _plain_kernel_gradient(x, gradient, *, window, **options):
    shape = (*window, x.shape[3] // options['groups'], gradient.shape[3])
    kernel = jnp.zeros(shape, gradient.dtype)
    return jax.vjp(lambda kernel: plain_convolve(x, kernel, **options), kernel)[1](gradient)


def _shape(x, kernel, *, strides, padding, groups):
    size = [
        (length + 2 * padding - window) // strides + 1
        for length, window in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    ]
    return (jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[3]), x.dtype),)


def _input_shape(kernel, gradient, *, size, groups, **_):
    shape = (gradient.shape[0], *size, kernel.shape[2] * groups)
    return (jax.ShapeDtypeStruct(shape, gradient.dtype),)


def _kernel_shape(x, gradient, *, window, groups, **_):
    shape = (*window, x.shape[3] // groups, gradient.shape[3])
    return (jax.ShapeDtypeStruct(shape, gradient.dtype),)


def _is_supported(kind, x, kernel, y, *, strides, padding, groups, after=0):
    """Asks oneDNN for a convolution, 0, its input's gradient, 1, or its kernel's, 2."""
    shapes = [(ctypes.c_int64 * 4)(*value.shape) for value in (x, kernel, y)]
    numbers = [ctypes.c_int64(number) for number in (strides, padding, groups)]
    bfloat16 = x.dtype == jnp.bfloat16
    return bool(
        native.library().flaxcls_supports_convolution(kind, bfloat16, *shapes, *numbers, after)
    )


def _supports(x, kernel, **options):
    return _is_supported(0, x, kernel, *_shape(x, kernel, **options), **options)


def _supports_input_gradient(kernel, gradient, *, size, **options):
    x = _input_shape(kernel, gradient, size=size, **options)
    return _is_supported(1, *x, kernel, gradient, **options)


def _supports_kernel_gradient(x, gradient, *, window, **options):
    kernel = _kernel_shape(x, gradient, window=window, **options)
    return _is_supported(2, x, *kernel, gradient, **options)


def _to_x(kernel, gradient, like, **options):
    return _input_gradient(kernel, gradient, size=like.shape[1:3], **options)[0]


def _to_kernel(x, gradient, like, **options):
    return _kernel_gradient(x, gradient, window=like.shape[:2], **options)[0]


def _to_y(x, kernel, **options):
    return _convolve(x, kernel, **options)[0]


def _without(name, function):
    """Returns a function that is not told an option, which its arrays' shapes tell."""
    return lambda *arrays, **options: function(
        *arrays, **{key: value for key, value in options.items() if key != name}
    )


_GEOMETRY = ('strides', 'padding', 'groups')
_convolve = native.define(
    'convolution',
    _plain,
    _shape,
    attributes=_GEOMETRY,
    supports=_supports,
    bilinear=(
        lambda y, x, kernel, **options: _to_x(kernel, y, x, **options),
        lambda y, x, kernel, **options: _to_kernel(x, y, kernel, **options),
    ),
)
_input_gradient = native.define(
    'convolution_input_gradient',
    _plain_input_gradient,
    _input_shape,
    attributes=_GEOMETRY,
    supports=_supports_input_gradient,
    bilinear=(
        _without('size', lambda x, kernel, y, **options: _to_kernel(x, y, kernel, **options)),
        _without('size', lambda x, kernel, y, **options: _to_y(x, kernel, **options)),
    ),
)
_kernel_gradient = native.define(
    'convolution_kernel_gradient',
    _plain_kernel_gradient,
    _kernel_shape,
    attributes=_GEOMETRY,
    supports=_supports_kernel_gradient,
    bilinear=(
        _without('window', lambda kernel, x, y, **options: _to_x(kernel, y, x, **options)),
        _without('window', lambda kernel, x, y, **options: _to_y(x, kernel, **options)),
    ),
)


# With what follows: in evaluation BatchNorm, the sum of a residual block and the ReLU.


def _plain_affine(x, kernel, bias, *rest, scaled, relu, **options):
    (y,) = _convolve(x, kernel, **options)
    y = y.astype(jnp.float32)
    y = (y * rest[0] if scaled else y) + bias
    for addend in rest[scaled:]:
        y += addend.astype(jnp.float32)
    return ((jax.nn.relu(y) if relu else y).astype(x.dtype),)


def _supports_affine(x, kernel, bias, *rest, scaled, relu, **options):
    after = scaled + 2 + 4 * (len(rest) > scaled) + 8 * relu
    return _is_supported(0, x, kernel, *_shape(x, kernel, **options), after=after, **options)


_affine = native.define(
    'affine_convolution',
    _plain_affine,
    lambda x, kernel, *_, scaled, relu, **options: _shape(x, kernel, **options),
    attributes=(*_GEOMETRY, 'scaled', 'relu'),
    supports=_supports_affine,
)


def convolve_affine(
    x: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *addends: jax.Array,
    relu: bool,
    **geometry: int,
) -> jax.Array:
    """Returns convolve(x, kernel) * scale + bias, vectors float32 [O], + addend, after a ReLU."""
    return _affine(x, kernel, bias, scale, *addends, scaled=True, relu=relu, **geometry)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _add_bias(x, kernel, bias, relu, geometry):
    return _affine(x, kernel, bias, scaled=False, relu=relu, **dict(geometry))[0]


def _add_bias_forward(x, kernel, bias, relu, geometry):
    y = _add_bias(x, kernel, bias, relu, geometry)
    return y, (x, kernel, y if relu else None)


def _add_bias_backward(relu, geometry, saved, gradient):
    x, kernel, y = saved
    if relu:
        gradient = jnp.where(y > 0, gradient, 0)
    of_bias = gradient.sum((0, 1, 2), dtype=jnp.float32)
    options = dict(geometry)
    of_x = _to_x(kernel, gradient, x, **options)
    return of_x, _to_kernel(x, gradient, kernel, **options), of_bias


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)
convolve_biased = native.compose(
    'biased_convolution',
    lambda x, kernel, bias, *, relu, **geometry: (
        _add_bias(x, kernel, bias, relu, tuple(geometry.items())),
    ),
)
