"""Finding the image files that cannot be read, before any of them is trained on.

Every file is decoded once. Those found to be readable are remembered by path, size and time of
change, so that the next run over the same files begins at once.
"""

import os
import time
from typing import NamedTuple

import numpy as np

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
    """Returns the split without its unreadable files, and notes about these.

    Args:
      split: whose files are opened.
      name: of the split, for the messages.
      on_error: stop or skip.
      num_threads: for decoding.

    Raises:
      RunError: there are some, and `on_error` is stop.
    """
    bad = find_unreadable(split, num_threads)
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
    paths = [split.paths[row] for row in np.nonzero(kept)[0]]
    return FileSplit(paths, split.labels[kept]), [f'{found} and are left out ({listed}{more}).']


def find_unreadable(split: FileSplit, num_threads: int) -> list[UnreadableFile]:
    """Returns the files that `images.decode` refuses, in their order."""
    fingerprints = split.fingerprints()
    folders = sorted({os.path.dirname(path) for path in split.paths})
    memory = user_cache_path('readable', '\n'.join(folders))
    known = load_or_none(memory)
    known = np.zeros(0, np.uint64) if known is None else known
    unknown = np.nonzero(~np.isin(fingerprints, known))[0]
    if not len(unknown):
        return []
    start = time.perf_counter()
    print(f'Reading {len(unknown):,} image files once, to find unreadable ones ...', flush=True)
    reasons = map_in_threads(lambda index: _why_unreadable(split, index), unknown, num_threads)
    found = zip(unknown.tolist(), reasons, strict=True)
    bad = [UnreadableFile(index, reason) for index, reason in found if reason]
    print(f'... {time.perf_counter() - start:.1f} s.', flush=True)
    readable = np.delete(fingerprints, [index for index, _ in bad])
    save_atomically(memory, np.union1d(known, readable))
    return bad


def _why_unreadable(split: FileSplit, index: int) -> str | None:
    try:
        images.open_image(split[index][0]).decode(min_scale=0.125, fast=True)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return str(error)
    return None
