"""What the values of a config must be, each by itself and together."""

import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from flaxcls.config.defaults import default_options, options
from flaxcls.errors import UserError
from flaxcls.system.cli import require_choice

# Option -> (test, what it must be). None is allowed where the default is None.
RANGES = {
    'seed': (lambda x: 0 <= x < 2**32, 'from 0 to 2**32 - 1'),
    'batch_size': (lambda x: x > 0, 'positive'),
    'num_epochs': (lambda x: x > 0, 'positive'),
    'label_smoothing': (lambda x: 0 <= x < 1, 'at least 0 and below 1'),
    'top_k': (lambda x: x > 0, 'positive'),
    'log_every_steps': (lambda x: x > 0, 'positive'),
    'eval_every_epochs': (lambda x: x > 0, 'positive'),
    'checkpoint_every_steps': (lambda x: x > 0, 'positive'),
    'model.num_classes': (lambda x: x > 1, 'at least 2'),
    'model.dropout_rate': (lambda x: 0 <= x < 1, 'at least 0 and below 1'),
    'model.width_multiplier': (lambda x: 0 < x < 100, 'above 0 and below 100'),
    'model.stage_sizes': (lambda x: _positive_ints(x), 'positive whole numbers'),
    'model.block_sizes': (lambda x: _positive_ints(x), 'positive whole numbers'),
    'model.growth_rate': (lambda x: x > 0, 'positive'),
    'model.compression': (lambda x: 0 < x <= 1, 'above 0 and at most 1'),
    'model.stochastic_depth_rate': (lambda x: 0 <= x < 1, 'at least 0 and below 1'),
    'batch_norm.group_size': (lambda x: x > 0, 'positive'),
    'batch_norm.momentum': (lambda x: 0 <= x < 1, 'at least 0 and below 1'),
    'batch_norm.eps': (lambda x: x > 0, 'positive'),
    'data.val_fraction': (lambda x: 0 < x < 1, 'between 0 and 1'),
    'data.image_size': (lambda x: x > 0, 'positive'),
    'data.train_image_size': (lambda x: x > 0, 'positive'),
    'data.eval_crop_fraction': (lambda x: 0 < x <= 1, 'above 0 and at most 1'),
    'data.mean': (lambda x: len(x) == 3, 'three numbers, for red, green and blue'),
    'data.std': (lambda x: len(x) == 3 and min(x) > 0, 'three positive numbers'),
    'data.num_threads': (lambda x: x > 0, 'positive'),
    'augment.pad': (lambda x: x > 0, 'positive'),
    'augment.min_area': (lambda x: 0 < x <= 1, 'above 0 and at most 1'),
    'augment.color_jitter': (
        lambda x: not x or (len(x) == 4 and min(x) >= 0 and x[3] <= 0.5),
        'four numbers from 0 on, the last up to 0.5, or ()',
    ),
    'augment.lighting': (lambda x: 0 <= x < math.inf, 'zero or positive'),
    'augment.randaugment_layers': (lambda x: x > 0, 'positive'),
    'augment.randaugment_magnitude': (lambda x: 0 <= x <= 30, 'from 0 to 30'),
    'augment.erase': (lambda x: 0 <= x <= 1, 'from 0 to 1'),
    'augment.cutout': (lambda x: x >= 0, 'zero or positive'),
    'augment.mixup': (lambda x: 0 <= x < math.inf, 'zero or positive'),
    'augment.cutmix': (lambda x: 0 <= x < math.inf, 'zero or positive'),
    'augment.repeats': (lambda x: x > 0, 'positive'),
    'optimizer.learning_rate': (lambda x: 0 < x < math.inf, 'positive'),
    'optimizer.base_batch_size': (lambda x: x >= 0, 'zero or positive'),
    'optimizer.beta1': (lambda x: 0 <= x < 1, 'at least 0 and below 1'),
    'optimizer.beta2': (lambda x: 0 <= x < 1, 'at least 0 and below 1'),
    'optimizer.eps': (lambda x: 0 < x < math.inf, 'positive'),
    'optimizer.trust_coefficient': (lambda x: 0 < x < math.inf, 'positive'),
    'optimizer.clip_norm': (lambda x: 0 <= x < math.inf, 'zero or positive'),
    'optimizer.momentum': (lambda x: 0 <= x < 1, 'at least 0 and below 1'),
    'optimizer.weight_decay': (lambda x: 0 <= x < math.inf, 'zero or positive'),
    'ema.decay': (lambda x: 0 <= x < 1, 'at least 0 and below 1'),
    'parallel.accumulation_steps': (lambda x: x > 0, 'positive'),
    'schedule.warmup_epochs': (lambda x: x >= 0, 'zero or positive'),
    'schedule.warmup_start': (lambda x: 0 < x <= 1, 'above 0 and at most 1'),
    'schedule.final': (lambda x: 0 <= x <= 1, 'from 0 to 1'),
    'schedule.power': (lambda x: 0 < x < math.inf, 'positive'),
    'schedule.milestones': (lambda x: list(x) == sorted(set(x)), 'in rising order'),
    'schedule.decay_factor': (lambda x: 0 < x < 1, 'between 0 and 1'),
}

CHOICES = {
    'model.dtype': ('float32', 'bfloat16'),
    'model.remat': ('none', 'norm', 'block'),
    'model.shortcut': ('A', 'B', 'C', 'D', 'none'),
    'model.lrn': ('none', 'paper', 'caffe'),
    'model.initializer': ('paper', 'he', 'filters'),
    'data.eval_crops': ('center', 'flip', 'ten'),
    'data.on_error': ('stop', 'skip'),
    'data.cache': ('none', 'memory', 'disk'),
    'augment.crop': ('none', 'pad', 'random_resized', 'random'),
    'augment.crop_on': ('host', 'device'),
    'augment.policy': ('none', 'randaugment', 'trivialaugment'),
    'parallel.mode': ('jit', 'pmap'),
    'optimizer.name': ('sgd', 'lars', 'lamb', 'adamw', 'lion', 'muon'),
    'schedule.name': ('cosine', 'step', 'polynomial', 'one_cycle', 'constant'),
    'loss': ('softmax', 'sigmoid'),
}

_ADAM_LIKE = ('lamb', 'adamw', 'muon')
# Options without effect unless another one has one of these values.
BELONGS_TO = {
    'augment.crop_on': ('augment.crop', ('random_resized',)),
    'optimizer.beta1': ('optimizer.name', ('lion', *_ADAM_LIKE)),
    'optimizer.beta2': ('optimizer.name', ('lion', *_ADAM_LIKE)),
    'optimizer.eps': ('optimizer.name', _ADAM_LIKE),
    'optimizer.trust_coefficient': ('optimizer.name', ('lars',)),
    'schedule.milestones': ('schedule.name', ('step',)),
    'schedule.final': ('schedule.name', ('cosine', 'polynomial', 'one_cycle')),
    'schedule.power': ('schedule.name', ('polynomial',)),
}


def _positive_ints(values: Sequence[float]) -> bool:
    return len(values) > 0 and all(isinstance(v, int) and v > 0 for v in values)


def validate(config: ConfigDict) -> None:
    """Raises UserError at the first value out of range and the first pair that contradicts."""
    values = dict(options(config))
    for key, (is_right, requirement) in RANGES.items():
        if values[key] is not None and not is_right(values[key]):
            raise UserError(f'config.{key}={values[key]!r} must be {requirement}.')
    for key, choices in CHOICES.items():
        if values[key] is not None:
            require_choice(key, values[key], choices)
    _refuse_ineffective(values)
    _refuse_contradictions(config)


def _refuse_ineffective(values: dict[str, Any]) -> None:
    defaults = default_options()
    for key, (choice, allowed) in BELONGS_TO.items():
        if values[key] != defaults[key] and values[choice] not in allowed:
            raise UserError(
                f'config.{key}={values[key]!r} belongs to config.{choice}={" or ".join(allowed)}, '
                f'and it is {values[choice]!r}; leave one of the two out.'
            )


def _refuse_contradictions(config: ConfigDict) -> None:
    schedule, epochs = config.schedule, config.num_epochs
    if schedule.warmup_epochs >= epochs:
        raise UserError(
            f'config.schedule.warmup_epochs={schedule.warmup_epochs:g} leaves nothing of '
            f'config.num_epochs={epochs}; warm up for less, or train for longer.'
        )
    if schedule.warmup_start is not None and not schedule.warmup_epochs:
        raise UserError(
            f'config.schedule.warmup_start={schedule.warmup_start:g} needs '
            'config.schedule.warmup_epochs above 0.'
        )
    if schedule.name == 'step' and not schedule.milestones:
        raise UserError('config.schedule.name=step needs config.schedule.milestones, in epochs.')
    if min(schedule.milestones, default=epochs) < schedule.warmup_epochs:
        raise UserError(
            f'config.schedule.milestones={schedule.milestones} begin before the end of '
            f'config.schedule.warmup_epochs={schedule.warmup_epochs:g}; warm up for less.'
        )
    momentum_used = config.optimizer.name in ('sgd', 'lars', 'muon')
    if momentum_used and config.optimizer.nesterov and not config.optimizer.momentum:
        raise UserError(
            'config.optimizer.nesterov=True needs momentum above 0; '
            'set config.optimizer.nesterov=false with config.optimizer.momentum=0.'
        )
    for key, value in (
        ('data.eval_crops=ten', config.data.eval_crops == 'ten'),
        ('augment.crop=random', config.augment.crop == 'random'),
    ):
        if value and config.data.eval_crop_fraction == 1:
            raise UserError(
                f'config.{key} needs config.data.eval_crop_fraction below 1, such as 0.875, or all '
                'crops are the same.'
            )
    for key in ('zero_init_residual', 'stochastic_depth_rate'):
        if config.model.shortcut == 'none' and config.model[key]:
            raise UserError(
                f'config.model.{key}={config.model[key]} is for branches beside a shortcut, and '
                'config.model.shortcut is none; leave one of the two out.'
            )
    if config.batch_size % config.augment.repeats:
        raise UserError(
            f'config.augment.repeats={config.augment.repeats} does not divide '
            f'config.batch_size={config.batch_size}; choose a multiple of it.'
        )
    group, batch = config.batch_norm.group_size, config.batch_size
    if group and batch % group:
        raise UserError(
            f'config.batch_norm.group_size={group} does not divide config.batch_size={batch}; '
            'choose a multiple of it, or --config.batch_norm.group_size=None, the whole batch.'
        )
