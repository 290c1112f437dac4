"""The processor: its name, and what it can do."""

import hashlib
import pathlib
import platform


def processor_name() -> str:
    """Returns the model as the processor reports it, as in 'AMD EPYC 9B14'."""
    line = _find_line('model name')
    if line is None:  # Not Linux, or an ARM.
        return platform.processor() or platform.machine()
    return line.partition(':')[2].strip()


def instructions_digest() -> str:
    """Returns 8 hex digits that processors with the same instructions share."""
    instructions = _find_line('flags', 'Features') or platform.processor()
    facts = f'{platform.machine()}\n{instructions}'
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def _find_line(*beginnings: str) -> str | None:
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return None
    return next((line for line in lines if line.startswith(beginnings)), None)
