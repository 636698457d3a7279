"""A task that kills whatever runs it comes back so often and no more; then it has failed and lies aside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_clone.exceptions import WorkerLostError
from tests.support.brokers import EACH, EACH_WITH_TEXTS, Arena, load_project, open_arena, start_server
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = """
import json, os, signal, time
from pathlib import Path
from celery_clone import Celery
from kombu import Exchange, Queue

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["RESULTS"], set_as_current=False)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])
app.conf.task_max_losses = 3
app.conf.worker_prefetch_multiplier = 4
if "rpc" in os.environ["RESULTS"]:
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "celery.dead"}
    app.conf.task_queues = [Queue("celery", Exchange("celery"), "celery", queue_arguments=dead)]

def note(name, losses):
    with open(Path(__file__).parent / name, "a") as file:
        file.write(f"{losses}\\n")

@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def deadly(self, name, whom):
    note(name, self.request.losses)
    if whom == "worker":
        time.sleep(1.0)  # time enough to be noticed, on a busy machine too
    os.kill(os.getpid() if whom == "process" else os.getppid(), signal.SIGKILL)
    signal.pause()

@app.task(acks_late=True)
def add(x, y):
    return x + y
"""


class Target:
    """A project on one broker."""

    def __init__(self, arena: Arena, folder: Path) -> None:
        self.arena, self.folder = arena, folder
        (folder / "project.py").write_text(PROJECT)
        # Declares the queue, and that of its dead on AMQP.
        arena.put("celery", b"[[1, 1], {}, {}]", {"task": "project.add", "id": "first", "lang": "py"})
        self.tasks: Any = load_project(folder / "project.py", arena.environment)
        self.workers: list[WorkerProcess] = []

    def worker(self) -> WorkerProcess:
        name = f"w{len(self.workers)}@here"
        worker = WorkerProcess(
            "project", ["-c", "1", "-n", name], folder=self.folder, environment=self.arena.environment
        )
        self.workers.append(worker)
        return worker.start()

    def runs(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def target(request: pytest.FixtureRequest, broker: str, tmp_path: Path) -> Iterator[Target]:
    with open_arena(broker, request.getfixturevalue, tmp_path, lease=1.0) as arena:
        one = Target(arena, tmp_path)
        yield one
        for worker in one.workers:
            worker.close()
        one.tasks.app.close()


@pytest.fixture(scope="module", params=EACH)
def broker(request: pytest.FixtureRequest) -> str:
    """The name of each broker, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


with_texts = pytest.mark.parametrize("broker", EACH_WITH_TEXTS, indirect=True)


def test_a_task_that_kills_its_process_again_and_again_fails_and_is_put_aside(target):
    worker = target.worker()
    results = [target.tasks.deadly.delay("deadly", "process"), target.tasks.add.delay(1, 2)]
    with pytest.raises(WorkerLostError):
        results[0].get(timeout=15)
    assert results[1].get(timeout=10) == 3
    assert target.runs("deadly") == ["0", "1", "2"], worker.log()
    dead = wait_until(lambda: target.arena.dead("celery"), 10, worker.log)
    assert len(dead) == 1
    assert dead[0][0] is None or "died 3 times" in dead[0][0]
    assert worker.log().count("died 3 times") == 1
    assert target.tasks.add.delay(2, 2).get(timeout=10) == 4
    wait_until(lambda: not target.arena.taken() and target.arena.waiting("celery") == 0, 5, "an empty queue")
    assert worker.stop(10) == 0


@pytest.mark.timeout(90)
@with_texts
def test_a_task_that_kills_its_worker_again_and_again_fails_and_is_put_aside(target):
    """What such a worker only held comes back as often, and that is no reason to give it up."""
    deadly = target.tasks.deadly.delay("deadly", "worker")
    innocent = target.tasks.add.delay(1, 2)
    for _ in range(4):
        target.worker().wait(20)
        target.workers[-1].close()
    last = target.worker()
    with pytest.raises(WorkerLostError):
        deadly.get(timeout=15)
    assert innocent.get(timeout=10) == 3
    # The first loss is not counted: nobody could tell whom the worker ran from whom it only held.
    assert target.runs("deadly") == ["0", "0", "1", "2"]
    (dead,) = wait_until(lambda: target.arena.dead("celery"), 10, last.log)
    assert "died 3 times" in dead[0]
    assert last.stop(10) == 0
