"""Metrics as masked sums, added up over batches and divided once."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

Sums = dict[str, jax.Array]


def loss_and_metrics(
    logits: jax.Array,
    labels: jax.Array,
    losses: jax.Array,
    *,
    mask: jax.Array | None = None,
    top_k: int,
) -> Sums:
    """Returns the sums of loss and metrics over the examples whose mask is True.

    Args:
      logits: float [B, C].
      labels: int [B].
      losses: float32 [B], of each example.
      mask: bool [B]; None: all examples count.
      top_k: k of correct_top_k; at least C counts every example as correct.

    Returns:
      loss_sum (float32), correct, correct_top_k and count (int32).
    """
    mask = jnp.ones_like(labels, bool) if mask is None else mask
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
