"""Python's search for garbage, which costs time where nothing is garbage."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Python looks for no cycles of garbage within it; also a decorator.

    A trace of a deep network makes a million objects that stay, among which Python looks again and
    again for cycles: of DenseNet-264's trace that was half the time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
