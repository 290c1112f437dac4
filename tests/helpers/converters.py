"""The converters of exports, which no environment of the tests has installed."""

import os

import pytest

from flaxcls.errors import RunError
from flaxcls.exporting.converters import require_converter


def need_converter(module):
    """Makes a converter importable, and fetches it once; without a network skips, in CI fails."""
    try:
        require_converter(module)
    except RunError as error:
        if os.environ.get('CI'):
            raise
        pytest.skip(str(error))
