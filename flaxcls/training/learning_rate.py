"""The learning rate over a whole run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optax

from flaxcls.training import schedules


class LearningRate(NamedTuple):
    """The learning rate over the run.

    Attributes:
      schedule: step -> rate.
      base: as in config.optimizer.learning_rate.
      peak: its largest value, after scaling with the batch size.
      scaling: where the peak comes from, such as ' = 0.1 x 512 / 256', or ''.
      warmup_epochs, milestones: where it turns.
    """

    schedule: optax.Schedule
    base: float
    peak: float
    scaling: str
    warmup_epochs: float
    milestones: Sequence[float]


def make_learning_rate(
    rate: float,
    base_batch_size: int | None,
    *,
    batch_size: int,
    num_epochs: int,
    steps_per_epoch: int,
    schedule: Mapping[str, Any],
) -> LearningRate:
    """Returns the learning rate over the run; errors as `make_schedule`.

    Args:
      rate, base_batch_size: see `schedules.peak_learning_rate`.
      batch_size, num_epochs, steps_per_epoch: from which the length of the schedule and linear
        scaling follow.
      schedule: the further arguments of `make_schedule`.
    """
    peak = schedules.peak_learning_rate(rate, batch_size, base_batch_size)
    function = schedules.make_schedule(
        peak=peak, num_epochs=num_epochs, steps_per_epoch=steps_per_epoch, **schedule
    )
    scaling = f' = {rate:g} x {batch_size} / {base_batch_size}' if base_batch_size else ''
    turns = schedule['warmup_epochs'], schedule['milestones']
    return LearningRate(function, rate, peak, scaling, *turns)
