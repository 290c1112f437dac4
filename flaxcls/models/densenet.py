"""DenseNet for ImageNet and for CIFAR.

Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, arXiv:1608.06993.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.layers import (
    Conv,
    Dropout,
    Head,
    Intermediate,
    avg_pool,
    global_avg_pool,
    max_pool,
)
from flaxcls.ops.batch_norm import Moments
from flaxcls.ops.remat import BLOCK


class Features(NamedTuple):
    """The channels [B, H, W, C] that a dense block has gathered, and their moments where used.

    Every later layer normalises them by the same moments, which are taken once, as they are made.
    """

    values: jax.Array
    own: Moments | None

    def join(self, new: 'Features') -> 'Features':
        """Returns these channels followed by the new ones."""
        values = jnp.concatenate([self.values, new.values], axis=-1)
        if self.own is None or new.own is None:
            return Features(values, None)
        mean, var = (
            jnp.concatenate(pair, axis=-1)
            for pair in ((self.own.mean, new.own.mean), (self.own.var, new.own.var))
        )
        return Features(values, Moments(self.own.count, mean, var))


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution to k new channels; with a bottleneck, a 1x1 to 4k before.

    Section 3, "Composite function" and "Bottleneck layers". Returns the new channels alone.
    """

    growth_rate: int
    bottleneck: bool
    dropout_rate: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Features, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        x = nn.relu(self.norm(name='bn1')(x.values, train=train, own=x.own))
        if self.bottleneck:
            x = self.conv(4 * self.growth_rate, 1, name='conv1')(x)
            x = self._dropout('dropout1', x, train, example_keys)
            x = nn.relu(self.norm(name='bn2')(x, train=train))
            x = self.conv(self.growth_rate, 3, padding=1, name='conv2')(x)
            return self._dropout('dropout2', x, train, example_keys)
        x = self.conv(self.growth_rate, 3, padding=1, name='conv1')(x)
        return self._dropout('dropout1', x, train, example_keys)

    def _dropout(self, name, x, train, example_keys):
        return Dropout(self.dropout_rate, name=name)(x, train=train, example_keys=example_keys)


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution to `features` channels, 2x2 mean (section 3, "Pooling")."""

    features: int
    dropout_rate: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Features, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        x = nn.relu(self.norm(name='bn')(x.values, train=train, own=x.own))
        x = self.conv(self.features, 1, name='conv')(x)
        dropout = Dropout(self.dropout_rate, name='dropout')
        x = dropout(x, train=train, example_keys=example_keys)
        return avg_pool(x, 2, 2)


class DenseNet(nn.Module):
    """Dense blocks, in which each layer sees all earlier ones, joined by transitions.

    Attributes:
      num_classes: length of the logits.
      growth_rate: new channels per layer, k.
      block_sizes: layers per dense block (table 1; section 4.1 for CIFAR).
      stem_features: channels before the first block; None: 2k.
      bottleneck: 1x1 convolutions to 4k channels before the 3x3 ones (the B of BC).
      compression: share of the channels that a transition keeps (the C of BC).
      small_images: CIFAR's stem, one 3x3 convolution, in place of a 7x7 and a max pooling of
        stride 2 each.
      dropout_rate: after each convolution but the stem (section 4.2).
      norm: BatchNorm with the run's settings.
      dtype: of the computation; logits are float32.
    """

    num_classes: int = 1000
    growth_rate: int = 32
    block_sizes: tuple[int, ...] = (6, 12, 24, 16)
    stem_features: int | None = None
    bottleneck: bool = True
    compression: float = 0.5
    small_images: bool = False
    dropout_rate: float = 0.0
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 logits [B, num_classes] of normalised images [B, H, W, 3]."""
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(self.norm, dtype=self.dtype)
        stem_features = self.stem_features or 2 * self.growth_rate
        if self.small_images:
            x = conv(stem_features, 3, padding=1, name='stem')(images)
        else:
            x = conv(stem_features, 7, strides=2, padding=3, name='stem')(images)
            x = nn.relu(norm(name='bn_stem')(x, train=train))
            x = max_pool(x, 3, 2, padding=1)
        x = self._measure(x, train)
        common = {'dropout_rate': self.dropout_rate, 'conv': conv, 'norm': norm}
        for block, size in enumerate(self.block_sizes, start=1):
            for index in range(1, size + 1):
                layer = DenseLayer(
                    self.growth_rate, self.bottleneck, name=f'block{block}_layer{index}', **common
                )
                new = layer(x, train=train, example_keys=example_keys)
                x = x.join(self._measure(new, train))
            if block < len(self.block_sizes):
                kept = int(x.values.shape[-1] * self.compression)
                transition = Transition(kept, name=f'transition{block}', **common)
                x = self._measure(transition(x, train=train, example_keys=example_keys), train)
        x = nn.relu(norm(name='bn_final')(x.values, train=train, own=x.own))
        x = Intermediate(name='feature_map')(x)
        x = Intermediate(name='features')(global_avg_pool(x))
        return Head(self.num_classes, name='head')(x)

    def _measure(self, x: jax.Array, train: bool) -> Features:
        x = checkpoint_name(x, BLOCK)
        norm = self.norm(parent=None)
        used = (train or norm.collect_statistics) and not self.is_initializing()
        return Features(x, norm.group_moments(x) if used else None)


densenet121 = functools.partial(DenseNet, block_sizes=(6, 12, 24, 16))
densenet169 = functools.partial(DenseNet, block_sizes=(6, 12, 32, 32))
densenet201 = functools.partial(DenseNet, block_sizes=(6, 12, 48, 32))
densenet161 = functools.partial(DenseNet, block_sizes=(6, 12, 36, 24), growth_rate=48)
densenet264 = functools.partial(DenseNet, block_sizes=(6, 12, 64, 48))
densenet264_48 = functools.partial(densenet264, growth_rate=48)


def cifar(depth: int, growth_rate: int) -> functools.partial:
    """Returns the constructor of the CIFAR network with `depth` layers, without B and C."""
    return functools.partial(
        DenseNet,
        block_sizes=((depth - 4) // 3,) * 3,
        growth_rate=growth_rate,
        stem_features=16,
        bottleneck=False,
        compression=1.0,
        small_images=True,
    )


def cifar_bc(depth: int, growth_rate: int) -> functools.partial:
    """Returns the constructor of the CIFAR DenseNet-BC with `depth` layers."""
    return functools.partial(
        DenseNet,
        block_sizes=((depth - 4) // 6,) * 3,
        growth_rate=growth_rate,
        small_images=True,
    )
