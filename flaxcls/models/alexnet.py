"""AlexNet: of 2012 on two groups, the later one on a single tower, and that with BatchNorm.

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
from jax.ad_checkpoint import checkpoint_name

from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.init import he_normal_fan_in, normal, normal_per_filter, ones, zeros
from flaxcls.models.layers import (
    Conv,
    Dropout,
    Intermediate,
    adaptive_avg_pool,
    local_response_norm,
    max_pool,
)
from flaxcls.ops.dtypes import at_least_float32
from flaxcls.ops.remat import LINEAR

_INITIALIZERS = {'paper': normal(0.01), 'he': he_normal_fan_in, 'filters': normal_per_filter}


class AlexNet(nn.Module):
    """Five convolutions, three overlapping max poolings, three fully connected layers.

    Attributes:
      num_classes: length of the logits.
      features: output channels of the five convolutions.
      hidden: units of the two hidden fully connected layers.
      width_multiplier: scales features and hidden.
      two_groups: convolutions 2, 4 and 5 see half of the channels each (2012, section 3.2).
      stem_padding: zeros around the image; 2012's 227 pixels need none.
      lrn: local response normalisation after convolutions 1 and 2 (2012, section 3.3): 'none',
        'paper', or 'caffe', which divides alpha by the number of neighbours as torch does too.
      use_batch_norm: BatchNorm before each convolution's ReLU, in place of its bias.
      initializer: of the weights: 'paper' is N(0, 0.01**2), with biases of 1 in convolutions 2, 4,
        5 and the hidden layers (2012, section 5); 'he' is He's; 'filters' is N(0, 1 / filters), as
        some introductions have it.
      dropout_rate: after both hidden layers (2012, section 4.2).
      norm: BatchNorm with the run's settings.
      dtype: of the computation; logits are float32.
    """

    num_classes: int = 1000
    features: tuple[int, ...] = (64, 192, 384, 256, 256)
    hidden: int = 4096
    width_multiplier: float = 1.0
    two_groups: bool = False
    stem_padding: int = 2
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
        widths = [max(2, 2 * round(width * self.width_multiplier / 2)) for width in self.features]
        conv = functools.partial(self._conv, train=train)
        x = conv(images, 1, widths[0], 11, strides=4, padding=self.stem_padding)
        x = self._lrn(x)
        x = max_pool(x, 3, 2)
        x = conv(x, 2, widths[1], 5, padding=2, in_two_groups=True, bias_init=ones)
        x = self._lrn(x)
        x = max_pool(x, 3, 2)
        x = conv(x, 3, widths[2], 3, padding=1)
        x = conv(x, 4, widths[3], 3, padding=1, in_two_groups=True, bias_init=ones)
        x = conv(x, 5, widths[4], 3, padding=1, in_two_groups=True, bias_init=ones)
        x = Intermediate(name='feature_map')(x)
        x = max_pool(x, 3, 2)
        x = adaptive_avg_pool(x, 6)  # The identity at the papers' 224 and 227 pixels.
        x = x.reshape(x.shape[0], -1)
        hidden = max(1, round(self.hidden * self.width_multiplier))
        for index in (6, 7):
            x = nn.relu(self._dense(x, hidden, f'fc{index}', bias_init=ones))
            dropout = Dropout(self.dropout_rate, name=f'dropout{index}')
            x = dropout(x, train=train, example_keys=example_keys)
        x = Intermediate(name='features')(x.astype(at_least_float32(self.dtype)))
        return self._dense(x, self.num_classes, 'head', bias_init=zeros)

    def _conv(
        self, x, index, features, kernel_size, *, train, strides=1, padding, in_two_groups=False,
        bias_init=zeros,
    ):  # fmt: skip
        """Convolution `index`, BatchNorm where the variant has it, ReLU."""
        x = Conv(
            features,
            kernel_size,
            strides,
            padding,
            groups=2 if in_two_groups and self.two_groups else 1,
            use_bias=not self.use_batch_norm,
            kernel_init=_INITIALIZERS[self.initializer],
            bias_init=bias_init if self.initializer == 'paper' else zeros,
            dtype=self.dtype,
            name=f'conv{index}',
        )(x)
        if self.use_batch_norm:
            x = self.norm(dtype=self.dtype, name=f'bn{index}')(x, train=train)
        return nn.relu(x)

    def _lrn(self, x):
        return x if self.lrn == 'none' else local_response_norm(x, mean=self.lrn == 'caffe')

    def _dense(self, x, features, name, *, bias_init):
        dense = nn.Dense(
            features,
            kernel_init=_INITIALIZERS[self.initializer],
            bias_init=bias_init if self.initializer == 'paper' else zeros,
            dtype=x.dtype,
            name=name,
        )
        return checkpoint_name(dense(x), LINEAR)


alexnet_2012 = functools.partial(
    AlexNet,
    features=(96, 256, 384, 384, 256),
    two_groups=True,
    stem_padding=0,
    lrn='paper',
    initializer='paper',
)
alexnet_bn = functools.partial(AlexNet, use_batch_norm=True)
