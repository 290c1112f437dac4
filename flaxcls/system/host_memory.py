"""Settings of the host's memory that cost time where they are left alone: glibc's and Python's.

XLA asks the C library for a program's temporary memory at each call, gigabytes for a ResNet-50, and
glibc hands so much back to the kernel at once: the next step then meets a page fault for every 4 KB
that it touches, which was a fifth of its time. What is kept is at most what the process has needed.
"""

import contextlib
import ctypes
import gc
import os
import platform
from collections.abc import Iterator

# Of glibc's malloc.h. The thread that runs a program changes, so there is one heap for all.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = -1


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed; before threads are started. Returns whether it was asked.

    Whoever sets one of glibc's own variables, such as MALLOC_ARENA_MAX, is not overruled.
    """
    if platform.libc_ver()[0] != 'glibc' or any(name.startswith('MALLOC_') for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER}
    return all([mallopt(option, value) for option, value in settings.items()])


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
