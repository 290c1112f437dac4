"""The data set that a config names: opened, read through, cached."""

import functools

from ml_collections import ConfigDict

from flaxcls.data.cache import cached
from flaxcls.data.datasets import Dataset
from flaxcls.data.sources import open_dataset, without_unreadable
from flaxcls.errors import UserError
from flaxcls.models.registry import MODELS
from flaxcls.training.from_config import eval_images, split_spec, train_crop


def open_configured_dataset(config: ConfigDict) -> Dataset:
    """Returns the data set that `config.data` names; arguments and errors as `open_dataset`."""
    options = {key: config.data[key] for key in config.data if key != 'source'}
    options['image_size'] = options['image_size'] or MODELS[config.model.name].image_size
    options['num_classes'] = config.model.num_classes
    return open_dataset(config.data.source, split_spec(config), **options)


def read_dataset(config: ConfigDict, *, for_training: bool) -> Dataset:
    """Returns the data set without unreadable files, cached if that is wanted."""
    data = config.data
    crops = {'val': eval_images(config).crop}
    if for_training:
        crops = {'train': train_crop(config)} | crops
    dataset = without_unreadable(
        open_configured_dataset(config),
        tuple(crops),
        on_error=data.on_error,
        num_threads=data.num_threads,
    )
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
