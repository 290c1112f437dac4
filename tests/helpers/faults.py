"""How many cases tests of faults draw, and under which seeds."""

import os

FIRST_SEED = int(os.environ.get('FAULT_SEED', 0))


def draws(few: int) -> int:
    """Returns how many cases a test draws under each seed."""
    return int(os.environ.get('FAULT_CASES', few))
