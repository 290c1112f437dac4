"""Learning-rate schedules and optimizers, put together from optax."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict

from flaxcls.config import nearest
from flaxcls.errors import UserError
from flaxcls.models.layers import matches


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


def split_frozen(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """Returns (trained, frozen): two trees like `params`, with None for what is in the other.

    Only the first is differentiated and given to the optimizer: the second is never touched.
    """
    is_frozen = lambda path, _: matches('/'.join(key.key for key in path), patterns)  # noqa: E731
    frozen = jax.tree_util.tree_map_with_path(is_frozen, params)
    return (
        jax.tree.map(lambda leaf, out: None if out else leaf, params, frozen),
        jax.tree.map(lambda leaf, out: leaf if out else None, params, frozen),
    )


def merge_frozen(trained: Any, frozen: Any) -> Any:
    """Returns the tree that `split_frozen` took apart."""
    pick = lambda left, right: right if left is None else left  # noqa: E731
    return jax.tree.map(pick, trained, frozen, is_leaf=lambda leaf: leaf is None)


def require_trained(params: Any, patterns: Sequence[str]) -> None:
    """Raises UserError if a pattern of config.freeze fits no layer, or all of them are frozen."""
    for pattern in patterns:
        _require_fit(params, 'freeze', pattern)
    if not jax.tree.leaves(split_frozen(params, patterns)[0]):
        raise UserError(f'config.freeze={",".join(patterns)} leaves nothing to train.')


def _require_fit(params: Any, key: str, pattern: str) -> None:
    """Raises UserError, naming the nearest layer, if `pattern` of config.KEY fits none."""
    if not jax.tree.leaves(split_frozen(params, [pattern])[1]):
        layers = ', '.join(list(params)[:8])
        remedy = nearest(pattern, list(params)) or f'; the first ones are {layers}'
        raise UserError(f'config.{key}: {pattern!r} fits no layer{remedy}.')


class Treatment(NamedTuple):
    """What an optimizer is told of an array: multipliers of config.optimizer's two values."""

    learning_rate: float = 1.0
    weight_decay: float = 1.0


class Rule(NamedTuple):
    """The treatment of the layers that a pattern fits; None leaves a value as it is."""

    pattern: str
    learning_rate: float | None
    weight_decay: float | None


def parse_rules(text: str) -> list[Rule]:
    """Returns the rules of `config.optimizer.rules`, such as 'head:lr=10; stem*:lr=0.1,decay=0'.

    Raises:
      UserError: the text has another form.
    """
    rules = []
    for part in filter(str.strip, text.split(';')):
        pattern, _, settings = part.partition(':')
        values = dict(setting.partition('=')[::2] for setting in settings.split(','))
        values = {name.strip(): value for name, value in values.items()}
        try:
            factors = [float(values.pop(name)) if name in values else None for name in _SETTINGS]
        except ValueError:
            factors = [math.nan]
        if values or not all(factor is None or 0 <= factor < math.inf for factor in factors):
            raise UserError(
                f'config.optimizer.rules: {part.strip()!r} is no rule such as head:lr=10 or '
                'stem*:lr=0.1,decay=0.'
            )
        rules.append(Rule(pattern.strip(), *factors))
    return rules


_SETTINGS = ('lr', 'decay')


def treatments(config: ConfigDict, params: Any) -> Any:
    """Returns a tree like `params` of each array's Treatment.

    Kernels are decayed, BatchNorm's parameters and biases only with config.optimizer.decay_all;
    config.optimizer.rules change that, a later one overriding an earlier.

    Raises:
      UserError: a rule fits no layer.
    """
    rules = parse_rules(config.optimizer.rules)
    for rule in rules:
        _require_fit(params, 'optimizer.rules', rule.pattern)

    def treat(path: tuple[Any, ...], _: Any) -> Treatment:
        decayed = path[-1].key == 'kernel' or config.optimizer.decay_all
        treatment = Treatment(weight_decay=float(decayed))
        for rule in rules:
            if matches('/'.join(key.key for key in path), [rule.pattern]):
                given = zip(rule[1:], treatment, strict=True)
                treatment = Treatment(*(old if new is None else new for new, old in given))
        return treatment

    return jax.tree_util.tree_map_with_path(treat, params)


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, params: Any
) -> optax.GradientTransformation:
    """Returns optax's optimizer of that name for every array, with the array's treatment.

    Args:
      config: a full config.
      schedule: step -> learning rate.
      params: arrays, or their shapes, that are trained; None in the places of those that are not.

    Raises:
      UserError: a rule fits no layer.
    """
    labels = treatments(config, params)
    is_treatment = lambda x: isinstance(x, Treatment)  # noqa: E731
    different = sorted(set(jax.tree.leaves(labels, is_leaf=is_treatment)))
    names = jax.tree.map(repr, labels, is_leaf=is_treatment)
    optimizer = optax.partition(
        {
            repr(treatment): _optimizer(config.optimizer, schedule, treatment)
            for treatment in different
        },
        names,
    )
    if config.optimizer.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), optimizer)
    return optimizer


def _optimizer(
    options: ConfigDict, schedule: optax.Schedule, treatment: Treatment
) -> optax.GradientTransformation:
    """Returns the optimizer of the arrays that are treated so.

    What is not decayed is not adapted to its norm either, in LARS and LAMB, as in those that
    the recipes were tuned with (apex, timm).
    """
    rate, decay = schedule, options.weight_decay * treatment.weight_decay
    if treatment.learning_rate != 1:
        rate = lambda step: treatment.learning_rate * schedule(step)  # noqa: E731
    momentum = {'momentum': options.momentum or None, 'nesterov': options.nesterov}
    adam = {'b1': options.beta1, 'b2': options.beta2, 'eps': options.eps}
    adam = {name: value for name, value in adam.items() if value is not None}
    adapted = treatment.weight_decay > 0
    if options.name == 'lars':
        trust = (
            {}
            if options.trust_coefficient is None
            else {'trust_coefficient': options.trust_coefficient}
        )
        return optax.lars(rate, decay, trust_ratio_mask=adapted, **trust, **momentum)
    if options.name == 'lamb':
        adam = {'eps': 1e-6} | adam
        return optax.lamb(rate, weight_decay=decay, **adam) if adapted else optax.adam(rate, **adam)
    if options.name == 'adamw':
        return optax.adamw(rate, weight_decay=decay, **adam)
    if options.name == 'lion':
        return optax.lion(rate, weight_decay=decay, **adam)
    if options.name == 'muon':
        return _muon(rate, decay, options, adam)
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, **momentum))


def _muon(
    rate: optax.Schedule, decay: float, options: ConfigDict, adam: dict[str, float]
) -> optax.GradientTransformation:
    """Muon for kernels, as matrices of [inputs, outputs]; AdamW for the rest and the classifier.

    Its updates are made as large as AdamW's (arXiv:2502.16982, section 2.2), so that both go by
    one learning rate.
    """

    def matrices(params: Any) -> Any:
        def as_matrix(path: tuple[Any, ...], x: Any) -> Any:
            if x.ndim < 2 or path[0].key == 'head':
                return None
            axes = range(x.ndim)
            return optax.contrib.MuonDimensionNumbers(tuple(axes[:-1]), axes[-1])

        return jax.tree_util.tree_map_with_path(as_matrix, params)

    return optax.contrib.muon(
        rate,
        beta=options.momentum,
        nesterov=options.nesterov,
        weight_decay=decay,
        adam_weight_decay=decay,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
        **{f'adam_{name}' if name != 'eps' else name: value for name, value in adam.items()},
    )


def update_ema(
    ema: dict[str, Any], new: dict[str, Any], step: jax.Array, config: ConfigDict
) -> dict[str, Any]:
    """Returns the moving average after `step` + 1 updates; {} stays {}.

    The decay is min(config.ema.decay, (1 + step) / (10 + step)), so that the initial weights are
    soon forgotten. Weights and BatchNorm's running statistics are averaged alike: to first order,
    the average of the statistics is the statistics of the average. `flaxcls.recalibrate` computes
    them exactly.
    """
    if not ema:
        return ema
    decay = jnp.minimum(config.ema.decay, (1 + step) / (10 + step))
    return optax.incremental_update(new, ema, 1 - decay)
