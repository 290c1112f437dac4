"""What a process gives back is there when it asks again."""

import gc
import os
import subprocess
import sys

import pytest

from flaxcls.system.host_memory import garbage_collection_paused

_PROGRAM = """
import resource, sys, threading
from flaxcls.system.host_memory import keep_freed_memory

def use():
    b'x' * 2**27

def use_in_a_thread():
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()

print(keep_freed_memory() if sys.argv[1] == 'keep' else False)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
use_in_a_thread()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _run(mode, **environment):
    result = subprocess.run(
        [sys.executable, '-c', _PROGRAM, mode],
        capture_output=True, text=True, check=True, env=os.environ | environment,
    )  # fmt: skip
    asked, faults = result.stdout.split()
    return asked == 'True', int(faults)


@pytest.mark.skipif(sys.platform != 'linux', reason="glibc's")
def test_memory_that_was_freed_is_met_again_without_page_faults():
    asked, faults = _run('keep')
    if not asked:
        pytest.skip('another C library')
    assert faults < 100
    _, faults_without = _run('leave')
    assert faults_without > 20 * 100  # Else this test shows nothing.


def test_glibcs_own_variables_are_not_overruled():
    assert _run('keep', MALLOC_TRIM_THRESHOLD_='1000')[0] is False


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
