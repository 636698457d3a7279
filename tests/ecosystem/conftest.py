"""Packages of other people, unmodified, on our worker: an environment of their own, and programs that run in it.

Opt in with ``make test-ecosystem``: the environment comes from PyPI.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.ecosystem import PROJECTS, ecosystem_python, environment_of
from tests.support.processes import dies_with_its_parent, end
from tests.support.redis import RedisServer
from tests.support.servers import Unavailable
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

HERE = Path(__file__).parent
OPT_IN = "TEST_ECOSYSTEM"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests run when they are asked for: building their environment takes longer than they do."""
    if os.environ.get(OPT_IN):
        for item in items:
            if item.path.is_relative_to(HERE):
                # The first of them may have to build the environment.
                item.add_marker(pytest.mark.timeout(400))
        return
    skip = pytest.mark.skip(reason=f"needs packages from PyPI: make test-ecosystem (or {OPT_IN}=1)")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(skip)


@dataclass
class Project:
    """A project of ``projects/``, an environment to run it in, and a broker for it alone."""

    app: str
    python: Path
    folder: Path
    environment: Mapping[str, str]
    started: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def outbox(self) -> Path:
        """The file that the project writes to what it would send elsewhere."""
        return Path(self.environment["OUTBOX"])

    def sent(self) -> list[dict[str, object]]:
        """What the project wrote so far, one JSON object a line."""
        if not self.outbox.exists():
            return []
        return [json.loads(line) for line in self.outbox.read_text().splitlines() if line.endswith("}")]

    def worker(self, *options: str, app: str | None = None) -> WorkerProcess:
        """A running worker of the project, started as ``celery -A … worker``."""
        worker = WorkerProcess(
            app or self.app,
            options or ("-c", "2"),
            folder=self.folder,
            environment=self.environment,
            python=self.python,
            package="celery",
        )
        return self.started.enter_context(worker)

    def program(self, *command: str) -> Path:
        """Start ``celery -A … <command>``; returns the file that holds what it writes."""
        log = self.folder / f"{command[0]}.log"
        celery = [str(self.python.with_name("celery")), "-A", self.app, *command]
        with log.open("ab") as output:
            process = subprocess.Popen(
                dies_with_its_parent(celery),
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.callback(end, process)
        return log

    def run(self, program: str) -> str:
        """Run Python text in the project's environment; returns what it printed."""
        return self.command(str(self.python), "-c", program)

    def command(self, *command: str) -> str:
        """Run a command in the project's environment; returns what it printed, and fails with its errors."""
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, f"{command} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout


ProjectFactory = Callable[..., "contextlib.AbstractContextManager[Project]"]


@pytest.fixture(scope="session")
def python_with_ours() -> Path:
    """The interpreter of the environment in which ``celery`` is ours."""
    try:
        return ecosystem_python()
    except Unavailable as missing:
        pytest.fail(str(missing))


@pytest.fixture(scope="session")
def open_project(
    python_with_ours: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> ProjectFactory:
    """Open the project with a name: ``open_project("shop")``."""

    @contextlib.contextmanager
    def open_project(app: str, path: Sequence[str] = (), **settings: str) -> Iterator[Project]:
        folder = tmp_path_factory.mktemp(app)
        environment = environment_of(
            PROJECTS.joinpath(*path),
            {
                "BROKER": redis_server.new_database_url(),
                "RESULTS": redis_server.new_database_url(),
                "DATABASE": str(folder / "site.db"),
                "OUTBOX": str(folder / "outbox.jsonl"),
                **settings,
            },
        )
        project = Project(app, python_with_ours, folder, environment)
        with project.started:
            yield project

    return open_project


def text_of(log: Path, words: str, timeout: float = 15.0) -> str:
    """What *log* holds as soon as *words* are in it; *timeout* in seconds."""

    def found() -> str:
        text = log.read_text(errors="replace") if log.exists() else ""
        return text if words in text else ""

    return wait_until(found, timeout, lambda: f"{words!r} in {log}:\n{log.read_text(errors='replace')}")
