"""Threads that decode images: how many, and what they are used for."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import TypeVar

from ml_collections import ConfigDict

_Item, _Result = TypeVar('_Item'), TypeVar('_Result')
_ITEMS_AT_ONCE = 256


def num_threads(config: ConfigDict) -> int:
    """Returns how many threads decode images: as configured, or one per core at hand."""
    return config.data.num_threads or count_cores()


def count_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def map_in_threads(
    function: Callable[[_Item], _Result], items: Sequence[_Item], threads: int
) -> Iterator[_Result]:
    """Yields function(item) in order, never more than a few hundred ahead of who takes them."""
    with futures.ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(items), _ITEMS_AT_ONCE):
            yield from pool.map(function, items[first : first + _ITEMS_AT_ONCE])
