"""The tools every other test stands on tell the truth about processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.processes import children_of, cpu_seconds, end, is_alive, pss_bytes, send_signal, tree_of
from tests.support.wait import wait_until

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    yield parent, child
    send_signal(child, signal.SIGKILL)
    end(parent)


def test_a_condition_that_never_holds_fails_with_its_description_and_last_answer() -> None:
    with pytest.raises(AssertionError, match=r"in vain for the moon; the last answer was 0"):
        wait_until(lambda: 0, 0.05, lambda: "the moon")


def test_waiting_returns_the_first_true_answer() -> None:
    answers = iter([0, "", "done"])
    assert wait_until(lambda: next(answers)) == "done"


def test_children_are_found_and_a_killed_child_is_no_longer_alive(
    family: tuple[subprocess.Popen[bytes], int],
) -> None:
    parent, child = family
    assert children_of(parent.pid) == [child]
    assert tree_of(parent.pid) == [parent.pid, child]
    send_signal(child, signal.SIGKILL)
    wait_until(lambda: not is_alive(child), describe="the end of the child")
    assert tree_of(child) == []


def test_a_process_has_memory_and_has_used_processor_time(
    family: tuple[subprocess.Popen[bytes], int],
) -> None:
    parent, child = family
    assert pss_bytes([parent.pid, child]) > 2_000_000
    assert cpu_seconds([os.getpid()]) >= 0.01
    assert cpu_seconds([]) == 0


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: not is_alive(process.pid), describe="the end of a process nobody has waited for")
    assert process.wait(5) == 0
