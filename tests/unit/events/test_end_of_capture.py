"""INT and TERM end a monitor between two events, not in the middle of a frame."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from celery_clone.events.dumper import ended_by_signals

BOTH = pytest.mark.parametrize(
    ("signum", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["INT", "TERM"]
)


@BOTH
def test_what_receives_is_told_to_stop_and_only_the_second_signal_breaks_in(signum, raised):
    receiver = SimpleNamespace(should_stop=False)
    with ended_by_signals() as end:
        end.receiver = receiver
        os.kill(os.getpid(), signum)
        assert receiver.should_stop
        assert end.wanted
        with pytest.raises(raised):
            os.kill(os.getpid(), signum)


@BOTH
def test_what_still_connects_is_interrupted_at_once(signum, raised):
    with ended_by_signals(), pytest.raises(raised):
        os.kill(os.getpid(), signum)


def test_the_handlers_from_before_are_there_again_afterwards():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with ended_by_signals():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_another_thread_than_the_main_one_installs_none():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def look():
        with ended_by_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]
