"""Workers are told to end while they are busy: what runs is finished or given back, and nothing is lost or doubled.

At full length::

    CHAOS_WAITING=200 CHAOS_ROLLS=10 pytest -s tests/chaos/test_shutdowns.py
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.brokers import EACH, open_arena, start_server
from tests.support.fleet import Fleet
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

WAITING = int(os.environ.get("CHAOS_WAITING", "60"))
ROLLS = int(os.environ.get("CHAOS_ROLLS", "1"))
SOFT_S = 1.5


@pytest.fixture(scope="module", params=EACH)
def broker(request: pytest.FixtureRequest) -> str:
    """The name of each broker, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.fixture
def fleet(request: pytest.FixtureRequest, broker: str, tmp_path: Path) -> Iterator[Fleet]:
    options = {} if broker == "amqp" else {"lease": 2}
    with open_arena(broker, request.getfixturevalue, tmp_path, **options) as arena:
        opened = Fleet(arena, tmp_path, settings={"worker_soft_shutdown_timeout": SOFT_S})
        yield opened
        opened.close()


def busy_worker(fleet: Fleet, *options: str) -> WorkerProcess:
    """Two tasks run, one of each kind, and many wait: some with the worker, some in the queue."""
    worker = fleet.worker("-c", "2", "--prefetch-multiplier", str(WAITING // 4), "-n", "one@here", *options)
    fleet.tasks.late_until.delay("running late", "end of late")
    fleet.tasks.early_until.delay("running early", "end of early")
    for name in ("running late", "running early"):
        fleet.wait_for_runs(f"{name}.begun")
    for number in range(WAITING):
        (fleet.tasks.late if number % 2 else fleet.tasks.early).delay(number, 0.0, "waiting")
    return worker


def assert_each_ran_once(fleet: Fleet) -> None:
    """Another worker runs all that waits, each once, and nothing is left."""
    other = fleet.worker("-c", "2", "-n", "two@here")
    counts = fleet.wait_for_all("waiting", set(range(WAITING)), 20)
    assert set(counts.values()) == {1}
    wait_until(lambda: fleet.arena.waiting("celery") == 0, 5, lambda: f"{fleet.arena.waiting('celery')} wait")
    wait_until(lambda: not fleet.arena.taken(), 5, lambda: f"{fleet.arena.taken()} are taken")
    assert other.stop(10) == 0


@pytest.mark.timeout(60)
def test_a_warm_end_finishes_what_runs_and_gives_the_rest_back_before_it_is_over(fleet):
    worker = busy_worker(fleet)
    worker.signal(signal.SIGTERM)
    # At once, and not only when the two are done.
    wait_until(lambda: fleet.arena.waiting("celery") == WAITING, 5, lambda: f"{fleet.arena.waiting('celery')} wait")
    assert worker.exit_code is None
    for name in ("late", "early"):
        fleet.open(f"end of {name}")
    assert worker.wait(10) == 0
    assert fleet.arena.waiting("celery") == WAITING
    assert fleet.counts("running late") == fleet.counts("running early") == {0: 1}
    assert_each_ran_once(fleet)
    assert fleet.counts("running late.begun") == fleet.counts("running early.begun") == {0: 1}


@pytest.mark.timeout(60)
def test_a_soft_end_has_a_deadline_after_which_late_tasks_go_back(fleet):
    worker = busy_worker(fleet)
    since = time.monotonic()
    worker.signal(signal.SIGQUIT)
    worker.wait_for_log("Soft shutdown")
    fleet.open("end of early")
    assert worker.wait(20) == 0
    assert SOFT_S <= time.monotonic() - since < SOFT_S + 5
    assert "Soft shutdown" in worker.log()
    assert fleet.counts("running early") == {0: 1}
    assert not fleet.runs("running late")
    assert fleet.arena.waiting("celery") == WAITING + 1
    fleet.open("end of late")
    assert_each_ran_once(fleet)
    assert (fleet.counts("running late"), fleet.counts("running late.begun")) == ({0: 1}, {0: 2})


@pytest.mark.timeout(60)
def test_a_cold_end_gives_late_tasks_back_at_once(fleet):
    worker = busy_worker(fleet)
    since = time.monotonic()
    worker.signal(signal.SIGQUIT)
    worker.wait_for_log("Soft shutdown")
    worker.signal(signal.SIGQUIT)
    assert worker.wait(20) == 0
    assert time.monotonic() - since < SOFT_S + 3
    assert not fleet.runs("running late") and not fleet.runs("running early")
    assert fleet.arena.waiting("celery") == WAITING + 1
    for name in ("late", "early"):
        fleet.open(f"end of {name}")
    assert_each_ran_once(fleet)
    assert fleet.counts("running early.begun") == {0: 1}  # it was acknowledged when it began


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_rolling_restart_under_load_loses_and_doubles_nothing(fleet):
    workers = [fleet.worker("-c", "2", "-n", f"w{number}@here") for number in range(2)]
    sent, moment = 0, 0.0
    for roll in range(2 * ROLLS):
        until = time.monotonic() + 1.0
        at = roll % 2
        workers[at].signal(signal.SIGTERM)
        replaced = False
        while time.monotonic() < until or not replaced:
            (fleet.tasks.late if sent % 2 else fleet.tasks.early).delay(sent, (0.0, 0.02)[sent % 3 == 0], "rolled")
            sent += 1
            if not replaced and workers[at].exit_code is not None:
                assert workers[at].exit_code == 0
                workers[at] = fleet.worker("-c", "2", "-n", f"w{at}@here", ready=False)
                replaced = True
            moment = time.monotonic() + 0.004
            wait_until(lambda: time.monotonic() >= moment, every=0.001)  # noqa: B023
        workers[at].wait_until_ready()
    counts = fleet.wait_for_all("rolled", set(range(sent)), 30)
    doubled = {number: count for number, count in fleet.counts("rolled.begun").items() if count > 1}
    print(f"{fleet.arena.name}: {2 * ROLLS} restarts, {sent} tasks, {len(doubled)} doubled")
    assert not doubled
    assert len(counts) == sent
    for worker in workers:
        assert worker.stop(20) == 0
    assert fleet.arena.waiting("celery") == 0
