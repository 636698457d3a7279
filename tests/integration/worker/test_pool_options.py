"""What each kind of pool makes of the worker's options: obeyed, or said at the start, never ignored in silence."""

from __future__ import annotations

import os
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from celery_clone import Celery
from tests.support.worker import WorkerProcess

PROJECT = """
import os, threading, time
from celery_clone import Celery, signals
from celery_clone.concurrency.base import BasePool, apply_target

app = Celery("pools", broker=os.environ["BROKER"], backend=os.environ["BROKER"], set_as_current=False)
if os.environ.get("LATE"):
    app.conf.worker_proc_alive_timeout = 0.5
ballast = bytearray(b"x") * (int(os.environ.get("BALLAST", "0")) << 20)

@app.task(name="limited", time_limit=7)
def limited():
    return os.getpid()

@app.task(name="where")
def where(megabytes=0):
    len(bytearray(b"x") * (megabytes << 20))
    return [os.getpid(), threading.current_thread().name]

@signals.worker_process_init.connect
def be_late(**_):
    if os.environ.get("LATE") and not os.path.exists(os.environ["LATE"]):
        open(os.environ["LATE"], "w").close()
        time.sleep(30)

class Pool(BasePool):
    # A thread for each task, as a project may write it.
    def on_start(self):
        self.threads = []

    def on_apply(self, target, args=None, kwargs=None, callback=None, accept_callback=None, **_):
        call = (target, args or (), kwargs, callback, accept_callback)
        thread = threading.Thread(target=apply_target, args=call, name="of my own")
        self.threads.append(thread)
        thread.start()

    def on_stop(self):
        for thread in self.threads:
            thread.join()
"""

ASKED = (
    *("--time-limit", "60", "--soft-time-limit", "50", "--max-tasks-per-child", "9"),
    *("--max-memory-per-child", "900000", "--autoscale", "4,2"),
)

NOT_OBEYED = {
    "prefork": set(),
    "solo": {"--time-limit=60.0", "--max-tasks-per-child=9", "--max-memory-per-child=900000", "--autoscale=4,2"},
    "threads": {"--time-limit=60.0", "--max-memory-per-child=900000"},
    "asyncio": {"--time-limit=60.0", "--max-tasks-per-child=9", "--max-memory-per-child=900000"},
    "gevent": {"--max-tasks-per-child=9", "--max-memory-per-child=900000"},
    "eventlet": {"--max-tasks-per-child=9", "--max-memory-per-child=900000"},
}


def worker_of(folder: Path, *options: str, **environment: str) -> WorkerProcess:
    (folder / "pools.py").write_text(PROJECT)
    environment = {"BROKER": f"sqlite:///{folder}/broker.db", **environment}
    return WorkerProcess("pools", options, folder=folder, environment=environment)


def answers(folder: Path, *calls: tuple[str, tuple[Any, ...]]) -> list[Any]:
    """Results of these calls, one after the other."""
    url = f"sqlite:///{folder}/broker.db"
    with Celery("client", broker=url, backend=url, set_as_current=False) as app:
        return [app.send_task(name, args).get(timeout=20) for name, args in calls]


@pytest.mark.parametrize("pool", [*NOT_OBEYED])
def test_an_option_that_a_pool_cannot_obey_is_named_in_one_line(pool: str, tmp_path: Path) -> None:
    if pool in ("gevent", "eventlet") and find_spec(pool) is None:
        pytest.skip(f"there is no {pool} here; pip install {pool}")
    with worker_of(tmp_path, "-P", pool, "-c", "2", *ASKED) as worker:
        (pid, _), other = answers(tmp_path, ("where", ()), ("limited", ()))
        assert (pid == worker.pid) is (pool != "prefork") and other
        assert set(re.findall(r"pool does not wholly obey (\S+):", worker.log())) == NOT_OBEYED[pool]
        assert worker.stop() == 0


def test_the_time_limit_of_a_task_is_named_where_it_cannot_hold(tmp_path: Path) -> None:
    with worker_of(tmp_path, "-P", "threads", "-c", "1") as worker:
        assert "does not wholly obey the time_limit of limited:" in worker.log()


def test_a_pool_of_the_project_runs_the_tasks(tmp_path: Path) -> None:
    with worker_of(tmp_path, "-P", "custom", "-c", "2", CELERY_CUSTOM_WORKER_POOL="pools:Pool") as worker:
        assert answers(tmp_path, ("where", ())) == [[worker.pid, "of my own"]]
        assert worker.stop() == 0


def test_a_process_that_takes_too_long_to_start_is_replaced(tmp_path: Path) -> None:
    began = time.monotonic()
    with worker_of(tmp_path, "-c", "1", LATE=str(tmp_path / "late")) as worker:
        assert answers(tmp_path, ("where", ()))
        assert "Timed out waiting for UP message" in worker.log()
    assert time.monotonic() - began < 20


def test_a_process_is_replaced_for_memory_of_its_own_and_not_of_its_parent(tmp_path: Path) -> None:
    with worker_of(tmp_path, "-c", "1", "--max-memory-per-child", "60000", BALLAST="120") as worker:
        small, again, large, after = (pid for pid, _ in answers(tmp_path, *[("where", (mb,)) for mb in (0, 0, 100, 0)]))
        assert small == again == large != after, worker.log()
        assert worker.stop() == 0


def test_auto_is_as_many_processes_as_may_run_at_once(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with worker_of(tmp_path, "-c", "auto") as worker:
            worker.wait_for_children(1)
            assert "concurrency: 1 (prefork)" in worker.log()
            worker.wait_for_log(r"worker_concurrency='auto' resolved to 1 \(pool=prefork, ")
    finally:
        os.sched_setaffinity(0, before)
