"""What ends a run whose loss or weights are not finite any more."""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flaxcls.checkpoint import Checkpoints
from flaxcls.errors import RunError


def require_finite(record, name: str, config: ConfigDict, checkpoints: Checkpoints) -> None:
    """Raises RunError unless the metric `name` of a record is finite; the checkpoints stay."""
    if not math.isfinite(record[name]):
        raise RunError(
            f'{name} is {record[name]} at step {record["step"]}; '
            f'{_after_divergence(config, checkpoints)}'
        )


def require_finite_state(state, step: int, config: ConfigDict, checkpoints: Checkpoints) -> None:
    """Raises RunError unless all weights of the state are finite; the checkpoints stay."""
    if not _all_finite(state.params):
        raise RunError(
            f'a weight is not finite at step {step}; {_after_divergence(config, checkpoints)}'
        )


@jax.jit
def _all_finite(tree) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _after_divergence(config: ConfigDict, checkpoints: Checkpoints) -> str:
    checkpoints.wait()
    saved = checkpoints.newest_step
    kept = 'nothing has been saved' if saved is None else f'the checkpoint of step {saved} stays'
    return (
        f'{kept}. Try a lower config.optimizer.learning_rate than '
        f'{config.optimizer.learning_rate:g}, or a longer config.schedule.warmup_epochs.'
    )
