"""Workers and their processes are killed, at moments of chance and at moments of harm: nothing is lost.

At full length::

    CHAOS_KILLS=200 pytest tests/chaos/test_kills.py -k however_often
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from celery_clone import states
from celery_clone.exceptions import WorkerLostError
from tests.support.brokers import AMQP, EACH, REDIS, Arena, load_project, open_arena, start_server
from tests.support.processes import is_alive, send_signal
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

KILLS = int(os.environ.get("CHAOS_KILLS", "6"))
LEASE_S = 2.0
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 10_000)

PROJECT = """
import json, os, time
from pathlib import Path
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["RESULTS"], set_as_current=False)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])
HERE = Path(__file__).parent

def note(name, text):
    # One write of less than a page to a file that is only appended to is never cut in half.
    descriptor = os.open(HERE / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{text}\\n".encode())
    finally:
        os.close(descriptor)

@app.task(acks_late=True, reject_on_worker_lost=True, ignore_result=True)
def late(number, seconds):
    time.sleep(seconds)
    note("done", number)

@app.task(ignore_result=True)
def early(number, seconds):
    note("early", number)
    time.sleep(seconds)

def wait(name, gate):
    note(name, os.getpid())
    while not (HERE / gate).exists():
        time.sleep(0.005)
    return name

@app.task
def blocked(name, gate): return wait(name, gate)

@app.task(acks_late=True)
def blocked_late(name, gate): return wait(name, gate)

@app.task(acks_late=True, reject_on_worker_lost=True)
def blocked_again(name, gate): return wait(name, gate)

@app.task(retry_on_worker_lost=True, default_retry_delay=0, max_retries=1)
def blocked_retry(name, gate): return wait(name, gate)

@app.task
def add(x, y): return x + y
"""


class Target:
    """A project on one broker whose workers are killed."""

    def __init__(self, arena: Arena, folder: Path) -> None:
        self.arena, self.folder = arena, folder
        (folder / "project.py").write_text(PROJECT)
        self.tasks: Any = load_project(folder / "project.py", arena.environment)
        self.workers: list[WorkerProcess] = []
        self._names = 0

    def worker(self, *options: str, ready: bool = True, through: str = "") -> WorkerProcess:
        environment = {**self.arena.environment, "BROKER": through or self.arena.url}
        worker = WorkerProcess("project", options, folder=self.folder, environment=environment)
        self.workers.append(worker)
        return worker.start() if ready else worker.spawn()

    def name(self) -> str:
        self._names += 1
        return f"note-{self._names}"

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def wait_for_lines(self, name: str, count: int = 1, timeout: float = 10.0) -> list[str]:
        return wait_until(
            lambda: lines if len(lines := self.lines(name)) >= count else [],
            timeout,
            lambda: f"{count} lines of {name}, which has {self.lines(name)}; a log:\n{self.workers[-1].log()}",
        )

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.tasks.app.close()


@pytest.fixture(scope="module", params=EACH)
def broker(request: pytest.FixtureRequest) -> str:
    """The name of each broker, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.fixture
def target(request: pytest.FixtureRequest, broker: str, tmp_path: Path) -> Iterator[Target]:
    with open_arena(broker, request.getfixturevalue, tmp_path, lease=LEASE_S) as arena:
        one = Target(arena, tmp_path)
        yield one
        one.close()


@pytest.mark.timeout(60 + 5 * KILLS)
@pytest.mark.slow
def test_every_late_task_completes_however_often_its_worker_is_killed(target, record_property):
    chance = random.Random(SEED)
    record_property("seed", SEED)
    sent = 0

    def send(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            # Mostly short ones, which are fetched, run and acknowledged in batches, and some that are not.
            seconds = chance.choice([0.0, 0.0, 0.0, 0.0, 0.001, 0.02])
            target.tasks.late.delay(sent, seconds)
            target.tasks.early.delay(sent, seconds)
            sent += 1

    send(100)
    worker = target.worker("-c", "2", "-n", "one@here")
    for _ in range(KILLS):
        send(30)
        moment = time.monotonic() + chance.uniform(0.0, 0.25)
        wait_until(lambda moment=moment: time.monotonic() >= moment, every=0.001)
        orphans = worker.kill()
        worker.close()
        assert not [pid for pid in orphans if is_alive(pid)]
        # Not always waited for: workers may be killed while they start, too.
        worker = target.worker("-c", "2", "-n", "one@here", ready=chance.random() < 0.7)
    worker.wait_until_ready()
    since = time.monotonic()
    claims, backlog = target.arena.claims(), target.arena.waiting("celery")

    def missing(name: str = "done") -> set[int]:
        return set(range(sent)) - {int(line) for line in target.lines(name)}

    # What the dead had taken is run again, or stands where it comes next, whatever else waits and however long it takes.
    wait_until(lambda: not claims & target.arena.claims(), 3 * LEASE_S, worker.log, every=0.02)
    recovered_s = time.monotonic() - since
    wait_until(
        lambda: not missing(),
        10 * LEASE_S + (backlog + len(claims)) / 50,
        lambda: f"{sorted(missing())[:20]} ({len(missing())} of {sent}), seed {SEED}; the log:\n{worker.log()}",
    )
    settled_s = time.monotonic() - since
    runs = Counter(target.lines("done"))
    record_property("tasks", sent)
    record_property("kills", KILLS)
    record_property("run_more_than_once", sum(1 for count in runs.values() if count > 1))
    record_property("seconds_to_complete_after_the_last_kill", round(settled_s, 2))
    assert len(runs) == sent
    assert recovered_s < 2 * LEASE_S
    wait_until(lambda: target.arena.waiting("celery") == 0, 10, "an empty queue")
    # An early task that was told to have begun may not have come to its first line.
    lost = missing("early")
    record_property("early_tasks_begun_and_lost", len(lost))
    print(
        f"{KILLS} kills, {sent} late and early tasks each: {len(claims)} claims of the dead recovered "
        f"{recovered_s:.1f} s after the last start, these and {backlog} more run {settled_s:.1f} s after it; "
        f"{sum(count > 1 for count in runs.values())} late run again, {len(lost)} early begun and lost; seed {SEED}"
    )
    assert len(lost) <= 2 * KILLS
    assert worker.stop(10) == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("arrived", [True, False], ids=["claimed", "claim-lost"])
@pytest.mark.parametrize("broker", [REDIS, AMQP], indirect=True)
def test_a_worker_killed_right_after_the_brokers_reply_loses_nothing(target, proxy_to, arrived):
    """The reply to its claim reaches the worker, or not; it cannot say a word afterwards, and is killed."""
    numbers = range(20)
    port = urlsplit(target.arena.url).port
    proxy = proxy_to(port)
    through = target.arena.url.replace(f":{port}", f":{proxy.port}")
    worker = target.worker("-c", "2", "--prefetch-multiplier", "8", "-n", "one@here", through=through)
    happened = proxy.forget_at(b"project.late", forward=arrived)
    target.tasks.late.delay(0, 0.0)
    assert happened.wait(10)
    for number in numbers[1:]:
        target.tasks.late.delay(number, 0.0)
        target.tasks.early.delay(number, 0.0)
    worker.kill()
    worker.close()
    target.worker("-c", "2", "-n", "two@here")
    since = time.monotonic()
    wait_until(
        lambda: set(numbers) <= set(map(int, target.lines("done"))),
        2 * LEASE_S + 2,
        lambda: f"all of {len(numbers)}: {target.lines('done')}\n{target.workers[-1].log()}",
    )
    assert time.monotonic() - since < 2 * LEASE_S + 2
    assert set(map(int, target.wait_for_lines("early", len(numbers) - 1))) == set(numbers[1:])
    wait_until(lambda: not target.arena.taken(), 5, "nothing to be taken")


def test_a_worker_killed_between_claim_and_hand_over_loses_nothing(target):
    """Early tasks too: what was fetched and has not begun runs in the next worker, once."""
    numbers = range(60)
    worker = target.worker("-c", "1", "--prefetch-multiplier", "30", "-n", "one@here")
    for number in numbers:
        target.tasks.early.delay(number, 0.05 if number else 0.5)
    begun = target.wait_for_lines("early", 2)
    assert len(begun) < len(numbers)
    worker.kill()
    worker.close()
    target.worker("-c", "2", "-n", "two@here")
    target.wait_for_lines("early", len(numbers), timeout=6 * LEASE_S)
    assert target.tasks.add.delay(1, 1).get(timeout=10) == 2
    runs = Counter(map(int, target.lines("early")))
    assert set(runs) == set(numbers)
    # One was told to have begun, or was on its way to be told, when the worker died.
    assert sum(runs.values()) <= len(numbers) + 1, runs


@pytest.fixture
def crew(target: Target) -> WorkerProcess:
    """A worker of two processes."""
    return target.worker("-c", "2")


def strike_process_of(target: Target, name: str, signum: int = signal.SIGKILL) -> int:
    pid = int(target.wait_for_lines(name)[-1])
    send_signal(pid, signum)
    return pid


def test_a_killed_process_fails_its_task_and_no_other(target, crew):
    gate, doomed, spared = target.name(), target.name(), target.name()
    other = target.tasks.blocked.delay(spared, gate)
    target.wait_for_lines(spared)
    victim = target.tasks.blocked.delay(doomed, "never")
    pid = strike_process_of(target, doomed)
    wait_until(lambda: pid not in crew.children() and len(crew.children()) == 2, 10, "a full pool", every=0.005)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        victim.get(timeout=10)
    assert target.tasks.add.delay(1, 1).get(timeout=10) == 2
    (target.folder / gate).touch()
    assert other.get(timeout=10) == spared
    assert (len(target.lines(doomed)), len(target.lines(spared))) == (1, 1)
    assert f"pid:{pid} exited with 'signal 9 (SIGKILL)'" in crew.log()


def test_the_options_of_a_task_say_what_follows_when_its_process_is_killed(target):
    worker, gate = target.worker("-c", "4"), target.name()
    calls = {task: target.name() for task in ("blocked", "blocked_late", "blocked_again", "blocked_retry")}
    results = {task: getattr(target.tasks, task).delay(name, gate) for task, name in calls.items()}
    for name in calls.values():
        strike_process_of(target, name)
    for task in ("blocked", "blocked_late"):
        with pytest.raises(WorkerLostError):
            results[task].get(timeout=10)
    for task in ("blocked_again", "blocked_retry"):
        target.wait_for_lines(calls[task], 2)
        assert results[task].state in (states.PENDING, states.RETRY)
    (target.folder / gate).touch()
    for task in ("blocked_again", "blocked_retry"):
        assert results[task].get(timeout=10) == calls[task]
    assert [len(target.lines(name)) for name in calls.values()] == [1, 1, 2, 2]
    wait_until(lambda: not target.arena.taken(), 5, "nothing to be taken")
    assert target.arena.waiting("celery") == 0
    assert worker.stop(10) == 0


def test_processes_killed_all_the_time_lose_only_what_they_ran(target, crew):
    """Every process is struck again and again while late tasks go through."""
    chance = random.Random(SEED)
    sent = kills = 0
    done: Callable[[], set[str]] = lambda: set(target.lines("done"))  # noqa: E731
    deadline = time.monotonic() + 20
    while kills < 15 and time.monotonic() < deadline:
        before = len(done())
        for _ in range(20):
            target.tasks.late.delay(sent, chance.choice([0.0, 0.0, 0.002]))
            sent += 1
        for pid in crew.children()[:1]:
            send_signal(pid, signal.SIGKILL)
            kills += 1
        wait_until(lambda before=before: len(done()) > before, 10, crew.log, every=0.005)
    wait_until(lambda: len(done()) == sent, 20, lambda: f"{sent - len(done())} missing, seed {SEED}\n{crew.log()}")
    assert kills >= 3
    # Those killed while they started are replaced ever more slowly.
    crew.wait_for_children(2, timeout=20)
    assert crew.stop(10) == 0
