"""Text for people."""

import pytest

from flaxcls.system import text


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [('run', '', 'loss'), ('a long name', 'x', '0.5'), ('b', '', 12345)]
    assert text.table(rows, '<<>') == [
        'run              loss',
        'a long name  x    0.5',
        'b               12345',
    ]


@pytest.mark.parametrize(
    ('seconds', 'shown'), [(0.4, '0:00:00'), (62, '0:01:02'), (90_061, '1 day, 1:01:01')]
)
def test_times(seconds, shown):
    assert text.clock(seconds) == shown


@pytest.mark.parametrize(
    ('size', 'shown'), [(50_000_000, '47.68 MiB'), (2**30, '1.00 GiB'), (2**41, '2.00 TiB')]
)
def test_sizes(size, shown):
    assert text.gib(size) == shown
