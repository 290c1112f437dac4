"""The networks that are timed beside others', of Linen's own layers, with the parameters of ours.

They say what one gets who writes the network down with flax.linen and nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


def _conv(x: jax.Array, features: int, size: int, **options: Any) -> jax.Array:
    padding = options.pop('padding', size // 2)
    layer = nn.Conv(features, (size, size), padding=padding, dtype=x.dtype, **options)
    return layer(x)


def _norm(x: jax.Array, train: bool) -> jax.Array:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=x.dtype)(x)


def _activate(x: jax.Array, train: bool) -> jax.Array:
    return nn.relu(_norm(x, train))


def _max_pool(x: jax.Array, padding: int) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), padding=[(padding, padding)] * 2)


class AlexNet(nn.Module):
    """The one-tower network (arXiv:1404.5997), as torchvision has it."""

    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = _max_pool(nn.relu(_conv(x, 64, 11, strides=4, padding=2)), 0)
        x = _max_pool(nn.relu(_conv(x, 192, 5)), 0)
        for features in (384, 256, 256):
            x = nn.relu(_conv(x, features, 3))
        x = _max_pool(x, 0).reshape(len(x), -1)
        for _ in range(2):
            x = nn.Dropout(0.5, deterministic=not train)(x)
            x = nn.relu(nn.Dense(4096, dtype=x.dtype)(x))
        return nn.Dense(self.num_classes, dtype=x.dtype)(x).astype(jnp.float32)


class CifarResNet(nn.Module):
    """6n + 2 layers, shortcuts padded with zeros (arXiv:1512.03385, section 4.2)."""

    depth: int
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = _activate(_conv(x, 16, 3, use_bias=False), train)
        for features in (16, 32, 64):
            for _ in range((self.depth - 2) // 6):
                strides = 1 if x.shape[-1] == features else 2
                y = _activate(_conv(x, features, 3, strides=strides, use_bias=False), train)
                y = _norm(_conv(y, features, 3, use_bias=False), train)
                more = features - x.shape[-1]
                x = jnp.pad(x[:, ::strides, ::strides], [(0, 0)] * 3 + [(0, more)])
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes, dtype=x.dtype)(x.mean((1, 2))).astype(jnp.float32)


class ResNet(nn.Module):
    """Of bottleneck blocks that stride in the 3x3 convolution (arXiv:1512.03385, table 1)."""

    stages: Sequence[int]
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = _max_pool(_activate(_conv(x, 64, 7, strides=2, use_bias=False), train), 1)
        for stage, blocks in enumerate(self.stages):
            width = 64 * 2**stage
            for block in range(blocks):
                strides = 2 if stage and not block else 1
                y = _activate(_conv(x, width, 1, use_bias=False), train)
                y = _activate(_conv(y, width, 3, strides=strides, use_bias=False), train)
                y = _norm(_conv(y, 4 * width, 1, use_bias=False), train)
                if not block:
                    x = _norm(_conv(x, 4 * width, 1, strides=strides, use_bias=False), train)
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes, dtype=x.dtype)(x.mean((1, 2))).astype(jnp.float32)


class DenseNet(nn.Module):
    """With bottleneck layers (arXiv:1608.06993, table 1 and section 3).

    Attributes:
      blocks: layers of each dense block.
      growth_rate: channels that a layer adds.
      stem: channels of the first convolution.
      is_small: for images of 32 pixels: the stem is of 3x3 pixels, and does not subsample.
      num_classes: length of the logits.
    """

    blocks: Sequence[int]
    growth_rate: int
    stem: int
    is_small: bool = False
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.is_small:
            x = _conv(x, self.stem, 3, use_bias=False)
        else:
            x = _conv(x, self.stem, 7, strides=2, use_bias=False)
            x = _max_pool(_activate(x, train), 1)
        for index, layers in enumerate(self.blocks):
            if index:
                x = _conv(_activate(x, train), x.shape[-1] // 2, 1, use_bias=False)
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(layers):
                y = _conv(_activate(x, train), 4 * self.growth_rate, 1, use_bias=False)
                y = _conv(_activate(y, train), self.growth_rate, 3, use_bias=False)
                x = jnp.concatenate([x, y], axis=-1)
        x = _activate(x, train).mean((1, 2))
        return nn.Dense(self.num_classes, dtype=x.dtype)(x).astype(jnp.float32)


NETWORKS: dict[str, nn.Module] = {
    'alexnet': AlexNet(),
    'resnet20': CifarResNet(20),
    'resnet50': ResNet((3, 4, 6, 3)),
    'densenet121': DenseNet((6, 12, 24, 16), growth_rate=32, stem=64),
    'densenet_bc_100_12': DenseNet(
        (16, 16, 16), growth_rate=12, stem=24, is_small=True, num_classes=10
    ),
}


def make_train_step(
    model: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, Any]]:
    """Returns step(variables, opt_state, images [B, S, S, 3], labels [B]) -> both after it."""

    def step(variables, opt_state, images, labels):
        def loss(params):
            logits, updates = model.apply(
                variables | {'params': params},
                images,
                train=True,
                mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(0)},
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates

        gradients, updates = jax.grad(loss, has_aux=True)(variables['params'])
        change, opt_state = optimizer.update(gradients, opt_state, variables['params'])
        return {'params': optax.apply_updates(variables['params'], change)} | updates, opt_state

    return step
