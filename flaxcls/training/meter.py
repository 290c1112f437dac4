"""The training metrics between two records: their sums, and where the time went."""

import time
from collections.abc import Iterator
from typing import Any

import jax

from flaxcls.training import metrics, parallel


class StepMeter:
    """The steps between two records: their sums, and where their time went.

    Attributes of the run: `batch_size` examples a step, and k of the top-k accuracy.
    """

    def __init__(self, batch_size: int, top_k: int):
        self._batch_size, self._top_k = batch_size, top_k
        self._compiled = False
        self.restart()

    def restart(self) -> None:
        """Begins a window now."""
        self._sums: list[metrics.Sums] = []
        self._timed_steps, self._waited = 0, 0.0
        self._began = time.monotonic()

    def wait_for(self, batches: Iterator[Any]) -> Any:
        """Returns the next batch, counting the time it took."""
        began = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - began
        return batch

    def add(self, sums: metrics.Sums) -> None:
        """Takes the sums of a step that has been started."""
        self._sums.append(sums)
        if not self._compiled:  # The first step's time is compilation, which no window counts.
            jax.block_until_ready(sums)
            self._compiled, self._waited, self._began = True, 0.0, time.monotonic()
            return
        self._timed_steps += 1
        parallel.throttle_dispatch(self._sums)

    def close(self) -> dict[str, float]:
        """Returns the metrics of the window, and begins the next."""
        record = dict(metrics.summarize(self._sums, 'train', self._top_k))
        seconds = max(time.monotonic() - self._began, 1e-9)
        if self._timed_steps:
            images = self._timed_steps * self._batch_size
            record['train/images_per_second'] = images / seconds
            record['train/data_wait_fraction'] = min(self._waited / seconds, 1.0)
        self.restart()
        return record
