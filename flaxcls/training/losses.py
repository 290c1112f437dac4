"""Training losses, of each example: float32 [B] of logits [B, C] and targets [B, C].

Targets are distributions over the classes: one-hot labels, smoothed or mixed.
"""

from collections.abc import Callable

import jax
import optax

from flaxcls.config.registry import Registry
from flaxcls.ops.dtypes import at_least_float32

Loss = Callable[[jax.Array, jax.Array], jax.Array]


# config.loss -> the function, which may take options as keyword-only arguments.
LOSSES: Registry = Registry('loss')


@LOSSES.register('softmax')
def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of the softmax with the targets."""
    return optax.softmax_cross_entropy(_in_float32(logits), targets)


@LOSSES.register('sigmoid')
def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross-entropy of each class apart, the mean over the classes (arXiv:2110.00476)."""
    return optax.sigmoid_binary_cross_entropy(_in_float32(logits), targets).mean(-1)


def _in_float32(logits: jax.Array) -> jax.Array:
    return logits.astype(at_least_float32(logits.dtype))
