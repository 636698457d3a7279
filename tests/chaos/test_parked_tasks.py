"""Many tasks wait in the broker for their time: those that come due are run in time, whatever waits beside them.

At full length, where 2,000 come due in each second of a minute::

    CHAOS_PARKED=1000000 CHAOS_DUE_S=60 CHAOS_DUE_RATE=2000 pytest -s tests/chaos/test_parked_tasks.py
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.support.brokers import EACH_WITH_TEXTS, open_arena, start_server
from tests.support.fleet import Fleet
from tests.support.processes import pss_bytes
from tests.support.wait import wait_until

PARKED = int(os.environ.get("CHAOS_PARKED", "1500"))
DUE_S = float(os.environ.get("CHAOS_DUE_S", "1"))
DUE_RATE = int(os.environ.get("CHAOS_DUE_RATE", "500"))

MOST_LATE_S = 1.0 if PARKED > 100_000 else 4.0
"""The promise; a short run has other tests beside it, and few tasks to tell the slowest hundredth by."""

AT_ONCE = 2000
FAR_S = 86400.0


@pytest.fixture(scope="module", params=EACH_WITH_TEXTS)
def broker(request: pytest.FixtureRequest) -> str:
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.fixture
def fleet(request: pytest.FixtureRequest, broker: str, tmp_path: Path) -> Iterator[Fleet]:
    with open_arena(broker, request.getfixturevalue, tmp_path) as arena:
        opened = Fleet(arena, tmp_path)
        yield opened
        opened.close()


class Stencil:
    """Makes messages of a task quickly: one that was sent, with another number, id and time."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet = fleet
        fleet.tasks.early.apply_async((0, 0.0, name), countdown=1, task_id="<id>")
        message = json.loads(fleet.arena.pull_text("celery"))
        self._body = base64.b64decode(message["body"]).decode()
        message["body"], message["headers"]["eta"] = "<body>", "<eta>"
        message["properties"]["delivery_tag"] = "<tag>"
        self._text = json.dumps(message)

    def cut(self, number: int, due: float) -> bytes:
        body = base64.b64encode(self._body.replace("[[0,", f"[[{number},").encode()).decode()
        eta = datetime.fromtimestamp(due, timezone.utc).isoformat()
        text = self._text.replace("<id>", f"id-{number}-{due:.0f}").replace("<tag>", f"tag-{number}-{due:.0f}")
        return text.replace("<body>", body).replace("<eta>", eta).encode()

    def send(self, tasks: Iterable[tuple[int, float]]) -> None:
        texts: list[bytes] = []
        for number, due in tasks:
            texts.append(self.cut(number, due))
            if len(texts) == AT_ONCE:
                self.fleet.arena.put_text("celery", *texts)
                texts.clear()
        if texts:
            self.fleet.arena.put_text("celery", *texts)


def memory_of(pid: int) -> float:
    """In MiB."""
    return pss_bytes([pid]) / 2**20


@pytest.mark.timeout(120 + PARKED // 1000 + 4 * int(DUE_S))
@pytest.mark.slow
def test_what_comes_due_among_many_is_run_in_time(fleet, broker):
    far, due = Stencil(fleet, "far"), Stencil(fleet, "due")
    count = int(DUE_S * DUE_RATE)
    worker = fleet.worker("-c", "2", "-n", "one@here", "-l", "WARNING", ready=False)
    fleet.tasks.early.delay(-1)
    fleet.wait_for_runs("early", 1, 20)
    memory = [memory_of(worker.pid)]
    began = time.monotonic()
    far.send((number, time.time() + FAR_S) for number in range(PARKED - count))
    wait_until(lambda: fleet.arena.parked() == PARKED - count, 60 + PARKED / 1000, lambda: f"{fleet.arena.parked()}")
    took_s = time.monotonic() - began
    memory.append(memory_of(worker.pid))
    # Time enough for these to be parked, too.
    first = time.time() + 3 + count / 2000
    due.send((number, first + number / DUE_RATE) for number in range(count))
    wait_until(lambda: fleet.arena.parked() == PARKED, 60, lambda: f"{fleet.arena.parked()} are parked")
    in_time = time.time() < first
    wait_until(lambda: time.time() > first + DUE_S / 2, first - time.time() + DUE_S)
    memory.append(memory_of(worker.pid))
    # Not by reading all of it again and again: that would take the processor from the worker.
    notes = fleet.folder / "due"
    wait_until(lambda: notes.read_bytes().count(b"\n") == count, DUE_S + 60, fleet.logs, every=0.5)
    memory.append(memory_of(worker.pid))
    lateness = sorted(run.at - first - run.number / DUE_RATE for run in fleet.runs("due.begun"))
    at_99 = lateness[int(0.99 * len(lateness))]
    print(
        f"{broker}: {PARKED - count} parked in {took_s:.0f} s; {count} beside them due within {DUE_S:g} s, late by "
        f"{lateness[len(lateness) // 2]:.3f} s (median), {at_99:.3f} s (99 %), {lateness[-1]:.3f} s (most); "
        f"memory of the worker {', '.join(f'{each:.1f}' for each in memory)} MiB"
    )
    assert in_time, "they were still being parked when they came due: the times say nothing"
    assert at_99 < MOST_LATE_S
    assert lateness[0] >= 0.0
    assert set(fleet.counts("due.begun").values()) == {1}
    assert fleet.arena.parked() == PARKED - count
    assert max(memory) - memory[0] < 30
    assert not fleet.runs("far.begun")
    assert worker.stop(20) == 0
