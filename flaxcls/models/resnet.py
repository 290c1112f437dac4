"""ResNet for ImageNet and for CIFAR, and what was made of it.

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
)
from flaxcls.ops.remat import BLOCK


class Block(nn.Module):
    """What all residual blocks have: a branch beside a shortcut.

    Attributes:
      width: channels that the branch is made of.
      strides: of the block.
      shortcut: what joins maps of different shape (arXiv:1512.03385, section 4.1): 'A' subsamples
        and pads with zero channels, 'B' projects, 'C' projects in every block, 'D' averages 2x2
        pixels and projects (arXiv:1812.01187, figure 2c). 'none': the plain network without any
        (section 3.3).
      zero_init: the branch ends in zeros, so that the block begins as its shortcut
        (arXiv:1706.02677, section 5.1).
      drop_rate: how often an example skips the branch in training (arXiv:1603.09382).
      conv, norm: layers with the network's settings.
    """

    expansion = 1  # Channels out per `width`.

    width: int
    strides: int
    shortcut: str
    zero_init: bool
    drop_rate: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    def project(self, x: jax.Array, norm: Callable[[jax.Array], jax.Array] | None) -> jax.Array:
        """Brings x to the shape of the block's output; an unchanged shape is left alone."""
        features, strides = self.width * self.expansion, self.strides
        if x.shape[-1] == features and strides == 1 and self.shortcut != 'C':
            return x
        if self.shortcut == 'A':
            # Not by indices, which become a gather where the batch is of any size, as in exports.
            x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, strides, strides, 1))
            return jnp.pad(x, [(0, 0)] * 3 + [(0, features - x.shape[-1])])
        if self.shortcut == 'D' and strides > 1:
            x, strides = avg_pool(x, 2, strides, partial_windows=True), 1
        x = self.conv(features, 1, strides, name='conv_proj')(x)
        return norm(x) if norm else x

    def add(self, x, branch: jax.Array, norm, train: bool, example_keys) -> jax.Array:
        """Adds the branch to x, brought to its shape by `project` with `norm`."""
        if self.shortcut == 'none':
            return branch
        drop = StochasticDepth(self.drop_rate, name='drop')
        return self.project(x, norm) + drop(branch, train=train, example_keys=example_keys)


class PostActivationBlock(Block):
    """Convolution, BatchNorm, ReLU; the sum goes through a ReLU (arXiv:1512.03385, figure 5)."""

    def finish(self, x: jax.Array, y: jax.Array, last: int, train: bool, example_keys) -> jax.Array:
        scale_init = zeros if self.zero_init else ones
        y = self.norm(scale_init=scale_init, name=f'bn{last}')(y, train=train)
        norm = lambda x: self.norm(name='bn_proj')(x, train=train)  # noqa: E731
        return nn.relu(self.add(x, y, norm, train, example_keys))


class BasicBlock(PostActivationBlock):
    """Two 3x3 convolutions (figure 5, left)."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        y = self.conv(self.width, 3, self.strides, padding=1, name='conv1')(x)
        y = nn.relu(self.norm(name='bn1')(y, train=train))
        y = self.conv(self.width, 3, padding=1, name='conv2')(y)
        return self.finish(x, y, 2, train, example_keys)


class BottleneckBlock(PostActivationBlock):
    """1x1, 3x3 and 1x1 convolutions (figure 5, right).

    Attributes:
      stride_in_first: the first 1x1 convolution strides, as the paper has it (v1), and not the
        3x3 one (v1.5).
      groups, group_width: the 3x3 convolution has `groups` groups of `group_width` channels where
        `width` is 64, and in proportion elsewhere (ResNeXt, wide).
    """

    expansion = 4

    stride_in_first: bool = False
    groups: int = 1
    group_width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        inner = max(1, self.width * self.group_width // 64) * self.groups
        first, second = (self.strides, 1) if self.stride_in_first else (1, self.strides)
        y = self.conv(inner, 1, first, name='conv1')(x)
        y = nn.relu(self.norm(name='bn1')(y, train=train))
        y = self.conv(inner, 3, second, padding=1, groups=self.groups, name='conv2')(y)
        y = nn.relu(self.norm(name='bn2')(y, train=train))
        y = self.conv(self.width * self.expansion, 1, name='conv3')(y)
        return self.finish(x, y, 3, train, example_keys)


class PreActivationBlock(Block):
    """BatchNorm and ReLU come before each convolution; the sum is left as it is (v2, figure 4e).

    A projection sees what the first convolution sees, and has no BatchNorm.
    """

    def branch(self, x, kernel_sizes, features, stride_at, train, example_keys):
        """Convolutions of `kernel_sizes` to `features` channels, the one at `stride_at` strided."""
        y = first = nn.relu(self.norm(name='bn1')(x, train=train))
        for index, (size, channels) in enumerate(zip(kernel_sizes, features, strict=True), start=1):
            if index > 1:
                y = nn.relu(self.norm(name=f'bn{index}')(y, train=train))
            last = {'kernel_init': zeros} if self.zero_init and index == len(features) else {}
            strides = self.strides if index == stride_at else 1
            y = self.conv(channels, size, strides, size // 2, name=f'conv{index}', **last)(y)
        changes = x.shape[-1] != features[-1] or self.strides != 1 or self.shortcut == 'C'
        return self.add(first if changes else x, y, None, train, example_keys)


class PreActivationBasicBlock(PreActivationBlock):
    """Two 3x3 convolutions."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        return self.branch(x, (3, 3), (self.width,) * 2, 1, train, example_keys)


class PreActivationBottleneckBlock(PreActivationBlock):
    """1x1, 3x3 and 1x1 convolutions; the 3x3 one strides."""

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example_keys: jax.Array | None) -> jax.Array:
        features = (self.width, self.width, self.width * self.expansion)
        return self.branch(x, (1, 3, 1), features, 2, train, example_keys)


class ResNet(nn.Module):
    """A stem, stages of residual blocks that each halve the map and double the width, a classifier.

    Attributes:
      num_classes: length of the logits.
      stage_sizes: blocks per stage (table 1; section 4.2 for CIFAR).
      block: a subclass of Block, or a partial of one.
      width: channels of the stem and of the first stage's blocks.
      width_multiplier: scales the width.
      stem: '7x7' and a max pooling of stride 2 each; 'deep' has three 3x3 convolutions in place of
        the 7x7 one (arXiv:1812.01187, figure 2b); 'small' is CIFAR's one 3x3 convolution alone.
      shortcut: 'A' to 'D' or 'none', see Block.
      zero_init_residual: see Block.zero_init.
      stochastic_depth_rate: see Block.drop_rate, of the last block; it rises linearly from the
        first, for which it is 1 / blocks of it (arXiv:1603.09382, section 3).
      norm: BatchNorm with the run's settings.
      dtype: of the computation; logits are float32.
    """

    num_classes: int = 1000
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    block: Callable[..., Block] = BasicBlock
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
        block = functools.partial(
            self.block,
            shortcut=self.shortcut,
            zero_init=self.zero_init_residual,
            conv=conv,
            norm=norm,
        )
        preactivation = issubclass(getattr(self.block, 'func', self.block), PreActivationBlock)
        x = self._stem(images, width, conv, norm, train)
        if not preactivation:
            x = nn.relu(norm(name='bn_stem')(x, train=train))
        if self.stem != 'small':
            x = max_pool(x, 3, 2, padding=1)
        blocks, built = sum(self.stage_sizes), 0
        for stage, size in enumerate(self.stage_sizes, start=1):
            for index in range(1, size + 1):
                built += 1
                x = block(
                    width=width * 2 ** (stage - 1),
                    strides=2 if stage > 1 and index == 1 else 1,
                    drop_rate=self.stochastic_depth_rate * built / blocks,
                    name=f'stage{stage}_block{index}',
                )(x, train=train, example_keys=example_keys)
                x = checkpoint_name(x, BLOCK)
        if preactivation:
            x = nn.relu(norm(name='bn_final')(x, train=train))
        x = Intermediate(name='feature_map')(x)
        x = Intermediate(name='features')(global_avg_pool(x))
        return Head(self.num_classes, name='head')(x)

    def _stem(self, x, width, conv, norm, train):
        if self.stem == '7x7':
            return conv(width, 7, strides=2, padding=3, name='stem')(x)
        if self.stem == 'deep':
            for index, strides in ((1, 2), (2, 1)):
                x = conv(width // 2, 3, strides, padding=1, name=f'stem{index}')(x)
                x = nn.relu(norm(name=f'bn_stem{index}')(x, train=train))
        return conv(width, 3, padding=1, name='stem')(x)


_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_STAGES |= {152: (3, 8, 36, 3)}


def resnet(depth: int, **options: Any) -> functools.partial:
    """Returns the constructor of ImageNet's network with `depth` layers (v1.5; table 1)."""
    block = BasicBlock if depth < 50 else BottleneckBlock
    return functools.partial(ResNet, **({'stage_sizes': _STAGES[depth], 'block': block} | options))


def resnet_v1(depth: int) -> functools.partial:
    """Returns the constructor whose bottlenecks stride in their first 1x1 convolution."""
    return resnet(depth, block=functools.partial(BottleneckBlock, stride_in_first=True))


def resnet_v2(depth: int) -> functools.partial:
    """Returns the constructor with pre-activation (arXiv:1603.05027)."""
    block = PreActivationBasicBlock if depth < 50 else PreActivationBottleneckBlock
    return resnet(depth, block=block)


def resnet_d(depth: int) -> functools.partial:
    """Returns the constructor of ResNet-D (arXiv:1812.01187, section 4)."""
    return resnet(depth, stem='deep', shortcut='D')


def resnext(depth: int, groups: int, group_width: int) -> functools.partial:
    """Returns the constructor of a network with grouped (arXiv:1611.05431) or wide bottlenecks."""
    block = functools.partial(BottleneckBlock, groups=groups, group_width=group_width)
    return resnet(depth, block=block)


def cifar(depth: int) -> functools.partial:
    """Returns the constructor of the CIFAR network with 6n + 2 = `depth` layers (section 4.2)."""
    blocks = (depth - 2) // 6
    return functools.partial(
        ResNet, stage_sizes=(blocks,) * 3, width=16, stem='small', shortcut='A'
    )
