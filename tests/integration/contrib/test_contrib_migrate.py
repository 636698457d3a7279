"""Tasks that wait for their time inside a broker move with the others, and run where they have come to, on time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from celery_clone.contrib.migrate import migrate_tasks
from tests.support.brokers import EACH_WITH_TEXTS, open_arena, start_server
from tests.support.fleet import Fleet
from tests.support.wait import wait_until


@pytest.fixture(scope="module", params=EACH_WITH_TEXTS)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of a broker, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.mark.timeout(60)
def test_parked_tasks_are_migrated(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    folders: list[Any] = [tmp_path / "old", tmp_path / "new"]
    for folder in folders:
        folder.mkdir()
    fixture = request.getfixturevalue
    with open_arena(kind, fixture, folders[0]) as old, open_arena(kind, fixture, folders[1]) as new:
        before = Fleet(old, folders[0])
        after = Fleet(new, folders[1])
        try:
            worker = before.worker("-c", "1", "-n", "old@here")
            due = time.time() + 6.0
            for number in range(3):
                before.tasks.early.apply_async((number,), countdown=6.0)
            worker.wait_for_log("received", count=3)
            wait_until(lambda: not old.taken() and old.waiting("celery") == 0, 5)
            assert worker.stop(10) == 0
            with old.connection() as source, new.connection() as destination:
                moved = migrate_tasks(source, destination, app=before.tasks.app, ack_messages=True, timeout=0.5)
            assert moved.count == 3
            assert (old.waiting("celery"), new.waiting("celery")) == (0, 3)
            after.worker("-c", "1", "-n", "new@here")
            runs = after.wait_for_runs("early", 3)
            assert {run.number for run in runs} == {0, 1, 2}
            assert all(due - 0.5 < run.at for run in runs)
            assert not before.runs("early")
        finally:
            before.close()
            after.close()
