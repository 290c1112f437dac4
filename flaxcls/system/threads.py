"""Threads that decode images: how many, and what they are used for."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

_Item, _Result = TypeVar('_Item'), TypeVar('_Result')
ITEMS_AHEAD = 256


def count_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def map_in_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int | None = None
) -> Iterator[_Result]:
    """Yields function(item) in order, computed at most ITEMS_AHEAD before it is taken.

    `threads` is how many compute; None: one per core at hand.

    Items are taken likewise, so that there may be any number of them. When the iterator is closed,
    or `function` raises, what has not begun is not done any more.
    """
    pool = futures.ThreadPoolExecutor(threads or count_cores())
    waiting: collections.deque[futures.Future[_Result]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == ITEMS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
