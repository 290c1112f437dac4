"""Prepares a TFDS data set as array_record, which training reads without TensorFlow.

  python -m flaxcls.prepare_data --name=imagenet2012 --manual_dir=DIR_WITH_THE_TAR_FILES
  python -m flaxcls.prepare_data --name=fashion_mnist --from=DIR_WITH_THE_IDX_FILES

Stock data sets need TensorFlow (pip install "flaxcls[prepare]"), and the network unless their
files are in --manual_dir. Fashion-MNIST needs neither.
"""

import pathlib
from collections.abc import Sequence

from flaxcls.data.fashion_mnist import DEBIAN_FASHION_MNIST, prepare_fashion_mnist
from flaxcls.data.tfds import default_data_dir
from flaxcls.errors import CommandParser, RunError, UserError, run_command


def prepare_stock(name: str, data_dir: pathlib.Path, manual_dir: pathlib.Path | None) -> None:
    """Downloads and prepares a data set of TFDS's catalogue as array_record.

    Raises:
      UserError: TensorFlow is missing, or TFDS has no such data set.
      RunError: it could not be downloaded or prepared.
    """
    try:
        import tensorflow  # noqa: F401, PLC0415
    except ImportError:
        raise UserError(
            f'preparing {name} needs TensorFlow; run  pip install "flaxcls[prepare]"'
        ) from None
    import tensorflow_datasets as tfds  # noqa: PLC0415

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
    except tfds.core.DatasetNotFoundError:
        raise UserError(f'TFDS has no data set {name!r}.') from None
    except (ValueError, AssertionError) as error:  # An unknown config or version.
        raise UserError(f'TFDS has no {name!r}: {" ".join(str(error).split())[:300]}') from None
    download = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=download)
    except Exception as error:  # Whatever a builder, a server or a disk comes up with.
        reason = ' '.join(str(error).split())[:500]
        raise RunError(f'{name} could not be prepared: {type(error).__name__}: {reason}') from error


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.prepare_data', __doc__)
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
