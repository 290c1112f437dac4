"""Metrics as masked sums, added up over batches and divided once."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

from flaxcls.ops.dtypes import at_least_float32

Sums = dict[str, jax.Array]


def loss_and_metrics(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    top_k: int,
    targets: jax.Array | None = None,
    loss: str = 'softmax',
) -> Sums:
    """Returns the sums over the examples whose mask is True.

    Args:
      logits: [B, C], of any float type; the sums are float32 and int32 all the same.
      labels: int [B].
      mask: bool [B].
      top_k: k of correct_top_k; at least C counts every example as correct.
      targets: float [B, C], distributions over the classes for the loss; None: the labels.
      loss: softmax (cross-entropy) or sigmoid (binary cross-entropy, averaged over the classes).

    Returns:
      loss_sum, correct, correct_top_k and count.
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    if targets is None:
        targets = jax.nn.one_hot(labels, logits.shape[-1])
    if loss == 'sigmoid':
        losses = optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
    else:
        losses = optax.softmax_cross_entropy(logits, targets)
    _, best = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))
    hits = best == labels[:, None]
    return {
        'loss_sum': jnp.sum(jnp.where(mask, losses, 0)),
        'correct': jnp.sum(mask & hits[:, 0], dtype=jnp.int32),
        'correct_top_k': jnp.sum(mask & hits.any(-1), dtype=jnp.int32),
        'count': jnp.sum(mask, dtype=jnp.int32),
    }


def summarize(batches: Iterable[Sums], prefix: str, top_k: int) -> Mapping[str, float]:
    """Returns `prefix`/loss, accuracy, top{k}_accuracy and count of all batches together.

    The sums of the batches are added on the host, in float64 and unbounded integers.
    """
    batches = jax.device_get(list(batches))
    totals = {name: sum(sums[name].item() for sums in batches) for name in batches[0]}
    count = totals['count']
    return {
        f'{prefix}/loss': totals['loss_sum'] / count,
        f'{prefix}/accuracy': totals['correct'] / count,
        f'{prefix}/top{top_k}_accuracy': totals['correct_top_k'] / count,
        f'{prefix}/count': count,
    }
