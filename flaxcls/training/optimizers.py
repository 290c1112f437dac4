"""Learning-rate schedules and optimizers, put together from optax."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax
import optax.contrib

from flaxcls.errors import UserError
from flaxcls.models.patterns import matches
from flaxcls.training.freezing import require_match


class ParamGroup(NamedTuple):
    """Arrays with the same multipliers of config.optimizer's learning_rate and weight_decay."""

    learning_rate: float = 1.0
    weight_decay: float = 1.0


class Rule(NamedTuple):
    """The multipliers of the layers that a pattern fits; None leaves a value as it is."""

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
                f'config.optimizer.rules: {part.strip()!r} is not a rule such as head:lr=10 or '
                'stem*:lr=0.1,decay=0.'
            )
        rules.append(Rule(pattern.strip(), *factors))
    return rules


_SETTINGS = ('lr', 'decay')


def param_groups(params: Any, rules: Sequence[Rule], *, decay_all: bool = False) -> Any:
    """Returns a tree like `params` of each array's ParamGroup.

    Kernels are decayed, BatchNorm's parameters and biases only with `decay_all`; rules change that,
    a later one overriding an earlier.

    Raises:
      UserError: a rule fits no layer.
    """
    for rule in rules:
        require_match(params, 'optimizer.rules', rule.pattern)

    def group_of(path: tuple[Any, ...], _: Any) -> ParamGroup:
        decayed = path[-1].key == 'kernel' or decay_all
        group = ParamGroup(weight_decay=float(decayed))
        for rule in rules:
            if matches('/'.join(key.key for key in path), [rule.pattern]):
                given = zip(rule[1:], group, strict=True)
                group = ParamGroup(*(old if new is None else new for new, old in given))
        return group

    return jax.tree_util.tree_map_with_path(group_of, params)


def make_optimizer(
    params: Any,
    schedule: optax.Schedule,
    *,
    name: str = 'sgd',
    momentum: float = 0.9,
    nesterov: bool = True,
    beta1: float | None = None,
    beta2: float | None = None,
    eps: float | None = None,
    trust_coefficient: float | None = None,
    weight_decay: float = 1e-4,
    decay_all: bool = False,
    rules: str = '',
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Returns optax's optimizer of that name for every array, with the settings of its ParamGroup.

    Args:
      params: arrays, or their shapes, that are trained; None in the places of those that are not.
      schedule: step -> learning rate.
      name, ...: as in config.optimizer; None: as in optax.

    Raises:
      UserError: a rule is of another form, or fits no layer.
    """
    momentum_options = {'momentum': momentum or None, 'nesterov': nesterov}
    adam = {'b1': beta1, 'b2': beta2, 'eps': eps}
    adam = {key: value for key, value in adam.items() if value is not None}
    trust = {} if trust_coefficient is None else {'trust_coefficient': trust_coefficient}

    def of_group(group: ParamGroup) -> optax.GradientTransformation:
        rate, decay = schedule, weight_decay * group.weight_decay
        if group.learning_rate != 1:
            rate = lambda step: group.learning_rate * schedule(step)  # noqa: E731
        # What is not decayed is not adapted to its norm either, in LARS and LAMB, as in those that
        # the recipes were tuned with (apex, timm).
        adapted = group.weight_decay > 0
        if name == 'lars':
            return optax.lars(rate, decay, trust_ratio_mask=adapted, **trust, **momentum_options)
        if name == 'lamb':
            options = {'eps': 1e-6} | adam
            if adapted:
                return optax.lamb(rate, weight_decay=decay, **options)
            return optax.adam(rate, **options)
        if name == 'adamw':
            return optax.adamw(rate, weight_decay=decay, **adam)
        if name == 'lion':
            return optax.lion(rate, weight_decay=decay, **adam)
        if name == 'muon':
            return _muon(rate, decay, momentum, nesterov, adam)
        return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, **momentum_options))

    groups = param_groups(params, parse_rules(rules), decay_all=decay_all)
    is_group = lambda x: isinstance(x, ParamGroup)  # noqa: E731
    different = sorted(set(jax.tree.leaves(groups, is_leaf=is_group)))
    labels = jax.tree.map(_label, groups, is_leaf=is_group)
    optimizer = optax.partition({_label(group): of_group(group) for group in different}, labels)
    if clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    return optimizer


def _label(group: ParamGroup) -> str:
    """Returns the name of a group in the optimizer's state, as checkpoints have it."""
    return f'Treatment(learning_rate={group.learning_rate}, weight_decay={group.weight_decay})'


def _muon(
    rate: optax.Schedule, decay: float, momentum: float, nesterov: bool, adam: dict[str, float]
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
        beta=momentum,
        nesterov=nesterov,
        weight_decay=decay,
        adam_weight_decay=decay,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
        **{f'adam_{name}' if name != 'eps' else name: value for name, value in adam.items()},
    )
