"""Compiled programs, kept between processes: a run's second start is spared XLA's minutes."""

import os

import platformdirs

from flaxcls.system.processor import instructions_digest


def keep_compiled_programs() -> None:
    """Has JAX, before it is imported, keep programs in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR, if set, names another folder; JAX_ENABLE_COMPILATION_CACHE=false
    keeps none. The folder may be removed at any time.
    """
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    # Machines of one cluster often share a home and not their instruction set, which is not in
    # the key of JAX's cache.
    try:
        folder = platformdirs.user_cache_path('flaxcls') / f'xla-{instructions_digest()}'
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # Nothing is lost but time; or there is no home.
        return
    if os.access(folder, os.W_OK):
        os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
        # A run has dozens of programs that take less than the second from which JAX keeps them.
        os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
