"""Learning-rate schedules, put together from optax."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

from flaxcls.config.registry import Registry
from flaxcls.errors import UserError


def peak_learning_rate(learning_rate: float, batch_size: int, base_batch_size: int = 0) -> float:
    """Returns the largest learning rate, after linear scaling (arXiv:1706.02677, section 2.1).

    Args:
      learning_rate: for a batch of `base_batch_size` examples; 0: of any batch.
      batch_size: examples per optimizer step, over all devices.
      base_batch_size: examples; 0: no linear scaling.
    """
    return learning_rate * (batch_size / base_batch_size if base_batch_size else 1)


class Span(NamedTuple):
    """The steps of a run.

    Attributes:
      warmup_epochs: as in config.schedule.
      warmup: steps of the warm-up, rounded.
      warmup_start: share of the peak at the first step; None: as is usual for the schedule.
      total: steps of the run.
      steps_per_epoch: steps.
    """

    warmup_epochs: float
    warmup: int
    warmup_start: float | None
    total: int
    steps_per_epoch: int

    @property
    def rest(self) -> int:
        """Steps after the warm-up."""
        return self.total - self.warmup


# config.schedule.name -> (peak, span) -> schedule; further options are keyword-only arguments.
SCHEDULES: Registry = Registry('schedule.name')


def make_schedule(
    name: str,
    peak: float,
    *,
    num_epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    warmup_start: float | None = None,
    **options: Any,
) -> optax.Schedule:
    """Returns step (from 0) -> learning rate.

    Args:
      name: a row of SCHEDULES.
      peak: the largest rate.
      num_epochs, steps_per_epoch: the length of the run.
      warmup_epochs, warmup_start, **options: as in config.schedule.

    Raises:
      UserError: with so few steps, a phase of the schedule has none.
    """
    warmup, total = round(warmup_epochs * steps_per_epoch), num_epochs * steps_per_epoch
    if warmup >= total:
        raise UserError(
            f'config.schedule.warmup_epochs={warmup_epochs:g} takes all of the {total} steps; warm '
            'up for less, or train for longer.'
        )
    span = Span(warmup_epochs, warmup, warmup_start, total, steps_per_epoch)
    return SCHEDULES.bind(name, options)(peak, span)


def after_warmup(main: Callable[..., optax.Schedule]) -> Callable[..., optax.Schedule]:
    """Returns a row of SCHEDULES of one that begins at the peak, after the warm-up.

    With W steps of warm-up and the peak p, and s the share of it that warmup_start is,
    step < W: p * (s + (1 - s) * step / (W - 1)), from s * p to the peak. Without warmup_start,
    s = 1 / W, so that the first step moves.
    """

    @functools.wraps(main)
    def schedule(peak: float, span: Span, **options: Any) -> optax.Schedule:
        rest = main(peak, span, **options)
        if not span.warmup:
            return rest
        start = 1 / span.warmup if span.warmup_start is None else span.warmup_start
        rise = optax.linear_schedule(start * peak, peak, max(span.warmup - 1, 1))
        return optax.join_schedules([rise, rest], [span.warmup])

    return schedule


@SCHEDULES.register('constant')
@after_warmup
def constant(peak: float, span: Span) -> optax.Schedule:
    """The peak."""
    del span
    return optax.constant_schedule(peak)


@SCHEDULES.register('step')
@after_warmup
def step(
    peak: float, span: Span, *, milestones: Sequence[float], decay_factor: float
) -> optax.Schedule:
    """peak * decay_factor ** (milestones passed).

    A milestone counts from its first step, and one after the last epoch, as where a recipe is cut
    short, not at all.
    """
    boundaries = [round(epoch * span.steps_per_epoch) - span.warmup for epoch in milestones]
    if len(set(boundaries)) < len(boundaries):
        raise UserError(
            f'config.schedule.milestones={milestones} lie less than a step apart, an epoch having '
            f'{span.steps_per_epoch} steps; space them out.'
        )
    return optax.piecewise_constant_schedule(peak, dict.fromkeys(boundaries, decay_factor))


@SCHEDULES.register('cosine')
@after_warmup
def cosine(peak: float, span: Span, *, final: float) -> optax.Schedule:
    """peak * (final + (1 - final) * (1 + cos(pi * share of the rest)) / 2).

    Its last step is just above final * peak.
    """
    return optax.cosine_decay_schedule(peak, span.rest, alpha=final)


@SCHEDULES.register('polynomial')
@after_warmup
def polynomial(peak: float, span: Span, *, final: float, power: float) -> optax.Schedule:
    """peak * (final + (1 - final) * (1 - share of the rest) ** power)."""
    return optax.polynomial_schedule(peak, final * peak, power, span.rest)


@SCHEDULES.register('one_cycle')
def one_cycle(peak: float, span: Span, *, final: float) -> optax.Schedule:
    """A half cosine up to the peak over the warm-up, and another one down (arXiv:1708.07120).

    It starts from warmup_start * peak, 1/25 unless given, and ends at final * peak.
    """
    if not span.warmup:
        raise UserError(
            f'config.schedule.warmup_epochs={span.warmup_epochs:g} is less than a step, and '
            'schedule.name=one_cycle rises for as long; give it about a third of the epochs.'
        )
    start = 1 / 25 if span.warmup_start is None else span.warmup_start
    return optax.cosine_onecycle_schedule(
        span.total,
        peak,
        pct_start=(span.warmup + 0.5) / span.total,  # Which optax rounds down to `warmup` steps.
        div_factor=1 / start,
        final_div_factor=start / final if final else math.inf,
    )
