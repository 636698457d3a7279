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
from pathlib import Path

import pytest

from tests.support.brokers import EACH_WITH_TEXTS, open_arena, start_server
from tests.support.fleet import Fleet
from tests.support.wait import wait_until

VISIBILITY_S = float(os.environ.get("CHAOS_VISIBILITY_S", "1"))
LEASE_S = float(os.environ.get("CHAOS_LEASE_S", "1"))
COUNTDOWN_S = float(os.environ.get("CHAOS_COUNTDOWN_S", "3"))
LONG_S = float(os.environ.get("CHAOS_LONG_S", "3"))
FLOOD = int(os.environ.get("CHAOS_FLOOD", "3000"))

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
