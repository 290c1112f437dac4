"""Images kept decoded and reduced, in memory or on disk, so that later epochs only cut them."""

import functools
import os
import pathlib
import shutil
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from array_record.python import array_record_data_source, array_record_module

from flaxcls.data import crops
from flaxcls.data.datasets import FileSplit, RecordSplit, Split, raise_unreadable
from flaxcls.errors import RunError, UserError
from flaxcls.system.files import user_cache_path
from flaxcls.system.threads import map_in_threads

_HEADER = struct.Struct('<III')  # Height, width, label; then the pixels.
_SAMPLE = 32  # Images from which the size of all is estimated.
_SHARE_OF_MEMORY = 0.5
_SHARE_OF_DISK = 0.9


class CachedSplit(NamedTuple):
    """Another split's examples, with the images as arrays."""

    records: Sequence[bytes]
    split: Split
    path: pathlib.Path | None = None  # None: in memory.

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        try:
            record = self.records[index]
        except (RuntimeError, ValueError) as error:  # What ArrayRecord says of damage.
            raise RunError(
                f'{self.path} in the cache is damaged ({error}); delete it, and it is made anew.'
            ) from None
        height, width, label = _HEADER.unpack_from(record)
        pixels = np.frombuffer(record, np.uint8, offset=_HEADER.size)
        return pixels.reshape(height, width, 3), label

    def name(self, index: int) -> str:
        return self.split.name(index)


def cached(split: Split, where: str, shorter_side: int, num_threads: int | None = None) -> Split:
    """Returns the split with its images kept decoded and reduced; arrays stay as they are.

    On disk they lie in the user's cache folder, and are made anew when a file has changed.

    Args:
      split: files or records.
      where: memory or disk.
      shorter_side: to which they are reduced, of a `TrainCrop` or an `EvalCrop`.
      num_threads: for decoding; None: one per core.

    Raises:
      UserError: they would not fit.
      RunError: an image cannot be read.
    """
    if not isinstance(split, FileSplit | RecordSplit):
        return split
    path = user_cache_path('images', f'{shorter_side} {split.identity()}')
    on_disk = where == 'disk'
    if on_disk and (records := _open_whole(path, len(split))) is not None:
        return CachedSplit(records, split, path)
    sample = np.linspace(0, len(split) - 1, _SAMPLE).astype(int).tolist()
    sampled = [len(_to_record(split, shorter_side, index)) for index in sample]
    _require_space(np.mean(sampled) * len(split), path, on_disk=on_disk)
    records = _all_records(split, shorter_side, num_threads)
    if on_disk:
        _write_records(path, records)
        return CachedSplit(_open_records(path), split, path)
    return CachedSplit(list(records), split)


def _to_record(split: Split, shorter: int, index: int) -> bytes:
    try:
        image, label = split[index]
        image = crops.reduce_shorter_side(image, shorter)
    except (ValueError, OSError) as error:
        raise_unreadable(split, index, error)
    return _HEADER.pack(*image.shape[:2], label) + image.tobytes()


def _all_records(split: Split, shorter: int, threads: int | None) -> Iterator[bytes]:
    print(f'Decoding {len(split):,} images for data.cache, once ...', flush=True)
    to_record = functools.partial(_to_record, split, shorter)
    return map_in_threads(to_record, range(len(split)), threads)


def _require_space(needed: float, path: pathlib.Path, *, on_disk: bool) -> None:
    if on_disk:
        path.parent.mkdir(parents=True, exist_ok=True)
        limit = _SHARE_OF_DISK * shutil.disk_usage(path.parent).free
    else:
        limit = _SHARE_OF_MEMORY * os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if needed > limit:
        kind, place = ('disk', f'{path.parent} has') if on_disk else ('memory', 'the machine has')
        raise UserError(
            f'config.data.cache={kind!r} needs about {needed / 2**30:.1f} GiB, and {place} '
            f'{limit / 2**30:.1f} to give; choose config.data.cache=none.'
        )


def _write_records(path: pathlib.Path, records: Iterator[bytes]) -> None:
    partial = path.with_name(f'{path.name}.{os.getpid()}')
    try:
        writer = array_record_module.ArrayRecordWriter(str(partial), 'group_size:1,uncompressed')
        for record in records:
            writer.write(record)
        writer.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _open_whole(path: pathlib.Path, count: int) -> Sequence[bytes] | None:
    """Returns the records of a file that holds so many; None: there is none, or it is removed."""
    if not path.exists():
        return None
    try:
        records = _open_records(path)
        if len(records) == count and all(len(records[i]) for i in (0, count - 1)):
            return records
    except (RuntimeError, ValueError, OSError, IndexError):
        pass
    print(f'Note: {path} in the cache is damaged, and made anew.')
    path.unlink()
    return None


def _open_records(path: pathlib.Path) -> Sequence[bytes]:
    return array_record_data_source.ArrayRecordDataSource(str(path))
