"""Whether the values of a config fit: each by its own row, and together."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from flaxcls.config.config_dict import flatten
from flaxcls.config.options import OPTIONS
from flaxcls.errors import UserError

_Values = Mapping[str, Any]  # Of all options, by dotted key.


def validate(config: ConfigDict) -> None:
    """Raises UserError at the first value out of range and the first pair that contradicts."""
    values = dict(flatten(config))
    for key, value in values.items():
        OPTIONS[key].require(value)
    _refuse_ineffective(values)
    _refuse_schedule(values)
    _refuse_nesterov_without_momentum(values)
    _refuse_equal_crops(values)
    _refuse_branches_without_shortcut(values)
    _refuse_uneven_batches(values)


def _refuse_ineffective(values: _Values) -> None:
    for key, value in values.items():
        row = OPTIONS[key]
        lacking = row.lacks(values)
        if lacking and value != row.default:
            other, wanted = lacking
            raise UserError(
                f'config.{key}={value!r} belongs to config.{other}={" or ".join(wanted)}, '
                f'and it is {values[other]!r}; leave one of the two out.'
            )


def _refuse_schedule(values: _Values) -> None:
    warmup, epochs = values['schedule.warmup_epochs'], values['num_epochs']
    milestones, start = values['schedule.milestones'], values['schedule.warmup_start']
    if warmup >= epochs:
        raise UserError(
            f'config.schedule.warmup_epochs={warmup:g} leaves nothing of '
            f'config.num_epochs={epochs}; warm up for less, or train for longer.'
        )
    if start is not None and not warmup:
        raise UserError(
            f'config.schedule.warmup_start={start:g} needs config.schedule.warmup_epochs above 0.'
        )
    if values['schedule.name'] == 'step' and not milestones:
        raise UserError('config.schedule.name=step needs config.schedule.milestones, in epochs.')
    if min(milestones, default=epochs) < warmup:
        raise UserError(
            f'config.schedule.milestones={milestones} begin before the end of '
            f'config.schedule.warmup_epochs={warmup:g}; warm up for less.'
        )


def _refuse_nesterov_without_momentum(values: _Values) -> None:
    has_momentum = values['optimizer.name'] in ('sgd', 'lars', 'muon')
    if has_momentum and values['optimizer.nesterov'] and not values['optimizer.momentum']:
        raise UserError(
            'config.optimizer.nesterov=True needs momentum above 0; '
            'set config.optimizer.nesterov=false with config.optimizer.momentum=0.'
        )


def _refuse_equal_crops(values: _Values) -> None:
    for key, choice in (('data.eval_crops', 'ten'), ('augment.crop', 'random')):
        if values[key] == choice and values['data.eval_crop_fraction'] == 1:
            raise UserError(
                f'config.{key}={choice} needs config.data.eval_crop_fraction below 1, such as '
                '0.875, or all crops are the same.'
            )


def _refuse_branches_without_shortcut(values: _Values) -> None:
    for key in ('model.zero_init_residual', 'model.stochastic_depth_rate'):
        if values['model.shortcut'] == 'none' and values[key]:
            raise UserError(
                f'config.{key}={values[key]} is for branches beside a shortcut, and '
                'config.model.shortcut is none; leave one of the two out.'
            )


def _refuse_uneven_batches(values: _Values) -> None:
    batch, repeats, group = (
        values[key] for key in ('batch_size', 'augment.repeats', 'batch_norm.group_size')
    )
    if batch % repeats:
        raise UserError(
            f'config.augment.repeats={repeats} does not divide config.batch_size={batch}; choose '
            'a multiple of it.'
        )
    if group and batch % group:
        raise UserError(
            f'config.batch_norm.group_size={group} does not divide config.batch_size={batch}; '
            'choose a multiple of it, or --config.batch_norm.group_size=None, the whole batch.'
        )
