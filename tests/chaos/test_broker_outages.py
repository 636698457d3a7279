"""The broker goes away and comes back: workers are at work again in seconds, with nothing lost.

``CHAOS_OUTAGE_S`` is how long the broker stays away each time, 2 seconds unless it says otherwise; ``CHAOS_CUTS`` is
how often a connection is cut while tasks are sent, 10 times unless it says otherwise.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kombu.exceptions import OperationalError

from tests.support.brokers import AMQP, EACH_WITH_TEXTS, REDIS, Arena, load_project, open_arena, start_server
from tests.support.proxy import TcpProxy
from tests.support.rabbitmq import RabbitServer
from tests.support.redis import RedisServer
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

OUTAGE_S = float(os.environ.get("CHAOS_OUTAGE_S", "2"))
CUTS = int(os.environ.get("CHAOS_CUTS", "10"))
OUTAGES = 2
"""One is a crash, one an orderly end."""

QUEUES = ("busy", "idle")
AGAIN_S = 5.0
"""Within so many seconds after the broker is back its messages must be run again."""

PROJECT = """
import json, os, time
from pathlib import Path
from celery_clone import Celery, bootsteps

app = Celery("project", broker=os.environ["BROKER"], set_as_current=False)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])
HERE = Path(__file__).parent

def note(name, text):
    descriptor = os.open(HERE / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{text}\\n".encode())
    finally:
        os.close(descriptor)

class Counting(bootsteps.StartStopStep):
    # Notes at each connection what waits in the hub of the worker.

    requires = ("celery_clone.worker.consumer.tasks:Tasks",)

    def start(self, c):
        timers = sum(not row.entry.canceled for row in c.hub.timer._queue) if c.hub else 0
        note("registered", f"{len(c.hub.on_tick) if c.hub else 0} {timers}")

app.steps["consumer"].add(Counting)

@app.task
def early(number): note("early", f"{number} {time.time()}")

@app.task(acks_late=True)
def late(number, seconds=0.0):
    time.sleep(seconds)
    note("late", f"{number} {time.time()}")

@app.task(acks_late=True)
def blocked(name, gate):
    note(name, "begun")
    until = time.monotonic() + 60
    while not (HERE / gate).exists() and time.monotonic() < until:
        time.sleep(0.005)
    note(name + ".ended", "")
"""


class Target:
    """A project whose broker goes away."""

    def __init__(self, arena: Arena, folder: Path) -> None:
        self.arena, self.folder = arena, folder
        (folder / "project.py").write_text(PROJECT)
        self.environment = {name: value for name, value in arena.environment.items() if name != "RESULTS"}
        self.tasks: Any = load_project(folder / "project.py", self.environment)
        self.workers: list[WorkerProcess] = []

    def worker(self, *options: str, ready: bool = True) -> WorkerProcess:
        worker = WorkerProcess("project", options, folder=self.folder, environment=self.environment)
        self.workers.append(worker)
        return worker.start() if ready else worker.spawn()

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def wait_for_lines(self, name: str, count: int = 1, timeout: float = 15.0) -> list[str]:
        return wait_until(
            lambda: lines if len(lines := self.lines(name)) >= count else [],
            timeout,
            lambda: f"{count} lines of {name}, which has {len(self.lines(name))}; a log:\n{self.workers[-1].log()}",
            every=0.005,
        )

    def runs(self, name: str) -> Counter[int]:
        return Counter(int(line.split()[0]) for line in self.lines(name))

    def gate(self, name: str) -> None:
        (self.folder / name).touch()

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.tasks.app.close()


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[Callable[..., Target]]:
    """``targets(arena)``: a project on that broker, without a worker."""
    opened: list[Target] = []

    def open_target(name: str, url: str, **options: Any) -> Target:
        opened.append(Target(Arena(name, url, "", {"lease": 2, **options}), tmp_path))
        return opened[-1]

    yield open_target
    for one in opened:
        one.close()


class LockedFile:
    """An SQLite file that somebody keeps locked, which is as away as a file can be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None

    def stop(self) -> None:
        self._database = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        self._database.execute("BEGIN EXCLUSIVE")

    kill = stop

    def start(self) -> None:
        assert self._database is not None
        self._database.rollback()
        self._database.close()


@pytest.fixture
def redis_broker(own_redis_server: RedisServer, targets: Callable[..., Target]) -> tuple[Any, Target]:
    return own_redis_server, targets("redis", own_redis_server.url())


@pytest.fixture
def rabbitmq_broker(own_rabbitmq_server: RabbitServer, targets: Callable[..., Target]) -> tuple[Any, Target]:
    return own_rabbitmq_server, targets("amqp", own_rabbitmq_server.url())


@pytest.fixture
def sqlite_broker(targets: Callable[..., Target], tmp_path: Path) -> tuple[Any, Target]:
    path = tmp_path / "broker.db"
    return LockedFile(path), targets("sqlite", f"sqlite:///{path}")


@pytest.fixture(params=["sqlite_broker", "redis_broker", "rabbitmq_broker"])
def broker(request: pytest.FixtureRequest) -> tuple[Any, Target]:
    """A broker of the test's own and a project on it."""
    return request.getfixturevalue(request.param)


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_a_worker_consumes_again_within_seconds_and_nothing_is_lost(broker, record_property):
    server, target = broker
    worker = target.worker("-c", "2", "-n", "one@here")
    sent = 0
    pauses = []
    for outage in range(OUTAGES):
        running, gate = f"running-{outage}", f"gate-{outage}"
        target.tasks.blocked.delay(running, gate)
        target.wait_for_lines(running)
        for _ in range(30):
            # Some are run, some fetched, some still in the queue when the broker goes.
            target.tasks.late.delay(sent, 0.02)
            target.tasks.early.delay(sent)
            sent += 1
        away = time.monotonic()
        server.kill() if outage % 2 == 0 else server.stop()
        # What was begun goes on, and ends while nobody can be told.
        target.gate(gate)
        target.wait_for_lines(f"{running}.ended")
        wait_until(lambda away=away: time.monotonic() - away >= OUTAGE_S, OUTAGE_S + 5)
        server.start()
        back = time.time()
        target.tasks.early.delay(-1 - outage)
        wait_until(lambda outage=outage: target.runs("early")[-1 - outage], 20, worker.log, every=0.005)
        (at,) = (float(line.split()[1]) for line in target.lines("early") if line.startswith(f"{-1 - outage} "))
        pauses.append(round(at - back, 2))
        assert at - back < AGAIN_S, worker.log()

    def complete() -> bool:
        return all(set(range(sent)) <= set(target.runs(name)) for name in ("early", "late"))

    wait_until(complete, 20, lambda: f"all of {sent}: {target.runs('early')} {target.runs('late')}\n{worker.log()}")
    if target.arena.taken() is not None:
        wait_until(lambda: not target.arena.taken(), 10, lambda: f"{target.arena.taken()} are taken\n{worker.log()}")
    wait_until(lambda: target.arena.waiting("celery") == 0, 10, "an empty queue")
    doubled = [number for name in ("early", "late") for number, count in target.runs(name).items() if count > 1]
    record_property("seconds_to_consume_again", str(pauses))
    record_property("run_more_than_once", len(doubled))
    if target.arena.name != "amqp":
        assert not doubled
        assert all(len(target.lines(f"running-{outage}.ended")) == 1 for outage in range(OUTAGES))
    assert worker.exit_code is None
    assert worker.stop(10) == 0


@pytest.fixture(scope="module", params=[REDIS, AMQP])
def served(request: pytest.FixtureRequest) -> str:
    """The name of each broker that is a server; the session's runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.fixture
def behind_proxy(
    request: pytest.FixtureRequest, served: str, targets: Callable[..., Target], proxy_to: Any, tmp_path: Path
) -> Iterator[tuple[TcpProxy, Target]]:
    """A project whose way to the broker is bad."""
    with open_arena(served, request.getfixturevalue, tmp_path) as arena:
        port = urlsplit(arena.url).port
        proxy = proxy_to(port)
        yield proxy, targets(served, arena.url.replace(f":{port}", f":{proxy.port}"))


@pytest.mark.timeout(120 + 2 * CUTS)
@pytest.mark.slow
def test_connections_cut_again_and_again_lose_nothing(behind_proxy, record_property):
    proxy, target = behind_proxy
    worker = target.worker("-c", "2", "-n", "one@here")
    chance = random.Random(11)
    sent: set[int] = set()
    numbers = itertools.count()
    cuts = refused = 0
    while cuts < CUTS:
        for number in itertools.islice(numbers, 10):
            try:
                target.tasks.late.delay(number, chance.choice([0.0, 0.0, 0.01]))
            except OperationalError:
                refused += 1  # the caller knows
            else:
                sent.add(number)
        moment = time.monotonic() + chance.uniform(0.0, 0.15)
        wait_until(lambda moment=moment: time.monotonic() >= moment, every=0.001)
        cuts += bool(proxy.cut())
    since = time.monotonic()
    wait_until(
        lambda: sent <= set(target.runs("late")),
        20,
        lambda: f"{sorted(sent - set(target.runs('late')))} of {len(sent)}\n{worker.log()}",
    )
    doubled = sum(1 for count in target.runs("late").values() if count > 1)
    record_property("cuts", cuts)
    record_property("run_more_than_once", doubled)
    print(
        f"{target.arena.name}: {cuts} cuts, {len(sent)} tasks sent, {refused} refused, {doubled} run again; "
        f"all done {time.monotonic() - since:.1f} s after the last cut"
    )
    assert worker.stop(10) == 0


def test_a_connection_leaves_nothing_behind_in_the_hub_of_its_worker(behind_proxy):
    proxy, target = behind_proxy
    worker = target.worker("-c", "1")
    for count in range(1, 4):
        target.wait_for_lines("registered", count)
        target.tasks.early.delay(count)
        target.wait_for_lines("early", count)
        assert proxy.cut()
    calls, timers = zip(*(map(int, line.split()) for line in target.wait_for_lines("registered", 4)), strict=True)
    assert len(set(calls)) == 1
    # A task that has just ended may have left one that has to run yet; each connection makes more than three.
    assert max(timers) - min(timers) <= 2, timers
    assert worker.stop(10) == 0


def test_a_worker_that_is_started_before_its_broker_takes_tasks_when_it_comes(behind_proxy):
    proxy, target = behind_proxy
    proxy.refuse()
    worker = target.worker("-c", "1", ready=False)
    worker.wait_for_log("Trying again", count=2)
    proxy.accept()
    since = time.monotonic()
    target.tasks.early.delay(1)
    target.wait_for_lines("early")
    assert time.monotonic() - since < AGAIN_S
    assert worker.stop(10) == 0


def test_a_warm_end_is_reached_although_the_broker_is_gone(behind_proxy):
    proxy, target = behind_proxy
    worker = target.worker("-c", "1")
    target.tasks.blocked.delay("name", "gate")
    target.wait_for_lines("name")
    os.kill(worker.pid, 15)
    worker.wait_for_log("Warm shutdown")
    proxy.refuse()
    worker.wait_for_log("Connection to the broker lost|connection to the broker is gone")
    assert worker.exit_code is None
    target.gate("gate")
    assert worker.wait(10) == 0
    assert len(target.lines("name.ended")) == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("served", [REDIS], indirect=True)  # RabbitMQ gives out again what was not acknowledged
def test_a_worker_that_ends_keeps_what_it_runs_although_its_connection_is_cut(behind_proxy):
    proxy, target = behind_proxy
    ending = target.worker("-c", "1", "-n", "ending@here")
    target.tasks.blocked.delay("running", "gate")
    target.wait_for_lines("running")
    ending.signal(signal.SIGTERM)
    ending.wait_for_log("Warm shutdown")
    proxy.cut()
    ending.wait_for_log("Connection to the broker lost")
    other = target.worker("-c", "1", "-n", "other@here")
    done = threading.Event()
    done.wait(5.0)  # two leases and a half: others may take over then what nobody renews
    target.gate("gate")
    assert ending.wait(10) == 0
    assert (len(target.lines("running")), len(target.lines("running.ended"))) == (1, 1)
    wait_until(lambda: not target.arena.taken(), 5, other.log)
    assert target.arena.waiting("celery") == 0


@pytest.fixture
def behind_silence(
    request: pytest.FixtureRequest, served: str, targets: Callable[..., Target], proxy_to: Any, tmp_path: Path
) -> Iterator[tuple[TcpProxy, Target]]:
    """As before, with a little less patience, so that the test need not have it."""
    patience = {"redis": "socket_timeout", "amqp": "read_timeout"}[served]
    with open_arena(served, request.getfixturevalue, tmp_path) as arena:
        port = urlsplit(arena.url).port
        proxy = proxy_to(port)
        url = arena.url.replace(f":{port}", f":{proxy.port}")
        yield proxy, targets(served, url, publish_deadline=1, **{patience: 2})


@pytest.mark.timeout(60)
def test_a_broker_that_does_not_answer_holds_up_neither_a_producer_nor_the_end_of_a_worker(behind_silence):
    proxy, target = behind_silence
    busy, idle = (target.worker("-c", "1", "-Q", queue, "-n", f"{queue}@here", ready=False) for queue in QUEUES)
    for worker in (busy, idle):
        worker.wait_until_ready()
    target.tasks.blocked.apply_async(("running", "gate"), queue="busy")
    target.wait_for_lines("running")
    proxy.hold()
    busy.signal(signal.SIGTERM)
    idle.signal(signal.SIGQUIT)
    target.gate("gate")
    since = time.monotonic()
    with pytest.raises(OperationalError, match="within 1 s"):
        target.tasks.early.delay(1)
    assert time.monotonic() - since < 3
    assert [worker.wait(20) for worker in (busy, idle)] == [0, 0]
    assert len(target.lines("running.ended")) == 1


@pytest.fixture(scope="module", params=EACH_WITH_TEXTS)
def leasing(request: pytest.FixtureRequest) -> str:
    """The name of each broker that gives out again what is not settled in time; its server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.mark.timeout(60)
def test_a_task_longer_than_the_visibility_timeout_runs_once(request, targets, leasing):
    target = targets(leasing, request.getfixturevalue(f"{leasing}_url"), visibility_timeout=2.0, lease=2.0)
    for pool in ("prefork", "solo"):
        target.worker("-c", "1", "-P", pool, "-Q", pool, "-n", f"{pool}@here")
        target.tasks.blocked.apply_async((pool, "gate"), queue=pool)
        target.wait_for_lines(pool)
    # One that has nothing to do but to take over what others seem to have left.
    target.worker("-c", "2", "-Q", "prefork,solo,celery", "-n", "idle@here")
    done = threading.Event()
    done.wait(6.0)  # the time itself is what is tested
    target.gate("gate")
    for pool in ("prefork", "solo"):
        target.wait_for_lines(f"{pool}.ended")
    target.tasks.early.apply_async((1,))
    target.wait_for_lines("early")
    wait_until(lambda: not target.arena.taken(), 5, lambda: f"{target.arena.taken()} are taken")
    assert [len(target.lines(pool)) for pool in ("prefork", "solo")] == [1, 1]
