"""Convolution with a kernel gradient that XLA's CPU backend runs fast.

XLA computes the gradient of a small kernel as a convolution whose window is the whole image, which
on CPU takes several times as long as the same sums written as matrix products over all pixels.
Other platforms keep XLA's own gradient, and so do strided, grouped and other than 3x3 kernels.
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
    if kernel.shape[:2] == (3, 3) and (strides, padding, groups) == (1, 1, 1):
        return _convolve_3x3(x, kernel)
    return _native(x, kernel, strides=strides, padding=padding, groups=groups)


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
    # Whichever of the two gives the wider matrix product without unfolding the wider side.
    few_outputs = 2 * kernel.shape[3] <= kernel.shape[2]
    on_cpu = _unfolded_kernel_gradient if few_outputs else _shifted_kernel_gradient
    kernel_gradient = lax.platform_dependent(
        x, gradient, cpu=on_cpu, default=_native_kernel_gradient
    )
    return x_gradient, kernel_gradient.astype(kernel.dtype)


_convolve_3x3.defvjp(_forward, _backward)


def _native_kernel_gradient(x, gradient):
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], gradient.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: _native_3x3(x, kernel), kernel)(gradient)[0]


def _shifted_kernel_gradient(x, gradient):
    """Nine products [C, BHW] x [BHW, O], of x shifted by each offset of the window."""
    outputs = gradient.reshape(-1, gradient.shape[3])
    taps = [shifted.reshape(-1, x.shape[3]).T @ outputs for shifted in _shifts(x)]
    return jnp.stack(taps).reshape(3, 3, x.shape[3], gradient.shape[3])


def _unfolded_kernel_gradient(x, gradient):
    """One product [C, BHW] x [BHW, 9 O], of the output's gradient shifted by all offsets."""
    shifted = jnp.concatenate(_shifts(gradient)[::-1], axis=-1)
    channels, features = x.shape[3], gradient.shape[3]
    taps = x.reshape(-1, channels).T @ shifted.reshape(-1, 9 * features)
    return taps.reshape(channels, 3, 3, features).transpose(1, 2, 0, 3)


def _shifts(x):
    """Returns x [B, H, W, C] moved by each offset of a 3x3 window, zeros coming in."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
