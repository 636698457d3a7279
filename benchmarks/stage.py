"""What a benchmark may use: two sides, servers, a worker, a client.

Handed to every function of ``benchmarks.suite``. It owns the servers and the temporary folder of one run of
``python -m benchmarks`` and closes them.
"""

from __future__ import annotations

import compileall
import contextlib
import itertools
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.rabbitmq import RabbitServer
from tests.support.redis import RedisServer
from tests.support.worker import WorkerProcess, clean_environment

PROJECT = Path(__file__).parent / "project"
PACKAGE = Path(__file__).parent.parent / "celery_clone"
CLIENT_TIMEOUT_S = 600.0
USUAL_TASKS = 4000


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    name: str
    python: Path
    package: str


@dataclass(frozen=True)
class Place:
    """Where one run of one benchmark keeps its messages, results and marks. Nobody else uses it."""

    broker: str
    backend: str
    queue: str
    marks: Path
    ready: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    def environment(self, side: Side) -> dict[str, str]:
        """What ``bench_app`` reads."""
        environment = clean_environment(
            {
                "BENCH_PACKAGE": side.package,
                "BENCH_BROKER": self.broker,
                "BENCH_BACKEND": self.backend,
                "BENCH_QUEUE": self.queue,
                "BENCH_MARKS": str(self.marks),
                "BENCH_READY": str(self.ready),
                "BENCH_SETTINGS": json.dumps(self.settings),
                # Both sides run as they would for a person who is not warned of being root.
                "C_FORCE_ROOT": "1",
            }
        )
        # Both sides start from compiled files, which an installed package has.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        return environment


class Stage:
    """Servers and folders of one run of the whole suite. *tasks* is the number of tasks of a drain."""

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self._open = contextlib.ExitStack()
        self.folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="celery-clone-bench-")))
        self._numbers = itertools.count(1)
        self._redis: RedisServer | None = None
        self._rabbit: RabbitServer | None = None

    def __enter__(self) -> Stage:
        # What pip does when it installs a package; ours may run from a checkout.
        compileall.compile_dir(PACKAGE, quiet=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def redis(self) -> RedisServer:
        """The Redis server, started when first asked for."""
        if self._redis is None:
            self._redis = self._open.enter_context(RedisServer())
        return self._redis

    @property
    def rabbit(self) -> RabbitServer:
        """The RabbitMQ server, started when first asked for, without statistics that would cost time."""
        if self._rabbit is None:
            self._rabbit = self._open.enter_context(RabbitServer(management=False))
        return self._rabbit

    def scaled(self, size: int) -> int:
        """*size* if the run has the usual number of tasks; else in proportion."""
        return max(2, size * self.tasks // USUAL_TASKS)

    def _place(self, broker: str, backend: str, settings: Mapping[str, Any]) -> Place:
        name = f"bench-{next(self._numbers)}"
        folder = self.folder / name
        folder.mkdir()
        marks = folder / "marks"
        marks.touch()
        return Place(broker, backend, name, marks, folder / "ready", settings)

    def on_redis(self, **settings: Any) -> Place:
        """Broker and results on Redis, in one new database; with *settings* of the app."""
        url = self.redis.new_database_url()
        return self._place(url, url, settings)

    def on_rabbit(self, backend: str = "rpc://", **settings: Any) -> Place:
        """Broker RabbitMQ, a queue of its own; *backend* is ``rpc://``, ``redis`` or empty."""
        url = self.redis.new_database_url() if backend == "redis" else backend
        return self._place(self.rabbit.url(), url, settings)

    def on_sqlite(self) -> Place:
        """Broker and results in one new file."""
        url = f"sqlite:///{self.folder}/bench-{next(self._numbers)}.db"
        return self._place(url, url, {})

    @contextlib.contextmanager
    def worker(self, side: Side, place: Place, options: Sequence[str] = ("-c", "2")) -> Iterator[WorkerProcess]:
        """A worker with *options*, log level WARNING and otherwise as it comes. Not yet ready."""
        worker = WorkerProcess(
            "bench_app",
            (*options, "-n", f"{side.package}-{place.queue}@%h"),
            folder=PROJECT,
            environment=place.environment(side),
            python=side.python,
            package=side.package,
            log_level="WARNING",
            ready_file=place.ready,
            log_file=place.marks.parent / "worker.log",
        )
        try:
            yield worker.spawn()
            worker.stop(30)
        finally:
            worker.close()

    def client(self, side: Side, place: Place, action: str, count: int) -> dict[str, float]:
        """Run one action of ``project/client.py`` with the side's interpreter; what it measured."""
        done = subprocess.run(
            [side.python, "client.py", action, str(count)],
            cwd=PROJECT,
            env=place.environment(side),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{side.name}: client.py {action} {count} failed:\n{done.stdout}\n{done.stderr}")
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return measured
