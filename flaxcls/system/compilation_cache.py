"""Compiled programs, kept between processes: a run's second start is spared XLA's minutes."""

import hashlib
import os
import pathlib
import platform
from collections.abc import MutableMapping


def keep_compiled_programs(environment: MutableMapping[str, str] = os.environ) -> None:
    """Tells JAX, before it is imported, to keep programs in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR, if set, names another folder; JAX_ENABLE_COMPILATION_CACHE=false
    keeps none. The folder may be removed at any time.
    """
    if 'JAX_COMPILATION_CACHE_DIR' in environment:
        return
    home = environment.get('XDG_CACHE_HOME') or '~/.cache'
    folder = pathlib.Path(home).expanduser() / 'flaxcls' / f'xla-{_processor()}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # Nothing is lost but time.
        return
    if os.access(folder, os.W_OK):
        environment['JAX_COMPILATION_CACHE_DIR'] = str(folder)
        # A run has dozens of programs that take less than the second from which JAX keeps them.
        environment.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')


def _processor() -> str:
    """Returns a name for what the processor can do, which JAX does not tell programs apart by.

    Machines of one cluster often share a home and not their instructions.
    """
    facts = [platform.machine()]
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        facts += [next(line for line in lines if line.startswith(('flags', 'Features')))]
    except (OSError, StopIteration):
        facts += [platform.processor()]
    return hashlib.sha256('\n'.join(facts).encode()).hexdigest()[:8]
