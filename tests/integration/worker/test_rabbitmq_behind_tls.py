"""RabbitMQ behind TLS: messages and answers, the worker's own reading included, and a loop that stands still."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.brokers import Arena
from tests.support.fleet import Fleet
from tests.support.rabbitmq import RabbitServer
from tests.support.wait import wait_until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitServer]:
    with RabbitServer(management=False, tls=True) as running:
        yield running


@pytest.fixture
def make_fleet(server: RabbitServer, tmp_path: Path) -> Iterator[Any]:
    """A project whose workers and producers trust the server's certificate and nothing else."""
    assert server.certificate is not None
    trust = {"ca_certs": str(server.certificate.path), "cert_reqs": int(ssl.CERT_REQUIRED)}
    opened: list[Fleet] = []

    def make(**settings: Any) -> Fleet:
        arena = Arena("amqp", f"amqp://guest:guest@localhost:{server.tls_port}//", "rpc://")
        opened.append(Fleet(arena, tmp_path, settings={"broker_use_ssl": trust, **settings}))
        return opened[-1]

    yield make
    for fleet in opened:
        fleet.close()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_tasks_run_and_answer_and_due_ones_wait(make_fleet: Any, pool: str) -> None:
    fleet = make_fleet()
    worker = fleet.worker("-P", pool, "-c", "2", "-n", f"{pool}@here")
    (fleet.folder / "open").touch()

    due = fleet.tasks.late_until.apply_async(("due", "open"), countdown=1)
    assert [fleet.tasks.late_until.delay("now", "open").get(timeout=10) for _ in range(20)] == ["now"] * 20
    assert due.get(timeout=10) == "due"
    assert fleet.tasks.app.control.ping([f"{pool}@here"], timeout=10)
    assert worker.stop(10) == 0
    assert "Traceback" not in worker.log()


def test_a_task_of_the_solo_pool_outlasts_the_heartbeats(make_fleet: Any) -> None:
    fleet = make_fleet(broker_heartbeat=1)
    worker = fleet.worker("-P", "solo", "-n", "one@here")
    running = fleet.tasks.late_until.delay("long", "end of long")
    fleet.wait_for_runs("long.begun")
    silent = time.monotonic() + 4
    wait_until(lambda: time.monotonic() > silent, 10, "four heartbeats")
    (fleet.folder / "end of long").touch()

    assert running.get(timeout=10) == "long"
    assert worker.stop(10) == 0
    assert len(fleet.runs("long.begun")) == 1
    assert "lost" not in worker.log()
