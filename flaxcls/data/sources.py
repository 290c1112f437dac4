"""Where examples come from: the name in config.data.source -> a Source."""

import os
import pathlib

import numpy as np
from ml_collections import ConfigDict

from flaxcls.data.fashion_mnist import DEBIAN_FASHION_MNIST, prepare_fashion_mnist
from flaxcls.data.folder import open_folder
from flaxcls.data.splits import ArraySplit, Source
from flaxcls.data.tfds import default_data_dir, find_prepared, open_tfds
from flaxcls.errors import UserError


def open_source(config: ConfigDict) -> Source:
    """Returns the data set that `config.data` names.

    Raises:
      UserError: there is no such source, or it is not where it should be; says what to do.
    """
    data = config.data
    kind, _, rest = data.source.partition(':')
    val_splits = [data.val_split] if data.val_split else ['validation', 'val', 'test']
    data_dir = pathlib.Path(data.data_dir).expanduser() if data.data_dir else default_data_dir()
    if kind == 'digits' and not rest:
        _refuse_options(data, 'train_split', 'val_split', 'val_fraction')
        return _digits()
    if kind == 'folder' and rest:
        return open_folder(rest, data.train_split, val_splits, data.val_fraction, config.seed)
    if kind == 'fashion_mnist' and not rest:
        _prepare_fashion_mnist_from_debian(data_dir)
    elif kind != 'tfds' or not rest:
        raise UserError(
            f'config.data.source={data.source!r} is unknown; choose digits, fashion_mnist, '
            'tfds:NAME or folder:PATH.'
        )
    _refuse_options(data, 'val_fraction')
    train_split = data.train_split or 'train'
    return open_tfds(rest or kind, data_dir, train_split, val_splits, num_threads(config))


def _refuse_options(data: ConfigDict, *names: str) -> None:
    for name in names:
        if data[name] is not None:
            raise UserError(
                f'config.data.{name}={data[name]!r} has no meaning for {data.source}; leave it out.'
            )


def num_threads(config: ConfigDict) -> int:
    """Returns how many threads decode images: as configured, or one per core at hand."""
    if config.data.num_threads:
        return config.data.num_threads
    cores = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else range(os.cpu_count())
    return len(cores)


def _digits() -> Source:
    """1,797 handwritten digits of 8x8 pixels from scikit-learn; 360 are held out, stratified."""
    from sklearn import datasets, model_selection  # noqa: PLC0415 - two seconds, needed here only

    digits = datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    # A fixed split, whatever the run's seed, so that accuracies can be compared.
    train, val = model_selection.train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    splits = [ArraySplit(pixels[rows], labels[rows]) for rows in (train, val)]
    return Source(*splits, tuple(str(name) for name in digits.target_names))


def _prepare_fashion_mnist_from_debian(data_dir: pathlib.Path) -> None:
    if find_prepared('fashion_mnist', data_dir):
        return
    if not DEBIAN_FASHION_MNIST.is_dir():
        raise UserError(
            f'fashion_mnist is not prepared in {data_dir}; run  apt-get install '
            'dataset-fashion-mnist  on Debian or Ubuntu, or put its four idx files '
            'into a folder DIR and run  python -m flaxcls.prepare_data --name=fashion_mnist '
            f'--from=DIR --data_dir={data_dir}'
        )
    print(f'Preparing Fashion-MNIST in {data_dir}, once ...', flush=True)
    prepare_fashion_mnist(DEBIAN_FASHION_MNIST, data_dir)
