"""VGG, the plain network that the ResNet paper compares its own with.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition,
arXiv:1409.1556.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.init import he_normal_fan_out, normal, zeros
from flaxcls.models.layers import Conv, Dropout, Intermediate, adaptive_avg_pool, dense, max_pool
from flaxcls.ops.dtypes import at_least_float32


class VGG(nn.Module):
    """Stages of 3x3 convolutions and a max pooling each, then three fully connected layers.

    Attributes:
      num_classes: length of the logits.
      stage_sizes: convolutions per stage (table 1; column D is VGG-16).
      width: channels of the first stage; each later one doubles them, up to eight times as many.
      width_multiplier: scales the width and the hidden layers.
      hidden: units of the two hidden fully connected layers.
      use_batch_norm: BatchNorm before each convolution's ReLU; the convolutions keep their biases,
        as torchvision's do.
      dropout_rate: after both hidden layers (section 3.1).
      norm: constructor of BatchNorm, with the run's settings.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int = 1000
    stage_sizes: tuple[int, ...] = (2, 2, 3, 3, 3)
    width: int = 64
    width_multiplier: float = 1.0
    hidden: int = 4096
    use_batch_norm: bool = False
    dropout_rate: float = 0.5
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 logits [B, num_classes] of normalised images [B, H, W, 3]."""
        conv = functools.partial(
            Conv, use_bias=True, kernel_init=he_normal_fan_out, dtype=self.dtype
        )
        fc = functools.partial(dense, kernel_init=normal(0.01), bias_init=zeros)

        def bn(x, name):
            if not self.use_batch_norm:
                return x
            return self.norm(dtype=self.dtype, name=name)(x, train=train)

        def dropout(x, name):
            layer = Dropout(self.dropout_rate, name=name)
            return layer(x, train=train, example_keys=example_keys)

        x = images
        for stage, size in enumerate(self.stage_sizes, start=1):
            features = max(1, round(self.width * min(2 ** (stage - 1), 8) * self.width_multiplier))
            for index in range(1, size + 1):
                x = conv(features, 3, padding=1, name=f'conv{stage}_{index}')(x)
                x = nn.relu(bn(x, f'bn{stage}_{index}'))
            if stage == len(self.stage_sizes):
                x = Intermediate(name='feature_map')(x)
            x = max_pool(x, 2, 2)
        x = adaptive_avg_pool(x, 7)  # The identity at the paper's 224 pixels.
        x = x.reshape(x.shape[0], -1)
        hidden = max(1, round(self.hidden * self.width_multiplier))
        x = nn.relu(fc(x, hidden, name='fc1'))
        x = dropout(x, 'dropout1')
        x = nn.relu(fc(x, hidden, name='fc2'))
        x = dropout(x, 'dropout2')
        x = Intermediate(name='features')(x.astype(at_least_float32(self.dtype)))
        return fc(x, self.num_classes, name='head')
