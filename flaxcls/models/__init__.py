"""The networks by name, and their construction from a name or a config."""

import contextlib
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flaxcls.config import require_choice
from flaxcls.errors import UserError
from flaxcls.models.batch_norm import BatchNorm
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


def init_variables(model: nn.Module, key: jax.Array, image_size: int) -> dict[str, Any]:
    """Returns {'params': ..., 'batch_stats': ...}; the latter is empty without BatchNorm."""
    images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    # Under jit the forward pass, which no weight depends on, is never computed; on the CPU, since
    # the initializers draw there.
    with _on_cpu():
        variables = jax.jit(lambda key: model.init(key, images, train=False))(key)
    return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}


def _on_cpu() -> contextlib.AbstractContextManager:
    try:
        return jax.default_device(jax.local_devices(backend='cpu')[0])
    except RuntimeError:  # JAX_PLATFORMS=cuda or tpu leaves no CPU to compute on.
        return contextlib.nullcontext()


def require_image_size(
    model: nn.Module, name: str, image_size: int, key: str = 'data.image_size'
) -> None:
    """Raises UserError, naming the smallest size, if images of this side are too small."""
    if not _fits(model, image_size):
        too_small, fits = image_size, 512
        while not _fits(model, fits):
            fits *= 2
        while fits - too_small > 1:
            middle = (too_small + fits) // 2
            too_small, fits = (too_small, middle) if _fits(model, middle) else (middle, fits)
        raise UserError(
            f'config.{key}={image_size} is too small for {name}; the smallest is {fits} pixels.'
        )


def _fits(model: nn.Module, image_size: int) -> bool:
    try:
        abstract_variables(model, image_size)
    except ImageTooSmall:
        return False
    return True


def abstract_variables(model: nn.Module, image_size: int) -> dict[str, Any]:
    """Returns shapes and dtypes of what `init_variables` would, with nothing computed."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
