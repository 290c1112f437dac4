"""The layers that all families share, beside BatchNorm: convolution, dropout, LRN and pooling.

Images are [B, H, W, C]. Padding is written as a number of pixels on every side, as in torch, since
'SAME' pads a strided convolution unevenly and gives other logits.
"""

import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from flaxcls.errors import UserError
from flaxcls.models import init
from flaxcls.ops import pooling
from flaxcls.ops.convolution import convolve
from flaxcls.ops.dense import multiply
from flaxcls.ops.dtypes import at_least_float32
from flaxcls.ops.forms import use_reference
from flaxcls.ops.remat import BLOCK, LINEAR


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
    kernel_init: init.Initializer = init.he_normal_fan_in
    bias_init: init.Initializer = init.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = self.kernel_size
        _require_room(x.shape, size, self.strides, self.padding)
        shape = (size, size, x.shape[-1] // self.groups, self.features)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        bias = None
        if self.use_bias:
            bias = self.param('bias', self.bias_init, (self.features,), jnp.float32)
        geometry = {'strides': self.strides, 'padding': self.padding, 'groups': self.groups}
        return checkpoint_name(convolve(x, kernel, bias, **geometry), LINEAR)


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


@jax.named_scope('relu6')  # By which trace.py finds it.
def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6); the gradient is 0 at 0 and at 6 too, as torch's is, and not nn.relu6's."""
    six = jnp.full((), 6, x.dtype)
    if use_reference():  # jax2onnx 0.17 has no clamp where the batch size is free.
        return jnp.minimum(nn.relu(x), six)
    return lax.clamp(jnp.zeros((), x.dtype), x, six)


def max_pool(x: jax.Array, window: int, strides: int, padding: int = 0) -> jax.Array:
    """Maximum over square windows of x [B, H, W, C]; the padding never wins."""
    _require_room(x.shape, window, strides, padding)
    return checkpoint_name(pooling.max_pool(x, window, strides, padding), BLOCK)


def avg_pool(
    x: jax.Array, window: int, strides: int, *, partial_windows: bool = False
) -> jax.Array:
    """Mean over square windows of x [B, H, W, C], without padding.

    With `partial_windows`, what is left at the right and at the bottom is averaged as well, as
    torch does with ceil_mode=True and count_include_pad=False.
    """
    size = (window, window)
    if not partial_windows:
        _require_room(x.shape, window, strides, 0)
        return nn.avg_pool(x, window_shape=size, strides=(strides, strides), padding='VALID')
    missing = [-(length - window) % strides for length in x.shape[1:3]]
    x = jnp.pad(x, [(0, 0), *((0, pixels) for pixels in missing), (0, 0)])
    means = nn.avg_pool(x, window_shape=size, strides=(strides, strides), padding='VALID')
    if not any(missing):
        return means
    # The zeros that fill a window up count as nothing.
    rows, columns = np.ones(means.shape[1]), np.ones(means.shape[2])
    for lengths, pixels in zip((rows, columns), missing, strict=True):
        lengths[-1] = window / (window - pixels)
    return means * jnp.asarray(rows[:, None, None] * columns[:, None], means.dtype)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over the pixels: [B, H, W, C] -> float32 [B, C]."""
    return jnp.mean(x, axis=(1, 2), dtype=at_least_float32(x.dtype))


@jax.named_scope('adaptive_avg_pool')  # By which trace.py finds it.
def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Means over a `size` x `size` grid of cells that cover x: [B, H, W, C] -> [B, size, size, C].

    Cell i of H pixels spans floor(i * H / size) up to ceil((i + 1) * H / size), so cells overlap
    where H is not a multiple of `size`, as in torch. Where H equals `size`, it is the identity.
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


class Intermediate(nn.Module):
    """Hands on its input, under a name by which models.intermediates finds it.

    Every network has two: `feature_map`, the map that the classifier summarizes, and `features`,
    the vector that its last layer sees.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def _dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    return multiply(x, kernel)


def dense(x: jax.Array, features: int, **options: Any) -> jax.Array:
    """Returns the output [B, features] of a fully connected layer, in the dtype of x [B, C].

    `options` are further attributes of `nn.Dense`, such as its name.
    """
    layer = nn.Dense(features, dtype=x.dtype, dot_general=_dot_general, **options)
    return checkpoint_name(layer(x), LINEAR)


class Head(nn.Module):
    """The classifier: features [B, C] -> float32 logits [B, num_classes]."""

    num_classes: int
    kernel_init: init.Initializer = init.uniform_fan_in

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return dense(
            x.astype(at_least_float32(x.dtype)),
            self.num_classes,
            kernel_init=self.kernel_init,
            bias_init=init.zeros,
            name='dense',
        )


def stem(
    images: jax.Array,
    kind: str,
    width: int,
    conv: Callable[..., nn.Module],
    norm: Callable[..., nn.Module],
    train: bool,
) -> jax.Array:
    """Returns the maps [B, H', W', width] of a network's first layers, before their BatchNorm.

    Args:
      images: [B, H, W, 3].
      kind: '7x7' or '3x3', a convolution of stride 2; 'deep', three 3x3 ones, the first of stride 2
        and half as wide (arXiv:1812.01187, figure 2b); 'small', a 3x3 one of stride 1, for images
        as small as CIFAR's (arXiv:1512.03385, section 4.2).
      width: channels.
      conv: constructor of convolutions.
      norm: constructor of BatchNorm.
      train: whether BatchNorm takes the statistics of the batch.
    """
    if kind == '7x7':
        return conv(width, 7, strides=2, padding=3, name='stem')(images)
    if kind != 'deep':
        strides = 1 if kind == 'small' else 2
        return conv(width, 3, strides=strides, padding=1, name='stem')(images)
    x = conv(width // 2, 3, strides=2, padding=1, name='stem1')(images)
    x = norm(name='bn_stem1')(x, train=train)
    x = nn.relu(x)
    x = conv(width // 2, 3, padding=1, name='stem2')(x)
    x = norm(name='bn_stem2')(x, train=train)
    x = nn.relu(x)
    return conv(width, 3, padding=1, name='stem')(x)
