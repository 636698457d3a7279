"""On Redis real workers and ours take over from each other what a killed one held, and nothing from a living one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.processes import end_all
from tests.support.two_sides import SIDES, Client, lines_of, other, worker_of
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

VISIBLE = {"visibility_timeout": 2, "lease": 1, "unacked_restore_interval": 600}
"""When what was claimed may be taken over, in seconds; the lease is ours alone.

Kombu looks when a worker starts, and not again: it renews nothing, and would give back what its own worker holds.
"""

LOOKING = {**VISIBLE, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
"""And kombu looks every second."""


class Fleet:
    """Workers of both sides on one database, one process each, and one producer."""

    def __init__(self, pythons: dict[str, Path | str], url: str, folder: Path) -> None:
        self.pythons, self.url, self.folder = pythons, url, folder
        self.store = redis.Redis.from_url(url)
        self.client = Client(pythons["real"], "real", url, url)
        self.begun, self.notes, self.until = folder / "begun", folder / "notes", folder / "until"
        self.client.keep("begun", "str(path)", path=str(self.begun))
        self.client.keep("notes", "str(path)", path=str(self.notes))
        self.client.keep("until", "str(path)", path=str(self.until))
        self.workers: list[WorkerProcess] = []

    def start(self, side: str, transport: dict[str, Any]) -> WorkerProcess:
        """A worker that is ready."""
        settings = {"broker_transport_options": transport, "worker_prefetch_multiplier": 10}
        folder = self.folder / f"worker-{len(self.workers)}"
        folder.mkdir()
        options = ["-c", "1", "--without-mingle", "--without-gossip"]
        worker = worker_of(
            side, self.pythons[side], self.url, self.url, folder, *options, SETTINGS=json.dumps(settings)
        )
        self.workers.append(worker)
        return worker.start(40)

    def kill(self, worker: WorkerProcess) -> None:
        """What the kernel does to a worker that takes too much memory, and the end of what is left of it."""
        end_all(worker.kill())

    def held(self) -> int:
        found: int = self.store.hlen("unacked")
        return found

    def claims(self) -> str:
        """What is held, since when and until when, and what the workers say."""
        found = [f"now {time.time()}"]
        for key in ("unacked_index", "unacked_leases", "unacked_schedule"):
            found += [f"{key}: {row}" for row in self.store.zrange(key, 0, -1, withscores=True)]
        found += [f"{tag!r} is {entry!r}" for tag, entry in self.store.hgetall("unacked").items()]
        return "\n".join([*found, *(worker.log() for worker in self.workers)])

    def wait_until_held(self, count: int) -> None:
        wait_until(lambda: self.held() == count, 20, lambda: f"{count} held messages: {self.claims()}")

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.client.close()
        self.store.close()


@pytest.fixture
def fleet(pythons: dict[str, Path | str], redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Workers to be killed."""
    opened = Fleet(pythons, redis_url, tmp_path)
    yield opened
    opened.close()


SENT = [
    "note.delay(notes, 'first')",
    "note.apply_async((notes, 'urgent'), priority=0)",
    "note.apply_async((notes, 'patient'), priority=9)",
    "note.apply_async((notes, 'zipped'), compression='zlib', serializer='yaml')",
    "note.apply_async((notes, 'later'), countdown=1.5)",
    "note.apply_async((notes, 'in time'), expires=600)",
    "app.send_task('shop.note', (notes, 'by name'))",
]
WORDS = ["by name", "first", "in time", "later", "patient", "urgent", "zipped"]


@pytest.mark.parametrize("killed", SIDES, ids=["real-is-killed", "ours-is-killed"])
def test_what_a_killed_worker_held_is_run_by_one_of_the_other_side_and_stays_there(fleet: Fleet, killed: str) -> None:
    first = fleet.start(killed, {"lease": 1})
    fleet.client.keep("held", "hold.delay(begun, until)")
    lines_of(fleet.begun, 1)
    for call in SENT:
        fleet.client.keep("sent", call)
    fleet.wait_until_held(1 + len(SENT))

    fleet.kill(first)
    wait_until(lambda: fleet.store.zcount("unacked_index", time.time() - 2.1, "+inf") == 0, 10, "claims to grow old")
    fleet.start(other(killed), VISIBLE)

    assert [line.split()[1] for line in lines_of(fleet.begun, 2)] == [killed, other(killed)]
    fleet.start(killed, LOOKING if killed == "real" else {"lease": 1})
    # Ours renews what it holds. Real Celery does not, and is safe for the visibility timeout, an hour by default.
    wait_for_looks(fleet, killed, 3)
    if killed == "ours":
        wait_until(lambda: fleet.store.zcard("unacked_leases") == 0, 20, lambda: f"the end of leases: {fleet.claims()}")
    assert fleet.held() >= 1
    fleet.until.touch()
    assert fleet.client("held.get(timeout=20)") == other(killed)
    assert sorted(lines_of(fleet.notes, len(WORDS))) == WORDS
    assert len(lines_of(fleet.begun, 2)) == 2
    fleet.wait_until_held(0)
    assert fleet.store.zcard("unacked_index") == 0


def wait_for_looks(fleet: Fleet, side: str, count: int) -> None:
    """Return when the worker of *side* has looked for abandoned messages so often."""

    def looked() -> Any:
        if side == "ours":
            return fleet.store.hget("unacked_sweeps", "last")
        return fleet.store.info("commandstats").get("cmdstat_zrange")

    for _ in range(count):
        before = looked()
        wait_until(lambda before=before: looked() != before, 20, f"the {side} worker to look for abandoned messages")


def test_both_serve_one_queue_and_nothing_is_run_twice(link, sender, tmp_path):
    path, count = tmp_path / "notes", 120
    link.clients[sender](
        "[note.apply_async((path, str(n)), ignore_result=True).id for n in range(count)] and None",
        path=str(path),
        count=count,
    )
    assert sorted(lines_of(path, count), key=int) == [str(number) for number in range(count)]
