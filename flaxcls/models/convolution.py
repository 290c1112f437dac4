"""Convolution with a kernel gradient that XLA's CPU backend runs fast.

XLA computes the gradient of a kernel as a convolution whose window is the whole image. With few
channels, as in CIFAR's ResNets, that takes up to three times as long on CPU as the same sums
written as matrix products over all pixels. Wider layers gain less than their compilation loses,
and keep XLA's own gradient, as do other platforms.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


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
    if kernel.shape[:2] == (1, 1) and (padding, groups) == (0, 1):
        return _convolve_1x1(x, kernel, strides)
    channels, features = kernel.shape[2:]
    few_channels = max(channels, features) <= 64 and features > channels // 2
    if kernel.shape[:2] == (3, 3) and (strides, padding, groups) == (1, 1, 1) and few_channels:
        return _convolve_3x3(x, kernel)
    return _native(x, kernel, strides=strides, padding=padding, groups=groups)


def _convolve_1x1(x, kernel, strides):
    """A matrix product, which XLA runs several times faster on CPU."""
    if strides == 1:
        return _multiply(x, kernel)
    native = functools.partial(_native, strides=strides, padding=0, groups=1)
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


def _native(x, kernel, *, strides, padding, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=[(padding, padding)] * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


_native_3x3 = functools.partial(_native, strides=1, padding=1, groups=1)


@jax.custom_vjp
def _convolve_3x3(x, kernel):
    return _native_3x3(x, kernel)


def _forward(x, kernel):
    return _native_3x3(x, kernel), (x, kernel)


def _backward(saved, gradient):
    x, kernel = saved
    (x_gradient,) = jax.linear_transpose(lambda x: _native_3x3(x, kernel), x)(gradient)
    kernel_gradient = lax.platform_dependent(
        x, gradient, cpu=_shifted_kernel_gradient, default=_native_kernel_gradient
    )
    return x_gradient, kernel_gradient.astype(kernel.dtype)


_convolve_3x3.defvjp(_forward, _backward)


def _native_kernel_gradient(x, gradient):
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], gradient.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: _native_3x3(x, kernel), kernel)(gradient)[0]


def _shifted_kernel_gradient(x, gradient):
    """Nine products [C, BHW] x [BHW, O], of x shifted by each offset of the window."""
    (height, width, channels), features = x.shape[1:], gradient.shape[3]
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    outputs = gradient.reshape(-1, features)
    taps = [
        padded[:, i : i + height, j : j + width].reshape(-1, channels).T @ outputs
        for i in range(3)
        for j in range(3)
    ]
    return jnp.stack(taps).reshape(3, 3, channels, features)
