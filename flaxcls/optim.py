"""Learning-rate schedules and optimizers, put together from optax."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
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

    With W warm-up steps of T in all, and the peak p:
      step < W: p * (step + 1) / W, so that the first step moves and step W - 1 is at the peak;
      constant: p;
      step: p * decay_factor ** (milestones passed), a milestone counting from its first step, and
        one after the last epoch, as where a recipe is cut short, not at all;
      cosine: p * (1 + cos(pi * (step - W) / (T - W))) / 2, whose last step is just above zero.

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
    boundaries = [round(epoch * steps_per_epoch) - warmup for epoch in schedule.milestones]
    if len(set(boundaries)) < len(boundaries):
        raise UserError(
            f'config.schedule.milestones={schedule.milestones} lie less than a step apart, an '
            f'epoch having {steps_per_epoch} steps; space them out.'
        )
    if schedule.name == 'constant':
        main = optax.constant_schedule(peak)
    elif schedule.name == 'step':
        factors = dict.fromkeys(boundaries, schedule.decay_factor)
        main = optax.piecewise_constant_schedule(peak, factors)
    else:
        main = optax.cosine_decay_schedule(peak, total - warmup)
    if not warmup:
        return main
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, main], [warmup])


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
        if not jax.tree.leaves(split_frozen(params, [pattern])[1]):
            layers = ', '.join(list(params)[:8])
            remedy = nearest(pattern, list(params)) or f'; the first ones are {layers}'
            raise UserError(f'config.freeze: {pattern!r} fits no layer{remedy}.')
    if not jax.tree.leaves(split_frozen(params, patterns)[0]):
        raise UserError(f'config.freeze={",".join(patterns)} leaves nothing to train.')


def kernels_only(params: Any) -> Any:
    """Returns a tree of bools: True for kernels, False for BatchNorm's parameters and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns SGD with momentum, weight decay being added to the gradient before the momentum."""
    options = config.optimizer
    mask = None if options.decay_all else kernels_only
    steps = [
        optax.add_decayed_weights(options.weight_decay, mask),
        optax.sgd(schedule, options.momentum or None, options.nesterov),
    ]
    if options.head_multiplier != 1:
        steps.append(optax.masked(optax.scale(options.head_multiplier), _head_only))
    return optax.chain(*steps)


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


def _head_only(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == 'head', params)
