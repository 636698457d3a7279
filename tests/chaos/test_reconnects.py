"""Connections are lost in every way there is: each worker is at work again in seconds, as one consumer, with its books right.

At full length, for all pools::

    CHAOS_OUTAGE_S=10 CHAOS_ROUNDS=5 CHAOS_SILENCE_S=60 CHAOS_POOLS=all CHAOS_CUTS=10 \\
        pytest tests/chaos/test_reconnects.py
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from tests.support.brokers import AMQP, REDIS, open_arena, start_server
from tests.support.fleet import Fleet
from tests.support.processes import pss_bytes
from tests.support.proxy import TcpProxy
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

OUTAGE_S = float(os.environ.get("CHAOS_OUTAGE_S", "1"))
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
SILENCE_S = float(os.environ.get("CHAOS_SILENCE_S", "4"))
CUTS = int(os.environ.get("CHAOS_CUTS", "3"))
ALL_POOLS = os.environ.get("CHAOS_POOLS") == "all"
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 10_000)

POOLS = ("prefork", "solo", "threads", "gevent", "eventlet", "asyncio")
LIVELY = 20
WITHIN_S = 10.0
"""So many tasks must be done in this time after each loss."""


def after(seconds: float) -> None:
    """Return when a time has passed that is itself what is tested."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 5)


class Way:
    """A project whose workers reach their broker through a proxy."""

    def __init__(self, fleet: Fleet, proxy: TcpProxy) -> None:
        self.fleet, self.proxy = fleet, proxy
        self.rounds = 0
        self.slowest_s = 0.0

    def assert_lively(self, worker: WorkerProcess) -> None:
        """Twenty tasks are done in time, and the worker is one consumer."""
        self.rounds += 1
        numbers = set(range(self.rounds * 100, self.rounds * 100 + LIVELY))
        since = time.monotonic()
        for number in numbers:
            self.fleet.tasks.early.delay(number)
        self.fleet.wait_for_all("early", numbers, WITHIN_S)
        self.slowest_s = max(self.slowest_s, time.monotonic() - since)
        wait_until(lambda: self.consumers() == 1, 5, lambda: f"one consumer, not {self.consumers()}\n{worker.log()}")
        assert worker.exit_code is None

    def consumers(self) -> int:
        """How many the broker believes to take from the queue."""
        arena = self.fleet.arena
        if arena.name == "redis":
            parts = urlsplit(arena.url)
            with redis.Redis(port=parts.port or 6379) as client:
                # The bell of a source is the one connection that tracks keys.
                return sum(
                    1 for each in client.client_list() if each["db"] == parts.path.strip("/") and "t" in each["flags"]
                )
        with arena.connection() as connection:
            queue = self.fleet.tasks.app.amqp.queues["celery"]
            return int(queue(connection.default_channel).queue_declare(passive=True).consumer_count)


@pytest.fixture(scope="module", params=[REDIS, AMQP])
def served(request: pytest.FixtureRequest) -> str:
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.fixture
def ways(request: pytest.FixtureRequest, served: str, proxy_to: Any, tmp_path: Path) -> Iterator[Callable[..., Way]]:
    with open_arena(served, request.getfixturevalue, tmp_path, lease=2) as arena:
        opened: list[Fleet] = []

        def open_way(settings: dict[str, Any] | None = None, **options: Any) -> Way:
            arena.options.update(options)
            port = urlsplit(arena.url).port
            proxy = proxy_to(port)
            through = arena.url.replace(f":{port}", f":{proxy.port}")
            opened.append(Fleet(arena, tmp_path, through=through, settings=settings))
            return Way(opened[-1], proxy)

        yield open_way
        for fleet in opened:
            fleet.close()


def options_of(pool: str, gossip: bool) -> tuple[str, ...]:
    return ("-P", pool, "-c", "1" if pool == "solo" else "2", *(() if gossip else ("--without-gossip",)))


EVERY_WAY = [
    pytest.param(pool, gossip, id=f"{pool}-{'gossip' if gossip else 'alone'}")
    for pool in POOLS
    for gossip in (True, False)
    if ALL_POOLS or (pool, gossip) in (("prefork", True), ("gevent", False))
]


@pytest.mark.timeout(400)
@pytest.mark.slow
@pytest.mark.parametrize(("pool", "gossip"), EVERY_WAY)
def test_a_worker_is_at_work_again_after_every_kind_of_loss(ways, pool, gossip, record_property):
    way = ways({} if SILENCE_S >= 60 else {"broker_heartbeat": 2}, **({} if SILENCE_S >= 60 else {"socket_timeout": 2}))
    chance = random.Random(SEED)
    worker = way.fleet.worker(*options_of(pool, gossip), "-n", "one@here", ready=False)
    for _ in range(ROUNDS):
        # Three resets within three seconds, while it starts.
        for _ in range(3):
            after(chance.uniform(0.2, 1.0) if ROUNDS > 1 else 0.3)
            way.proxy.cut()
        way.assert_lively(worker)
        if ROUNDS > 1:
            assert worker.stop(20) == 0
            worker = way.fleet.worker(*options_of(pool, gossip), "-n", "one@here", ready=False)
    worker.wait_until_ready()
    for _ in range(ROUNDS):
        way.proxy.refuse()
        after(OUTAGE_S)
        way.proxy.accept()
        way.assert_lively(worker)
    forgotten = way.proxy.forget()
    assert forgotten
    after(SILENCE_S)
    way.assert_lively(worker)
    record_property("seed", SEED)
    record_property("slowest_s", round(way.slowest_s, 2))
    print(f"{pool} gossip={gossip}: 20 tasks at slowest after {way.slowest_s:.2f} s (seed {SEED})")
    assert "Traceback" not in worker.log()
    assert worker.stop(20) == 0


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_the_books_of_a_worker_hold_over_reconnects(ways, record_property):
    way = ways({"worker_prefetch_multiplier": 1})
    fleet, control = way.fleet, way.fleet.tasks.app.control
    worker = fleet.worker("-c", "2", "-Q", "a,b", "-n", "one@here")
    fleet.tasks.late_until.apply_async(("long", "end of long"), queue="a")
    fleet.wait_for_runs("long.begun")
    assert control.cancel_consumer("b", destination=["one@here"], reply=True)
    worker.wait_for_log("Canceling queue b")
    memory, slowest_s = [], 0.0
    for cut in range(CUTS):
        fleet.tasks.early.apply_async((cut, 0.0, "of b"), queue="b")
        assert way.proxy.cut()
        since = time.monotonic()
        fleet.tasks.late.apply_async((cut, 0.0, "of a"), queue="a")
        fleet.wait_for_runs("of a", cut + 1)
        slowest_s = max(slowest_s, time.monotonic() - since)
        memory.append(pss_bytes([worker.pid]))
    assert slowest_s < 2.0, worker.log()
    wait_until(lambda: fleet.arena.waiting("b") == CUTS, 5, lambda: f"{fleet.arena.waiting('b')} wait in b")
    (stats,) = control.inspect(["one@here"], timeout=5).stats().values()
    assert stats["prefetch_count"] == 2
    assert fleet.counts("long.begun") == {0: 1}
    # One slot is taken by the long task, the other by the second; the third and fourth find none.
    for name in ("second", "third", "fourth"):
        fleet.tasks.late_until.apply_async((name, f"end of {name}"), queue="a")
    fleet.wait_for_runs("second.begun")
    wait_until(lambda: fleet.arena.waiting("a") == 2, 5, lambda: f"{fleet.arena.waiting('a')} wait in a")
    for name in ("long", "second", "third", "fourth"):
        fleet.open(f"end of {name}")
        fleet.wait_for_runs(name)
        assert len(fleet.runs(f"{name}.begun")) == 1
    assert not fleet.runs("of b")
    record_property("slowest_s", round(slowest_s, 2))
    print(f"after {CUTS} cuts: slowest {slowest_s:.2f} s; memory {[round(each / 2**20, 1) for each in memory]} MiB")
    if CUTS >= 10:
        assert memory[-1] - memory[2] < 8 * 2**20
    assert worker.stop(10) == 0


@pytest.mark.timeout(60)
def test_a_worker_goes_over_to_the_next_broker_of_its_list(ways):
    way = ways()
    fleet, second = way.fleet, way.fleet.arena
    # The first is away already when the worker starts, comes, and goes.
    way.proxy.refuse()
    fleet.through = f"{fleet.through};{second.url}"
    worker = fleet.worker("-c", "1", "-n", "one@here")
    assert "Will retry using next failover" in worker.log()
    fleet.tasks.early.delay(1)
    fleet.wait_for_runs("early", 1)
    assert worker.stop(10) == 0
    way.proxy.accept()
    worker = fleet.worker("-c", "1", "-n", "one@here")
    fleet.tasks.early.delay(2)
    fleet.wait_for_runs("early", 2)
    assert way.proxy.open_connections
    way.proxy.refuse()
    worker.wait_for_log("Will retry using next failover")
    since = time.monotonic()
    fleet.tasks.early.delay(3)
    fleet.wait_for_runs("early", 3)
    assert time.monotonic() - since < WITHIN_S
    assert fleet.counts("early") == {1: 1, 2: 1, 3: 1}
    assert worker.stop(10) == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("setting", ["broker_connection_retry", "broker_connection_retry_on_startup"])
def test_a_worker_that_shall_not_retry_ends_and_says_so(ways, setting):
    way = ways({setting: False})
    if setting.endswith("startup"):
        way.proxy.refuse()
        worker = way.fleet.worker("-c", "1", ready=False)
    else:
        worker = way.fleet.worker("-c", "1")
        way.proxy.refuse()
    assert worker.wait(20) == 1
    assert f"app.conf.{setting}=False" in worker.log()
