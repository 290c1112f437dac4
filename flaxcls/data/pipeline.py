"""(config, split) -> iterators of host batches.

A training batch is a function of (seed, step): order and crops are drawn anew from these, and
resuming at step k starts at k. Nothing else has to be remembered.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from flaxcls.config.defaults import image_size
from flaxcls.data import crops
from flaxcls.data.datasets import ArraySplit, Split, Subset, raise_unreadable
from flaxcls.errors import UserError
from flaxcls.system.threads import num_threads

Batch = dict[str, np.ndarray]
_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)  # Counted in batches.
_MAX_BYTES_RESIZED_IN_MEMORY = 2**31
_ORDER, _CROPS = 0, 1  # What random numbers are drawn for, so that no two draws are the same.


def steps_per_epoch(config: ConfigDict, split: Split) -> int:
    """Returns the number of whole batches in the training set.

    Raises:
      UserError: there is none.
    """
    if config.batch_size > len(split):
        raise UserError(
            f'config.batch_size={config.batch_size} is larger than the training set of '
            f'{len(split)} examples; choose a smaller one.'
        )
    return len(split) // config.batch_size


def make_train_batches(
    config: ConfigDict, split: Split, *, process_index: int = 0, process_count: int = 1
) -> Callable[[int], Iterator[Batch]]:
    """Returns start_step -> this process's share of the global batches from that step on.

    Every epoch is a new permutation, drawn from (seed, epoch), cut to whole batches. With repeated
    augmentation (arXiv:1901.09335) an image stands in so many consecutive rows, and an epoch of as
    many steps as ever shows so many times fewer images. A batch is
    {'image': uint8 [B, S, S, 3], 'label': int32 [B]} with B = batch_size / process_count.

    Args:
      config: a full config.
      split: the training examples.
      process_index, process_count: each process reads its rows of each part of the batch.
    """
    parts = config.parallel.accumulation_steps
    by_process = np.arange(config.batch_size).reshape(parts, process_count, -1)
    rows = by_process[:, process_index].ravel()
    different = config.batch_size // config.augment.repeats
    per_epoch = steps_per_epoch(config, split)
    load = _make_loader(config, split, training=True)

    @functools.lru_cache(maxsize=2)  # Threads that read ahead may be in two epochs at once.
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((config.seed, _ORDER, epoch)).permutation(len(split))

    def load_step(step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        indices = order(epoch)[place * different : (place + 1) * different]
        # Drawn for the global batch, so that they belong to the example, not to process or thread.
        rng = np.random.default_rng((config.seed, _CROPS, step))
        uniforms = rng.random((config.batch_size, crops.BOX_TRIES, 4), np.float32)
        return load(np.repeat(indices, config.augment.repeats)[rows], uniforms[rows])

    batches = grain.MapDataset.range(config.num_epochs * per_epoch).map(load_step)
    return lambda start_step: iter(batches[start_step:].to_iter_dataset(_READ_AHEAD))


def cuts_on_host(config: ConfigDict) -> bool:
    """Returns whether random resized crops are cut as files are decoded, not in the step."""
    return config.augment.crop == 'random_resized' and config.augment.crop_on == 'host'


def make_eval_batches(
    config: ConfigDict, split: Split, *, process_index: int = 0, process_count: int = 1
) -> Callable[[], Iterator[Batch]]:
    """Returns () -> this process's share of batches with every example once, in order.

    A batch is {'image': uint8 [B, S, S, 3], 'label': int32 [B], 'mask': bool [B]} with
    B = batch_size / process_count; the last ones are filled up with zeros that the mask leaves out.
    S is image_size, or with ten crops the side of the image that they are cut from.
    """
    load = _make_loader(config, split, training=False)
    share = config.batch_size // process_count

    def load_batch(first_of_all: int) -> Batch:
        first = first_of_all + process_index * share
        indices = np.arange(first, min(first + share, len(split)))
        batch = load(indices, None) | {'mask': np.ones(len(indices), bool)}
        missing = share - len(indices)
        return {k: np.pad(v, [(0, missing)] + [(0, 0)] * (v.ndim - 1)) for k, v in batch.items()}

    batches = grain.MapDataset.range(0, len(split), config.batch_size).map(load_batch)
    return lambda: iter(batches.to_iter_dataset(_READ_AHEAD))


def _make_loader(config: ConfigDict, split: Split, *, training: bool) -> Callable[..., Batch]:
    """Returns (indices [B], uniforms) -> {'image', 'label'}, the images cut to their size.

    The uniforms, [B, BOX_TRIES, 4], place the crops where these are random.
    """
    size, cut = _make_center_cut(config, training=training)
    fits_in_memory = len(split) * size * size * 3 <= _MAX_BYTES_RESIZED_IN_MEMORY
    if training and (random_cut := _random_cut(config, size)):
        return _make_threaded_loader(config, split, size, random_cut)
    is_array = isinstance(split.split if isinstance(split, Subset) else split, ArraySplit)
    if is_array and fits_in_memory:
        return _make_memory_loader(split, cut)
    return _make_threaded_loader(config, split, size, lambda image, _: cut(image))


def make_eval_cut(config: ConfigDict) -> tuple[int, Callable[[np.ndarray | bytes], np.ndarray]]:
    """Returns S of `make_eval_batches`, and what makes an image uint8 [S, S, 3].

    That takes uint8 [H, W, 1 or 3] or the bytes of a file, and raises ValueError for bytes that are
    no readable image.
    """
    return _make_center_cut(config, training=False)


def _make_center_cut(
    config: ConfigDict, *, training: bool
) -> tuple[int, Callable[[np.ndarray | bytes], np.ndarray]]:
    """Returns the side of the images, and what cuts them from the middle."""
    size, crop_fraction = image_size(config, training=training), config.data.eval_crop_fraction
    if not training and config.data.eval_crops == 'ten':
        size, crop_fraction = round(size / crop_fraction), 1.0
    cut = functools.partial(crops.resize_and_center_crop, size=size, crop_fraction=crop_fraction)
    return size, cut


def _random_cut(config: ConfigDict, size: int) -> Callable[..., np.ndarray] | None:
    """Returns (image, uniforms [BOX_TRIES, 4]) -> a crop, or None where no crop is random."""
    if cuts_on_host(config):
        min_area = config.augment.min_area
        return lambda image, uniforms: crops.random_resized_crop(image, size, uniforms, min_area)
    if config.augment.crop == 'random':
        fraction = config.data.eval_crop_fraction
        return lambda image, uniforms: crops.resize_and_random_crop(image, size, uniforms, fraction)
    return None


def _make_memory_loader(
    split: ArraySplit | Subset, cut: Callable[..., np.ndarray]
) -> Callable[..., Batch]:
    """All images are cut now, so that a batch is one gather."""
    rows = np.arange(len(split))
    if isinstance(split, Subset):
        rows, split = np.asarray(split.indices), split.split
    resized = np.stack([cut(image) for image in split.images])

    def load(indices: np.ndarray, uniforms: Any) -> Batch:
        del uniforms  # Nothing is random here.
        return {'image': resized[rows[indices]], 'label': split.labels[rows[indices]]}

    return load


def _make_threaded_loader(
    config: ConfigDict, split: Split, size: int, cut: Callable[..., np.ndarray]
) -> Callable[..., Batch]:
    """Images are read, decoded and cut by threads, each straight into its row of the batch."""
    threads = num_threads(config)
    pool = futures.ThreadPoolExecutor(threads)

    def load(indices: np.ndarray, uniforms: np.ndarray | None) -> Batch:
        batch = {
            'image': np.empty((len(indices), size, size, 3), np.uint8),
            'label': np.empty(len(indices), np.int32),
        }

        def load_row(row: int) -> None:
            index = int(indices[row])
            try:
                image, batch['label'][row] = split[index]
                batch['image'][row] = cut(image, None if uniforms is None else uniforms[row])
            except (ValueError, OSError) as error:
                raise_unreadable(split, index, error)

        def load_rows(first: int) -> None:  # A task for each row would cost a tenth of the time.
            for row in range(first, len(indices), threads):
                load_row(row)

        for _ in pool.map(load_rows, range(threads)):  # Raises here what a thread raised.
            pass
        return batch

    return load
