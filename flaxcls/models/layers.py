"""The layers that all families share: convolution, BatchNorm, dropout, LRN and pooling.

Images are [B, H, W, C]. Padding is written as a number of pixels on every side, as in torch, since
'SAME' pads a strided convolution unevenly and gives other logits.
"""

import fnmatch
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from flaxcls.errors import UserError
from flaxcls.models import initializers
from flaxcls.models.convolution import convolve

CONVOLUTION = 'convolution'  # What the outputs of convolutions are called by recomputation.


def at_least_float32(dtype: Any) -> Any:
    """Returns the dtype for sums and statistics: float32, or float64 where that is computed in."""
    return jnp.promote_types(dtype, jnp.float32)


class ImageTooSmall(UserError):
    """The image leaves nothing for a convolution or pooling window to reduce."""


def _require_room(shape: tuple[int, ...], window: int, strides: int, padding: int) -> None:
    """Refuses a window larger than the padded image, and a stride over a single pixel."""
    for size in shape[1:3]:
        if size + 2 * padding < window or (strides > 1 and size == 1):
            raise ImageTooSmall(
                f'a window of {window} with stride {strides} finds a map of {shape[1]}x{shape[2]}.'
            )


class Conv(nn.Module):
    """2-D convolution with `padding` pixels of zeros on every side.

    Attributes:
      features: output channels.
      kernel_size: side of the square window, pixels.
      strides: step of the window, pixels.
      padding: zeros on every side, pixels.
      groups: blocks of channels that are convolved apart.
      use_bias: adds a bias per output channel; BatchNorm makes it useless.
      dtype: of the computation; the parameters are float32.
    """

    features: int
    kernel_size: int
    strides: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = False
    kernel_init: initializers.Initializer = initializers.he_normal_fan_in
    bias_init: initializers.Initializer = initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = self.kernel_size
        _require_room(x.shape, size, self.strides, self.padding)
        shape = (size, size, x.shape[-1] // self.groups, self.features)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if size == 1 and self.strides == 1 and self.groups == 1 and self.padding == 0:
            # The same sum as a matrix product, which XLA runs several times faster on CPU.
            x = lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
        else:
            x = convolve(x, kernel, strides=self.strides, padding=self.padding, groups=self.groups)
        if self.use_bias:
            bias = self.param('bias', self.bias_init, (self.features,), jnp.float32)
            x = x + bias.astype(self.dtype)
        return checkpoint_name(x, CONVOLUTION)


class BatchNorm(nn.Module):
    """Batch normalisation (arXiv:1502.03167, algorithm 1) whose group is part of the experiment.

    In training, every `group_size` consecutive examples of the batch share a mean and a biased
    variance. The running variance takes the unbiased estimate, as torch's does; running statistics
    are the average over all groups, so they are equal on every device. All statistics are float32
    whatever `dtype` is, and the variance is taken around the mean, since the mean of squares minus
    the squared mean cancels when the mean is large.

    Attributes:
      momentum: share of the old running statistics kept (torch writes 1 - momentum).
      eps: added to the variance.
      group_size: examples per group; None: the batch, over all devices.
      axis_name: the mapped axis over which the batch is split; None: it is not split.
      scale_init: of the scale.
      frozen: patterns (as in `fnmatch`) of paths such as stage1_block1/bn1; a layer that one fits
        uses its running statistics in training too, and leaves them alone.
      measuring: normalise with the group's statistics even if `train` is False, and leave this
        device's `Moments` in the place of the running ones; see `flaxcls.recalibrate`.
      mask: bool [B]; examples where it is False count in no statistic. None: all count. Only for
        measuring: a batch of training is whole.
      dtype: of the result.
    """

    momentum: float = 0.9
    eps: float = 1e-5
    group_size: int | None = None
    axis_name: str | None = None
    scale_init: initializers.Initializer = initializers.ones
    frozen: tuple[str, ...] = ()
    measuring: bool = False
    mask: jax.Array | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param('scale', self.scale_init, (channels,), jnp.float32)
        bias = self.param('bias', initializers.zeros, (channels,), jnp.float32)
        zeros, ones = jnp.zeros, jnp.ones
        running_mean = self.variable('batch_stats', 'mean', zeros, (channels,), jnp.float32)
        running_var = self.variable('batch_stats', 'var', ones, (channels,), jnp.float32)
        learning = train and not matches('/'.join(self.path), self.frozen)
        if self.is_initializing() or not (learning or self.measuring):
            return self._normalize(x, running_mean.value, running_var.value, scale, bias)

        local, span = _group(x.shape[0], self.group_size, self.axis_name)
        grouped = x.reshape(-1, local, *x.shape[1:])
        mask = None if self.mask is None else self.mask.reshape(*grouped.shape[:2], 1, 1, 1)
        own = moments(grouped.astype(at_least_float32(x.dtype)), mask)
        group = pool(_gather(own, span, self.axis_name)) if span > 1 else own
        if self.measuring:
            device = pool(own)
            running_mean.value, running_var.value = device.mean, device.var
            self.put_variable('batch_stats', 'count', device.count)
        else:
            # Only the groups on this device; the training step averages over the devices, for all
            # layers at once.
            self._update(running_mean, group.mean)
            self._update(running_var, unbiased(group))
        mean, var = (value[:, None, None, None] for value in (group.mean, group.var))
        return self._normalize(grouped, mean, var, scale, bias).reshape(x.shape)

    def _update(self, running: nn.Variable, new: jax.Array) -> None:
        new = jnp.mean(new, axis=0)
        running.value = self.momentum * running.value + (1 - self.momentum) * new

    def _normalize(self, x, mean, var, scale, bias):
        factor = scale * lax.rsqrt(var + self.eps)
        centred = x.astype(at_least_float32(x.dtype)) - mean
        return (centred * factor + bias).astype(self.dtype)


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Tells whether a path such as stage1_block1/bn1/scale, or a folder of it, fits a pattern."""
    parts = path.split('/')
    folders = ['/'.join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatchcase(folder, pattern) for folder in folders for pattern in patterns)


class Moments(NamedTuple):
    """Statistics of some values, of each channel: count [...], mean and biased var [..., C]."""

    count: jax.Array
    mean: jax.Array
    var: jax.Array


def moments(values: jax.Array, mask: jax.Array | None = None) -> Moments:
    """Returns the moments of each group of values [G, B, H, W, C], the count being float [G].

    Args:
      values: float32 or wider.
      mask: bool [G, B, 1, 1, 1], examples to count; None: all. A group without any has zeros.
    """
    groups, examples, height, width, _ = values.shape
    mean = jnp.mean(values, (1, 2, 3), keepdims=True, where=mask)
    var = jnp.mean(jnp.square(values - mean), (1, 2, 3), where=mask)
    if mask is None:
        count = jnp.full(groups, examples * height * width, values.dtype)
        return Moments(count, mean[:, 0, 0, 0], var)
    count = mask.sum((1, 2, 3, 4), dtype=values.dtype) * height * width
    some = (count > 0)[:, None]
    return Moments(count, jnp.where(some, mean[:, 0, 0, 0], 0), jnp.where(some, var, 0))


def pool(parts: Moments) -> Moments:
    """Returns the moments of all values together, the parts being along the first axis.

    Chan, Golub, LeVeque: Algorithms for computing the sample variance (1983), equation 1.5: nothing
    cancels, as it does in the mean of the squares minus the square of the mean.
    """
    count = parts.count.sum(0)
    share = (parts.count / jnp.maximum(count, 1))[..., None]
    mean = (share * parts.mean).sum(0)
    var = (share * (parts.var + jnp.square(parts.mean - mean))).sum(0)
    return Moments(count, mean, var)


def unbiased(group: Moments) -> jax.Array:
    """Returns the estimate of the variance from a sample, as torch's running variance takes it."""
    return group.var * (group.count / jnp.maximum(group.count - 1, 1))[..., None]


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


def _group(local: int, group_size: int | None, axis_name: str | None) -> tuple[int, int]:
    """Returns (examples of a group on this device, devices of a group); see BatchNorm."""
    devices = lax.axis_size(axis_name) if axis_name else 1
    span = devices_of_a_group(group_size or local * devices, local, devices)
    if not span:
        raise UserError(
            f'BatchNorm: groups of {group_size} examples fit neither into the {local} of each of '
            f'{devices} devices nor a whole number of devices.'
        )
    return (group_size if group_size and span == 1 else local), span


def _gather(own: Moments, span: int, axis_name: str) -> Moments:
    """Returns the moments of all `span` devices of this device's group along a new first axis."""
    devices = lax.axis_size(axis_name)
    groups = [list(range(first, first + span)) for first in range(0, devices, span)]
    # One collective for all three; its transpose, in the backward pass, is one as well.
    packed = jnp.concatenate([own.count[:, None], own.mean, own.var], axis=-1)
    packed = lax.all_gather(packed, axis_name, axis_index_groups=groups if span < devices else None)
    channels = own.mean.shape[-1]
    return Moments(packed[..., 0], packed[..., 1 : channels + 1], packed[..., channels + 1 :])


class Dropout(nn.Module):
    """Dropout (JMLR 15, 2014) whose every draw belongs to an example, not to a device.

    Kept units are divided by the probability of being kept, so that evaluation changes nothing.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Drops units of x [B, ...].

        Args:
          x: activations.
          train: False returns x.
          example_keys: one key per example [B]; None: drawn from Linen's rng 'dropout'.
        """
        if not train or self.rate == 0:
            return x
        keep = _draw_kept(self, x.shape[0], x.shape[1:], self.rate, example_keys)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


class StochasticDepth(nn.Module):
    """Drops whole examples of a residual branch in training (arXiv:1603.09382).

    Kept branches are divided by the probability of being kept, so that evaluation changes nothing.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Zeroes examples of x [B, ...]; the arguments are those of `Dropout`."""
        if not train or self.rate == 0:
            return x
        keep = _draw_kept(self, x.shape[0], (), self.rate, example_keys)
        return jnp.where(jnp.expand_dims(keep, range(1, x.ndim)), x / (1 - self.rate), 0).astype(
            x.dtype
        )


def _draw_kept(layer: nn.Module, batch: int, shape, rate: float, example_keys) -> jax.Array:
    """Returns bools [batch, *shape], False with probability `rate`, drawn for each example."""
    if example_keys is None:
        example_keys = jax.random.split(layer.make_rng('dropout'), batch)
    # Layers draw apart from one another.
    path = zlib.crc32('/'.join(layer.path).encode())
    keys = jax.vmap(jax.random.fold_in, (0, None))(example_keys, path)
    return jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)


def local_response_norm(
    x: jax.Array,
    *,
    size: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
    mean: bool = False,
) -> jax.Array:
    """Divides x [B, H, W, C] by (k + alpha * sum of squares of `size` neighbour channels)**beta.

    As printed in the AlexNet paper, section 3.3. With `mean`, alpha is divided by `size`, as Caffe
    and torch do. Computed in float32; returns x's dtype.
    """
    alpha = alpha / size if mean else alpha
    squares = jnp.square(x.astype(at_least_float32(x.dtype)))
    padded = jnp.pad(squares, [(0, 0)] * 3 + [(size // 2, (size - 1) // 2)])
    total = sum(padded[..., i : i + x.shape[-1]] for i in range(size))
    return (x * (k + alpha * total) ** -beta).astype(x.dtype)


def max_pool(x: jax.Array, window: int, strides: int, padding: int = 0) -> jax.Array:
    """Maximum over square windows of x [B, H, W, C]; the padding never wins."""
    _require_room(x.shape, window, strides, padding)
    pads = [(padding, padding)] * 2
    return nn.max_pool(x, (window, window), strides=(strides, strides), padding=pads)


def avg_pool(
    x: jax.Array, window: int, strides: int, *, partial_windows: bool = False
) -> jax.Array:
    """Mean over square windows of x [B, H, W, C], without padding.

    With `partial_windows`, what is left at the right and at the bottom is averaged as well, as
    torch does with ceil_mode=True and count_include_pad=False.
    """
    if partial_windows:
        pads = [(0, -(size - window) % strides) for size in x.shape[1:3]]
        return nn.avg_pool(
            x, (window, window), (strides, strides), padding=pads, count_include_pad=False
        )
    _require_room(x.shape, window, strides, 0)
    return nn.avg_pool(x, (window, window), strides=(strides, strides), padding='VALID')


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over the pixels: [B, H, W, C] -> float32 [B, C]."""
    return jnp.mean(x, axis=(1, 2), dtype=at_least_float32(x.dtype))


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Means over a `size` x `size` grid of cells that cover x: [B, H, W, C] -> [B, size, size, C].

    Cell i of H pixels spans floor(i * H / size) up to ceil((i + 1) * H / size), so cells overlap
    where H is no multiple of `size`, as in torch. Where H equals `size`, it is the identity.
    """
    if x.shape[1:3] == (size, size):
        return x
    rows, columns = (_cell_weights(length, size) for length in x.shape[1:3])
    values = x.astype(at_least_float32(x.dtype))
    pooled = jnp.einsum('bhwc,ph,qw->bpqc', values, rows, columns)
    return pooled.astype(x.dtype)


def _cell_weights(length: int, cells: int) -> jax.Array:
    weights = np.zeros((cells, length))
    for cell in range(cells):
        first, last = cell * length // cells, -(-(cell + 1) * length // cells)
        weights[cell, first:last] = 1 / (last - first)
    return jnp.asarray(weights)


class Head(nn.Module):
    """The classifier: features [B, C] -> float32 logits [B, num_classes]."""

    num_classes: int
    kernel_init: initializers.Initializer = initializers.uniform_fan_in

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = nn.Dense(self.num_classes, kernel_init=self.kernel_init, name='dense')
        return dense(x.astype(at_least_float32(x.dtype)))
