"""The sizes of well-known data sets, for plans made where these are not at hand."""

import dataclasses
from typing import NamedTuple

from flaxcls.data.datasets import Dataset, SplitSpec
from flaxcls.data.sources import data_folder
from flaxcls.data.tfds import find_prepared


class Sizes(NamedTuple):
    train: int
    val: int
    classes: int


# As in the TFDS catalogue, with the splits that training takes by default.
PUBLISHED = {
    'imagenet2012': Sizes(1_281_167, 50_000, 1000),
    'cifar10': Sizes(50_000, 10_000, 10),
    'cifar100': Sizes(50_000, 10_000, 100),
    'fashion_mnist': Sizes(60_000, 10_000, 10),
    'mnist': Sizes(60_000, 10_000, 10),
    'svhn_cropped': Sizes(73_257, 26_032, 10),
    'food101': Sizes(75_750, 25_250, 101),
    'stl10': Sizes(5_000, 8_000, 10),
}


@dataclasses.dataclass(frozen=True)
class _Counted:
    """A split of which only the number of examples is known."""

    count: int

    def __len__(self) -> int:
        return self.count


def dataset_of_published_size(
    source: str, splits: SplitSpec, data_dir: str | None = None
) -> Dataset | None:
    """Returns a stand-in of the published size for a well-known data set that is not prepared.

    None: it is prepared, or not well known. The arguments are those of `sources.open_dataset`.
    """
    name = source.removeprefix('tfds:')
    sizes = PUBLISHED.get(name)
    usual_splits = splits.train is None and splits.val is None
    if sizes is None or not usual_splits or find_prepared(name, data_folder(data_dir)):
        return None
    note = f'{name} is not prepared here; its published size is taken.'
    names = tuple(str(label) for label in range(sizes.classes))
    return Dataset(_Counted(sizes.train), _Counted(sizes.val), names, (note,))
