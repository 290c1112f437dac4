"""Data sets by the name in config.data.source."""

import dataclasses
import importlib.util
import pathlib

import numpy as np
from ml_collections import ConfigDict

from flaxcls.data.cache import cached
from flaxcls.data.datasets import (
    DEFAULT_VAL_FRACTION,
    ArraySplit,
    Dataset,
    FileSplit,
    SplitSpec,
    Subset,
    draw_of_each_class,
)
from flaxcls.data.fashion_mnist import DEBIAN_FASHION_MNIST, prepare_fashion_mnist
from flaxcls.data.folder import open_folder
from flaxcls.data.manifest import open_manifest
from flaxcls.data.tfds import default_data_dir, find_prepared, open_tfds
from flaxcls.data.unreadable import readable_part
from flaxcls.errors import UserError
from flaxcls.system.threads import num_threads

_SYNTHETIC_POOL = 256  # Different images.


def open_dataset(config: ConfigDict) -> Dataset:
    """Returns the data set that `config.data` names, without having looked into its files.

    Raises:
      UserError: there is no such source, or it is not where it should be; says what to do.
    """
    data = config.data
    kind, _, rest = data.source.partition(':')
    val_splits = [data.val_split] if data.val_split else ['validation', 'val', 'test']
    data_dir = data_folder(config)
    if kind == 'digits' and not rest:
        _refuse_options(data, 'train_split', 'val_split', 'val_fraction')
        return _digits()
    if kind == 'synthetic':
        _refuse_options(data, 'train_split', 'val_split', 'val_fraction')
        return _synthetic(rest, config)
    if kind in ('folder', 'manifest') and rest:
        open_files = open_folder if kind == 'folder' else open_manifest
        split_spec = SplitSpec(data.train_split, val_splits, data.val_fraction, config.seed)
        return open_files(rest, split_spec)
    if kind == 'fashion_mnist' and not rest:
        _prepare_fashion_mnist_from_debian(data_dir)
    elif kind != 'tfds' or not rest:
        raise UserError(
            f'config.data.source={data.source!r} is unknown; choose digits, fashion_mnist, '
            'tfds:NAME, folder:PATH, manifest:FILE.csv or synthetic:COUNT.'
        )
    _refuse_options(data, 'val_fraction')
    train_split = data.train_split or 'train'
    return open_tfds(rest or kind, data_dir, train_split, val_splits, num_threads(config))


def data_folder(config: ConfigDict) -> pathlib.Path:
    """Returns the folder in which TFDS's data sets are prepared."""
    data_dir = config.data.data_dir
    return pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()


def load_dataset(config: ConfigDict, *, for_training: bool = True) -> Dataset:
    """Returns the data set that `config.data` names, without unreadable files, cached if wanted.

    Args:
      config: a full config, with its image size.
      for_training: False leaves the training files unread.

    Raises:
      UserError: as `open_dataset`, or what is to be cached would not fit.
      RunError: some files cannot be read, and config.data.on_error is stop.
    """
    source = open_dataset(config)
    for name in ('train', 'val') if for_training else ('val',):
        split, notes = getattr(source, name), []
        if isinstance(split, FileSplit):
            split, notes = readable_part(
                split,
                {'train': 'training', 'val': 'validation'}[name],
                on_error=config.data.on_error,
                num_threads=num_threads(config),
            )
        if config.data.cache != 'none':
            split = cached(split, config, training=name == 'train')
        source = dataclasses.replace(source, **{name: split}, notes=(*source.notes, *notes))
    return source


def _refuse_options(data: ConfigDict, *names: str) -> None:
    for name in names:
        if data[name] is not None:
            raise UserError(
                f'config.data.{name}={data[name]!r} has no meaning for {data.source}; leave it out.'
            )


def _digits() -> Dataset:
    """1,797 handwritten digits of 8x8 pixels from scikit-learn; 359 are held out, stratified."""
    # The file alone, since scikit-learn takes two seconds to import.
    package = importlib.util.find_spec('sklearn').submodule_search_locations[0]
    path = pathlib.Path(package, 'datasets/data/digits.csv.gz')
    table = np.loadtxt(path, np.uint8, delimiter=',')  # 64 pixels of 0 to 16, and the digit.
    pixels = np.round(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int32)
    # A fixed split, whatever the run's seed, so that accuracies can be compared.
    held_out = draw_of_each_class(labels, DEFAULT_VAL_FRACTION, seed=0)
    splits = [ArraySplit(pixels[rows], labels[rows]) for rows in (~held_out, held_out)]
    return Dataset(*splits, tuple('0123456789'))


def _synthetic(count: str, config: ConfigDict) -> Dataset:
    """Noise that costs nothing to load, to find out what loading costs; a tenth is held out."""
    if not count.isdecimal() or int(count) < 10:
        raise UserError(
            f'config.data.source={config.data.source!r} must tell how many images to make up, at '
            'least 10, as in synthetic:10000.'
        )
    size = config.data.image_size
    rng = np.random.default_rng(config.seed)
    pixels = rng.integers(0, 256, (_SYNTHETIC_POOL, size, size, 3), dtype=np.uint8)
    classes = config.model.num_classes or 1000
    pool = ArraySplit(pixels, rng.integers(0, classes, _SYNTHETIC_POOL, np.int32))
    train, val = (
        Subset(pool, np.arange(number) % _SYNTHETIC_POOL)
        for number in (int(count), int(count) // 10)
    )
    return Dataset(train, val, tuple(str(label) for label in range(classes)))


def _prepare_fashion_mnist_from_debian(data_dir: pathlib.Path) -> None:
    if find_prepared('fashion_mnist', data_dir):
        return
    if not DEBIAN_FASHION_MNIST.is_dir():
        raise UserError(
            f'fashion_mnist is not prepared in {data_dir}; run  apt-get install '
            'dataset-fashion-mnist  on Debian or Ubuntu, or put its four idx files '
            'into a folder DIR and run  python -m '
            'flaxcls.commands.prepare_data --name=fashion_mnist '
            f'--from=DIR --data_dir={data_dir}'
        )
    print(f'Preparing Fashion-MNIST in {data_dir}, once ...', flush=True)
    prepare_fashion_mnist(DEBIAN_FASHION_MNIST, data_dir)
