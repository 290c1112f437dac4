"""AlexNet: two groups (2012), the later single tower, and the single tower with BatchNorm.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks,
NIPS 2012. Krizhevsky: One weird trick for parallelizing convolutional neural networks,
arXiv:1404.5997 (the single tower, in footnote 1).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.init import he_normal_fan_in, normal, normal_per_filter, ones, zeros
from flaxcls.models.layers import (
    Conv,
    Dropout,
    Intermediate,
    adaptive_avg_pool,
    dense,
    max_pool,
)
from flaxcls.ops.dtypes import at_least_float32
from flaxcls.ops.local_response_norm import local_response_norm

_INITIALIZERS = {'paper': normal(0.01), 'he': he_normal_fan_in, 'filters': normal_per_filter}


class AlexNet(nn.Module):
    """Five convolutions, three overlapping max poolings, three fully connected layers.

    Attributes:
      num_classes: length of the logits.
      features: output channels of the five convolutions.
      hidden: units of the two hidden fully connected layers.
      width_multiplier: scales features and hidden.
      two_groups: convolutions 2, 4 and 5 have two groups (2012, section 3.2).
      stem_padding: of the first convolution, pixels; 2012's 227 pixels need none.
      pool_window: side of the max pooling, whose stride is 2: 3 overlaps (2012, section 3.4).
      lrn: local response normalisation after convolutions 1 and 2 (2012, section 3.3): 'none',
        'paper', or 'caffe', which divides alpha by the number of neighbours as torch does too.
      use_batch_norm: BatchNorm before each convolution's ReLU, in place of its bias.
      initializer: of the weights: 'paper' is N(0, 0.01**2), with biases of 1 in convolutions 2, 4,
        5 and the hidden layers (2012, section 5); 'he' is He's; 'filters' is N(0, 1 / filters), as
        some introductions have it.
      dropout_rate: after both hidden layers (2012, section 4.2).
      norm: constructor of BatchNorm, with the run's settings.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int = 1000
    features: tuple[int, ...] = (64, 192, 384, 256, 256)
    hidden: int = 4096
    width_multiplier: float = 1.0
    two_groups: bool = False
    stem_padding: int = 2
    pool_window: int = 3
    lrn: str = 'none'
    use_batch_norm: bool = False
    initializer: str = 'he'
    dropout_rate: float = 0.5
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 logits [B, num_classes] of normalised images [B, H, W, 3]."""
        # Even, so that each divides into two groups.
        c1, c2, c3, c4, c5 = (
            max(2, 2 * round(width * self.width_multiplier / 2)) for width in self.features
        )
        hidden = max(1, round(self.hidden * self.width_multiplier))
        groups = 2 if self.two_groups else 1
        one = ones if self.initializer == 'paper' else zeros
        kernel_init = _INITIALIZERS[self.initializer]
        use_bias = not self.use_batch_norm
        conv = functools.partial(Conv, use_bias=use_bias, kernel_init=kernel_init, dtype=self.dtype)
        fc = functools.partial(dense, kernel_init=kernel_init)

        def bn(x, name):
            if not self.use_batch_norm:
                return x
            return self.norm(dtype=self.dtype, name=name)(x, train=train)

        def lrn(x):
            return x if self.lrn == 'none' else local_response_norm(x, mean=self.lrn == 'caffe')

        def dropout(x, name):
            layer = Dropout(self.dropout_rate, name=name)
            return layer(x, train=train, example_keys=example_keys)

        x = conv(c1, 11, strides=4, padding=self.stem_padding, name='conv1')(images)
        x = nn.relu(bn(x, 'bn1'))
        x = max_pool(lrn(x), self.pool_window, 2)
        x = conv(c2, 5, padding=2, groups=groups, bias_init=one, name='conv2')(x)
        x = nn.relu(bn(x, 'bn2'))
        x = max_pool(lrn(x), self.pool_window, 2)
        x = conv(c3, 3, padding=1, name='conv3')(x)
        x = nn.relu(bn(x, 'bn3'))
        x = conv(c4, 3, padding=1, groups=groups, bias_init=one, name='conv4')(x)
        x = nn.relu(bn(x, 'bn4'))
        x = conv(c5, 3, padding=1, groups=groups, bias_init=one, name='conv5')(x)
        x = nn.relu(bn(x, 'bn5'))
        x = Intermediate(name='feature_map')(x)
        x = max_pool(x, self.pool_window, 2)
        x = adaptive_avg_pool(x, 6)  # The identity at the papers' 224 and 227 pixels.
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(fc(x, hidden, bias_init=one, name='fc6'))
        x = dropout(x, 'dropout6')
        x = nn.relu(fc(x, hidden, bias_init=one, name='fc7'))
        x = dropout(x, 'dropout7')
        x = Intermediate(name='features')(x.astype(at_least_float32(self.dtype)))
        return fc(x, self.num_classes, bias_init=zeros, name='head')
