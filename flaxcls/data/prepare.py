"""Preparation of TFDS data sets: those of its catalogue, and Fashion-MNIST from its idx files."""

import pathlib

from flaxcls.data.fashion_mnist import DEBIAN_FASHION_MNIST, prepare_fashion_mnist
from flaxcls.data.tfds import default_data_dir, prepare_stock
from flaxcls.errors import UserError


def prepare(
    name: str,
    data_dir: pathlib.Path | None = None,
    *,
    manual_dir: pathlib.Path | None = None,
    idx_dir: pathlib.Path | None = None,
) -> pathlib.Path:
    """Prepares a data set as array_record, and returns the folder of all data sets.

    Args:
      name: as TFDS writes it, such as cifar10.
      data_dir: where TFDS keeps its data sets; None: where it does by default.
      manual_dir: files that TFDS cannot download.
      idx_dir: of fashion_mnist, its idx files; None: those of the Debian package, if there are any.

    Raises:
      UserError: the arguments do not fit one another, or files are missing.
    """
    data_dir = data_dir or default_data_dir()
    if idx_dir and name != 'fashion_mnist':
        raise UserError(f'--from={idx_dir} is for --name=fashion_mnist, not for {name}.')
    if name == 'fashion_mnist' and not manual_dir and DEBIAN_FASHION_MNIST.is_dir():
        idx_dir = idx_dir or DEBIAN_FASHION_MNIST
    if idx_dir and manual_dir:
        raise UserError('--from and --manual_dir exclude each other; leave --manual_dir out.')
    if idx_dir:
        prepare_fashion_mnist(idx_dir, data_dir)
    else:
        prepare_stock(name, data_dir, manual_dir)
    return data_dir
