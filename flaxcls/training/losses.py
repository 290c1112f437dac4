"""Training losses, of each example: float32 [B] of logits [B, C] and targets [B, C].

Targets are distributions over the classes: one-hot labels, smoothed or mixed.
"""

from collections.abc import Callable

import jax
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of the softmax with the targets."""
    return optax.softmax_cross_entropy(logits, targets)


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross-entropy of each class apart, the mean over the classes (arXiv:2110.00476)."""
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


# config.loss -> the function.
LOSSES: dict[str, Loss] = {'softmax': softmax_cross_entropy, 'sigmoid': sigmoid_cross_entropy}
