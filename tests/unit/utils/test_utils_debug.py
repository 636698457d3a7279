"""Looking into a process that misbehaves."""

from __future__ import annotations

import io
import signal
import sys
import threading
import types

import pytest

from celery_clone.platforms import signals
from celery_clone.utils import debug
from celery_clone.utils.debug import (
    blockdetection,
    cry,
    humanbytes,
    mem_rss,
    memdump,
    ps,
    sample,
    sample_mem,
)


@pytest.fixture
def psutil(monkeypatch):
    """The part of psutil that is used, with a memory that grows."""

    class Process:
        def __init__(self, pid):
            self.pid = pid
            self.asked = 0

        def memory_info(self):
            self.asked += 1
            return types.SimpleNamespace(rss=2**20 * self.asked)

    monkeypatch.setitem(sys.modules, "psutil", types.SimpleNamespace(Process=Process))
    monkeypatch.setattr(debug, "_process", None)
    monkeypatch.setattr(debug, "_mem_sample", [])


@pytest.fixture
def no_psutil(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(debug, "_process", None)


def test_a_body_that_takes_too_long_is_interrupted():
    signals["ALRM"] = before = lambda *_: None
    try:
        with pytest.raises(RuntimeError, match="Blocking detection timed-out"), blockdetection(0.01):
            signal.pause()
        assert signals["ALRM"] is before
    finally:
        signals.reset("ALRM")


def test_a_body_that_is_quick_is_left_alone():
    before = signals["ALRM"]
    with blockdetection(10):
        pass
    with blockdetection(None):
        pass
    assert signals["ALRM"] == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0b"), (1023, "1023b"), (1536, "1.5KB"), (2**20, "1MB"), (2**30 * 3, "3GB"), (2**41, "2TB")],
)
def test_sizes_read_well(size, text):
    assert humanbytes(size) == text


def test_samples_are_evenly_spread():
    assert list(sample(range(100), 10)) == list(range(0, 100, 10))
    assert list(sample(range(100), 5, 3)) == [3, 23, 43, 63, 83]
    assert list(sample([1, 2], 10)) == [1, 2]


def test_memory_is_known_with_psutil(psutil):
    assert mem_rss() == "1MB"
    assert sample_mem() == "2MB"
    assert ps() is ps()


def test_a_dump_shows_samples_and_the_end(psutil):
    for _ in range(20):
        sample_mem()
    out = io.StringIO()
    memdump(samples=4, file=out)
    assert out.getvalue().splitlines() == [
        "- rss (sample):",
        "-    > 1MB,",
        "-    > 6MB,",
        "-    > 11MB,",
        "-    > 16MB,",
        "- rss (end): 21MB.",
    ]


def test_memory_is_unknown_without_psutil(no_psutil):
    out = io.StringIO()
    memdump(file=out)
    assert out.getvalue() == "- rss: (psutil not installed).\n"
    assert mem_rss() is None


def test_every_thread_says_what_it_does():
    gate = threading.Lock()
    gate.acquire()

    def wait_at_gate(landmark):
        gate.acquire()

    waiting = threading.Thread(target=wait_at_gate, args=("unmistakable",), name="Waiting")
    waiting.start()
    try:
        while "unmistakable" not in (text := cry()):
            pass
    finally:
        gate.release()
        waiting.join()
    assert "MainThread\n" + "=" * 49 in text
    assert "Waiting\n" + "=" * 49 in text
    assert "LOCAL VARIABLES" in text
    assert "'landmark': 'unmistakable'" in text
