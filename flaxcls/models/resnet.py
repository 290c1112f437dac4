"""ResNet for ImageNet and for CIFAR.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, arXiv:1512.03385. Bottlenecks
stride in their 3x3 convolution (known as v1.5), which the paper does in the first 1x1.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxcls.models.initializers import he_normal_fan_out
from flaxcls.models.layers import (
    BatchNorm,
    Conv,
    Head,
    global_avg_pool,
    max_pool,
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (figure 5, left).

    Attributes:
      width: channels inside and out.
      strides: of the first convolution.
      shortcut: what joins maps of different shape (section 4.1): 'A' subsamples and pads with
        zero channels, 'B' projects.
      conv, norm: layers with the network's settings.
    """

    expansion = 1

    width: int
    strides: int
    shortcut: str
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.conv(self.width, 3, self.strides, padding=1, name='conv1')(x)
        y = nn.relu(self.norm(name='bn1')(y, train=train))
        y = self.conv(self.width, 3, padding=1, name='conv2')(y)
        y = self.norm(name='bn2')(y, train=train)
        return nn.relu(y + _shortcut(self, x, self.width, train))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (figure 5, right); width * 4 channels out."""

    expansion = 4

    width: int
    strides: int
    shortcut: str
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.conv(self.width, 1, name='conv1')(x)
        y = nn.relu(self.norm(name='bn1')(y, train=train))
        y = self.conv(self.width, 3, self.strides, padding=1, name='conv2')(y)
        y = nn.relu(self.norm(name='bn2')(y, train=train))
        y = self.conv(self.width * self.expansion, 1, name='conv3')(y)
        y = self.norm(name='bn3')(y, train=train)
        return nn.relu(y + _shortcut(self, x, self.width * self.expansion, train))


def _shortcut(block: BasicBlock | BottleneckBlock, x: jax.Array, features: int, train: bool):
    """Brings the block's input to the shape of its output; called inside the block."""
    if x.shape[-1] == features and block.strides == 1:
        return x
    if block.shortcut == 'A':
        x = x[:, :: block.strides, :: block.strides]
        return jnp.pad(x, [(0, 0)] * 3 + [(0, features - x.shape[-1])])
    x = block.conv(features, 1, block.strides, name='conv_proj')(x)
    return block.norm(name='bn_proj')(x, train=train)


class ResNet(nn.Module):
    """A stem, stages of residual blocks that each halve the map and double the width, a classifier.

    Attributes:
      num_classes: length of the logits.
      stage_sizes: blocks per stage (table 1; section 4.2 for CIFAR).
      block: BasicBlock or BottleneckBlock.
      width: channels of the stem and of the first stage's blocks.
      width_multiplier: scales the width.
      small_images: CIFAR's stem, one 3x3 convolution, in place of a 7x7 and a max pooling of
        stride 2 each.
      shortcut: 'A' or 'B', see BasicBlock.
      norm: BatchNorm with the run's settings.
      dtype: of the computation; logits are float32.
    """

    num_classes: int = 1000
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    block: type[nn.Module] = BasicBlock
    width: int = 64
    width_multiplier: float = 1.0
    small_images: bool = False
    shortcut: str = 'B'
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 logits [B, num_classes] of normalised images [B, H, W, 3]."""
        del example_keys  # Nothing in these variants is random.
        conv = functools.partial(Conv, kernel_init=he_normal_fan_out, dtype=self.dtype)
        norm = functools.partial(self.norm, dtype=self.dtype)
        width = max(1, round(self.width * self.width_multiplier))
        if self.small_images:
            x = conv(width, 3, padding=1, name='stem')(images)
        else:
            x = conv(width, 7, strides=2, padding=3, name='stem')(images)
        x = nn.relu(norm(name='bn_stem')(x, train=train))
        if not self.small_images:
            x = max_pool(x, 3, 2, padding=1)
        for stage, size in enumerate(self.stage_sizes, start=1):
            for index in range(1, size + 1):
                x = self.block(
                    width=width * 2 ** (stage - 1),
                    strides=2 if stage > 1 and index == 1 else 1,
                    shortcut=self.shortcut,
                    conv=conv,
                    norm=norm,
                    name=f'stage{stage}_block{index}',
                )(x, train=train)
        return Head(self.num_classes, name='head')(global_avg_pool(x))


_bottleneck = functools.partial(ResNet, block=BottleneckBlock)
resnet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2))
resnet34 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3))
resnet50 = functools.partial(_bottleneck, stage_sizes=(3, 4, 6, 3))
resnet101 = functools.partial(_bottleneck, stage_sizes=(3, 4, 23, 3))
resnet152 = functools.partial(_bottleneck, stage_sizes=(3, 8, 36, 3))


def cifar_resnet(depth: int) -> functools.partial:
    """Returns the constructor of the CIFAR network with 6n + 2 = `depth` layers (section 4.2)."""
    blocks = (depth - 2) // 6
    return functools.partial(
        ResNet, stage_sizes=(blocks,) * 3, width=16, small_images=True, shortcut='A'
    )
