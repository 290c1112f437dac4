"""Finding the image files that cannot be read, before any of them is trained on.

Every file is decoded once. Of those found to be readable the content's digest is remembered, by
path, size and time of change, so that the next run over the same files begins at once.
"""

import dataclasses
import os
import pathlib
import time
from typing import NamedTuple

import numpy as np
import xxhash

from flaxcls.data import images
from flaxcls.data.datasets import FileSplit
from flaxcls.errors import RunError
from flaxcls.system.files import load_or_none, save_atomically, user_cache_path
from flaxcls.system.threads import map_in_threads

_NAMED = 5


class UnreadableFile(NamedTuple):
    index: int  # In the split.
    reason: str


def readable_part(
    split: FileSplit, name: str, *, on_error: str, num_threads: int
) -> tuple[FileSplit, list[str]]:
    """Returns the split without its unreadable files, its contents known, and notes about these.

    Args:
      split: whose files are opened.
      name: of the split, for the messages.
      on_error: stop or skip.
      num_threads: for decoding.

    Raises:
      RunError: there are some, and `on_error` is stop.
    """
    bad, digests = read_all(split, num_threads)
    split = dataclasses.replace(split, digests=digests)
    if not bad:
        return split, []
    listed = '; '.join(f'{split.paths[index]}: {reason}' for index, reason in bad[:_NAMED])
    more = f'; and {len(bad) - _NAMED} more' if len(bad) > _NAMED else ''
    found = f'{len(bad)} of {len(split)} {name} images cannot be read'
    if on_error == 'stop':
        raise RunError(
            f'{found} ({listed}{more}); repair them or move them away, or leave them out with '
            '--config.data.on_error=skip.'
        )
    kept = np.ones(len(split), bool)
    kept[[index for index, _ in bad]] = False
    if not kept.any():
        raise RunError(f'{found} ({listed}{more}).')
    return split.take(kept), [f'{found} and are left out ({listed}{more}).']


def read_all(split: FileSplit, num_threads: int) -> tuple[list[UnreadableFile], np.ndarray]:
    """Returns the files that `images.decode` refuses, in their order, and digests of the others.

    Digests are uint64 [N] of the contents, 0 where a file is refused.
    """
    fingerprints = split.fingerprints()
    folders = sorted({os.path.dirname(path) for path in split.paths})
    memory = user_cache_path('contents', '\n'.join(folders))
    known = _load_known(memory)
    digests = np.array([known.get(f, 0) for f in fingerprints.tolist()], np.uint64)
    unknown = np.nonzero(digests == 0)[0]
    if not len(unknown):
        return [], digests
    start = time.perf_counter()
    print(f'Reading {len(unknown):,} image files once, to find unreadable ones ...', flush=True)
    found = list(map_in_threads(lambda index: _read(split, index), unknown, num_threads))
    print(f'... {time.perf_counter() - start:.1f} s.', flush=True)
    bad = []
    for index, (digest, reason) in zip(unknown.tolist(), found, strict=True):
        digests[index] = digest
        if reason:
            bad.append(UnreadableFile(index, reason))
    known |= dict(zip(fingerprints.tolist(), digests.tolist(), strict=True))
    save_atomically(memory, np.array([pair for pair in known.items() if pair[1]], np.uint64))
    return bad, digests


def _load_known(memory: pathlib.Path) -> dict[int, int]:
    """Returns {fingerprint: digest} of the files that were readable before."""
    table = load_or_none(memory)
    if table is None or table.dtype != np.uint64 or table.ndim != 2 or table.shape[1] != 2:
        return {}
    return dict(table.tolist())


def _read(split: FileSplit, index: int) -> tuple[int, str | None]:
    """Returns the digest of a file's content, or 0 and why it cannot be decoded."""
    try:
        data, _ = split[index]
        images.open_image(data).decode(min_scale=0.125, fast=True)
    except OSError as error:
        return 0, error.strerror or str(error)
    except ValueError as error:
        return 0, str(error)
    return xxhash.xxh3_64_intdigest(data) or 1, None
