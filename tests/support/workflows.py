"""Workflows, written as text, sent to a worker that notes what its tasks do.

Used by the tests of workflows. The project is ``tests/integration/canvas/workflows_project.py``; here it is
imported once more for each shop, with that shop's broker.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from celery_clone.result import GroupResult
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

HERE = Path(__file__).resolve().parents[1] / "integration" / "canvas"
TIMEOUT_S = 20.0
_numbers = itertools.count(1)


class Sent:
    """A workflow that was sent: its text, its result, and what its tasks noted."""

    def __init__(self, text: str, run: str, result: Any, notes: Path) -> None:
        self.text, self.run, self.result, self._notes = text, run, result, notes

    def notes(self, kind: str | None = None) -> list[list[Any]]:
        """What was noted so far, of one kind or all."""
        path = self._notes / self.run
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if kind in (None, line[0])]

    def wait_for(self, kind: str, count: int) -> list[list[Any]]:
        """The notes of one kind, when there are *count* of them."""
        wait_until(
            lambda: len(self.notes(kind)) >= count, TIMEOUT_S, lambda: f"{count} notes of {kind} for {self.text}"
        )
        return self.notes(kind)

    def value(self) -> Any:
        """What the workflow gave."""
        return self.result.get(timeout=TIMEOUT_S)

    def error(self) -> BaseException:
        """What the workflow failed with."""
        try:
            value = self.value()
        except Exception as exc:
            return exc
        raise AssertionError(f"{self.text} gave {value!r} instead of an error")

    def unfinished(self) -> list[str]:
        """The ids of all calls of the workflow, up to the first, that have not ended."""
        found, seen = [], set()
        waiting = [self.result]
        while waiting:
            result = waiting.pop()
            if result is None or result.id in seen:
                continue
            seen.add(result.id)
            if isinstance(result, GroupResult):
                waiting += result.results
            elif not result.ready():
                found.append(result.id)
            waiting.append(result.parent)
        return found

    def wait_for_all(self) -> None:
        """Return when every call of the workflow has ended, run or not."""
        wait_until(lambda: not self.unfinished(), TIMEOUT_S, lambda: f"{self.text}: the end of {self.unfinished()}")


class Shop:
    """The project, in this process and in a worker."""

    def __init__(self, module: ModuleType, worker: WorkerProcess, notes: Path) -> None:
        self.module, self.worker, self.notes = module, worker, notes
        self.app = module.app

    def send(self, text: str, *args: Any) -> Sent:
        """Send the workflow that *text* says."""
        run = f"run{next(_numbers)}"
        made = eval(text, dict(self.module.names(run)))
        result = made.apply_async(args) if hasattr(made, "apply_async") else made
        return Sent(text, run, result, self.notes)


@contextmanager
def open_shop(folder: Path, broker: str, *options: str, backend: str | None = None, **settings: Any) -> Iterator[Shop]:
    """A shop with a worker of two processes."""
    notes = folder / "notes"
    notes.mkdir()
    environment = {
        "BROKER": broker,
        "BACKEND": backend or broker,
        "NOTES": str(notes),
        "SETTINGS": json.dumps(settings),
    }
    with WorkerProcess(
        "workflows_project", ["-c", "2", *options], folder=HERE, environment=environment, log_file=folder / "worker.log"
    ) as worker:
        with mock.patch.dict(os.environ, environment):
            spec = importlib.util.spec_from_file_location("workflows_project", HERE / "workflows_project.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        try:
            yield Shop(module, worker, notes)
        finally:
            module.app.backend.close()
            module.app.close()
