"""From a split to iterators of host batches.

A training batch is a function of (seed, step): order and crops are drawn anew from these, and
resuming at step k starts at k. Nothing else has to be remembered.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np

from flaxcls.data.crops import BOX_TRIES, EvalCrop, TrainCrop
from flaxcls.data.datasets import ArraySplit, Split, Subset, raise_unreadable
from flaxcls.errors import UserError
from flaxcls.system.threads import count_cores

Batch = dict[str, np.ndarray]
_MAX_BYTES_RESIZED_IN_MEMORY = 2**31
_ORDER, _CROPS = 0, 1  # What random numbers are drawn for, so that no two draws are the same.


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Returns the number of whole batches in the training set.

    Raises:
      UserError: there is none.
    """
    if batch_size > len(split):
        raise UserError(
            f'config.batch_size={batch_size} is larger than the training set of '
            f'{len(split)} examples; choose a smaller one.'
        )
    return len(split) // batch_size


def make_train_batches(
    split: Split,
    crop: TrainCrop,
    *,
    batch_size: int,
    num_epochs: int,
    seed: int,
    repeats: int = 1,
    microbatches: int = 1,
    num_threads: int | None = None,
    num_classes: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[int], Iterator[Batch]]:
    """Returns start_step -> this process's share of the global batches from that step on.

    Every epoch is a new permutation, drawn from (seed, epoch), cut to whole batches. With repeated
    augmentation (arXiv:1901.09335) an image stands in so many consecutive rows, and an epoch of as
    many steps as ever shows so many times fewer images. A batch is
    {'image': uint8 [B, S, S, 3], 'label': int32 [B]} with B = batch_size / process_count.

    Args:
      split: from which examples are taken, by index.
      crop: how each is cut.
      batch_size: examples of a global batch.
      num_epochs: after which the batches end.
      seed: of the order, and of random crops.
      repeats: rows in which each image stands.
      microbatches: how many a batch is accumulated from.
      num_threads: for decoding; None: one per core.
      num_classes: which labels lie below; another one is refused as it is met. None: none is.
      process_index, process_count: each process reads its rows of each microbatch.
    """
    by_process = np.arange(batch_size).reshape(microbatches, process_count, -1)
    rows = by_process[:, process_index].ravel()
    different = batch_size // repeats
    per_epoch = steps_per_epoch(split, batch_size)
    load = _make_loader(split, crop, num_threads, num_classes)

    @functools.lru_cache(maxsize=2)  # Threads that read ahead may be in two epochs at once.
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, _ORDER, epoch)).permutation(len(split))

    def load_step(step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        indices = order(epoch)[place * different : (place + 1) * different]
        # Drawn for the global batch, so that they belong to the example, not to process or thread.
        rng = np.random.default_rng((seed, _CROPS, step))
        uniforms = rng.random((batch_size, BOX_TRIES, 4), np.float32)
        return load(np.repeat(indices, repeats)[rows], uniforms[rows])

    batches = _map(load_step, num_epochs * per_epoch)
    return lambda start_step: _read_ahead(batches[start_step:])


def make_eval_batches(
    split: Split,
    crop: EvalCrop,
    *,
    batch_size: int,
    num_threads: int | None = None,
    num_classes: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[], Iterator[Batch]]:
    """Returns () -> this process's share of batches with every example once, in order.

    A batch is {'image': uint8 [B, S, S, 3], 'label': int32 [B], 'mask': bool [B]} with
    B = batch_size / process_count and S = crop.side; the last ones are filled up with zeros that
    the mask leaves out. The arguments are those of `make_train_batches`.
    """
    load = _make_loader(split, crop, num_threads, num_classes)
    share = batch_size // process_count

    def load_batch(first_of_all: int) -> Batch:
        first = first_of_all + process_index * share
        indices = np.arange(first, min(first + share, len(split)))
        batch = load(indices, None) | {'mask': np.ones(len(indices), bool)}
        missing = share - len(indices)
        return {k: np.pad(v, [(0, missing)] + [(0, 0)] * (v.ndim - 1)) for k, v in batch.items()}

    batches = _map(load_batch, 0, len(split), batch_size)
    return lambda: _read_ahead(batches)


def _map(function: Callable[[int], Batch], *bounds: int) -> Any:
    """Returns the grain.MapDataset of function(i) for each i of range(*bounds)."""
    import grain  # noqa: PLC0415 - a third of the time in which a classifier starts

    return grain.MapDataset.range(*bounds).map(function)


def _read_ahead(batches: Any) -> Iterator[Batch]:
    import grain  # noqa: PLC0415

    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def _make_loader(
    split: Split, crop: TrainCrop | EvalCrop, num_threads: int | None, num_classes: int | None
) -> Callable[..., Batch]:
    """Returns (indices [B], uniforms) -> {'image', 'label'}, the images cut to their size.

    The uniforms, [B, BOX_TRIES, 4], place the crops where these are random.
    """
    check = functools.partial(require_label, split, num_classes=num_classes)
    if isinstance(crop, TrainCrop) and crop.is_random:
        return _make_threaded_loader(split, crop.size, crop.cut, num_threads, check)
    side = crop.side if isinstance(crop, EvalCrop) else crop.size
    fits_in_memory = len(split) * side * side * 3 <= _MAX_BYTES_RESIZED_IN_MEMORY
    is_array = isinstance(split.split if isinstance(split, Subset) else split, ArraySplit)
    if is_array and fits_in_memory:
        return _make_memory_loader(split, crop.cut, check)
    return _make_threaded_loader(split, side, lambda image, _: crop.cut(image), num_threads, check)


def require_label(split: Split, index: int, label: int, num_classes: int | None) -> None:
    """Raises UserError if a label is none of the classes', as -1 where it is unknown."""
    if num_classes is not None and not 0 <= label < num_classes:
        raise UserError(
            f'{split.name(index)} has the label {label}, and there are {num_classes} classes, from '
            '0 on; choose a split with labels in config.data.train_split and config.data.val_split.'
        )


def _make_memory_loader(
    split: ArraySplit | Subset, cut: Callable[..., np.ndarray], check: Callable[[int, int], None]
) -> Callable[..., Batch]:
    """All images are cut now, so that a batch is one gather."""
    rows = np.arange(len(split))
    for index, label in enumerate(_labels_in_memory(split)):
        check(index, label)
    if isinstance(split, Subset):
        rows, split = np.asarray(split.indices), split.split
    resized = np.stack([cut(image) for image in split.images])

    def load(indices: np.ndarray, uniforms: object) -> Batch:
        del uniforms  # Nothing is random here.
        return {'image': resized[rows[indices]], 'label': split.labels[rows[indices]]}

    return load


def _labels_in_memory(split: ArraySplit | Subset) -> list[int]:
    if isinstance(split, Subset):
        return split.split.labels[np.asarray(split.indices)].tolist()
    return split.labels.tolist()


def _make_threaded_loader(
    split: Split,
    side: int,
    cut: Callable[..., np.ndarray],
    num_threads: int | None,
    check: Callable[[int, int], None],
) -> Callable[..., Batch]:
    """Images are read, decoded and cut by threads, each straight into its row of the batch."""
    threads = num_threads or count_cores()
    pool = futures.ThreadPoolExecutor(threads)

    def load(indices: np.ndarray, uniforms: np.ndarray | None) -> Batch:
        batch = {
            'image': np.empty((len(indices), side, side, 3), np.uint8),
            'label': np.empty(len(indices), np.int32),
        }

        def load_row(row: int) -> None:
            index = int(indices[row])
            try:
                image, label = split[index]
                check(index, label)
                batch['label'][row] = label
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
