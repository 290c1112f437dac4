"""Fashion-MNIST from its four idx files into TFDS's own layout, without TensorFlow or network."""

import gzip
import pathlib
import struct

import numpy as np

from flaxcls.errors import UserError

DEBIAN_FASHION_MNIST = pathlib.Path('/usr/share/datasets/fashion-mnist')
_FASHION_CLASSES = (
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat',
    'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)  # fmt: skip


def prepare_fashion_mnist(idx_dir: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Writes `data_dir`/fashion_mnist/3.0.1 in TFDS's own layout from the four idx files.

    Args:
      idx_dir: holds train-images-idx3-ubyte and its three companions, gzipped or not.
      data_dir: where TFDS keeps its data sets.

    Raises:
      UserError: a file is missing, or is not an idx file.
    """
    parts = {
        'train': (read_idx(idx_dir, 'train-images-idx3'), read_idx(idx_dir, 'train-labels-idx1')),
        'test': (read_idx(idx_dir, 't10k-images-idx3'), read_idx(idx_dir, 't10k-labels-idx1')),
    }
    import tensorflow_datasets as tfds  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Fashion-MNIST (arXiv:1708.07747): 70,000 grey images of 28x28 pixels, ten classes."""

        VERSION = tfds.core.Version('3.0.1')
        pkg_dir_path = pathlib.Path(__file__).parent

        def _info(self):
            features = {
                'image': tfds.features.Image(shape=(28, 28, 1)),
                'label': tfds.features.ClassLabel(names=_FASHION_CLASSES),
            }
            return self.dataset_info_from_configs(
                description=self.__doc__, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(*arrays) for name, arrays in parts.items()}

        def _generate_examples(self, images, labels):
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                # A Pillow image is encoded without TensorFlow; an array would ask for it.
                yield index, {'image': Image.fromarray(image), 'label': int(label)}

    builder = FashionMnist(data_dir=data_dir, file_format='array_record')
    builder.download_and_prepare()


def read_idx(folder: pathlib.Path, stem: str) -> np.ndarray:
    """Returns the array of an idx file: two zeros, type, rank, sizes (big-endian), then values."""
    candidates = [folder / f'{stem}-ubyte{suffix}' for suffix in ('', '.gz')]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise UserError(f'there is no {stem}-ubyte or {stem}-ubyte.gz in {str(folder)!r}.')
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == '.gz' else data
        rank = data[3]
        shape = struct.unpack_from(f'>{rank}I', data, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, struct.error) as error:
        raise UserError(f'{str(path)!r} is not a complete idx file ({error}).') from None
