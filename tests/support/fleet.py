"""A project on one broker, its workers, and what its tasks have noted: for tests of what happens to workers.

Used by the chaos tests. The tasks note each run in a file of the project's folder, so that what ran, how often and
when is known whatever becomes of a worker. Tasks are sent past the proxy that workers may be put behind.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.brokers import Arena, load_project
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = """
import importlib, json, os, time
from pathlib import Path

package = importlib.import_module(os.environ.get("PACKAGE", "celery_clone"))
app = package.Celery(
    "project", broker=os.environ["BROKER"], backend=os.environ.get("RESULTS") or None, set_as_current=False
)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])
app.conf.task_default_queue_type = os.environ.get("QUEUE_TYPE", "classic")
app.conf.update(json.loads(os.environ.get("SETTINGS", "{}")))
HERE = Path(__file__).parent

def note(name, *values):
    # One write of less than a page to a file that is only appended to is never cut in half.
    descriptor = os.open(HERE / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, (" ".join(map(str, [*values, os.getpid(), time.time()])) + chr(10)).encode())
    finally:
        os.close(descriptor)

def run(name, number, seconds):
    note(name + ".begun", number)
    if seconds:
        time.sleep(seconds)
    note(name, number)

def run_until(name, gate):
    note(name + ".begun", 0)
    until = time.monotonic() + 120
    while not (HERE / gate).exists() and time.monotonic() < until:
        time.sleep(0.005)
    note(name, 0)
    return name

@app.task(ignore_result=True)
def early(number, seconds=0.0, name="early"):
    run(name, number, seconds)

@app.task(ignore_result=True, acks_late=True, reject_on_worker_lost=True)
def late(number, seconds=0.0, name="late"):
    run(name, number, seconds)

@app.task
def early_until(name, gate):
    return run_until(name, gate)

@app.task(acks_late=True, reject_on_worker_lost=True)
def late_until(name, gate):
    return run_until(name, gate)
"""


class Run(NamedTuple):
    """One line of a task's notes: the number it was called with, the process, and the time."""

    number: int
    pid: int
    at: float


class Fleet:
    """The project, with a way to start workers.

    *through* is the URL that workers reach the broker by, if it is another than the arena's; *settings* are
    settings of the app, and *queue_type* the type of its queues.
    """

    def __init__(
        self,
        arena: Arena,
        folder: Path,
        *,
        through: str | None = None,
        settings: dict[str, Any] | None = None,
        queue_type: str = "classic",
    ) -> None:
        self.arena, self.folder = arena, folder
        (folder / "project.py").write_text(PROJECT)
        self.environment = {
            **arena.environment,
            "RESULTS": arena.results,
            "SETTINGS": json.dumps(settings or {}),
            "QUEUE_TYPE": queue_type,
        }
        self.through = through or arena.url
        self.tasks: Any = load_project(folder / "project.py", self.environment)
        self.workers: list[WorkerProcess] = []

    def worker(self, *options: str, ready: bool = True, python: Any = None, **environment: str) -> WorkerProcess:
        """Start a worker; with *python*, of real Celery."""
        other: dict[str, Any] = {"python": python, "package": "celery"} if python else {}
        given = {**self.environment, "BROKER": self.through, "PACKAGE": other.get("package", "celery_clone")}
        worker = WorkerProcess("project", options, folder=self.folder, environment={**given, **environment}, **other)
        self.workers.append(worker)
        return worker.start() if ready else worker.spawn()

    def runs(self, name: str) -> list[Run]:
        """What tasks have noted under *name*; ``<name>.begun`` has the begins."""
        path = self.folder / name
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [Run(int(number), int(pid), float(at)) for number, pid, at in map(str.split, lines)]

    def counts(self, name: str) -> Counter[int]:
        """How often each number has run."""
        return Counter(run.number for run in self.runs(name))

    def wait_for_runs(self, name: str, count: int = 1, timeout: float = 15.0) -> list[Run]:
        """Return the runs when there are *count* of them."""
        return wait_until(
            lambda: runs if len(runs := self.runs(name)) >= count else [],
            timeout,
            lambda: f"{count} runs of {name}, which has {len(self.runs(name))}; {self.logs()}",
            every=0.005,
        )

    def wait_for_all(self, name: str, numbers: set[int], timeout: float = 15.0) -> Counter[int]:
        """Return how often each number ran when all of *numbers* have."""
        wait_until(
            lambda: numbers <= set(self.counts(name)),
            timeout,
            lambda: f"{sorted(numbers - set(self.counts(name)))[:50]} of {name}; {self.logs()}",
            every=0.01,
        )
        return self.counts(name)

    def logs(self) -> str:
        """The logs of the last workers."""
        return "\n".join(f"{worker!r}, exit code {worker.exit_code}:\n{worker.log()}" for worker in self.workers[-3:])

    def open(self, gate: str) -> None:
        """Let the tasks go on that wait for *gate*."""
        (self.folder / gate).touch()

    def close(self) -> None:
        """End what is left."""
        for worker in self.workers:
            worker.close()
        self.tasks.app.close()
