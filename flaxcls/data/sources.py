"""Data sets by the name in config.data.source."""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxcls.config.registry import Registry
from flaxcls.data.datasets import (
    ArraySplit,
    Dataset,
    FileSplit,
    SplitSpec,
    Subset,
)
from flaxcls.data.fashion_mnist import DEBIAN_FASHION_MNIST, prepare_fashion_mnist
from flaxcls.data.folder import open_folder
from flaxcls.data.hold_out import DEFAULT_VAL_FRACTION, draw_of_each_class
from flaxcls.data.manifest import open_manifest
from flaxcls.data.tfds import default_data_dir, find_prepared, open_tfds
from flaxcls.data.unreadable import readable_part
from flaxcls.errors import UserError

_SYNTHETIC_POOL = 256  # Different images.


# What config.data.source begins with -> (rest, splits) -> Dataset; further options of config.data
# are keyword-only arguments. `argument` says what stands behind the colon; '': nothing does.
SOURCES: Registry = Registry('data.source')


def open_dataset(source: str, splits: SplitSpec | None = None, **options: Any) -> Dataset:
    """Returns the data set `source`, without having looked into its files.

    Args:
      source: as config.data.source: digits, fashion_mnist, tfds:NAME, folder:PATH, manifest:FILE or
        synthetic:COUNT.
      splits: what is for training and what for validation; None: as usual.
      **options: of config.data, as far as the source takes them: data_dir, with the data sets of
        TFDS, or None, where TFDS looks; num_threads, for decoding, or None, one per core; and
        image_size and num_classes of synthetic images, side in pixels, and number or None, 1000.

    Raises:
      UserError: there is no such source, or it is not where it should be; says what to do.
    """
    kind, _, rest = source.partition(':')
    if kind not in SOURCES or bool(rest) != bool(SOURCES.facts[kind].get('argument')):
        raise UserError(f'config.data.source={source!r} is unknown; choose {_list_sources()}.')
    return SOURCES.bind(kind, options)(rest, splits or SplitSpec())


def _list_sources() -> str:
    forms = []
    for name, facts in SOURCES.facts.items():
        argument = facts.get('argument')
        forms.append(f'{name}:{argument}' if argument else name)
    return f'{", ".join(forms[:-1])} or {forms[-1]}'


def data_folder(data_dir: str | None) -> pathlib.Path:
    """Returns the folder in which TFDS's data sets are prepared."""
    return pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()


def without_unreadable(
    dataset: Dataset,
    names: Sequence[str] = ('train', 'val'),
    *,
    on_error: str = 'stop',
    num_threads: int | None = None,
) -> Dataset:
    """Returns the data set without the files that cannot be read.

    Args:
      dataset: with all files that are listed, readable or not.
      names: of the splits whose files are read.
      on_error: stop, or skip, which leaves them out with a note.
      num_threads: for decoding; None: one per core.

    Raises:
      RunError: some files cannot be read, and on_error is stop.
    """
    for name in names:
        split = getattr(dataset, name)
        if isinstance(split, FileSplit):
            shown = {'train': 'training', 'val': 'validation'}[name]
            split, notes = readable_part(split, shown, on_error=on_error, num_threads=num_threads)
            notes = (*dataset.notes, *notes)
            dataset = dataset.replace(**{name: split}, notes=notes)
    return dataset


def _refuse_splits(source: str, splits: SplitSpec, *names: str) -> None:
    options = {'train': 'train_split', 'val': 'val_split', 'val_fraction': 'val_fraction'}
    for name in names:
        if getattr(splits, name) is not None:
            raise UserError(
                f'config.data.{options[name]}={getattr(splits, name)!r} has no meaning for '
                f'{source}; leave it out.'
            )


@SOURCES.register('digits')
def _digits(_: str, splits: SplitSpec) -> Dataset:
    """1,797 handwritten digits of 8x8 pixels from scikit-learn; 359 are held out, stratified."""
    _refuse_splits('digits', splits, 'train', 'val', 'val_fraction')
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


@SOURCES.register('fashion_mnist')
def _fashion_mnist(
    _: str, splits: SplitSpec, *, data_dir: str | None, num_threads: int | None
) -> Dataset:
    """The set of TFDS, prepared here from Debian's package where it is not yet."""
    folder = data_folder(data_dir)
    _prepare_fashion_mnist_from_debian(folder)
    _refuse_splits('fashion_mnist', splits, 'val_fraction')
    return open_tfds('fashion_mnist', folder, splits, num_threads)


@SOURCES.register('tfds', argument='NAME')
def _tfds(
    name: str, splits: SplitSpec, *, data_dir: str | None, num_threads: int | None
) -> Dataset:
    _refuse_splits(f'tfds:{name}', splits, 'val_fraction')
    return open_tfds(name, data_folder(data_dir), splits, num_threads)


SOURCES.register('folder', argument='PATH')(open_folder)
SOURCES.register('manifest', argument='FILE.csv')(open_manifest)


@SOURCES.register('synthetic', argument='COUNT')
def _synthetic(
    count: str, splits: SplitSpec, *, image_size: int | None, num_classes: int | None
) -> Dataset:
    """Noise that costs nothing to load, to find out what loading costs; a tenth is held out."""
    _refuse_splits(f'synthetic:{count}', splits, 'train', 'val', 'val_fraction')
    classes = num_classes or 1000
    if not count.isdecimal() or int(count) < 10:
        raise UserError(
            f'config.data.source=synthetic:{count} must say how many images to make up, at least '
            '10, as in synthetic:10000.'
        )
    rng = np.random.default_rng(splits.seed)
    pixels = rng.integers(0, 256, (_SYNTHETIC_POOL, image_size, image_size, 3), dtype=np.uint8)
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
            'into a folder DIR and run  flaxcls data prepare --name=fashion_mnist '
            f'--from=DIR --data_dir={data_dir}'
        )
    print(f'Preparing Fashion-MNIST in {data_dir}, once ...', flush=True)
    prepare_fashion_mnist(DEBIAN_FASHION_MNIST, data_dir)
