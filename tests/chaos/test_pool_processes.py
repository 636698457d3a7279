"""Processes of the pool killed, stopped and replaced at the worst moments, under a real worker.

Each task ends, as a success, tried again or lost, soon after whatever befell its process; and the pool has its size
again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from celery_clone.exceptions import TimeLimitExceeded, WorkerLostError
from tests.support.brokers import load_project
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = """
import os, time
from pathlib import Path
from celery_clone import Celery

app = Celery("killed", broker=os.environ["BROKER"], backend=os.environ["BROKER"], set_as_current=False)
HERE = Path(__file__).parent

def note(name, text):
    with open(HERE / name, "a") as file:
        file.write(f"{text}\\n")

@app.task
def size(data):
    return len(data)

@app.task(acks_late=True, reject_on_worker_lost=True)
def large(megabytes, name):
    note(name, os.getpid())
    return "x" * (megabytes * 1024 * 1024)

@app.task
def pid():
    return os.getpid()

@app.task
def nap(seconds, name):
    note(name, os.getpid())
    time.sleep(seconds)
    return seconds
"""


@pytest.fixture
def project(redis_server: Any, tmp_path: Any) -> Iterator[Any]:
    """The tasks, and their worker's start in ``start(*options)``."""
    environment = {"BROKER": redis_server.new_database_url()}
    path = tmp_path / "killed.py"
    path.write_text(PROJECT)
    module = load_project(path, environment)
    opened: list[WorkerProcess] = []

    def start(*options: str) -> WorkerProcess:
        worker = WorkerProcess("killed", options, folder=tmp_path, environment=environment)
        opened.append(worker)
        return worker.start()

    module.start = start
    yield module
    for worker in opened:
        worker.close()
    module.app.close()


def noted(project: Any, name: str) -> list[int]:
    """The processes that began the task of that name."""
    path = project.HERE / name
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_large_arguments_reach_processes_that_run_one_task_each(project: Any) -> None:
    worker = project.start("-c", "2", "--max-tasks-per-child", "1", "--prefetch-multiplier", "1")
    data = "8" * (8 * 1024 * 1024)
    # Unlike most tests this one takes long: it is the size that once stopped the pool.
    results = [project.size.delay(data) for _ in range(50)]

    assert [result.get(timeout=60) for result in results] == [len(data)] * 50
    worker.wait_for_children(2)
    assert worker.stop() == 0


def test_processes_killed_while_they_read_write_or_wait_lose_no_late_task(project: Any) -> None:
    worker = project.start("-c", "2")
    # Idle.
    for pid in worker.children():
        os.kill(pid, signal.SIGKILL)
    assert project.pid.delay().get(timeout=10) > 0
    # While 10 MB are read: the process dies before or just when the task begins.
    for number in range(4):
        data = "8" * (10 * 1024 * 1024)
        result = project.size.delay(data)
        time.sleep(0.02 * number)
        for pid in worker.children():
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        try:
            assert result.get(timeout=10) == len(data)
        except WorkerLostError:
            pass  # it had begun: its message was acknowledged early
        assert time.monotonic() - began < 5
    # While 50 MB are written: it is given back, and written by another process.
    written = project.large.delay(50, "writer")
    wait_until(lambda: noted(project, "writer"), 10, "the task to begin")
    os.kill(noted(project, "writer")[0], signal.SIGKILL)
    assert len(written.get(timeout=20)) == 50 * 1024 * 1024
    worker.wait_for_children(2)
    assert worker.stop() == 0


def test_stopped_processes_do_not_keep_tasks_beyond_their_limit(project: Any) -> None:
    worker = project.start("-c", "2", "--time-limit", "1")
    idle = worker.children()
    for pid in idle:
        os.kill(pid, signal.SIGSTOP)

    began = time.monotonic()
    result = project.pid.delay()

    assert result.get(timeout=6) not in idle, "the limit, and five seconds"
    stopped = project.nap.apply_async((30, "stopped"), time_limit=2)
    wait_until(lambda: noted(project, "stopped"), 5, "the task to begin")
    os.kill(noted(project, "stopped")[0], signal.SIGSTOP)
    with pytest.raises(TimeLimitExceeded):
        stopped.get(timeout=7)
    assert time.monotonic() - began < 15
    wait_until(lambda: len(set(worker.children()) - set(idle)) == 2, 5, "two new processes")
    assert project.pid.delay().get(timeout=5) > 0
    assert worker.stop() == 0


def test_processes_that_are_spawned_are_replaced_like_those_that_are_forked(project: Any) -> None:
    worker = project.start("-c", "1", "--pool-start-method", "spawn", "--max-tasks-per-child", "2", "--time-limit", "1")
    pids = [project.pid.delay().get(timeout=20) for _ in range(3)]
    assert pids[0] == pids[1] != pids[2]

    os.kill(pids[2], signal.SIGSTOP)
    assert project.pid.delay().get(timeout=20) not in pids
    with pytest.raises(TimeLimitExceeded):
        project.nap.delay(30, "spawned").get(timeout=20)
    assert worker.stop() == 0
