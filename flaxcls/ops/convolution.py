"""Convolution in the forms that XLA runs fast.

One of 1x1 pixels is a matrix product, which XLA's CPU backend runs several times faster than a
convolution; all others are XLA's own.
"""

import functools

import jax
from jax import lax

from flaxcls.ops.reference import use_reference_ops


def convolve(
    x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """Returns the convolution of x [B, H, W, C] with kernel [h, w, C / groups, O].

    Args:
      x: images or activations.
      kernel: of the same dtype.
      strides: step of the window, pixels.
      padding: zeros on every side, pixels.
      groups: blocks of channels that are convolved apart.
    """
    one_pixel = kernel.shape[:2] == (1, 1) and (padding, groups) == (0, 1)
    if one_pixel and not use_reference_ops():
        return _convolve_1x1(x, kernel, strides)
    return native_convolve(x, kernel, strides=strides, padding=padding, groups=groups)


def _convolve_1x1(x, kernel, strides):
    """A matrix product, which XLA runs several times faster on CPU."""
    if strides == 1:
        return _multiply(x, kernel)
    native = functools.partial(native_convolve, strides=strides, padding=0, groups=1)
    sliced = lambda x, kernel: _multiply(x[:, ::strides, ::strides], kernel)  # noqa: E731
    return lax.platform_dependent(x, kernel, cpu=sliced, default=native)


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


def native_convolve(x, kernel, *, strides, padding, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=[(padding, padding)] * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )
