"""``async def`` tasks in every pool: they run, end and fail as others do, and in the pool of asyncio many at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from celery_clone import chain, chord
from celery_clone.exceptions import Reject, TaskRevokedError, TimeLimitExceeded, WorkerLostError
from tests.support.brokers import load_project
from tests.support.servers import is_ci
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = """
import asyncio, functools, os, threading, time
from pathlib import Path
from celery_clone.app.trace import build_tracer
from celery_clone import Celery, Task, current_app, current_task, signals
from celery_clone.exceptions import Ignore, Reject, SoftTimeLimitExceeded

app = Celery("waiting", broker=os.environ["BROKER"], backend=os.environ["BROKER"], set_as_current=False)
HERE = Path(__file__).parent

def note(name, text=""):
    with open(HERE / name, "a") as file:
        file.write(f"{text}\\n")

@app.task
async def nap(seconds):
    await asyncio.sleep(seconds)
    return seconds

@app.task
def nap_blocking(seconds):
    time.sleep(seconds)
    return seconds

@app.task
async def add(x, y):
    await asyncio.sleep(0)
    return x + y

@app.task
def total(numbers):
    return sum(numbers)

@app.task(bind=True)
async def describe(self, seconds):
    before = self.request.id
    await asyncio.sleep(seconds)
    inside = await asyncio.to_thread(lambda: current_task.request.id)
    return [before, self.request.id, current_task.request.id, inside, current_app.main]

@app.task
async def nap_softly():
    try:
        await asyncio.sleep(30)
    except SoftTimeLimitExceeded:
        return "told"

@app.task(acks_late=True)
async def nap_and_tidy(name):
    try:
        note(name, "begun")
        await asyncio.sleep(30)
    finally:
        note(name, "tidied")

@app.task
async def stubborn():
    while True:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            pass

@app.task
async def traced(seconds):
    await asyncio.sleep(seconds)
    return threading.current_thread().name

@app.task
async def traced_softly():
    try:
        await asyncio.sleep(30)
    except SoftTimeLimitExceeded:
        return "told"

@signals.worker_init.connect
def surround(**_):
    # As instrumentation does it.
    for task in (traced, traced_softly):
        tracer = build_tracer(task.name, app.tasks[task.name], app=app)

        @functools.wraps(tracer)
        def around(*args, tracer=tracer, **kwargs):
            note("traced", "around")
            return tracer(*args, **kwargs)

        app.tasks[task.name].__trace__ = around

@app.task
async def compute(seconds):
    time.sleep(seconds)
    return seconds

@app.task
async def fail():
    await asyncio.sleep(0)
    raise KeyError("no such thing")

@app.task
async def leave():
    raise SystemExit(3)

@app.task
async def cancel_itself():
    raise asyncio.CancelledError()

@app.task(bind=True, max_retries=2, default_retry_delay=0)
async def try_again(self):
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise self.retry()
    return self.request.retries

@app.task(bind=True, autoretry_for=(KeyError,), max_retries=2, default_retry_delay=0)
async def try_again_alone(self):
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise KeyError(self.request.retries)
    return self.request.retries

@app.task(acks_late=True)
async def refuse():
    raise Reject("not this one", requeue=False)

@app.task
async def ignore_me():
    raise Ignore()

class Wrapped(Task):
    def __call__(self, *args, **kwargs):
        note("wrapped", self.request.id)
        return super().__call__(*args, **kwargs)

    def on_success(self, value, task_id, args, kwargs):
        note("succeeded", task_id)

@app.task(base=Wrapped)
async def wrapped(x):
    await asyncio.sleep(0)
    return x
"""

POOLS = ["asyncio", "prefork", "threads", "solo", "gevent", "eventlet"]


@pytest.fixture(scope="module", params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    """The name of the pool, if its library is there."""
    name = str(request.param)
    if name in ("gevent", "eventlet") and find_spec(name) is None:
        if is_ci():
            pytest.fail(f"CI=true and there is no {name}")
        pytest.skip(f"there is no {name} here; pip install {name}")
    return name


def started(url: str, folder: Any, *options: str) -> Iterator[Any]:
    """The tasks, with a worker that has *options*, in ``worker``."""
    path = folder / f"waiting_{folder.name}.py"
    path.write_text(PROJECT)
    environment = {"BROKER": url}
    module = load_project(path, environment)
    with WorkerProcess(path.stem, options, folder=folder, environment=environment) as worker:
        module.worker = worker
        yield module
        assert worker.exit_code is not None or worker.stop() == 0, worker.log()
    module.app.close()


@pytest.fixture(scope="module")
def project(pool: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The tasks, with a worker that has the pool."""
    folder = tmp_path_factory.mktemp(pool)
    yield from started(f"sqlite:///{folder}/broker.db", folder, "-P", pool, "-c", "3")


def test_a_coroutine_knows_its_request_its_task_and_its_app(project: Any) -> None:
    results = [project.describe.delay(0.05) for _ in range(3)]

    for result in results:
        assert result.get(timeout=10) == [result.id] * 4 + ["waiting"]


def test_workflows_are_made_of_coroutines_like_of_functions(project: Any) -> None:
    assert chain(project.add.s(1, 2), project.add.s(3), project.add.s(4))().get(timeout=10) == 10
    assert chord([project.add.s(n, n) for n in range(5)], project.total.s())().get(timeout=10) == 20


def test_a_coroutine_fails_retries_and_is_refused_like_a_function(project: Any) -> None:
    failed = project.fail.delay()
    with pytest.raises(KeyError, match="no such thing"):
        failed.get(timeout=10)
    assert "in fail" in failed.traceback
    assert "coroutines.py" not in failed.traceback
    assert project.try_again.delay().get(timeout=10) == 2
    assert project.try_again_alone.delay().get(timeout=10) == 2
    with pytest.raises(Reject):
        project.refuse.delay().get(timeout=10)
    with pytest.raises(RuntimeError, match="was cancelled, by itself"):
        project.cancel_itself.delay().get(timeout=10)
    with pytest.raises(WorkerLostError):
        project.leave.delay().get(timeout=10)
    ignored = project.ignore_me.delay()
    assert project.add.delay(1, 1).get(timeout=10) == 2
    assert ignored.state == "PENDING"


def test_a_task_with_a_call_of_its_own_may_be_a_coroutine(project: Any) -> None:
    result = project.wrapped.delay(7)

    assert result.get(timeout=10) == 7
    here = project.HERE
    assert result.id in (here / "wrapped").read_text()
    wait_until(lambda: (here / "succeeded").exists() and result.id in (here / "succeeded").read_text(), 5, "on_success")


def test_a_coroutine_is_told_of_its_soft_limit_where_it_waits(project: Any) -> None:
    began = time.monotonic()

    assert project.nap_softly.apply_async(soft_time_limit=0.3).get(timeout=10) == "told"
    assert time.monotonic() - began < 5


def test_a_coroutine_is_ended_at_its_hard_limit_and_may_tidy_up(project: Any, pool: str) -> None:
    if pool in ("threads", "solo"):
        pytest.skip("these pools say at their start that they have no hard limit")
    result = project.nap_and_tidy.apply_async(("limited",), time_limit=0.4)

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=10)
    if pool != "prefork":  # which kills the process
        wait_until(lambda: (project.HERE / "limited").read_text() == "begun\ntidied\n", 5, "it to tidy up")
    assert project.add.delay(1, 2).get(timeout=10) == 3


def test_a_running_coroutine_can_be_terminated(project: Any, pool: str) -> None:
    if pool in ("threads", "solo"):
        pytest.skip("these pools cannot terminate")
    name = "terminated"
    result = project.nap_and_tidy.delay(name)
    wait_until(lambda: (project.HERE / name).exists(), 10, "the task to begin")

    result.revoke(terminate=True)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)
    wait_until(lambda: (project.HERE / name).read_text() == "begun\ntidied\n", 5, "it to tidy up")


# -- the pool of asyncio


@pytest.fixture(scope="module", params=["redis", "sqlite"])
def crowd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The tasks, with a worker that runs many coroutines at once."""
    folder = tmp_path_factory.mktemp(f"crowd_{request.param}")
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").new_database_url()
    else:
        url = f"sqlite:///{folder}/broker.db"
    yield from started(url, folder, "-P", "asyncio", "-c", "200", "--max-tasks-per-child", "150")


def test_naps_are_taken_at_the_same_time_and_functions_stop_nobody(crowd: Any) -> None:
    began = time.monotonic()
    blocking = [crowd.nap_blocking.delay(1.0) for _ in range(5)]
    results = [crowd.nap.delay(1.0) for _ in range(195)]

    assert [result.get(timeout=20) for result in (*blocking, *results)] == [1.0] * 200
    assert time.monotonic() - began < 10, "one after the other they take 200 seconds"


def test_coroutines_go_on_after_their_loop_was_replaced(crowd: Any) -> None:
    long = crowd.nap.delay(1.5)
    results = [crowd.add.delay(n, 0) for n in range(320)]

    assert [result.get(timeout=20) for result in results] == [*range(320)]
    assert long.get(timeout=10) == 1.5


def test_what_catches_its_cancellation_is_let_go_of(crowd: Any) -> None:
    result = crowd.stubborn.apply_async(time_limit=0.2)

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=5)
    crowd.worker.wait_for_log("it catches CancelledError", timeout=10)


def test_a_tracer_around_ours_is_called_and_the_body_is_on_the_loop_all_the_same(crowd: Any) -> None:
    began = time.monotonic()
    results = [crowd.traced.delay(0.5) for _ in range(10)]

    assert [result.get(timeout=10) for result in results] == ["celery-asyncio"] * 10
    assert time.monotonic() - began < 4
    assert (crowd.HERE / "traced").read_text().count("around") >= 10
    assert crowd.traced_softly.apply_async(soft_time_limit=0.3).get(timeout=10) == "told"


def test_what_holds_up_the_loop_is_named(crowd: Any) -> None:
    result = crowd.compute.delay(4)

    crowd.worker.wait_for_log(f"{result.id}.*without", timeout=10)
    assert result.get(timeout=10) == 4


def test_a_warm_end_waits_for_coroutines_and_a_cold_one_gives_them_back(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("ends")
    url = f"sqlite:///{folder}/broker.db"
    # With loops that were replaced before: they have nothing to end any more.
    running = started(url, folder, "-P", "asyncio", "-c", "4", "--max-tasks-per-child", "2")
    project = next(running)
    worker = project.worker
    long, name = project.nap.delay(1.0), "given_back"
    worker.wait_for_log("nap.* received")
    assert worker.stop() == 0
    assert long.get(timeout=1) == 1.0

    worker.start()
    assert [project.add.delay(n, 0).get(timeout=10) for n in range(5)] == [*range(5)]
    given_back = project.nap_and_tidy.delay(name)
    wait_until(lambda: (folder / name).exists(), 10, "the task to begin")
    began = time.monotonic()
    worker.signal(signal.SIGQUIT)
    worker.wait()
    assert time.monotonic() - began < 5
    assert (folder / name).read_text() == "begun\ntidied\n"

    worker.start()
    wait_until(lambda: (folder / name).read_text().count("begun") == 2, 10, "it to begin again")
    given_back.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        given_back.get(timeout=10)
    with pytest.raises(StopIteration):
        next(running)
