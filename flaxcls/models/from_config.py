"""The network that a config describes."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.registry import _SHAPING, create_model


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
