"""McNemar's test: whether one of two classifiers is better than the other."""

from typing import NamedTuple

import numpy as np


class McNemar(NamedTuple):
    """What only one of two classifiers has right, and how likely chance alone divides it so."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> McNemar:
    """Returns McNemar's exact, two-sided test of two classifiers, bool [N], on the same examples.

    Of examples that only one has right, each has an even chance to be the one's or the other's if
    both are equally good.
    """
    from scipy.stats import binomtest  # noqa: PLC0415 - slow to import

    only_a, only_b = int(np.sum(correct_a & ~correct_b)), int(np.sum(correct_b & ~correct_a))
    different = only_a + only_b
    p_value = binomtest(only_a, different, 0.5).pvalue if different else 1.0
    return McNemar(only_a, only_b, float(p_value))
