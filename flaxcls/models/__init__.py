"""The networks by name, and their construction from a name or a config."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from flaxcls.config import require_choice
from flaxcls.errors import UserError
from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.initialization import Initialization, trace_initialization
from flaxcls.models.layers import ImageTooSmall
from flaxcls.models.zoo import MODELS


def create_model(name: str, *, num_classes: int | None = None, **options: Any) -> nn.Module:
    """Returns the Linen module `name`: `model.init(key, images, train=False)`.

    Args:
      name: a key of MODELS.
      num_classes: length of the logits; None: as in the paper.
      **options: attributes of the network to change, such as `growth_rate` or `dtype`; see its
        class.

    Raises:
      UserError: there is no such network, or it has no such option.
    """
    require_choice('model.name', name, list(MODELS))
    variant = MODELS[name]
    model = variant.constructor(num_classes=num_classes or variant.num_classes)
    known = {field.name for field in dataclasses.fields(model)} - {'parent', 'name'}
    for option, value in options.items():
        if option not in known:
            raise UserError(
                f'config.model.{option}={value!r} has no meaning for {name}, '
                f'whose options are {", ".join(sorted(known & _SHAPING))}.'
            )
    return model.clone(**options)


_SHAPING = {  # Of config.model, besides the name and the dtype.
    'num_classes', 'dropout_rate', 'width_multiplier', 'stage_sizes', 'block_sizes', 'growth_rate',
    'bottleneck', 'compression', 'shortcut', 'zero_init_residual', 'stochastic_depth_rate', 'lrn',
    'initializer',
}  # fmt: skip


def model_from_config(
    config: ConfigDict, *, axis_name: str | None = None, **norm_options: Any
) -> nn.Module:
    """Returns the network that `config` describes.

    Args:
      config: a full config.
      axis_name: the axis over which the training step splits its batch, for BatchNorm's groups.
      **norm_options: further attributes of BatchNorm.

    Raises:
      UserError: see `create_model`.
    """
    norm = functools.partial(
        BatchNorm,
        momentum=config.batch_norm.momentum,
        eps=config.batch_norm.eps,
        group_size=config.batch_norm.group_size or config.batch_size,
        axis_name=axis_name,
        frozen=frozen_patterns(config),
        **norm_options,
    )
    options = {name: config.model[name] for name in _SHAPING - {'num_classes'}}
    options = {name: value for name, value in options.items() if value is not None}
    return create_model(
        config.model.name,
        num_classes=config.model.num_classes,
        norm=norm,
        dtype=jnp.dtype(config.model.dtype),
        **options,
    )


def frozen_patterns(config: ConfigDict) -> tuple[str, ...]:
    """Returns the patterns of `config.freeze`."""
    return tuple(pattern.strip() for pattern in config.freeze.split(',') if pattern.strip())


def require_image_size(
    model: nn.Module, name: str, image_size: int, key: str = 'data.image_size'
) -> Initialization:
    """Returns the `trace_initialization` of a network for images of this side.

    Raises:
      UserError: the images are too small; names the smallest that are not.
    """
    try:
        return trace_initialization(model, image_size)
    except ImageTooSmall:
        smallest = _smallest_image_size(model, image_size)
    raise UserError(
        f'config.{key}={image_size} is too small for {name}; the smallest is {smallest} pixels.'
    )


def _smallest_image_size(model: nn.Module, too_small: int) -> int:
    fits = 512
    while not _fits(model, fits):
        fits *= 2
    while fits - too_small > 1:
        middle = (too_small + fits) // 2
        too_small, fits = (too_small, middle) if _fits(model, middle) else (middle, fits)
    return fits


def _fits(model: nn.Module, image_size: int) -> bool:
    try:
        trace_initialization(model, image_size)
    except ImageTooSmall:
        return False
    return True
