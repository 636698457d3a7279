"""Many tasks, failures and lost processes later, the worker is as large as before.

``SOAK_TASKS`` is how many short tasks are run, 4,000 unless it says otherwise; a tenth as many fail and a
hundredth as many lose their process.  The promise is for 100,000.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.brokers import REDIS, Arena, load_project, open_arena, start_server
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

TASKS = int(os.environ.get("SOAK_TASKS", "4000"))
ROUNDS = 20

PROJECT = """
import os, signal
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["RESULTS"], set_as_current=False)
app.conf.result_expires = 60

@app.task(ignore_result=True)
def short(x):
    return x

@app.task
def fails(x):
    raise ValueError(x)

@app.task(ignore_result=True)
def deadly(x):
    os.kill(os.getpid(), signal.SIGKILL)

@app.task
def last():
    return "done"
"""


def resident_kilobytes(pid: int) -> int:
    """How much memory a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError(f"no process {pid}")


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture(scope="module", params=["sqlite", REDIS])
def broker(request: pytest.FixtureRequest) -> str:
    """The name of each broker, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.fixture
def arena(request: pytest.FixtureRequest, broker: str, tmp_path: Path) -> Iterator[Arena]:
    with open_arena(broker, request.getfixturevalue, tmp_path) as arena:
        yield arena


@pytest.mark.slow
@pytest.mark.timeout(60 + TASKS // 50)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_descriptors_and_processes_stay_what_they_were(arena, tmp_path, record_property):
    (tmp_path / "project.py").write_text(PROJECT)
    project: Any = load_project(tmp_path / "project.py", arena.environment)
    with WorkerProcess("project", ["-c", "2", "-n", "w@here"], folder=tmp_path, environment=arena.environment) as worker:

        def one_round(number: int) -> None:
            calls = [
                *(project.short.s(index) for index in range(TASKS // ROUNDS)),
                *(project.fails.s(index) for index in range(TASKS // ROUNDS // 10)),
                *(project.deadly.s(index) for index in range(max(1, TASKS // ROUNDS // 100))),
            ]
            with project.app.amqp.publishing_together():
                for call in calls:
                    call.apply_async()
            wait_until(lambda: arena.waiting("celery") == 0, 60 + TASKS / 100, worker.log, every=0.05)
            assert project.last.delay().get(timeout=30) == "done"
            worker.wait_for_children(2, timeout=10)

        for number in range(3):
            one_round(number)  # what is made on first use, is made
        before = descriptors(worker.pid)
        sizes = []
        for number in range(ROUNDS):
            one_round(number)
            sizes.append(resident_kilobytes(worker.pid))
        slope = statistics.linear_regression(range(ROUNDS), sizes).slope
        per_task = slope * 1024 / (TASKS / ROUNDS * 1.11)
        record_property("kilobytes", f"{sizes[0]} to {sizes[-1]}")
        record_property("bytes_per_task", round(per_task, 2))
        print(f"\n{arena.name}: {sizes[0]} to {sizes[-1]} kB, {per_task:.1f} bytes per task, {before} descriptors")
        # A page now and then is the allocator's; a leak of one object per task would be several times that.
        assert per_task < 100 or sizes[-1] - sizes[0] < 2048, sizes
        # A process that is just being replaced has some of its own, for a moment.
        wait_until(lambda: descriptors(worker.pid) <= before + 2, 10, lambda: f"{before} descriptors: {worker.log()}")
        assert len(worker.children()) == 2
        assert worker.stop(15) == 0
    project.app.close()
