"""Garbage is collected again after a pause."""

import gc

import pytest

from flaxcls.system.garbage_collection import garbage_collection_paused


def test_garbage_is_collected_again_after_a_pause_and_after_an_error_in_it():
    with garbage_collection_paused():
        assert not gc.isenabled()
        with garbage_collection_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), garbage_collection_paused():
        _ = 1 / 0
    assert gc.isenabled()
