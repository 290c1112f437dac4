"""Learning-rate schedules, put together from optax."""

import math
from collections.abc import Sequence

import optax

from flaxcls.errors import UserError


def peak_learning_rate(learning_rate: float, batch_size: int, base_batch_size: int = 0) -> float:
    """Returns the largest learning rate, after linear scaling (arXiv:1706.02677, section 2.1).

    Args:
      learning_rate: for a batch of `base_batch_size` examples; 0: of any batch.
      batch_size: examples per optimizer step, over all devices.
      base_batch_size: examples; 0: no linear scaling.
    """
    return learning_rate * (batch_size / base_batch_size if base_batch_size else 1)


def make_schedule(
    name: str,
    peak: float,
    *,
    num_epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    warmup_start: float | None = None,
    milestones: Sequence[float] = (),
    decay_factor: float = 0.1,
    final: float = 0.0,
    power: float = 1.0,
) -> optax.Schedule:
    """Returns step (from 0) -> learning rate; the arguments are config.schedule's.

    With W warm-up steps of T in all, the peak p, and s and f the shares of it that
    warmup_start and final are:
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
    warmup, total = round(warmup_epochs * steps_per_epoch), num_epochs * steps_per_epoch
    if warmup >= total:
        raise UserError(
            f'config.schedule.warmup_epochs={warmup_epochs:g} takes all of the {total} steps; warm '
            'up for less, or train for longer.'
        )
    if name == 'one_cycle':
        if not warmup:
            raise UserError(
                f'config.schedule.warmup_epochs={warmup_epochs:g} is less than a step, and '
                'schedule.name=one_cycle rises for as long; give it about a third of the epochs.'
            )
        return _one_cycle(
            peak, warmup, total, 1 / 25 if warmup_start is None else warmup_start, final
        )
    if name == 'constant':
        main = optax.constant_schedule(peak)
    elif name == 'step':
        main = _steps(peak, warmup, steps_per_epoch, milestones, decay_factor)
    elif name == 'polynomial':
        main = optax.polynomial_schedule(peak, final * peak, power, total - warmup)
    else:
        main = optax.cosine_decay_schedule(peak, total - warmup, alpha=final)
    if not warmup:
        return main
    start = 1 / warmup if warmup_start is None else warmup_start
    rise = optax.linear_schedule(start * peak, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, main], [warmup])


def _steps(
    peak: float,
    warmup: int,
    steps_per_epoch: int,
    milestones: Sequence[float],
    decay_factor: float,
) -> optax.Schedule:
    boundaries = [round(epoch * steps_per_epoch) - warmup for epoch in milestones]
    if len(set(boundaries)) < len(boundaries):
        raise UserError(
            f'config.schedule.milestones={milestones} lie less than a step apart, an epoch having '
            f'{steps_per_epoch} steps; space them out.'
        )
    return optax.piecewise_constant_schedule(peak, dict.fromkeys(boundaries, decay_factor))


def _one_cycle(peak: float, warmup: int, total: int, start: float, final: float) -> optax.Schedule:
    return optax.cosine_onecycle_schedule(
        total,
        peak,
        pct_start=(warmup + 0.5) / total,  # Which optax rounds down to `warmup` steps.
        div_factor=1 / start,
        final_div_factor=start / final if final else math.inf,
    )
