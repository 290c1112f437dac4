"""Signals: what becomes of Ctrl-C while libraries run asyncio."""

import asyncio
import signal
import threading

import pytest

from flaxcls.system.signals import interrupts_left_alone


def test_ctrl_c_interrupts_and_asyncio_sets_no_handler():
    seen = []

    async def look():
        seen.append(signal.getsignal(signal.SIGINT))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_left_alone():
            ours = signal.getsignal(signal.SIGINT)
            asyncio.run(look())
            signal.raise_signal(signal.SIGINT)
        assert seen == [ours]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_somebody_has_set_stays():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_left_alone():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_may_read_as_well():
    failures = []

    def read():
        try:
            with interrupts_left_alone():
                asyncio.run(asyncio.sleep(0))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert not failures
