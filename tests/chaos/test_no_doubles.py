"""Due and long tasks, far beyond the visibility timeout: each runs once, and floods of due ones hold up nobody.

At full length::

    CHAOS_VISIBILITY_S=3 CHAOS_COUNTDOWN_S=10 CHAOS_LONG_S=10 CHAOS_LEASE_S=3 CHAOS_FLOOD=100000 \\
        pytest -s tests/chaos/test_no_doubles.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from celery_clone import group
from tests.support.brokers import AMQP, EACH, EACH_WITH_TEXTS, open_arena, start_server
from tests.support.fleet import Fleet
from tests.support.processes import pss_bytes
from tests.support.wait import wait_until

VISIBILITY_S = float(os.environ.get("CHAOS_VISIBILITY_S", "1"))
LEASE_S = float(os.environ.get("CHAOS_LEASE_S", "1"))
COUNTDOWN_S = float(os.environ.get("CHAOS_COUNTDOWN_S", "3"))
LONG_S = float(os.environ.get("CHAOS_LONG_S", "3"))
FLOOD = int(os.environ.get("CHAOS_FLOOD", "1500"))

DUE = 100
LONG = 20
WORKERS = 3


@pytest.fixture(scope="module")
def broker(request: pytest.FixtureRequest) -> str:
    """The name of a broker, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.fixture
def fleet(request: pytest.FixtureRequest, broker: str, tmp_path: Path) -> Iterator[Fleet]:
    """A project on the broker, without a worker."""
    options = {} if broker == "amqp" else {"visibility_timeout": VISIBILITY_S, "lease": LEASE_S}
    with open_arena(broker, request.getfixturevalue, tmp_path, **options) as arena:
        opened = Fleet(arena, tmp_path, queue_type=getattr(request, "param", "classic"))
        yield opened
        opened.close()


def assert_once(fleet: Fleet, name: str, numbers: set[int], again: AbstractSet[int] = frozenset()) -> None:
    """Each ran once; those of *again* once more at most."""
    begun = fleet.counts(f"{name}.begun")
    assert set(begun) == numbers
    doubled = {number: count for number, count in begun.items() if count > 1 and number not in again}
    assert not doubled, fleet.logs()
    assert all(begun[number] <= 2 for number in again)


@pytest.mark.timeout(120)
@pytest.mark.slow
@pytest.mark.parametrize("broker", EACH_WITH_TEXTS, indirect=True)
@pytest.mark.parametrize("killed", [False, True], ids=["quiet", "killed"])
def test_due_and_long_tasks_run_once(fleet, broker, killed):
    # Room for all long tasks and for those that are due meanwhile.
    workers = [fleet.worker("-c", "9", "-P", "threads", "-n", f"w{number}@here") for number in range(WORKERS)]
    for number in range(LONG):
        fleet.tasks.late.delay(number, LONG_S, "long")
    for number in range(DUE):
        fleet.tasks.late.apply_async((number, 0.0, "due"), countdown=COUNTDOWN_S)
    sent_at = time.time()
    again: set[int] = set()
    due_again: set[int] = set()
    if killed:
        fleet.wait_for_runs("long.begun", LONG)
        wait_until(lambda: time.time() >= sent_at + LONG_S / 2, LONG_S + 5)
        workers[0].kill()
        again, due_again = (
            {run.number for run in fleet.runs(f"{name}.begun") if run.pid == workers[0].pid} for name in ("long", "due")
        )
        assert again
    fleet.wait_for_all("long", set(range(LONG)), 2 * LONG_S + 3 * LEASE_S + 10)
    fleet.wait_for_all("due", set(range(DUE)), COUNTDOWN_S + LONG_S + 10)
    # What a sweep would take over wrongly it would take now.
    wait_until(lambda: time.time() >= sent_at + COUNTDOWN_S + LONG_S + 2 * VISIBILITY_S, 60)
    lateness = sorted(run.at - sent_at - COUNTDOWN_S for run in fleet.runs("due"))
    print(
        f"{broker}, killed={killed}: due ones at most {lateness[-1]:.2f} s late; again: {len(again)} allowed, "
        f"{sum(count > 1 for count in fleet.counts('long.begun').values())} were"
    )
    # On a busy machine the kill may come when the first ones are due.
    assert_once(fleet, "due", set(range(DUE)), due_again)
    assert_once(fleet, "long", set(range(LONG)), again)
    wait_until(lambda: not fleet.arena.taken(), 5, lambda: f"{fleet.arena.taken()} are taken")
    for worker in workers[killed:]:
        assert worker.stop(10) == 0


def flood(fleet: Fleet, count: int) -> None:
    """Send *count* tasks that are due in an hour."""
    eta = datetime.now(timezone.utc) + timedelta(hours=1)
    for start in range(0, count, 2000):
        numbers = range(start, min(count, start + 2000))
        group([fleet.tasks.late.s(number, 0.0, "flood").set(eta=eta) for number in numbers]).apply_async()


def parked(fleet: Fleet) -> int:
    """How many tasks wait in the broker for their time."""
    arena = fleet.arena
    if arena.name != "amqp":
        return arena.parked()
    with arena.connection() as connection:
        channel = connection.default_channel
        levels = (channel.queue_declare(f"celery_delayed_{level}", passive=True) for level in range(28))
        try:
            return sum(int(level.message_count) for level in levels)
        except connection.channel_errors:
            return 0  # the worker declares them when it first parks something


def assert_ten_run_at_once(fleet: Fleet, base: int) -> float:
    """Tasks that are due now do not wait behind those that are not; how long they took."""
    since = time.monotonic()
    for number in range(base, base + 10):
        fleet.tasks.early.delay(number)
    fleet.wait_for_all("early", set(range(base, base + 10)), 10)
    took_s = time.monotonic() - since
    assert took_s < 2.0
    return took_s


@pytest.mark.timeout(60 + FLOOD // 100)
@pytest.mark.slow
@pytest.mark.parametrize("broker", EACH, indirect=True)
def test_a_flood_of_due_tasks_waits_in_the_broker(fleet, broker):
    worker = fleet.worker("-c", "2", "-n", "one@here", "-l", "WARNING", ready=False)
    fleet.tasks.early.delay(-1)
    fleet.wait_for_runs("early", 1, 20)
    before = pss_bytes([worker.pid])
    flood(fleet, FLOOD)
    # Behind those that are not parked yet; how fast that goes on RabbitMQ is the broker's matter.
    meanwhile_s = assert_ten_run_at_once(fleet, 300) if broker != "amqp" else 0.0
    wait_until(lambda: parked(fleet) == FLOOD, 30 + FLOOD / 500, lambda: f"{parked(fleet)} are parked")
    took_s = assert_ten_run_at_once(fleet, 0)
    grown = pss_bytes([worker.pid]) - before
    print(
        f"{broker}: {FLOOD} due in an hour; ten run in {meanwhile_s:.2f} s while these are parked, in {took_s:.2f} s "
        f"afterwards; {grown / 2**20:.1f} MiB more in the worker"
    )
    assert grown < 50 * 2**20
    assert worker.stop(20) == 0
    again = fleet.worker("-c", "2", "-n", "two@here", "-l", "WARNING", ready=False)
    fleet.tasks.early.delay(-2)
    fleet.wait_for_all("early", {-2}, 20)
    assert_ten_run_at_once(fleet, 100)
    assert parked(fleet) == FLOOD
    assert again.stop(20) == 0
    assert not fleet.runs("flood.begun")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("broker", [AMQP], indirect=True)
@pytest.mark.parametrize("fleet", ["quorum"], indirect=True)
def test_a_quorum_queue_does_not_stand_still_behind_tasks_that_are_due_later(fleet, broker):
    worker = fleet.worker("-c", "2", "--prefetch-multiplier", "1", "-n", "one@here")
    for number in range(4):
        fleet.tasks.late.apply_async((number, 0.0, "later"), countdown=3)
    for number in range(10):
        fleet.tasks.early.delay(number)
    fleet.wait_for_all("early", set(range(10)), 2.5)
    assert not fleet.runs("later")
    assert set(fleet.wait_for_all("later", set(range(4)), 10).values()) == {1}
    assert worker.stop(10) == 0
