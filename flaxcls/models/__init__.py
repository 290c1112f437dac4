"""The networks by name, and their construction from a name or a config."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flaxcls.config import require_choice
from flaxcls.errors import UserError
from flaxcls.models import alexnet, densenet, resnet
from flaxcls.models.layers import BatchNorm, ImageTooSmall


class Variant(NamedTuple):
    """One row of the table of models."""

    constructor: Callable[..., nn.Module]
    image_size: int  # Side of the paper's training images, pixels.
    num_classes: int  # Of the paper's data set.
    paper: str


_ALEX, _OWT, _IOFFE = 'NIPS 2012, sec. 3', 'arXiv:1404.5997', 'arXiv:1502.03167'
_RES, _RES_CIFAR = 'arXiv:1512.03385, table 1', 'arXiv:1512.03385, sec. 4.2'
_DENSE, _DENSE_CIFAR = 'arXiv:1608.06993, table 1', 'arXiv:1608.06993, table 2'

MODELS: dict[str, Variant] = {
    'alexnet_2012': Variant(alexnet.alexnet_2012, 227, 1000, _ALEX),
    'alexnet': Variant(alexnet.AlexNet, 224, 1000, _OWT),
    'alexnet_bn': Variant(alexnet.alexnet_bn, 224, 1000, _IOFFE),
    'resnet18': Variant(resnet.resnet18, 224, 1000, _RES),
    'resnet34': Variant(resnet.resnet34, 224, 1000, _RES),
    'resnet50': Variant(resnet.resnet50, 224, 1000, _RES),
    'resnet101': Variant(resnet.resnet101, 224, 1000, _RES),
    'resnet152': Variant(resnet.resnet152, 224, 1000, _RES),
    'resnet20': Variant(resnet.cifar_resnet(20), 32, 10, _RES_CIFAR),
    'resnet32': Variant(resnet.cifar_resnet(32), 32, 10, _RES_CIFAR),
    'resnet44': Variant(resnet.cifar_resnet(44), 32, 10, _RES_CIFAR),
    'resnet56': Variant(resnet.cifar_resnet(56), 32, 10, _RES_CIFAR),
    'resnet110': Variant(resnet.cifar_resnet(110), 32, 10, _RES_CIFAR),
    'densenet121': Variant(densenet.densenet121, 224, 1000, _DENSE),
    'densenet169': Variant(densenet.densenet169, 224, 1000, _DENSE),
    'densenet201': Variant(densenet.densenet201, 224, 1000, _DENSE),
    'densenet161': Variant(densenet.densenet161, 224, 1000, _DENSE),
    'densenet264': Variant(densenet.densenet264, 224, 1000, _DENSE),
    'densenet_40_12': Variant(densenet.cifar_densenet(40, 12), 32, 10, _DENSE_CIFAR),
    'densenet_100_12': Variant(densenet.cifar_densenet(100, 12), 32, 10, _DENSE_CIFAR),
    'densenet_bc_100_12': Variant(densenet.cifar_densenet_bc(100, 12), 32, 10, _DENSE_CIFAR),
    'densenet_bc_250_24': Variant(densenet.cifar_densenet_bc(250, 24), 32, 10, _DENSE_CIFAR),
    'densenet_bc_190_40': Variant(densenet.cifar_densenet_bc(190, 40), 32, 10, _DENSE_CIFAR),
}


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


_SHAPING = {
    'dropout_rate', 'width_multiplier', 'stage_sizes', 'block_sizes', 'growth_rate', 'num_classes',
}  # fmt: skip


def model_from_config(config: ConfigDict, *, axis_name: str | None = None) -> nn.Module:
    """Returns the network that `config` describes.

    Args:
      config: a full config.
      axis_name: the axis over which the training step splits its batch, for BatchNorm's groups.

    Raises:
      UserError: see `create_model`.
    """
    norm = functools.partial(
        BatchNorm,
        momentum=config.batch_norm.momentum,
        eps=config.batch_norm.eps,
        group_size=config.batch_norm.group_size,
        axis_name=axis_name,
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


def count_parameters(model: nn.Module, image_size: int) -> int:
    """Returns the number of trainable parameters, without computing any."""
    shapes = _shapes(model, image_size)['params']
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def require_image_size(model: nn.Module, name: str, image_size: int) -> None:
    """Raises UserError, naming the smallest size, if images of this side are too small."""
    if not _fits(model, image_size):
        too_small, fits = image_size, 512
        while not _fits(model, fits):
            fits *= 2
        while fits - too_small > 1:
            middle = (too_small + fits) // 2
            too_small, fits = (too_small, middle) if _fits(model, middle) else (middle, fits)
        raise UserError(
            f'config.data.image_size={image_size} is too small for {name}; '
            f'the smallest is {fits} pixels.'
        )


def _fits(model: nn.Module, image_size: int) -> bool:
    try:
        _shapes(model, image_size)
    except ImageTooSmall:
        return False
    return True


def _shapes(model: nn.Module, image_size: int) -> Any:
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
