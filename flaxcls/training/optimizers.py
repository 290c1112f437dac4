"""Optimizers, put together from optax."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax
import optax.contrib

from flaxcls.config.registry import Registry
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


# config.optimizer.name -> (rate, decay, adapted) -> optax's; options are keyword-only arguments:
#   rate: step -> learning rate.
#   decay: weight decay.
#   adapted: False for arrays that are not decayed. LARS and LAMB do not adapt their rate to the
#     norm of these either, as in those that the recipes were tuned with (apex, timm).
OPTIMIZERS: Registry = Registry('optimizer.name')


def make_optimizer(
    params: Any,
    schedule: optax.Schedule,
    *,
    name: str = 'sgd',
    weight_decay: float = 1e-4,
    decay_all: bool = False,
    rules: str = '',
    clip_norm: float = 0.0,
    **options: Any,
) -> optax.GradientTransformation:
    """Returns the optimizer of that name for every array, with the settings of its ParamGroup.

    Args:
      params: arrays, or their shapes, that are trained; None in the places of those that are not.
      schedule: step -> learning rate.
      name, ...: as in config.optimizer.

    Raises:
      UserError: a rule is of another form, or fits no layer.
    """
    make = OPTIMIZERS.bind(name, options)

    def of_group(group: ParamGroup) -> optax.GradientTransformation:
        rate = schedule
        if group.learning_rate != 1:
            rate = lambda step: group.learning_rate * schedule(step)  # noqa: E731
        return make(rate, weight_decay * group.weight_decay, group.weight_decay > 0)

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


@OPTIMIZERS.register('sgd')
def _sgd(
    rate: optax.Schedule, decay: float, adapted: bool, *, momentum: float, nesterov: bool
) -> optax.GradientTransformation:
    del adapted
    sgd = optax.sgd(rate, momentum=momentum or None, nesterov=nesterov)
    return optax.chain(optax.add_decayed_weights(decay), sgd)


@OPTIMIZERS.register('lars')
def _lars(
    rate: optax.Schedule,
    decay: float,
    adapted: bool,
    *,
    momentum: float,
    nesterov: bool,
    trust_coefficient: float | None,
) -> optax.GradientTransformation:
    trust = _given(trust_coefficient=trust_coefficient)
    options = {'momentum': momentum, 'nesterov': nesterov} | trust
    return optax.lars(rate, decay, trust_ratio_mask=adapted, **options)


@OPTIMIZERS.register('lamb')
def _lamb(
    rate: optax.Schedule,
    decay: float,
    adapted: bool,
    *,
    beta1: float | None,
    beta2: float | None,
    eps: float | None,
) -> optax.GradientTransformation:
    options = {'eps': 1e-6} | _given(b1=beta1, b2=beta2, eps=eps)
    return (
        optax.lamb(rate, weight_decay=decay, **options) if adapted else optax.adam(rate, **options)
    )


@OPTIMIZERS.register('adamw')
def _adamw(
    rate: optax.Schedule,
    decay: float,
    adapted: bool,
    *,
    beta1: float | None,
    beta2: float | None,
    eps: float | None,
) -> optax.GradientTransformation:
    del adapted
    return optax.adamw(rate, weight_decay=decay, **_given(b1=beta1, b2=beta2, eps=eps))


@OPTIMIZERS.register('lion')
def _lion(
    rate: optax.Schedule,
    decay: float,
    adapted: bool,
    *,
    beta1: float | None,
    beta2: float | None,
) -> optax.GradientTransformation:
    del adapted
    return optax.lion(rate, weight_decay=decay, **_given(b1=beta1, b2=beta2))


@OPTIMIZERS.register('muon')
def _muon(
    rate: optax.Schedule,
    decay: float,
    adapted: bool,
    *,
    momentum: float,
    nesterov: bool,
    beta1: float | None,
    beta2: float | None,
    eps: float | None,
) -> optax.GradientTransformation:
    """Muon for kernels, as matrices of [inputs, outputs]; AdamW for the rest and the classifier.

    Its updates are made as large as AdamW's (arXiv:2502.16982, section 2.2), so that both go by
    one learning rate.
    """

    del adapted
    adam = _given(adam_b1=beta1, adam_b2=beta2, eps=eps)

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
        **adam,
    )


def _given(**options: float | None) -> dict[str, float]:
    """Returns the options that are not None, which leaves the others to optax."""
    return {name: value for name, value in options.items() if value is not None}
