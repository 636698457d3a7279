"""Real Celery and us on one broker: a worker and a producer of each side.

Used by the interop tests. It may not import the package under test: both sides are reached through processes,
by messages, results and the command line.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.processes import dies_with_its_parent
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess, clean_environment

PROJECT = Path(__file__).resolve().parents[1] / "interop" / "project"
SIDES = ("real", "ours")
PACKAGES = {"real": "celery", "ours": "celery_clone"}
ANSWER_TIMEOUT_S = 40.0


def other(side: str) -> str:
    """The side that is not *side*."""
    return SIDES[1 - SIDES.index(side)]


class Raised(Exception):
    """An expression raised: ``kind`` is module and name (ours under Celery's name), ``text`` its ``str()``."""

    def __init__(self, expression: str, found: Mapping[str, Any]) -> None:
        super().__init__(f"{expression} raised\n{found['trace']}")
        self.kind: str = found["kind"]
        self.arguments: list[Any] = found["arguments"]
        self.text: str = found["text"]
        self.trace: str = found["trace"]


def environment_of(side: str, broker: str, backend: str, **more: str) -> dict[str, str]:
    """What the project reads from its environment; with ``ALIAS`` set our package goes by Celery's name."""
    found = {"PACKAGE": PACKAGES[side], "BROKER": broker, "BACKEND": backend, "C_FORCE_ROOT": "1", **more}
    if found.get("ALIAS"):
        if side == "ours":
            found["PACKAGE"] = "celery"
        else:
            del found["ALIAS"]
    return found


class Client:
    """A producer of one side: ``client("add.delay(2, 2).get(timeout=20)")``.

    Expressions see the project's tasks and what the guide imports; keyword arguments are further names.
    """

    def __init__(self, python: Path | str, side: str, broker: str, backend: str, **environment: str) -> None:
        self.side = side
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._received = b""
        self._greeted = False
        with theirs:
            self._process = subprocess.Popen(
                dies_with_its_parent([str(python), "client.py", str(theirs.fileno())]),
                cwd=PROJECT,
                env=clean_environment(environment_of(side, broker, backend, **environment)),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, expression: str, **names: Any) -> Any:
        """The value of *expression*, as JSON keeps it; raises :class:`Raised`."""
        return self._ask(expression, "", names)

    def keep(self, name: str, expression: str, **names: Any) -> None:
        """Let *name* stand for the value of *expression* from now on."""
        self._ask(expression, name, names)

    def wait_until_ready(self) -> None:
        """Return when the project is imported."""
        if not self._greeted:
            self._greeted = self._answer("import") == {"value": "ready"}

    def _ask(self, expression: str, keep: str, names: Mapping[str, Any]) -> Any:
        self.wait_until_ready()
        request = {"expression": expression, "keep": keep, "names": names}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        found = self._answer(expression)
        if "raised" in found:
            raise Raised(expression, found["raised"])
        return found["value"]

    def _answer(self, expression: str) -> dict[str, Any]:
        while b"\n" not in self._received:
            readable, _, _ = select.select([self._socket], [], [], ANSWER_TIMEOUT_S)
            assert readable, f"the {self.side} client gave no answer to {expression} in {ANSWER_TIMEOUT_S:g} s"
            data = self._socket.recv(65536)
            assert data, f"the {self.side} client ended with {self._process.wait(10)} at {expression}"
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the producer. Legal twice."""
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(10)


def worker_of(
    side: str, python: Path | str, broker: str, backend: str, folder: Path, *options: str, **environment: str
) -> WorkerProcess:
    """A worker of one side, not started; its log lies in *folder*, its node name begins with its side."""
    log = folder / f"{side}-worker.log"
    return WorkerProcess(
        "shop",
        ["-n", f"{side}@interop", *options],
        folder=PROJECT,
        environment=environment_of(side, broker, backend, **environment),
        python=python,
        package=PACKAGES[side],
        log_file=log,
    )


class Link:
    """One broker and one result store with both sides on it; each worker serves the queue of its side, and both the default one."""

    def __init__(
        self, pythons: Mapping[str, Path | str], broker: str, backend: str, folder: Path, **environment: str
    ) -> None:
        self.broker, self.backend, self.folder = broker, backend, folder
        self.alias = bool(environment.get("ALIAS"))
        self.workers = {
            side: worker_of(
                side, pythons[side], broker, backend, folder, "-c", "2", "-Q", f"{side},celery", **environment
            )
            for side in SIDES
        }
        self.clients = {side: Client(pythons[side], side, broker, backend, **environment) for side in SIDES}

    def start(self) -> Link:
        """Start all four at once and return when they are ready."""
        for worker in self.workers.values():
            worker.spawn()
        for client in self.clients.values():
            client.wait_until_ready()
        for worker in self.workers.values():
            worker.wait_until_ready(40)
        return self

    def close(self) -> None:
        """End all four. Legal twice."""
        for client in self.clients.values():
            client.close()
        for worker in self.workers.values():
            worker.close()


@contextlib.contextmanager
def open_link(
    pythons: Mapping[str, Path | str], broker: str, backend: str, folder: Path, **environment: str
) -> Iterator[Link]:
    """A link that is ready, closed at the end."""
    link = Link(pythons, broker, backend, folder, **environment)
    try:
        yield link.start()
    finally:
        link.close()


def lines_of(path: Path, count: int, timeout: float = 30.0) -> list[str]:
    """The lines of a file that tasks write to, when there are *count* of them."""

    def found() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        return lines if len(lines) >= count else []

    return wait_until(found, timeout, lambda: f"{count} lines in {path.name}, which has {found()}")
