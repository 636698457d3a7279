"""What a process of the pool does for an app before its first task and after its last."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from billiard.pool import Worker

from celery_clone import signals
from celery_clone._state import get_current_app, task_join_will_block
from celery_clone.app.base import Celery
from celery_clone.concurrency.prefork import TaskPool
from celery_clone.message.frames import Ended, Job
from tests.support.wait import wait_until


class Witness:
    """A runner that tells what it finds in its process."""

    def __init__(self, app: Celery) -> None:
        self.app = app

    def prepare(self) -> None:
        pass

    unsent = False

    def flush(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def __call__(self, job: Job, begin: Callable[[], None]) -> Ended:
        begin()
        found = {
            "pid": os.getpid(),
            "current": get_current_app() is self.app,
            "blocks": task_join_will_block(),
            "tracers": all(task.__trace__ is not None for task in self.app.tasks.values()),
            "int": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
            "title": Path("/proc/self/cmdline").read_bytes().decode(errors="replace"),
        }
        return Ended(job.seq, ("SUCCESS", repr(found), 0.0, None, False))


class Store:
    """As much of a result store as building tracers asks for."""

    persistent = False


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    monkeypatch.setattr(Celery, "backend", Store())
    app = Celery("witness", broker="memory://", set_as_current=False)
    app.task(name="add", shared=False)(lambda x, y: x + y)
    return app


def run_one(pool: TaskPool, app: Celery) -> Any:
    reports: list[Any] = []
    pool.bind(Witness(app), reports.extend)
    pool.start()
    pool.submit([Job(0, "look")])
    try:
        # Three starts on a machine that is too busy for the first two: 4, 8 and 16 seconds.
        wait_until(lambda: pool.wait(0.01) or reports, 30)
    finally:
        pool.stop(deadline=1.0)
    return eval(reports[0].outcome[1])


def test_a_process_is_set_up_for_the_app_and_says_so(app, tmp_path):
    marks = tmp_path / "marks"

    def mark(text: str) -> None:
        with marks.open("a") as file:
            file.write(text + "\n")

    def up(sender: Any = None, **kwargs: Any) -> None:
        mark(f"up {sender} {os.getpid()}")

    def down(sender: Any = None, pid: Any = None, exitcode: Any = None, **kwargs: Any) -> None:
        mark(f"down {sender} {pid} {exitcode}")

    signals.worker_process_init.connect(up)
    signals.worker_process_shutdown.connect(down)
    try:
        found = run_one(TaskPool(1, app=app, initargs=(app, "w@host"), threads=False), app)
    finally:
        signals.worker_process_init.disconnect(up)
        signals.worker_process_shutdown.disconnect(down)
    pid = found.pop("pid")
    title = found.pop("title")
    assert all(found.values()), found
    assert "[celeryd: w@host:ForkPoolWorker-" in title or not has_setproctitle()
    assert marks.read_text().splitlines() == [f"up w@host {pid}", f"down w@host {pid} 0"]


def has_setproctitle() -> bool:
    try:
        import setproctitle  # noqa: F401
    except ImportError:
        return False
    return True


def test_a_replaced_workloop_surrounds_the_work_of_a_process(app, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    original = Worker.workloop

    def workloop(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        finally:
            mark.write_text("surrounded")

    monkeypatch.setattr(Worker, "workloop", workloop)
    run_one(TaskPool(1, app=app, initargs=(app, "w@host"), threads=False), app)
    assert mark.read_text() == "surrounded"


def test_a_failing_set_up_is_told_with_its_error(app, caplog):
    def explode(**kwargs: Any) -> None:
        raise BaseException("no database")

    signals.worker_process_init.connect(explode)
    pool = TaskPool(1, app=app, initargs=(app, "w@host"), threads=False)
    try:
        pool.start()
        wait_until(lambda: pool.wait(0.01) or "could not be started" in caplog.text, 10)
        assert not pool.did_start_ok()
    finally:
        signals.worker_process_init.disconnect(explode)
        pool.terminate()
