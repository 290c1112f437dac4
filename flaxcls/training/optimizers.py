"""Learning-rate schedules and optimizers, put together from optax."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict

from flaxcls.errors import UserError
from flaxcls.models.patterns import matches
from flaxcls.training.freezing import _require_fit


class ParamGroup(NamedTuple):
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


def param_groups(config: ConfigDict, params: Any) -> Any:
    """Returns a tree like `params` of each array's ParamGroup.

    Kernels are decayed, BatchNorm's parameters and biases only with config.optimizer.decay_all;
    config.optimizer.rules change that, a later one overriding an earlier.

    Raises:
      UserError: a rule fits no layer.
    """
    rules = parse_rules(config.optimizer.rules)
    for rule in rules:
        _require_fit(params, 'optimizer.rules', rule.pattern)

    def treat(path: tuple[Any, ...], _: Any) -> ParamGroup:
        decayed = path[-1].key == 'kernel' or config.optimizer.decay_all
        group = ParamGroup(weight_decay=float(decayed))
        for rule in rules:
            if matches('/'.join(key.key for key in path), [rule.pattern]):
                given = zip(rule[1:], group, strict=True)
                group = ParamGroup(*(old if new is None else new for new, old in given))
        return group

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
    labels = param_groups(config, params)
    is_group = lambda x: isinstance(x, ParamGroup)  # noqa: E731
    different = sorted(set(jax.tree.leaves(labels, is_leaf=is_group)))
    names = jax.tree.map(repr, labels, is_leaf=is_group)
    optimizer = optax.partition(
        {repr(group): _optimizer(config.optimizer, schedule, group) for group in different},
        names,
    )
    if config.optimizer.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), optimizer)
    return optimizer


def _optimizer(
    options: ConfigDict, schedule: optax.Schedule, group: ParamGroup
) -> optax.GradientTransformation:
    """Returns the optimizer of the arrays that are treated so.

    What is not decayed is not adapted to its norm either, in LARS and LAMB, as in those that
    the recipes were tuned with (apex, timm).
    """
    rate, decay = schedule, options.weight_decay * group.weight_decay
    if group.learning_rate != 1:
        rate = lambda step: group.learning_rate * schedule(step)  # noqa: E731
    momentum = {'momentum': options.momentum or None, 'nesterov': options.nesterov}
    adam = {'b1': options.beta1, 'b2': options.beta2, 'eps': options.eps}
    adam = {name: value for name, value in adam.items() if value is not None}
    adapted = group.weight_decay > 0
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
    the average of the statistics is the statistics of the average.
    `flaxcls.commands.precise_bn` computes
    them exactly.
    """
    if not ema:
        return ema
    decay = jnp.minimum(config.ema.decay, (1 + step) / (10 + step))
    return optax.incremental_update(new, ema, 1 - decay)
