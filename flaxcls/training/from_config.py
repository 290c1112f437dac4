"""The parts of a run that a config describes: here, and in `setup`, it is unpacked into values."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flaxcls.augment.tta import make_tta_crops
from flaxcls.data.crops import EvalCrop, TrainCrop
from flaxcls.data.datasets import SplitSpec
from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.patterns import parse_patterns
from flaxcls.models.registry import attributes, create_model


def create_network(config: ConfigDict, *, axis_name: str | None = None) -> nn.Module:
    """Returns the network that `config.model` and `config.batch_norm` describe.

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
        group_size=config.batch_norm.group_size or config.batch_size,
        axis_name=axis_name,
        frozen=parse_patterns(config.freeze),
    )
    given = {name: config.model.get(name) for name in sorted(attributes())}
    return create_model(
        config.model.name,
        num_classes=config.model.num_classes,
        norm=norm,
        dtype=jnp.dtype(config.model.dtype),
        **{name: value for name, value in given.items() if value is not None},
    )


def train_crop(config: ConfigDict) -> TrainCrop:
    """Returns how training images are cut on the host; `data.image_size` has to be filled in."""
    data, augment = config.data, config.augment
    on_host = augment.crop == 'random' or (
        augment.crop == 'random_resized' and augment.crop_on == 'host'
    )
    return TrainCrop(
        size=data.train_image_size or data.image_size,
        kind=augment.crop if on_host else 'none',
        fraction=data.eval_crop_fraction,
        min_area=augment.min_area,
    )


class EvalImages(NamedTuple):
    """How evaluation shows images to the network.

    Attributes:
      crop: how they are cut on the host.
      mean, std: of RGB in 0..1, with which they are normalised on the device.
    """

    crop: EvalCrop
    mean: tuple[float, ...]
    std: tuple[float, ...]


def eval_images(config: ConfigDict) -> EvalImages:
    """Returns how evaluation shows images; `data.image_size` has to be filled in."""
    data = config.data
    crop = EvalCrop(data.image_size, data.eval_crop_fraction, data.eval_crops)
    return EvalImages(crop, tuple(data.mean), tuple(data.std))


def optimizer_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the options of `make_optimizer`: config.optimizer but for what makes the peak."""
    of_the_peak = ('learning_rate', 'base_batch_size')
    return {key: config.optimizer[key] for key in config.optimizer if key not in of_the_peak}


def split_spec(config: ConfigDict) -> SplitSpec:
    """Returns what is for training and what for validation."""
    data = config.data
    return SplitSpec(data.train_split, data.val_split, data.val_fraction, config.seed)


def tta_crops_of(crop: EvalCrop) -> Callable[[jax.Array], jax.Array] | None:
    """Returns images -> their TTA crops; None: they are taken as they are."""
    return None if crop.tta == 'center' else make_tta_crops(crop.tta, crop.size)
