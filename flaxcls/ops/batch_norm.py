"""Batch statistics of groups of examples, also across devices, and normalisation by them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from flaxcls.errors import UserError
from flaxcls.ops import native, norm_kernels
from flaxcls.ops.dtypes import at_least_float32
from flaxcls.ops.remat import STATISTICS

Parts = tuple[jax.Array, ...]  # Activations whose channels follow one another.


def normalize(x: Parts, mean: jax.Array, factor: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns (x - mean) * factor + bias for x [G, B, H, W, C].

    It is computed in float32 or wider; that is its dtype, or with kernels that of x.

    Args:
      x: groups of activations, as parts whose channels follow one another.
      mean: [G, 1, 1, 1, C], or a shape that broadcasts to it.
      factor: of the same shape.
      bias: [C].
    """
    if native.takes(x[0]) and mean.shape[:-1] == (len(x[0]), 1, 1, 1):
        mean, factor = mean[:, 0, 0, 0], factor[:, 0, 0, 0]
        return norm_kernels.normalize_by_moments(mean, factor, bias, *x, relu=False)[0]
    return _normalize_by_moments(join(x), mean, factor, bias)


def normalize_in_evaluation(
    x: Parts, mean: jax.Array, factor: jax.Array, bias: jax.Array
) -> jax.Array:
    """Returns (x - mean) * factor + bias for x [B, H, W, C] and vectors [C]; dtype as above."""
    if native.takes(x[0]):
        return norm_kernels.normalize(x, mean, factor, bias)
    return _normalize(join(x), mean, factor, bias)


def join(parts: Parts) -> jax.Array:
    """Returns the parts as one array."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, shift: jax.Array, eps: float
) -> tuple[jax.Array, 'Moments']:
    """Returns x [G, B, H, W, C] normalised by the moments of its groups, and these.

    Args:
      x: groups of activations.
      scale, bias: float32 [C].
      shift: float32 [C], see `compute_moments`.
      eps: added to the variance.
    """
    if native.takes(x):
        y, mean, var = norm_kernels.batch_norm(x, scale, bias, eps=eps, relu=False)
        count = jnp.full(len(x), math.prod(x.shape[1:4]), mean.dtype)
        return y, Moments(count, mean, var)
    moments = compute_moments(x, shift=shift)
    return normalize((x,), *affine(moments, scale, eps), bias), moments


def affine(moments: 'Moments', scale: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and the factor [G, 1, 1, 1, C] of `normalize`."""
    mean, var = (value[:, None, None, None] for value in (moments.mean, moments.var))
    return mean, scale * lax.rsqrt(var + eps)


@jax.custom_vjp
def _normalize_by_moments(x, mean, factor, bias):
    """The gradients of the three vectors follow from two sums over the gradient, which are all that
    has to be read for them.
    """
    return _normalize(x, mean, factor, bias)


def _normalize(x, mean, factor, bias):
    return (x.astype(at_least_float32(x.dtype)) - mean) * factor + bias


def _normalize_forward(x, mean, factor, bias):
    return _normalize_by_moments(x, mean, factor, bias), (x, mean, factor)


def _normalize_backward(saved, gradient):
    x, mean, factor = saved
    examples = tuple(range(x.ndim - 4, x.ndim - 1))
    total = gradient.sum(examples, keepdims=True)
    along = (gradient * (x.astype(gradient.dtype) - mean)).sum(examples, keepdims=True)
    total, along = (_sum_to(value, mean.shape) for value in (total, along))
    bias_gradient = total.sum(tuple(range(total.ndim - 1)))
    return (gradient * factor).astype(x.dtype), -total * factor, along, bias_gradient


_normalize_by_moments.defvjp(_normalize_forward, _normalize_backward)


def _sum_to(value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sums what was broadcast from `shape`."""
    return value.reshape(-1, *shape).sum(0) if value.shape != shape else value


class Moments(NamedTuple):
    """Statistics of some values, of each channel: count [...], mean and biased var [..., C]."""

    count: jax.Array
    mean: jax.Array
    var: jax.Array


def compute_moments(
    values: jax.Array, mask: jax.Array | None = None, shift: jax.Array | None = None
) -> Moments:
    """Returns the moments of each group of values [G, B, H, W, C], the count being float [G].

    They are float32 or wider, whatever the values are.

    Args:
      values: activations of any dtype.
      mask: bool [G, B, 1, 1, 1], examples to count; None: all. A group without any has zeros.
      shift: float [C] near the mean, subtracted first, as the running mean; see `mean_and_var`.
    """
    groups, examples, height, width, _ = values.shape
    if mask is None:
        mean, var = mean_and_var(values, shift)
        return Moments(jnp.full(groups, examples * height * width, mean.dtype), mean, var)
    values = values.astype(at_least_float32(values.dtype))
    mean = jnp.mean(values, (1, 2, 3), keepdims=True, where=mask)
    var = jnp.mean(jnp.square(values - mean), (1, 2, 3), where=mask)
    count = mask.sum((1, 2, 3, 4), dtype=values.dtype) * height * width
    some = (count > 0)[:, None]
    return Moments(count, jnp.where(some, mean[:, 0, 0, 0], 0), jnp.where(some, var, 0))


@jax.custom_vjp
def mean_and_var(values: jax.Array, shift: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and the biased variance [G, C] of values [G, B, H, W, C].

    To first order, moving the mean does not change the variance, so the gradient needs no sum.
    Where memory bandwidth is the limit (not on CPU), both come from one reading if there is a
    `shift` [C] near the mean: the closer, the less cancels.
    """
    if native.takes(values):
        return norm_kernels.moments(values)
    if shift is None:
        return in_two_readings(values)
    return lax.platform_dependent(
        values, shift, cpu=lambda values, _: in_two_readings(values), default=in_one_reading
    )


def in_two_readings(values):
    values = values.astype(at_least_float32(values.dtype))
    mean = jnp.mean(values, (1, 2, 3), keepdims=True)
    return mean[:, 0, 0, 0], jnp.mean(jnp.square(values - mean), (1, 2, 3))


def in_one_reading(values, shift):
    offsets = values.astype(at_least_float32(values.dtype)) - shift
    offset = jnp.mean(offsets, (1, 2, 3))
    square = jnp.mean(jnp.square(offsets), (1, 2, 3))
    return shift + offset, jnp.maximum(square - jnp.square(offset), 0)


def _mean_and_var_forward(values, shift):
    mean, var = checkpoint_name(mean_and_var(values, shift), STATISTICS)
    return (mean, var), (values, mean, shift)


def _mean_and_var_backward(saved, gradients):
    values, mean, shift = saved
    count = math.prod(values.shape[1:4])
    mean, of_mean, of_var = (v[:, None, None, None] for v in (mean, *gradients))
    centred = values.astype(mean.dtype) - mean
    gradient = (of_mean + 2 * of_var * centred) / count
    return gradient.astype(values.dtype), jax.tree.map(jnp.zeros_like, shift)


mean_and_var.defvjp(_mean_and_var_forward, _mean_and_var_backward)


def merge_moments(groups: Moments) -> Moments:
    """Returns the moments of all values together, the groups being along the first axis.

    Chan, Golub, LeVeque: Algorithms for computing the sample variance (1983), equation 1.5: nothing
    cancels, as it does in the mean of the squares minus the square of the mean.
    """
    count = groups.count.sum(0)
    share = (groups.count / jnp.maximum(count, 1))[..., None]
    mean = (share * groups.mean).sum(0)
    var = (share * (groups.var + jnp.square(groups.mean - mean))).sum(0)
    return Moments(count, mean, var)


def unbiased(group: Moments) -> jax.Array:
    """Returns the estimate of the variance from a sample, as torch's running variance takes it."""
    return group.var * (group.count / jnp.maximum(group.count - 1, 1))[..., None]


def merge_over_devices(local: Moments, span: int, axis_name: str, shift: jax.Array) -> Moments:
    """Returns the moments of each group that lies over `span` devices.

    One sum over the devices, whose size does not grow with their number, as that of a gather would;
    its transpose, in the backward pass, is one as well. For one sum to do, the devices' means are
    compared with a value [C] that all have, the running mean; within a device nothing cancels.
    """
    devices = lax.axis_size(axis_name)
    groups = [list(range(first, first + span)) for first in range(0, devices, span)]
    count, offset = local.count[:, None], local.mean - shift
    values = jnp.concatenate([offset, jnp.square(offset), local.var], -1)
    packed = jnp.concatenate([count, count * values], -1)
    packed = lax.psum(packed, axis_name, axis_index_groups=groups if span < devices else None)
    packed = checkpoint_name(packed, STATISTICS)
    count, channels = packed[:, :1], local.mean.shape[-1]
    values = packed[:, 1:] / jnp.maximum(count, 1)
    offset, square, within = jnp.split(values, [channels, 2 * channels], axis=-1)
    between = jnp.maximum(square - jnp.square(offset), 0)
    return Moments(count[:, 0], shift + offset, within + between)


def devices_of_a_group(group_size: int, local: int, devices: int) -> int:
    """Returns over how many devices a group lies; 0 if it is not made of whole devices.

    Args:
      group_size: examples that share statistics.
      local: consecutive examples that each device has.
      devices: their number.
    """
    if local % group_size == 0:
        return 1
    span = group_size // local
    return span if group_size % local == 0 and devices % span == 0 else 0


def split_of_group(local: int, group_size: int | None, axis_name: str | None) -> tuple[int, int]:
    """Returns (examples of a group on this device, devices of a group); see BatchNorm."""
    devices = lax.axis_size(axis_name) if axis_name else 1
    span = devices_of_a_group(group_size or local * devices, local, devices)
    if not span:
        raise UserError(
            f'BatchNorm: groups of {group_size} examples fit neither into the {local} of each of '
            f'{devices} devices nor a whole number of devices.'
        )
    return (group_size if group_size and span == 1 else local), span
