"""A run that has diverged ends, and says what is left of it and what to try."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxcls.errors import RunError
from flaxcls.training.checkpoints import Checkpoints
from flaxcls.training.state import TrainState


def require_finite(
    record: Mapping[str, float], name: str, learning_rate: float, checkpoints: Checkpoints
) -> None:
    """Raises RunError unless the metric `name` of a record is finite; the checkpoints stay."""
    if not math.isfinite(record[name]):
        raise RunError(
            f'{name} is {record[name]} at step {record["step"]}; '
            f'{_after_divergence(learning_rate, checkpoints)}'
        )


def require_finite_state(
    state: TrainState, step: int, learning_rate: float, checkpoints: Checkpoints
) -> None:
    """Raises RunError unless all weights of the state are finite; the checkpoints stay."""
    if not _all_finite(state.params):
        raise RunError(
            f'a weight is not finite at step {step}; '
            f'{_after_divergence(learning_rate, checkpoints)}'
        )


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _after_divergence(learning_rate: float, checkpoints: Checkpoints) -> str:
    checkpoints.wait()
    saved = checkpoints.newest_step
    kept = 'nothing has been saved' if saved is None else f'the checkpoint of step {saved} stays'
    return (
        f'{kept}. Try a lower config.optimizer.learning_rate than {learning_rate:g}, or a longer '
        'config.schedule.warmup_epochs.'
    )
