"""A folder of image files, one folder per class."""

import collections
import os
import pathlib
from typing import NamedTuple, NoReturn

import numpy as np

from flaxcls.data.datasets import Dataset, FileSplit, SplitSpec, in_order
from flaxcls.data.hold_out import hold_out
from flaxcls.data.images import is_image
from flaxcls.errors import UserError
from flaxcls.system.translation import Message

# Taken for images unseen; files of other names are looked into.
_IMAGE_SUFFIXES = frozenset(
    {'.jpg', '.jpeg', '.png', '.gif', '.webp', '.bmp', '.tif', '.tiff', '.ppm', '.pgm', '.avif'}
)
_SPLIT_NAMES = frozenset(
    {'train', 'training', 'val', 'valid', 'validation', 'test', 'testing', 'eval', 'evaluation'}
)


def open_folder(path: str, split_spec: SplitSpec) -> Dataset:
    """Returns the images under `path`/train/CLASS and `path`/val/CLASS, or `path`/CLASS.

    Classes are ordered by name, and by number where all names are numbers. They are those of the
    training folder: one without validation images keeps its label. Without a training folder, a
    fraction of every class is held out.

    Args:
      path: has one folder of images per class, or such folders in train and val.
      split_spec: names of the folders inside, or the fraction.

    Raises:
      UserError: a folder is missing or holds no image, or validation has a class of its own, or
        the names of the folders do not say what is for training.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(Message('config.data.source: there is no folder {path!r}.', path=path))
    train_root = root / (split_spec.train_name)
    val_root = next((root / name for name in split_spec.val_names if (root / name).is_dir()), None)
    if not train_root.is_dir() and not split_spec.train and val_root is None:
        listing = _list_images(root)
        _refuse_unknown_splits(root, listing)
        _require_images(listing, root)
        names = list(listing.images)
        every = _to_split(listing.images, names, root)
        train, val, notes = hold_out(
            every, names, fraction=split_spec.val_fraction, seed=split_spec.seed
        )
        return Dataset(train, val, tuple(names), (*notes, *_notes(listing)), is_held_out=True)
    if not train_root.is_dir():
        raise UserError(
            f'there is no folder {str(train_root)!r}; name the one with the training images in '
            'config.data.train_split.'
        )
    if val_root is None:
        raise UserError(
            f'config.data.source: {path!r} has training images, but no folder '
            f'{" or ".join(split_spec.val_names)} beside them; move some of them there, or name '
            'the folder in config.data.val_split.'
        )
    split_spec.require_no_fraction(path, f'whose validation images are in {val_root.name}')
    return _open_splits(root, train_root, val_root)


def _open_splits(root: pathlib.Path, train_root: pathlib.Path, val_root: pathlib.Path) -> Dataset:
    train, val = _list_images(train_root), _list_images(val_root)
    _require_images(train, train_root)
    unknown = [name for name in val.images if name not in train.images]
    if unknown:
        raise UserError(f'{str(val_root / unknown[0])!r} is a class that {train_root} lacks.')
    names = list(train.images)
    _require_images(val, val_root)
    splits = [_to_split(listing.images, names, root) for listing in (train, val)]
    return Dataset(*splits, tuple(names), (*_notes(train, val), *_notes_on_classes(val, names)))


class _Listing(NamedTuple):
    """The files below a folder."""

    images: dict[str, list[str]]  # By class; classes and paths in their order.
    others: collections.Counter  # Suffix -> number of files that are not images of a class.
    empty: list[str]  # Folders that would be classes, had they an image.


def _list_images(root: pathlib.Path) -> _Listing:
    images, others = collections.defaultdict(list), collections.Counter()
    for folder, below, files in os.walk(root, onerror=_refuse_unreadable, followlinks=True):
        refuse_loops(folder, below)
        inside = pathlib.Path(folder).relative_to(root).parts
        hidden_folder = any(part.startswith('.') for part in inside)
        for file in files:
            path, suffix = os.path.join(folder, file), os.path.splitext(file)[1]
            hidden = hidden_folder or file.startswith('.')
            is_candidate = inside and not hidden
            if is_candidate and (suffix.lower() in _IMAGE_SUFFIXES or is_image(path)):
                images[inside[0]].append(path)
            else:
                others[suffix or file] += 1
    folders = [entry.name for entry in root.iterdir() if entry.is_dir()]
    empty = [name for name in folders if name not in images and not name.startswith('.')]
    return _Listing(
        {name: sorted(images[name]) for name in in_order(images)}, others, sorted(empty)
    )


def _refuse_unreadable(error: OSError) -> NoReturn:
    """Called by os.walk, which would leave out a folder that it may not read."""
    raise UserError(f'the folder {error.filename!r} cannot be read ({error.strerror}).')


def refuse_loops(folder: str, below: list[str]) -> None:
    """Refuses links that os.walk would follow dozens of times round."""
    for name in below:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            here, target = os.path.realpath(folder), os.path.realpath(path)
            if os.path.commonpath([here, target]) == target:
                raise UserError(f'{path!r} is a link to a folder that it lies in; remove it.')


def _refuse_unknown_splits(root: pathlib.Path, listing: _Listing) -> None:
    """Refuses to take folders such as `Train` for classes, of whose folders they consist."""
    for name, paths in listing.images.items():
        direct = any(os.path.dirname(path) == str(root / name) for path in paths)
        if name.lower() in _SPLIT_NAMES and not direct:
            raise UserError(
                f'{str(root / name)!r} looks like a part of the data, not like a class; name the '
                'parts in config.data.train_split and config.data.val_split.'
            )


def _notes_on_classes(val: _Listing, names: list[str]) -> list[str]:
    missing = [name for name in names if name not in val.images and name not in val.empty]
    return [f'{len(missing)} classes have no validation image: {", ".join(missing[:8])}.'] * bool(
        missing
    )


def _to_split(images: dict[str, list[str]], names: list[str], root: pathlib.Path) -> FileSplit:
    members = [images.get(name, []) for name in names]
    labels = np.repeat(np.arange(len(names), dtype=np.int32), [len(paths) for paths in members])
    return FileSplit([path for paths in members for path in paths], labels, str(root))


def _require_images(listing: _Listing, root: pathlib.Path) -> None:
    if not listing.images:
        raise UserError(
            f'config.data.source: {str(root)!r} has no images in folders named after their classes.'
        )


def _notes(*listings: _Listing) -> tuple[str, ...]:
    notes = []
    others = sum((listing.others for listing in listings), collections.Counter())
    if others:
        kinds = ', '.join(f'{count} {suffix}' for suffix, count in others.most_common(8))
        notes.append(
            f'{others.total()} files that are not images of a class were left out: {kinds}.'
        )
    empty = [name for listing in listings for name in listing.empty]
    if empty:
        notes.append(f'{len(empty)} folders have no image: {", ".join(empty[:8])}.')
    return tuple(notes)
