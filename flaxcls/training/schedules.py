"""Learning-rate schedules, put together from optax."""

import math

import optax
import optax.contrib
from ml_collections import ConfigDict

from flaxcls.errors import UserError


def peak_learning_rate(config: ConfigDict) -> float:
    """Returns the largest learning rate, after linear scaling (arXiv:1706.02677, section 2.1)."""
    base = config.optimizer.base_batch_size
    return config.optimizer.learning_rate * (config.batch_size / base if base else 1)


def make_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Returns step (from 0) -> learning rate.

    With W warm-up steps of T in all, the peak p, and s and f the shares of it that
    schedule.warmup_start and schedule.final are:
      step < W: p * (s + (1 - s) * step / (W - 1)), from s * p to the peak. Without warmup_start,
        s = 1 / W, so that the first step moves;
      constant: p;
      step: p * decay_factor ** (milestones passed), a milestone counting from its first step, and
        one after the last epoch, as where a recipe is cut short, not at all;
      cosine: p * (f + (1 - f) * (1 + cos(pi * (step - W) / (T - W))) / 2), whose last step is just
        above f * p;
      polynomial: p * (f + (1 - f) * (1 - (step - W) / (T - W)) ** power);
      one_cycle (arXiv:1708.07120): a half cosine from s * p, s being 1/25 unless given, up to p at
        step W, and another one down to f * p at T.

    Raises:
      UserError: with so few steps, a phase of the schedule has none.
    """
    peak = peak_learning_rate(config)
    schedule = config.schedule
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    total = config.num_epochs * steps_per_epoch
    if warmup >= total:
        raise UserError(
            f'config.schedule.warmup_epochs={schedule.warmup_epochs:g} takes all of the {total} '
            'steps; warm up for less, or train for longer.'
        )
    if schedule.name == 'one_cycle':
        return _one_cycle(schedule, peak, warmup, total)
    if schedule.name == 'constant':
        main = optax.constant_schedule(peak)
    elif schedule.name == 'step':
        main = _steps(schedule, peak, warmup, steps_per_epoch)
    elif schedule.name == 'polynomial':
        main = optax.polynomial_schedule(
            peak, schedule.final * peak, schedule.power, total - warmup
        )
    else:
        main = optax.cosine_decay_schedule(peak, total - warmup, alpha=schedule.final)
    if not warmup:
        return main
    start = 1 / warmup if schedule.warmup_start is None else schedule.warmup_start
    rise = optax.linear_schedule(start * peak, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, main], [warmup])


def _steps(schedule: ConfigDict, peak: float, warmup: int, steps_per_epoch: int) -> optax.Schedule:
    boundaries = [round(epoch * steps_per_epoch) - warmup for epoch in schedule.milestones]
    if len(set(boundaries)) < len(boundaries):
        raise UserError(
            f'config.schedule.milestones={schedule.milestones} lie less than a step apart, an '
            f'epoch having {steps_per_epoch} steps; space them out.'
        )
    return optax.piecewise_constant_schedule(peak, dict.fromkeys(boundaries, schedule.decay_factor))


def _one_cycle(schedule: ConfigDict, peak: float, warmup: int, total: int) -> optax.Schedule:
    if not warmup:
        raise UserError(
            f'config.schedule.warmup_epochs={schedule.warmup_epochs:g} is less than a step, and '
            'schedule.name=one_cycle rises for as long; give it about a third of the epochs.'
        )
    start = 1 / 25 if schedule.warmup_start is None else schedule.warmup_start
    return optax.cosine_onecycle_schedule(
        total,
        peak,
        pct_start=(warmup + 0.5) / total,  # Which optax rounds down to `warmup` steps.
        div_factor=1 / start,
        final_div_factor=start / schedule.final if schedule.final else math.inf,
    )
