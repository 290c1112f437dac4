"""How many threads decode images."""

import os

from ml_collections import ConfigDict


def num_threads(config: ConfigDict) -> int:
    """Returns how many threads decode images: as configured, or one per core at hand."""
    if config.data.num_threads:
        return config.data.num_threads
    cores = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else range(os.cpu_count())
    return len(cores)
