"""The exponential moving average (EMA) of the weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def update_ema(
    ema: dict[str, Any], new: dict[str, Any], step: jax.Array, decay: float
) -> dict[str, Any]:
    """Returns the moving average after `step` + 1 updates; {} stays {}.

    The decay is min(`decay`, (1 + step) / (10 + step)), so that the initial weights are soon
    forgotten. Weights and BatchNorm's running statistics are averaged alike: to first order, the
    average of the statistics is the statistics of the average. `flaxcls precise-bn` computes
    them exactly.
    """
    if not ema:
        return ema
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(new, ema, 1 - decay)
