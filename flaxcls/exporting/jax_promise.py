"""How long JAX promises to read what it exports.

JAX reads exports of releases that were built at most six months before it. What counts is when both
were built, not when one exports:
https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees
"""

import datetime
import re

_MONTHS = 6
# When the wheels were built, by the dates of the files in them.
BUILT = {
    (0, 10, 0): datetime.date(2026, 4, 16),
    (0, 10, 1): datetime.date(2026, 5, 18),
    (0, 10, 2): datetime.date(2026, 6, 17),
    (0, 11, 0): datetime.date(2026, 7, 16),
    (0, 11, 1): datetime.date(2026, 8, 17),
    (0, 11, 2): datetime.date(2026, 9, 17),
    (0, 12, 0): datetime.date(2026, 10, 16),
}


def readable_until(version: str) -> datetime.date:
    """Returns until when a JAX has to be built that is sure to read what a version has exported.

    Args:
      version: of jaxlib. Of one that is not in BUILT the newest before it counts, which promises
        less; of one before all, the first.
    """
    exact = tuple(map(int, re.match(r'\d+(\.\d+)*', version)[0].split('.')))
    built = max([known for known in BUILT if known <= exact], default=min(BUILT))
    month = BUILT[built].month - 1 + _MONTHS
    # The 28th, since every month has one.
    day = min(BUILT[built].day, 28)
    return datetime.date(BUILT[built].year + month // 12, month % 12 + 1, day)
