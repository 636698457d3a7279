"""Acknowledgements that come too late for the broker, or not at all: what ran is not run again where that can be known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from celery_clone import states
from tests.support.brokers import AMQP, REDIS, Arena, open_arena, start_server
from tests.support.fleet import Fleet
from tests.support.rabbitmq import RabbitServer
from tests.support.wait import wait_until

TIMEOUT_S = 2


@pytest.fixture(scope="module")
def impatient_rabbitmq() -> Iterator[RabbitServer]:
    """A RabbitMQ that closes a channel whose acknowledgement is two seconds late."""
    settings = {"consumer_timeout": TIMEOUT_S * 1000, "channel_tick_interval": 500}
    with RabbitServer(management=False, rabbit_settings=settings) as server:
        yield server


@pytest.mark.timeout(60)
@pytest.mark.rabbitmq
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_that_outlasts_the_consumer_timeout_runs_once_and_the_worker_lives(impatient_rabbitmq, tmp_path, pool):
    fleet = Fleet(Arena("amqp", impatient_rabbitmq.url(), "rpc://"), tmp_path)
    try:
        worker = fleet.worker("-c", "2", "-P", pool, "-n", f"{pool}@here", "--without-mingle")
        fleet.tasks.late_until.delay("long", "end of long")
        fleet.wait_for_runs("long.begun")
        worker.wait_for_log("The broker closed the channel", timeout=TIMEOUT_S + 8)
        fleet.tasks.early.delay(1)
        fleet.wait_for_runs("early")
        worker.wait_for_log("was given out again while it ran: not run twice")
        fleet.open("end of long")
        fleet.wait_for_runs("long")
        wait_until(lambda: fleet.arena.waiting("celery") == 0, 5)
        assert worker.stop(10) == 0
        assert len(fleet.runs("long.begun")) == 1
        assert fleet.arena.waiting("celery") == 0, "its message was not acknowledged"
    finally:
        fleet.close()


@pytest.mark.timeout(60)
@pytest.mark.rabbitmq
def test_a_task_of_the_solo_pool_outlasts_the_heartbeats_and_stays_with_its_worker(
    rabbitmq_url: str, tmp_path: Path
) -> None:
    """The broker closes a connection that is silent for two heartbeats, and another worker would get the task."""
    fleet = Fleet(Arena("amqp", rabbitmq_url, "rpc://"), tmp_path, settings={"broker_heartbeat": 1})
    try:
        workers = [fleet.worker("-P", "solo", "-n", f"{name}@here", "--without-mingle") for name in ("one", "other")]
        fleet.tasks.late_until.delay("long", "end of long")
        fleet.wait_for_runs("long.begun")
        silent = time.monotonic() + 4
        wait_until(lambda: time.monotonic() > silent, 10, "four heartbeats")
        fleet.open("end of long")
        fleet.wait_for_runs("long")
        assert [worker.stop(10) for worker in workers] == [0, 0]
        assert len(fleet.runs("long.begun")) == 1
        assert not any("lost" in worker.log() for worker in workers)
        assert fleet.arena.waiting("celery") == 0
    finally:
        fleet.close()


@pytest.fixture(scope="module", params=[REDIS, AMQP])
def served(request: pytest.FixtureRequest) -> str:
    """The name of each broker that is a server; the session's runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.mark.timeout(60)
def test_a_task_that_has_succeeded_is_not_run_again_though_its_worker_died_before_it_said_so(
    request: pytest.FixtureRequest, served: str, proxy_to: Any, tmp_path: Path
) -> None:
    results = f"sqlite:///{tmp_path}/results.db"
    with open_arena(served, request.getfixturevalue, tmp_path) as arena:
        if served == "redis":
            arena.options["lease"] = 1
        arena.results = results
        port = urlsplit(arena.url).port
        proxy = proxy_to(port)
        through = arena.url.replace(f":{port}", f":{proxy.port}")
        fleet = Fleet(arena, tmp_path, through=through, settings={"worker_deduplicate_successful_tasks": True})
        try:
            first = fleet.worker("-c", "1", "-n", "first@here")
            result = fleet.tasks.late_until.delay("once", "end")
            fleet.wait_for_runs("once.begun")
            proxy.forget()  # what it says from now on, nobody hears
            fleet.open("end")
            wait_until(lambda: result.state == states.SUCCESS, 10)
            first.kill()
            fleet.through = arena.url
            second = fleet.worker("-c", "1", "-n", "second@here")
            second.wait_for_log("already completed successfully", timeout=15)
            wait_until(lambda: not arena.taken() and arena.waiting("celery") == 0, 5)
            assert second.stop(10) == 0
            assert arena.waiting("celery") == 0
            assert len(fleet.runs("once.begun")) == 1
        finally:
            fleet.close()
