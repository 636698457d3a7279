"""A worker whose broker and store are one SQLite file."""

from __future__ import annotations

import os
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from celery_clone import chord, group
from celery_clone.utils.imports import import_from_cwd
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = '''
import time
from celery_clone import Celery

app = Celery("sqlite_project", broker="sqlite:///{path}", backend="sqlite:///{path}", set_as_current=False)
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)

@app.task
def add(x, y):
    return x + y

@app.task
def slow(x):
    time.sleep(0.002)
    return x

@app.task
def total(numbers):
    return sum(numbers)
'''


@pytest.fixture
def project(tmp_path: Path) -> Iterator[ModuleType]:
    """The tasks of this test's project, also importable by its workers."""
    (tmp_path / "sqlite_project.py").write_text(PROJECT.format(path=tmp_path / "jobs.db"))
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        module: Any = import_from_cwd("sqlite_project")
        yield module
        module.app.backend.close()
        module.app.amqp.publisher.close()
        module.app.close()
    finally:
        os.chdir(here)
        sys.modules.pop("sqlite_project", None)


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """``rows("messages")``: how many rows a table has."""
    opened = sqlite3.connect(f"file:{tmp_path / 'jobs.db'}?mode=ro", uri=True, check_same_thread=False)

    def count(table: str) -> int:
        found: int = opened.execute(f"SELECT count(*) FROM celery_{table}").fetchone()[0]
        return found

    yield count
    opened.close()


Start = Callable[..., WorkerProcess]


def test_a_call_is_answered_within_milliseconds(project: ModuleType, start_worker: Start) -> None:
    start_worker("sqlite_project", "-c", "2")
    assert project.add.delay(0, 0).get(timeout=10) == 0
    took: list[float] = []
    for number in range(100):
        started = time.perf_counter()
        assert project.add.delay(number, 1).get(timeout=10) == number + 1
        took.append(time.perf_counter() - started)

    # A few milliseconds on a quiet machine; a poll on the way would show as far more, even in the best quarter.
    assert statistics.quantiles(took, n=4)[0] < 0.05


def test_workflows_come_to_their_end(project: ModuleType, start_worker: Start) -> None:
    start_worker("sqlite_project", "-c", "2")
    add, total = project.add, project.total

    assert chord([add.s(n, n) for n in range(200)])(total.s()).get(timeout=30) == 39800
    assert group(add.s(n, 1) for n in range(100)).apply_async().get(timeout=30) == list(range(1, 101))
    assert (add.s(1, 1) | add.s(2) | group(add.s(3), add.s(4)) | total.s()).delay().get(timeout=30) == 15


def test_a_countdown_is_kept_in_the_file_and_on_time(project: ModuleType, start_worker: Start, tmp_path) -> None:
    first = start_worker("sqlite_project", "-c", "1")
    project.add.delay(0, 0).get(timeout=10)
    due = time.time() + 3.0
    late = project.add.apply_async((1, 2), countdown=3.0)
    parked = "SELECT count(*) FROM celery_messages WHERE due_at IS NOT NULL"
    database = sqlite3.connect(f"file:{tmp_path / 'jobs.db'}?mode=ro", uri=True)
    wait_until(lambda: database.execute(parked).fetchone() == (1,), 2)
    database.close()

    first.kill()
    first.close()
    start_worker("sqlite_project", "-c", "1")

    assert late.get(timeout=20) == 3
    assert time.time() >= due


@pytest.mark.chaos
def test_workers_killed_again_and_again_lose_no_late_acknowledged_task(
    project: ModuleType, start_worker: Start, request: pytest.FixtureRequest
) -> None:
    results = group(project.slow.s(number) for number in range(2000)).apply_async()
    rows = request.getfixturevalue("rows")
    for step in (300, 800, 1300):
        worker = start_worker("sqlite_project", "-c", "2")
        wait_until(lambda: rows("results") >= step, 30)  # noqa: B023
        worker.close()  # SIGKILL to all of its processes

    start_worker("sqlite_project", "-c", "2")

    assert results.get(timeout=40) == list(range(2000))
    wait_until(lambda: rows("messages") == 0, 20, "the last acknowledgements")
    assert rows("bodies") == 0


def test_a_stopped_worker_leaves_nothing_but_what_is_not_done(
    project: ModuleType, start_worker: Start, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    worker = start_worker("sqlite_project", "-c", "2")
    project.add.delay(1, 1).get(timeout=10)
    rows = request.getfixturevalue("rows")

    assert worker.stop() == 0

    assert rows("messages") == 0
    assert rows("sessions") == 0
    # Our own, which waited, may be there; the folder goes with the last one.
    wait_until(lambda: len([*(tmp_path / "jobs.db-bells").glob("*")]) <= 1, 5)
