"""What a run carries from step to step: arrays, and nothing else."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Arrays only: two states built alike do not retrace a compiled step.

    Model, optimizer and config are closed over by the step. Random draws follow from the seed and
    `step`, so there is no key here.

    Attributes:
      step: int32 [], updates made so far.
      params: parameters, trained and frozen, float32.
      batch_stats: BatchNorm's running means and variances, float32; {} for a network without.
      opt_state: state of the optax optimizer.
      ema: {'params': ..., 'batch_stats': ...}, averaged over the steps; {} without config.ema.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any

    @property
    def eval_variables(self) -> dict[str, Any]:
        """{'params': ..., 'batch_stats': ...} of what is evaluated: the averages, if there are."""
        return self.ema or {'params': self.params, 'batch_stats': self.batch_stats}


def create_train_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    trained: Any,
    *,
    ema: bool = False,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      variables: {'params': ..., 'batch_stats': ...}.
      optimizer: gets a state for what is trained.
      trained: the parameters that are, None in the places of the others; see `split_frozen`.
      ema: whether to average the weights.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        opt_state=jax.jit(optimizer.init)(trained),
        # A copy, since the step donates both.
        ema=jax.tree.map(jnp.copy, dict(variables)) if ema else {},
    )
