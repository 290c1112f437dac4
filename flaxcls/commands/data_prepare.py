"""Prepares a TFDS data set as array_record, which training reads without TensorFlow.

  flaxcls data prepare --name=imagenet2012 --manual_dir=DIR_WITH_THE_TAR_FILES
  flaxcls data prepare --name=fashion_mnist --from=DIR_WITH_THE_IDX_FILES

Stock data sets need TensorFlow (pip install "flaxcls[prepare]"), and the network unless their
files are in --manual_dir. Fashion-MNIST needs neither.
"""

import pathlib
from collections.abc import Sequence

from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls data prepare', __doc__)
    folder = lambda text: pathlib.Path(text).expanduser()  # noqa: E731
    parser.add_argument('--name', required=True, help='as TFDS writes it, such as cifar10')
    parser.add_argument('--data_dir', type=folder, help='default: as TFDS')
    parser.add_argument('--manual_dir', type=folder, help='files that are downloaded by hand')
    parser.add_argument('--from', dest='idx_dir', type=folder, help='Fashion-MNIST: idx files')
    flags = parser.parse_args(argv)
    from flaxcls.data.prepare import prepare

    data_dir = prepare(
        flags.name, flags.data_dir, manual_dir=flags.manual_dir, idx_dir=flags.idx_dir
    )
    print(f'{flags.name} is ready in {data_dir}.')
