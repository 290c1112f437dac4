"""ResNet for ImageNet and CIFAR, ResNet v2, ResNet-D, ResNeXt and wide ResNet.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, arXiv:1512.03385 (v1). The same:
Identity Mappings in Deep Residual Networks, arXiv:1603.05027 (v2). He, Zhang, et al.: Bag of
Tricks, arXiv:1812.01187 (D). Xie et al.: ResNeXt, arXiv:1611.05431. Zagoruyko, Komodakis: Wide
Residual Networks, arXiv:1605.07146.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.init import he_normal_fan_out, ones, zeros
from flaxcls.models.layers import (
    Conv,
    Head,
    Intermediate,
    StochasticDepth,
    avg_pool,
    global_avg_pool,
    max_pool,
    stem,
)
from flaxcls.ops.remat import BLOCK


class Block(nn.Module):
    """The attributes of a residual block, [B, H, W, C] -> [B, H / strides, W / strides, C'].

    Attributes:
      width: channels of the convolutions; a bottleneck's last one has four times as many.
      strides: of the block, by which it downsamples.
      shortcut: how maps of different shape are joined (arXiv:1512.03385, section 4.1): 'A'
        subsamples and pads with zero channels; 'B' projects with a 1x1 convolution; 'C' does so in
        every block; 'D' averages 2x2 pixels before a projection that would stride
        (arXiv:1812.01187, figure 2c). 'none': the plain network without shortcuts (section 3.3).
      zero_init: initialise the residual branch to output zeros, so that the block starts as its
        shortcut (arXiv:1706.02677, section 5.1).
      drop_rate: probability of dropping the residual branch of an example in training
        (stochastic depth, arXiv:1603.09382).
      conv: constructor of convolutions, with the network's initializer and dtype.
      norm: constructor of BatchNorm, with the run's settings and the network's dtype.
    """

    width: int
    strides: int
    shortcut: str
    zero_init: bool
    drop_rate: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]


class BasicBlock(Block):
    """Two 3x3 convolutions beside a shortcut (arXiv:1512.03385, figure 5, left)."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        y = self.conv(self.width, 3, self.strides, padding=1, name='conv1')(x)
        y = self.norm(name='bn1')(y, train=train)
        y = nn.relu(y)
        y = self.conv(self.width, 3, padding=1, name='conv2')(y)
        y = self.norm(scale_init=zeros if self.zero_init else ones, name='bn2')(y, train=train)
        if self.shortcut != 'none':
            x = _shortcut(x, self.shortcut, self.width, self.strides, self.conv, self.norm, train)
            drop = StochasticDepth(self.drop_rate, name='drop')
            y = x + drop(y, train=train, example_keys=example_keys)
        return nn.relu(y)


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (arXiv:1512.03385, figure 5, right).

    Attributes:
      stride_in_first: stride in the first 1x1 convolution, as the paper does (v1), instead of the
        3x3 one (v1.5).
      groups: of the 3x3 convolution (ResNeXt).
      group_width: channels per group where `width` is 64; proportional to `width` elsewhere.
    """

    stride_in_first: bool = False
    groups: int = 1
    group_width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        inner = max(1, self.width * self.group_width // 64) * self.groups
        features = 4 * self.width
        strides1, strides2 = (self.strides, 1) if self.stride_in_first else (1, self.strides)
        y = self.conv(inner, 1, strides1, name='conv1')(x)
        y = self.norm(name='bn1')(y, train=train)
        y = nn.relu(y)
        y = self.conv(inner, 3, strides2, padding=1, groups=self.groups, name='conv2')(y)
        y = self.norm(name='bn2')(y, train=train)
        y = nn.relu(y)
        y = self.conv(features, 1, name='conv3')(y)
        y = self.norm(scale_init=zeros if self.zero_init else ones, name='bn3')(y, train=train)
        if self.shortcut != 'none':
            x = _shortcut(x, self.shortcut, features, self.strides, self.conv, self.norm, train)
            drop = StochasticDepth(self.drop_rate, name='drop')
            y = x + drop(y, train=train, example_keys=example_keys)
        return nn.relu(y)


class PreActBasicBlock(Block):
    """BatchNorm and ReLU before each of two 3x3 convolutions (arXiv:1603.05027, figure 4e).

    A shortcut that changes the shape starts after the first ReLU, and has no BatchNorm.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        last_init = zeros if self.zero_init else he_normal_fan_out
        y = self.norm(name='bn1')(x, train=train)
        y = preact = nn.relu(y)
        y = self.conv(self.width, 3, self.strides, padding=1, name='conv1')(y)
        y = self.norm(name='bn2')(y, train=train)
        y = nn.relu(y)
        y = self.conv(self.width, 3, padding=1, kernel_init=last_init, name='conv2')(y)
        if self.shortcut != 'none':
            if not _is_identity(x, self.shortcut, self.width, self.strides):
                x = _shortcut(preact, self.shortcut, self.width, self.strides, self.conv)
            drop = StochasticDepth(self.drop_rate, name='drop')
            y = x + drop(y, train=train, example_keys=example_keys)
        return y


class PreActBottleneckBlock(Block):
    """BatchNorm and ReLU before each of a 1x1, a 3x3 and a 1x1 convolution; the 3x3 one strides.

    A shortcut that changes the shape starts after the first ReLU, and has no BatchNorm.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        features = 4 * self.width
        last_init = zeros if self.zero_init else he_normal_fan_out
        y = self.norm(name='bn1')(x, train=train)
        y = preact = nn.relu(y)
        y = self.conv(self.width, 1, name='conv1')(y)
        y = self.norm(name='bn2')(y, train=train)
        y = nn.relu(y)
        y = self.conv(self.width, 3, self.strides, padding=1, name='conv2')(y)
        y = self.norm(name='bn3')(y, train=train)
        y = nn.relu(y)
        y = self.conv(features, 1, kernel_init=last_init, name='conv3')(y)
        if self.shortcut != 'none':
            if not _is_identity(x, self.shortcut, features, self.strides):
                x = _shortcut(preact, self.shortcut, features, self.strides, self.conv)
            drop = StochasticDepth(self.drop_rate, name='drop')
            y = x + drop(y, train=train, example_keys=example_keys)
        return y


def _is_identity(x: jax.Array, kind: str, features: int, strides: int) -> bool:
    """Returns whether `_shortcut` returns x unchanged."""
    return kind != 'C' and strides == 1 and x.shape[-1] == features


def _shortcut(x, kind, features, strides, conv, norm=None, train=False):
    """Returns x [B, H, W, C] as [B, H / strides, W / strides, features], the block's output shape.

    `kind` is how shapes that differ are joined, see `Block.shortcut`; `norm` follows a projection.
    """
    if _is_identity(x, kind, features, strides):
        return x
    if kind == 'A':
        # Indexing would become a gather where the batch size is symbolic, as in exports.
        x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, strides, strides, 1))
        return jnp.pad(x, [(0, 0)] * 3 + [(0, features - x.shape[-1])])
    if kind == 'D' and strides > 1:
        x, strides = avg_pool(x, 2, strides, partial_windows=True), 1
    x = conv(features, 1, strides, name='conv_proj')(x)
    return norm(name='bn_proj')(x, train=train) if norm else x


class ResNet(nn.Module):
    """Residual network: a stem, stages of residual blocks, global average pooling, a classifier.

    Attributes:
      num_classes: length of the logits.
      stage_sizes: blocks per stage (table 1; section 4.2 for CIFAR).
      block: constructor of the blocks: BasicBlock or BottleneckBlock.
      width: channels of the stem and of the first stage's blocks; each later stage doubles them.
      width_multiplier: scales the width.
      stem: '7x7', '3x3' or 'deep', and max pooling; 'small', for CIFAR's images: no pooling; see
        `layers.stem`.
      shortcut: 'A', 'B', 'C', 'D' or 'none', see `Block.shortcut`.
      zero_init_residual: initialise residual branches to output zeros, see `Block.zero_init`.
      stochastic_depth_rate: drop rate of the last block; block l of L has l / L of it
        (arXiv:1603.09382, section 3).
      norm: constructor of BatchNorm, with the run's settings.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int = 1000
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    block: Callable[..., nn.Module] = BasicBlock
    width: int = 64
    width_multiplier: float = 1.0
    stem: str = '7x7'
    shortcut: str = 'B'
    zero_init_residual: bool = False
    stochastic_depth_rate: float = 0.0
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 logits [B, num_classes] of normalised images [B, H, W, 3]."""
        conv = functools.partial(Conv, kernel_init=he_normal_fan_out, dtype=self.dtype)
        norm = functools.partial(self.norm, dtype=self.dtype)
        width = max(1, round(self.width * self.width_multiplier))
        x = stem(images, self.stem, width, conv, norm, train)
        x = norm(name='bn_stem')(x, train=train)
        x = nn.relu(x)
        if self.stem != 'small':
            x = max_pool(x, 3, 2, padding=1)
        x = _stages(x, self, width, conv, norm, train, example_keys)
        x = Intermediate(name='feature_map')(x)
        x = global_avg_pool(x)
        x = Intermediate(name='features')(x)
        return Head(self.num_classes, name='head')(x)


class PreActResNet(ResNet):
    """ResNet v2: the stem is a convolution alone; BatchNorm and ReLU follow the last block.

    Its attributes are those of ResNet; `block` is PreActBasicBlock or PreActBottleneckBlock.
    """

    block: Callable[..., nn.Module] = PreActBasicBlock

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 logits [B, num_classes] of normalised images [B, H, W, 3]."""
        conv = functools.partial(Conv, kernel_init=he_normal_fan_out, dtype=self.dtype)
        norm = functools.partial(self.norm, dtype=self.dtype)
        width = max(1, round(self.width * self.width_multiplier))
        x = stem(images, self.stem, width, conv, norm, train)
        if self.stem != 'small':
            x = max_pool(x, 3, 2, padding=1)
        x = _stages(x, self, width, conv, norm, train, example_keys)
        x = norm(name='bn_final')(x, train=train)
        x = nn.relu(x)
        x = Intermediate(name='feature_map')(x)
        x = global_avg_pool(x)
        x = Intermediate(name='features')(x)
        return Head(self.num_classes, name='head')(x)


def _stages(x, network, width, conv, norm, train, example_keys):
    """Returns the maps after all blocks; each stage after the first halves height and width."""
    blocks, built = sum(network.stage_sizes), 0
    for stage, size in enumerate(network.stage_sizes, start=1):
        for index in range(1, size + 1):
            built += 1
            x = network.block(
                width=width * 2 ** (stage - 1),
                strides=2 if stage > 1 and index == 1 else 1,
                shortcut=network.shortcut,
                zero_init=network.zero_init_residual,
                drop_rate=network.stochastic_depth_rate * built / blocks,
                conv=conv,
                norm=norm,
                name=f'stage{stage}_block{index}',
            )(x, train=train, example_keys=example_keys)
            x = checkpoint_name(x, BLOCK)
    return x
