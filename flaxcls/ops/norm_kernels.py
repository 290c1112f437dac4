"""BatchNorm on a CPU: kernels that also add, and apply a ReLU, as they read and write once.

Activations are [G, B, H, W, C], groups of examples; vectors are float32 [G, C], or [C] where all
groups share them. `addend`, of the shape of x, is added before the ReLU.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from flaxcls.ops import native
from flaxcls.ops.remat import STATISTICS

_PIXELS = (1, 2, 3)  # The axes of a group over which statistics are taken.


def _wide(vector):
    """[G, C] -> [G, 1, 1, 1, C]."""
    return vector[:, None, None, None]


def _plain_moments(x):
    x = x.astype(jnp.float32)
    mean = x.mean(_PIXELS)
    return mean, jnp.square(x - _wide(mean)).mean(_PIXELS)


def _plain_normalize(x, mean, factor, bias, *addends, relu):
    y = (x.astype(jnp.float32) - _wide(mean)) * _wide(factor) + bias
    for addend in addends:
        y += addend.astype(jnp.float32)
    return ((jnp.maximum(y, 0) if relu else y).astype(x.dtype),)


def _passed(x, mean, factor, bias, gradient, *ys, relu):
    """Returns the gradient before the ReLU, and the centred x."""
    centred = x.astype(jnp.float32) - _wide(mean)
    value = ys[0].astype(jnp.float32) if ys else centred * _wide(factor) + bias
    gradient = gradient.astype(jnp.float32)
    return (jnp.where(value > 0, gradient, 0) if relu else gradient), centred


def _plain_normalize_parts(mean, factor, bias, *parts, relu):
    return _plain_normalize(jnp.concatenate(parts, -1), mean, factor, bias, relu=relu)


def _plain_normalize_parts_gradient(mean, factor, bias, gradient, *parts, relu):
    x = jnp.concatenate(parts, -1)
    gradient, centred = _passed(x, mean, factor, bias, gradient, relu=relu)
    along = (gradient * centred).sum(_PIXELS)
    of_x = (gradient * _wide(factor)).astype(x.dtype)
    ends = list(itertools.accumulate(part.shape[-1] for part in parts))
    return gradient.sum(_PIXELS), along, *jnp.split(of_x, ends[:-1], -1)


def _plain_batch_norm_gradient(
    x, mean, factor, bias, inverse, of_mean, of_var, gradient, *ys, relu
):
    gradient, centred = _passed(x, mean, factor, bias, gradient, *ys, relu=relu)
    total, along = gradient.sum(_PIXELS), (gradient * centred).sum(_PIXELS)
    count = x[0, ..., 0].size
    constant = (of_mean - factor * total) / count
    slope = (2 * of_var - factor * inverse * along) / count
    of_x = gradient * _wide(factor) + (_wide(constant) + _wide(slope) * centred)
    of_addend = [gradient.astype(x.dtype)] if ys else []
    return of_x.astype(x.dtype), total, along, *of_addend


def _vector(x):
    return jax.ShapeDtypeStruct((x.shape[0], x.shape[-1]), jnp.float32)


def _joined(parts):
    channels = sum(part.shape[-1] for part in parts)
    return jax.ShapeDtypeStruct((*parts[0].shape[:-1], channels), parts[0].dtype)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


_moments = native.define('moments', _plain_moments, lambda x: (_vector(x), _vector(x)))
_normalize = native.define(
    'normalize', _plain_normalize, lambda x, *_, relu: (_like(x),), attributes=('relu',)
)
_normalize_parts = native.define(
    'normalize_parts',
    _plain_normalize_parts,
    lambda mean, factor, bias, *parts, relu: (_joined(parts),),
    attributes=('relu',),
)
_normalize_parts_gradient = native.define(
    'normalize_parts_gradient',
    _plain_normalize_parts_gradient,
    lambda mean, factor, bias, gradient, *parts, relu: (
        _vector(gradient),
        _vector(gradient),
        *map(_like, parts),
    ),
    attributes=('relu',),
)
_batch_norm_gradient = native.define(
    'batch_norm_gradient',
    _plain_batch_norm_gradient,
    lambda x, *rest, relu: (_like(x), _vector(x), _vector(x), *[_like(x)] * (len(rest) > 7)),
    attributes=('relu',),
)


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and the biased variance [G, C] of each group; no gradient of its own."""
    return tuple(_moments(x))


normalize_groups, normalize_parts = _normalize, _normalize_parts


def normalize(parts, mean, factor, bias):
    """Returns (x - mean) * factor + bias for parts [B, H, W, c] and vectors [C]; their dtype."""
    grouped = [part.reshape(1, *part.shape) for part in parts]
    if len(parts) == 1:
        (y,) = _normalize(*grouped, mean[None], factor[None], bias, relu=False)
    else:
        (y,) = _normalize_parts(mean[None], factor[None], bias, *grouped, relu=False)
    return y.reshape(y.shape[1:])


# By statistics that are known, as those that the layers of a dense block share, of which the maps
# are parts: arrays whose channels follow one another.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _by_moments(mean, factor, bias, parts, relu):
    return _normalize_parts(mean, factor, bias, *parts, relu=relu)[0]


def _by_moments_forward(mean, factor, bias, parts, relu):
    (y,) = _normalize_parts(mean, factor, bias, *parts, relu=relu)
    return y, (mean, factor, bias, parts)


def _by_moments_backward(relu, saved, gradient):
    mean, factor, bias, parts = saved
    total, along, *of_parts = _normalize_parts_gradient(
        mean, factor, bias, gradient, *parts, relu=relu
    )
    return -total * factor, along, total.sum(0), tuple(of_parts)


_by_moments.defvjp(_by_moments_forward, _by_moments_backward)
normalize_by_moments = native.compose(
    'normalize_by_moments',
    lambda mean, factor, bias, *parts, relu: (_by_moments(mean, factor, bias, parts, relu),),
)


# By the group's own.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _batch_norm(x, scale, bias, addend, eps, relu):
    return _batch_norm_forward(x, scale, bias, addend, eps, relu)[0]


def _batch_norm_forward(x, scale, bias, addend, eps, relu):
    mean, var = checkpoint_name(moments(x), STATISTICS)
    inverse = 1 / (var + eps)
    factor = scale * lax.sqrt(inverse)
    addends = [] if addend is None else [addend]
    (y,) = _normalize(x, mean, factor, bias, *addends, relu=relu)
    # What passed the ReLU is computed anew from x, and seen in y only where there is an addend.
    seen = [] if addend is None else [y]
    return (y, mean, var), (x, mean, factor, bias, inverse, seen)


def _batch_norm_backward(eps, relu, saved, gradients):
    x, mean, factor, bias, inverse, seen = saved
    gradient, of_mean, of_var = gradients
    of_x, total, along, *of_addend = _batch_norm_gradient(
        x, mean, factor, bias, inverse, of_mean, of_var, gradient, *seen, relu=relu
    )
    of_scale = (along * lax.sqrt(inverse)).sum(0)
    return of_x, of_scale, total.sum(0), of_addend[0] if of_addend else None


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
batch_norm = native.compose(
    'batch_norm',
    lambda x, scale, bias, *addends, eps, relu: _batch_norm(
        x, scale, bias, addends[0] if addends else None, eps, relu
    ),
)
