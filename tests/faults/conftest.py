"""Cases are drawn anew for each seed, which a failing test names.

FAULT_CASES=200 FAULT_SEED=1 python -m pytest tests/faults      draws other ones, and more
"""

import pytest

from tests.helpers.faults import FIRST_SEED


@pytest.fixture(params=range(FIRST_SEED, FIRST_SEED + 3), ids='seed {}'.format)
def seed(request):
    return request.param
