"""Workers whose tasks run in greenlets: many at once, with limits, and under remote control."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from celery_clone.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError
from tests.support.brokers import EACH, Arena, load_project, open_arena, start_server
from tests.support.servers import is_ci
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = """
import os, time
from celery_clone import Celery
from celery_clone.exceptions import SoftTimeLimitExceeded

app = Celery("green", broker=os.environ["BROKER"], backend=os.environ["RESULTS"], set_as_current=False)

@app.task
def nap(seconds):
    time.sleep(seconds)
    return seconds

@app.task
def nap_softly():
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        return "told"

@app.task
def fail():
    raise KeyError("no such thing")

@app.task
def leave():
    raise SystemExit(3)
"""


@pytest.fixture(scope="module", params=["gevent", "eventlet"])
def pool(request: pytest.FixtureRequest) -> str:
    """The name of the pool, if its library is there; not imported here, where it would warn."""
    if find_spec(request.param) is None:
        if is_ci():
            pytest.fail(f"CI=true and there is no {request.param}")
        pytest.skip(f"there is no {request.param} here; pip install {request.param}")
    return str(request.param)


@pytest.fixture(scope="module", params=EACH)
def project(request: pytest.FixtureRequest, pool: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The tasks, with a worker that has the pool."""
    folder = tmp_path_factory.mktemp("green")
    start_server(request.param, request.getfixturevalue)
    with open_arena(request.param, request.getfixturevalue, folder) as arena:
        yield from running(arena, pool, folder)


def running(arena: Arena, pool: str, folder: Path) -> Iterator[Any]:
    """The tasks, while their worker runs."""
    results = f"sqlite:///{folder}/results.db" if arena.name == "amqp" else arena.results
    environment = {**arena.environment, "RESULTS": results}
    path = folder / "greens.py"
    path.write_text(PROJECT)
    module = load_project(path, environment)
    with WorkerProcess("greens", ("-P", pool, "-c", "20"), folder=folder, environment=environment) as worker:
        yield module
        assert worker.stop() == 0
    module.app.close()


def test_naps_are_taken_at_the_same_time(project: Any) -> None:
    began = time.monotonic()
    results = [project.nap.delay(0.5) for _ in range(20)]

    assert [result.get(timeout=20) for result in results] == [0.5] * 20
    assert time.monotonic() - began < 5, "one after the other they take ten seconds"


def test_more_tasks_than_there_are_threads_are_run(project: Any) -> None:
    results = [project.nap.delay(0) for _ in range(200)]

    assert [result.get(timeout=20) for result in results] == [0] * 200


def test_a_task_is_told_of_its_soft_limit_and_ended_at_its_hard_one(project: Any) -> None:
    told = project.nap_softly.apply_async(soft_time_limit=0.2)
    ended = project.nap.apply_async((30,), time_limit=0.2)

    assert told.get(timeout=10) == "told"
    with pytest.raises(TimeLimitExceeded):
        ended.get(timeout=10)


def test_errors_and_exits_end_the_task_and_nothing_else(project: Any) -> None:
    with pytest.raises(KeyError, match="no such thing"):
        project.fail.delay().get(timeout=10)
    with pytest.raises(WorkerLostError):
        project.leave.delay().get(timeout=10)
    assert project.nap.delay(0).get(timeout=10) == 0


def test_a_busy_worker_answers_and_its_task_can_be_terminated(project: Any) -> None:
    result = project.nap.delay(30)
    inspect = project.app.control.inspect(timeout=0.5)

    def running() -> list[str]:
        return [task["id"] for tasks in (inspect.active() or {}).values() for task in tasks]

    wait_until(lambda: result.id in running(), 10, "the task to begin")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)
    assert running() == []
