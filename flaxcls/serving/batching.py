"""Rows that come at about the same time, computed as one batch."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import NamedTuple

import numpy as np


class _Waiting(NamedTuple):
    row: np.ndarray
    result: futures.Future[np.ndarray]
    came: float  # Of time.monotonic.


class Batcher:
    """Computes what is submitted in batches, in one thread, while it is entered as a context.

    A batch is computed as soon as it is full, or when its first row has waited for so long; rows
    that came while another batch was computed wait no longer. On leaving the context, what waits
    is computed first.
    """

    def __init__(
        self,
        compute: Callable[[np.ndarray], np.ndarray],
        *,
        max_batch: int,
        max_wait: float,
        observe: Callable[[int], None] = lambda size: None,
    ):
        """Stores the arguments; the thread starts on entering the context.

        Args:
          compute: [N, ...] with N of 1 to max_batch -> an array of N results.
          max_batch: how many rows are computed at once.
          max_wait: of the first row of a batch, in seconds.
          observe: is called with the size of each batch.
        """
        self._compute = compute
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._observe = observe
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._submitted = self._begun = 0  # Each is written by one thread.

    def __enter__(self) -> 'Batcher':
        # A daemon, so that a process which has to end at once does not wait for it.
        self._thread = threading.Thread(target=self._work, name='batches', daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._queue.put(None)
        self._thread.join()

    @property
    def waiting(self) -> int:
        """How many rows wait to be computed."""
        return self._submitted - self._begun

    @property
    def alive(self) -> bool:
        """Whether what is submitted is going to be computed."""
        return self._thread.is_alive()

    def submit(self, row: np.ndarray) -> futures.Future[np.ndarray]:
        """Returns the future result of a row; to be called by one thread, always the same."""
        result: futures.Future[np.ndarray] = futures.Future()
        self._submitted += 1
        self._queue.put(_Waiting(row, result, time.monotonic()))
        return result

    def _work(self) -> None:
        closing = False
        while not closing:
            batch, closing = self._next_batch()
            self._begun += len(batch)
            # A row whose request was given up is not computed any more.
            batch = [one for one in batch if one.result.set_running_or_notify_cancel()]
            if batch:
                self._compute_batch(batch)

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        """Returns at most max_batch rows, and whether these were the last."""
        batch: list[_Waiting] = []
        remaining: float | None = None  # Forever, for the first.
        while len(batch) < self._max_batch:
            try:
                one = self._queue.get(timeout=remaining)
            except queue.Empty:
                break
            if one is None:
                return batch, True
            batch.append(one)
            remaining = max(0.0, batch[0].came + self._max_wait - time.monotonic())
        return batch, False

    def _compute_batch(self, batch: list[_Waiting]) -> None:
        self._observe(len(batch))
        try:
            results = self._compute(np.stack([one.row for one in batch]))
        except Exception as error:  # Each request gets it; the next batch may succeed.
            for one in batch:
                one.result.set_exception(error)
            return
        for one, result in zip(batch, results, strict=True):
            one.result.set_result(result)
