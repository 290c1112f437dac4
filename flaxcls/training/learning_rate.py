"""The learning rate that a config describes, over the whole run."""

from collections.abc import Sequence
from typing import NamedTuple

import optax
from ml_collections import ConfigDict

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


def make_learning_rate(config: ConfigDict, steps_per_epoch: int) -> LearningRate:
    """Returns what config.optimizer and config.schedule say of it; errors as `make_schedule`."""
    rate, base = config.optimizer.learning_rate, config.optimizer.base_batch_size
    peak = schedules.peak_learning_rate(rate, config.batch_size, base)
    schedule = schedules.make_schedule(
        peak=peak,
        num_epochs=config.num_epochs,
        steps_per_epoch=steps_per_epoch,
        **config.schedule,
    )
    scaling = f' = {rate:g} x {config.batch_size} / {base}' if base else ''
    epochs = config.schedule
    return LearningRate(schedule, rate, peak, scaling, epochs.warmup_epochs, epochs.milestones)
