"""A folder of image files, one folder per class."""

import collections
import pathlib
from collections.abc import Sequence

import numpy as np

from flaxcls.data.splits import FileSplit, Source
from flaxcls.errors import UserError

IMAGE_SUFFIXES = frozenset(
    {'.jpg', '.jpeg', '.png', '.gif', '.webp', '.bmp', '.tif', '.tiff', '.ppm', '.pgm'}
)


def open_folder(
    path: str, train_split: str | None, val_splits: Sequence[str], val_fraction: float, seed: int
) -> Source:
    """Returns the images under `path`/train/CLASS and `path`/val/CLASS, or `path`/CLASS.

    Classes are ordered by name, and by number where all names are numbers. They are those of the
    training folder: one without validation images keeps its label. Without a training folder,
    `val_fraction` of every class is held out, drawn with `seed`.

    Args:
      path: the folder.
      train_split: name of the training folder; None: train.
      val_splits: names to look for, the first that exists counts.
      val_fraction: see above.
      seed: see above.

    Raises:
      UserError: a folder is missing or holds no image, or validation has a class of its own.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f'config.data.source: there is no folder {path!r}.')
    ignored = collections.Counter()
    train_root = root / (train_split or 'train')
    if not train_root.is_dir():
        if train_split:
            raise UserError(f'config.data.train_split: there is no folder {str(train_root)!r}.')
        return _split_at_random(root, val_fraction, seed, ignored)
    val_root = next((root / name for name in val_splits if (root / name).is_dir()), None)
    if val_root is None:
        raise UserError(
            f'config.data.source: {path!r} has training images, but no folder '
            f'{" or ".join(val_splits)} beside them; move some of them there.'
        )
    names = _class_names(train_root)
    unknown = [name for name in _class_names(val_root) if name not in names]
    if unknown:
        raise UserError(f'{str(val_root / unknown[0])!r} is a class that {train_root} lacks.')
    train = _scan(train_root, names, ignored)
    val = _scan(val_root, names, ignored)
    for split, where in ((train, train_root), (val, val_root)):
        _require_images(split, where)
    return Source(train, val, tuple(names), _notes(ignored))


def _split_at_random(root, val_fraction, seed, ignored) -> Source:
    names = _class_names(root)
    every = _scan(root, names, ignored)
    _require_images(every, root)
    held_out = np.zeros(len(every), bool)
    for label in range(len(names)):
        rng = np.random.default_rng((seed, label))
        members = rng.permutation(np.nonzero(every.labels == label)[0])
        held_out[members[: round(len(members) * val_fraction)]] = True
    if held_out.all() or not held_out.any():
        raise UserError(
            f'config.data.val_fraction={val_fraction:g} of the {len(every)} images in '
            f'{str(root)!r} leaves one side without any; choose another fraction.'
        )
    paths = np.array(every.paths, dtype=object)
    parts = [FileSplit(list(paths[rows]), every.labels[rows]) for rows in (~held_out, held_out)]
    note = f'{int(held_out.sum())} of {len(every)} images held out for validation (seed {seed}).'
    return Source(*parts, tuple(names), (note, *_notes(ignored)))


def _class_names(root: pathlib.Path) -> list[str]:
    """Returns the names of the folders that hold an image, in the order of the labels."""
    names = [entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != '.']
    all_numbers = all(name.isdecimal() for name in names)
    names = sorted(names, key=(lambda name: (int(name), name)) if all_numbers else None)
    return [name for name in names if any(map(_is_image, (root / name).rglob('*')))]


def _is_image(path: pathlib.Path) -> bool:
    hidden = path.name.startswith('.')
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


def _scan(root: pathlib.Path, names: list[str], ignored: collections.Counter) -> FileSplit:
    """Lists the images of each class, in the order of their paths; counts the other files."""
    paths, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((root / name).rglob('*')):
            if _is_image(path):
                paths.append(path)
                labels.append(label)
            elif path.is_file():
                ignored[path.suffix or path.name] += 1
    return FileSplit(paths, np.array(labels, np.int32))


def _require_images(split: FileSplit, root: pathlib.Path) -> None:
    if not len(split):
        raise UserError(
            f'config.data.source: {str(root)!r} has no images in folders named after their classes.'
        )


def _notes(ignored: collections.Counter) -> tuple[str, ...]:
    if not ignored:
        return ()
    kinds = ', '.join(f'{count} {suffix}' for suffix, count in ignored.most_common(8))
    return (f'{ignored.total()} files that are no images were left out: {kinds}.',)
