"""DenseNet for ImageNet and CIFAR.

Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, arXiv:1608.06993.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flaxcls.errors import UserError
from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.layers import (
    Conv,
    Dropout,
    Head,
    Intermediate,
    avg_pool,
    global_avg_pool,
    max_pool,
    stem,
)
from flaxcls.ops.batch_norm import Moments, Parts
from flaxcls.ops.remat import BLOCK


class Features(NamedTuple):
    """Feature maps, and the moments by which every later layer normalises them.

    Attributes:
      maps: activations [B, H, W, c], whose channels follow one another. They stay apart: joined,
        all would be written anew for each layer.
      moments: of each channel, as `BatchNorm.group_moments` returns them; None where BatchNorm uses
        its running statistics.
    """

    maps: Parts
    moments: Moments | None

    @property
    def channels(self) -> int:
        return sum(part.shape[-1] for part in self.maps)


def with_moments(maps: jax.Array, norm: BatchNorm | None) -> Features:
    """Returns maps [B, H, W, C] with the moments of the groups of `norm`; None: without moments.

    The maps are what remat 'block' keeps.
    """
    maps = checkpoint_name(maps, BLOCK)
    return Features((maps,), norm.group_moments(maps) if norm else None)


def concatenate(x: Features, new: Features) -> Features:
    """Returns the channels of x followed by the new ones, and their moments."""
    maps = x.maps + new.maps
    if x.moments is None or new.moments is None:
        return Features(maps, None)
    mean = jnp.concatenate([x.moments.mean, new.moments.mean], axis=-1)
    var = jnp.concatenate([x.moments.var, new.moments.var], axis=-1)
    return Features(maps, Moments(x.moments.count, mean, var))


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution (section 3, "Composite function").

    Attributes:
      growth_rate: new channels, k.
      dropout_rate: after each convolution.
      conv: constructor of convolutions, with the network's dtype.
      norm: constructor of BatchNorm, with the run's settings and the network's dtype.
    """

    growth_rate: int
    dropout_rate: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Features, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        """Returns the new channels alone, [B, H, W, k]."""
        dropout = functools.partial(Dropout, self.dropout_rate)
        y = self.norm(name='bn1')(x.maps, train=train, moments=x.moments)
        y = nn.relu(y)
        y = self.conv(self.growth_rate, 3, padding=1, name='conv1')(y)
        return dropout(name='dropout1')(y, train=train, example_keys=example_keys)


class BottleneckLayer(nn.Module):
    """A 1x1 convolution to 4k channels before the 3x3 one (section 3, "Bottleneck layers").

    Its attributes are those of DenseLayer.
    """

    growth_rate: int
    dropout_rate: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Features, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        """Returns the new channels alone, [B, H, W, k]."""
        dropout = functools.partial(Dropout, self.dropout_rate)
        y = self.norm(name='bn1')(x.maps, train=train, moments=x.moments)
        y = nn.relu(y)
        y = self.conv(4 * self.growth_rate, 1, name='conv1')(y)
        y = dropout(name='dropout1')(y, train=train, example_keys=example_keys)
        y = self.norm(name='bn2')(y, train=train)
        y = nn.relu(y)
        y = self.conv(self.growth_rate, 3, padding=1, name='conv2')(y)
        return dropout(name='dropout2')(y, train=train, example_keys=example_keys)


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, 2x2 average pooling (section 3, "Pooling layers").

    Attributes:
      features: output channels.
      dropout_rate: after the convolution.
      conv: constructor of convolutions, with the network's dtype.
      norm: constructor of BatchNorm, with the run's settings and the network's dtype.
    """

    features: int
    dropout_rate: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Features, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        """Returns maps [B, H // 2, W // 2, features]."""
        dropout = Dropout(self.dropout_rate, name='dropout')
        y = self.norm(name='bn')(x.maps, train=train, moments=x.moments)
        y = nn.relu(y)
        y = self.conv(self.features, 1, name='conv')(y)
        y = dropout(y, train=train, example_keys=example_keys)
        return avg_pool(y, 2, 2)


class DenseNet(nn.Module):
    """Dense blocks, whose layers each see the maps of all earlier ones, joined by transitions.

    Attributes:
      num_classes: length of the logits.
      growth_rate: new channels per layer, k.
      block_sizes: layers per dense block (table 1; section 4.1 for CIFAR).
      stem_features: channels before the first block; None: 2k.
      bottleneck: 1x1 convolutions to 4k channels before the 3x3 ones (the B of BC).
      compression: share of the channels that a transition keeps (the C of BC).
      stem: '7x7', '3x3' or 'deep', and max pooling; 'small', for CIFAR's images: a convolution
        alone; see `layers.stem`.
      dropout_rate: after each convolution but the stem (section 4.2).
      norm: constructor of BatchNorm, with the run's settings.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int = 1000
    growth_rate: int = 32
    block_sizes: tuple[int, ...] = (6, 12, 24, 16)
    stem_features: int | None = None
    bottleneck: bool = True
    compression: float = 0.5
    stem: str = '7x7'
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
        options = {'dropout_rate': self.dropout_rate, 'conv': conv, 'norm': norm}
        dense_layer = BottleneckLayer if self.bottleneck else DenseLayer
        stem_features = self.stem_features or 2 * self.growth_rate
        x = stem(images, self.stem, stem_features, conv, norm, train)
        if self.stem != 'small':
            x = norm(name='bn_stem')(x, train=train)
            x = nn.relu(x)
            x = max_pool(x, 3, 2, padding=1)
        # All later layers normalise a channel by the same moments, so they are computed once.
        unbound = self.norm(parent=None)
        batch_statistics = (train or unbound.collect_statistics) and not self.is_initializing()
        measured = functools.partial(with_moments, norm=unbound if batch_statistics else None)
        x = measured(x)
        for block, size in enumerate(self.block_sizes, start=1):
            for index in range(1, size + 1):
                layer = dense_layer(self.growth_rate, name=f'block{block}_layer{index}', **options)
                new = layer(x, train=train, example_keys=example_keys)
                x = concatenate(x, measured(new))
            if block < len(self.block_sizes):
                kept = int(x.channels * self.compression)
                if not kept:
                    raise UserError(
                        f'config.model.compression={self.compression:g} leaves none of the '
                        f'{x.channels} channels behind block {block}; choose a larger one.'
                    )
                transition = Transition(kept, name=f'transition{block}', **options)
                x = measured(transition(x, train=train, example_keys=example_keys))
        x = norm(name='bn_final')(x.maps, train=train, moments=x.moments)
        x = nn.relu(x)
        x = Intermediate(name='feature_map')(x)
        x = global_avg_pool(x)
        x = Intermediate(name='features')(x)
        return Head(self.num_classes, name='head')(x)
