"""What a run carries from step to step: arrays, and nothing else."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxcls.models import init_variables


@flax.struct.dataclass
class TrainState:
    """Arrays only: two states built alike do not retrace a compiled step.

    Model, optimizer and config are closed over by the step. Random draws follow from the seed and
    `step`, so there is no key here.

    Attributes:
      step: int32 [], updates made so far.
      params: trainable parameters, float32.
      batch_stats: BatchNorm's running means and variances, float32; {} for a network without.
      opt_state: the optimizer's.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


def create_train_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, image_size: int
) -> TrainState:
    """Returns the state before the first step, which follows from the seed alone."""
    variables = init_variables(model, jax.random.key(seed), image_size)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        opt_state=optimizer.init(variables['params']),
    )
