"""The data set that a config names: opened, read through, cached."""

import functools
import os
import pathlib

from ml_collections import ConfigDict

from flaxcls.config.workdir import CONFIG_FILE
from flaxcls.data.cache import cached
from flaxcls.data.datasets import Dataset
from flaxcls.data.sources import open_dataset, without_unreadable
from flaxcls.errors import UserError
from flaxcls.models.registry import MODELS
from flaxcls.training.data_record import PLACES, locate, require_same_data
from flaxcls.training.from_config import eval_images, split_spec, train_crop


def open_configured_dataset(config: ConfigDict) -> Dataset:
    """Returns the data set that `config.data` names; arguments and errors as `open_dataset`."""
    options = {key: config.data[key] for key in config.data if key != 'source'}
    options['image_size'] = options['image_size'] or MODELS[config.model.name].image_size
    options['num_classes'] = config.model.num_classes
    return open_dataset(config.data.source, split_spec(config), **options)


def read_dataset(
    config: ConfigDict, *, for_training: bool, workdir: str | os.PathLike | None = None
) -> Dataset:
    """Returns the data set without unreadable files, cached if that is wanted.

    Args:
      config: a full config.
      for_training: whether the training images are looked into as well.
      workdir: of the run that is opened, whose data it must be; None: of none.

    Raises:
      UserError: there is no such data, or it is not the run's.
      RunError: files cannot be read.
    """
    is_run = workdir is not None and (pathlib.Path(workdir) / CONFIG_FILE).exists()
    data, source = config.data, config.data.source
    if is_run and (found := locate(source, workdir)) != source:
        config = config.copy_and_resolve_references().unlock()
        config.data.source = found
    crops = {'val': eval_images(config).crop}
    if for_training:
        crops = {'train': train_crop(config)} | crops
    dataset = without_unreadable(
        open_configured_dataset(config),
        tuple(crops),
        on_error=data.on_error,
        num_threads=data.num_threads,
    )
    if is_run:
        opened = {key: data[key] for key in PLACES}
        dataset = require_same_data(dataset, opened, workdir)
    if data.cache == 'none':
        return dataset
    keep = functools.partial(cached, where=data.cache, num_threads=data.num_threads)
    return dataset.replace(
        **{
            name: keep(getattr(dataset, name), shorter_side=crop.shorter_side)
            for name, crop in crops.items()
        }
    )


def count_classes(dataset: Dataset, wanted: int | None, source: str) -> int:
    """Returns the number of classes; raises UserError unless it is `wanted`, and at least two."""
    classes = len(dataset.class_names)
    if wanted not in (None, classes):
        raise UserError(
            f'config.model.num_classes={wanted} does not match the {classes} classes of {source}; '
            'choose data with as many, or train with config.model.num_classes=None.'
        )
    if classes < 2:
        raise UserError(f'{source} has {classes} class; a classifier needs two.')
    return classes
