"""Prepares a TFDS data set as array_record, which training reads without TensorFlow.

  python -m flaxcls.commands.prepare_data --name=imagenet2012 --manual_dir=DIR_WITH_THE_TAR_FILES
  python -m flaxcls.commands.prepare_data --name=fashion_mnist --from=DIR_WITH_THE_IDX_FILES

Stock data sets need TensorFlow (pip install "flaxcls[prepare]"), and the network unless their
files are in --manual_dir. Fashion-MNIST needs neither.
"""

import pathlib
from collections.abc import Sequence

from flaxcls.data.fashion_mnist import DEBIAN_FASHION_MNIST, prepare_fashion_mnist
from flaxcls.data.tfds import default_data_dir, prepare_stock
from flaxcls.errors import UserError
from flaxcls.system.cli import CommandParser, run_command


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.commands.prepare_data', __doc__)
    parser.add_argument('--name', required=True, help='as TFDS writes it, such as cifar10')
    folder = lambda text: pathlib.Path(text).expanduser()  # noqa: E731
    parser.add_argument('--data_dir', type=folder, help='default: as TFDS')
    parser.add_argument(
        '--manual_dir', type=folder, help='files that have to be downloaded by hand'
    )
    parser.add_argument('--from', dest='idx_dir', type=folder, help='Fashion-MNIST: idx files')
    flags = parser.parse_args(argv)
    data_dir = flags.data_dir or default_data_dir()
    idx_dir = flags.idx_dir
    if idx_dir and flags.name != 'fashion_mnist':
        raise UserError(f'--from={idx_dir} is for --name=fashion_mnist, not for {flags.name}.')
    if flags.name == 'fashion_mnist' and not flags.manual_dir and DEBIAN_FASHION_MNIST.is_dir():
        idx_dir = idx_dir or DEBIAN_FASHION_MNIST
    if idx_dir and flags.manual_dir:
        raise UserError('--from and --manual_dir exclude each other; leave --manual_dir out.')
    if idx_dir:
        prepare_fashion_mnist(idx_dir, data_dir)
    else:
        prepare_stock(flags.name, data_dir, flags.manual_dir)
    print(f'{flags.name} is ready in {data_dir}.')


if __name__ == '__main__':
    run_command(main)
