"""MobileNetV2, the reference for phones, which the other networks are compared with.

Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear Bottlenecks,
arXiv:1801.04381.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flaxcls.errors import UserError
from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.init import he_normal_fan_out, normal
from flaxcls.models.layers import (
    Conv,
    Dropout,
    Head,
    Intermediate,
    global_avg_pool,
    relu6,
    stem,
)
from flaxcls.ops.remat import BLOCK

# Table 2: the expansion t, channels c and first block's stride s of each stage.
_STAGES = (
    (1, 16, 1),
    (6, 24, 2),
    (6, 32, 2),
    (6, 64, 2),
    (6, 96, 1),
    (6, 160, 2),
    (6, 320, 1),
)


class InvertedResidual(nn.Module):
    """A wide depthwise convolution between narrow ends, [B, H, W, C] -> [B, H / s, W / s, C'].

    A 1x1 convolution expands the channels, a depthwise 3x3 one filters each by itself, and a 1x1
    one projects them back, without an activation behind it (section 3.2 and table 1). The input is
    added where it has the output's shape.

    Attributes:
      features: channels of the output, C'.
      expansion: the channels in between are as many times those of the input (t); 1: the first
        convolution is left out.
      strides: of the depthwise convolution (s).
      conv: constructor of convolutions, with the network's initializer and dtype.
      norm: constructor of BatchNorm, with the run's settings and the network's dtype.
    """

    features: int
    expansion: int
    strides: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        inner = self.expansion * x.shape[-1]
        y = x
        if self.expansion > 1:
            y = self.conv(inner, 1, name='expand')(y)
            y = relu6(self.norm(name='bn_expand')(y, train=train))
        y = self.conv(inner, 3, self.strides, padding=1, groups=inner, name='depthwise')(y)
        y = relu6(self.norm(name='bn_depthwise')(y, train=train))
        y = self.conv(self.features, 1, name='project')(y)
        y = self.norm(name='bn_project')(y, train=train)
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """A convolution, stages of inverted residuals, a 1x1 convolution, pooling and a classifier.

    Attributes:
      num_classes: length of the logits.
      stage_sizes: blocks per stage (n of table 2); fewer than seven leave out the last stages.
      width_multiplier: scales the channels, which are then rounded to multiples of 8; those of the
        last convolution, 1280, only if it is above 1 (section 4).
      stem: '3x3' is the paper's; 'small', for images of about 32 pixels: it and the second stage
        have stride 1, so that the last map has an eighth of the image's side instead of a 32nd;
        see `layers.stem`.
      dropout_rate: before the classifier; torchvision's.
      norm: constructor of BatchNorm, with the run's settings.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int = 1000
    stage_sizes: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
    width_multiplier: float = 1.0
    stem: str = '3x3'
    dropout_rate: float = 0.2
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 logits [B, num_classes] of normalised images [B, H, W, 3]."""
        if len(self.stage_sizes) > len(_STAGES):
            raise UserError(
                f'config.model.stage_sizes has {len(self.stage_sizes)} stages, and MobileNetV2 no '
                f'more than {len(_STAGES)}.'
            )
        conv = functools.partial(Conv, kernel_init=he_normal_fan_out, dtype=self.dtype)
        norm = functools.partial(self.norm, dtype=self.dtype)
        scaled = functools.partial(_scale, multiplier=self.width_multiplier)
        x = stem(images, self.stem, scaled(32), conv, norm, train)
        x = relu6(norm(name='bn_stem')(x, train=train))
        for stage, size in enumerate(self.stage_sizes, start=1):
            expansion, features, strides = _STAGES[stage - 1]
            if self.stem == 'small' and stage == 2:
                strides = 1
            for index in range(1, size + 1):
                block = InvertedResidual(
                    scaled(features),
                    expansion,
                    strides if index == 1 else 1,
                    conv,
                    norm,
                    name=f'stage{stage}_block{index}',
                )
                x = checkpoint_name(block(x, train=train), BLOCK)
        x = conv(_scale(1280, max(1.0, self.width_multiplier)), 1, name='last')(x)
        x = relu6(norm(name='bn_last')(x, train=train))
        x = Intermediate(name='feature_map')(x)
        x = global_avg_pool(x)
        dropout = Dropout(self.dropout_rate, name='dropout')
        x = dropout(x, train=train, example_keys=example_keys)
        x = Intermediate(name='features')(x)
        return Head(self.num_classes, kernel_init=normal(0.01), name='head')(x)


def _scale(channels: int, multiplier: float) -> int:
    """Returns channels * multiplier as a multiple of 8, the nearest that is not under 90 % of it.

    So do the authors' implementation and torchvision's; the paper does not say how to round.
    """
    wanted = channels * multiplier
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded
