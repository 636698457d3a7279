"""What was revoked does not run: not where it waits, not where it runs, and not in workers that come later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_clone import states
from celery_clone.exceptions import TaskRevokedError
from celery_clone.transport.revocations import Revocations, read, remember
from tests.support.brokers import EACH, EACH_WITH_TEXTS, REDIS, Arena, load_project, open_arena, start_server
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = """
import json, os, signal, time
from pathlib import Path
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["RESULTS"], set_as_current=False)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])

@app.task
def note(name):
    (Path(__file__).parent / name).touch()

@app.task(bind=True)
def wait(self, name):
    def told(signum, frame):
        (Path(__file__).parent / f"{name}-{signal.Signals(signum).name}").touch()
        os._exit(1)
    signal.signal(signal.SIGUSR2, told)
    (Path(__file__).parent / name).touch()
    time.sleep(30)
"""


class World:
    """A project on one broker, with or without a worker."""

    def __init__(self, arena: Arena, folder: Path) -> None:
        self.arena, self.folder = arena, folder
        (folder / "project.py").write_text(PROJECT)
        self.tasks: Any = load_project(folder / "project.py", arena.environment)
        self.app = self.tasks.app
        self.workers: list[WorkerProcess] = []

    def worker(self, *options: str) -> WorkerProcess:
        worker = WorkerProcess(
            "project", ["-c", "2", "-n", "w@here", *options], folder=self.folder, environment=self.arena.environment
        )
        self.workers.append(worker)
        return worker.start()

    def ran(self, name: str) -> bool:
        return (self.folder / name).exists()

    def wait_for(self, name: str) -> None:
        wait_until(lambda: self.ran(name), 10, self.workers[-1].log)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.app.close()


@pytest.fixture(scope="module", params=EACH)
def broker(request: pytest.FixtureRequest) -> str:
    """The name of each broker, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


with_texts = pytest.mark.parametrize("broker", EACH_WITH_TEXTS, indirect=True)


@pytest.fixture
def options() -> dict[str, Any]:
    """Transport options."""
    return {}


@pytest.fixture
def world(
    request: pytest.FixtureRequest, broker: str, tmp_path: Path, options: dict[str, Any]
) -> Iterator[World]:
    with open_arena(broker, request.getfixturevalue, tmp_path, **options) as arena:
        one = World(arena, tmp_path)
        yield one
        one.close()


@with_texts
def test_a_revoke_holds_although_no_worker_runs(world):
    plain, stamped, many, later, kept = (
        world.tasks.note.apply_async((name,), **options)
        for name, options in {
            "plain": {},
            "stamped": {"stamped_headers": ["customer"], "customer": "17"},
            "many": {},
            "later": {"countdown": 2.5},
            "kept": {"stamped_headers": ["customer"], "customer": "18"},
        }.items()
    )
    plain.revoke()
    world.app.control.revoke([many.id, later.id])
    world.app.control.revoke_by_stamped_headers({"customer": ["17"]})

    worker = world.worker()

    for result in (plain, stamped, many):
        with pytest.raises(TaskRevokedError):
            result.get(timeout=10)
    kept.get(timeout=10)
    assert worker.stop(10) == 0
    # And in a worker that never heard of it, after it was parked by another.
    world.worker()
    with pytest.raises(TaskRevokedError):
        later.get(timeout=10)
    assert not any(world.ran(name) for name in ("plain", "stamped", "many", "later"))
    assert world.ran("kept")


@pytest.mark.parametrize("broker", [REDIS], indirect=True)
@pytest.mark.parametrize("options", [{"global_keyprefix": "mine:"}])
def test_revokes_keep_to_the_prefix_of_their_keys(world):
    revoked = world.tasks.note.delay("revoked")
    revoked.revoke()
    with world.arena.connection() as connection:
        assert connection.default_channel._create_client().execute_command("KEYS", "mine:celery.revoked")
    world.worker()
    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=10)


@with_texts
def test_revokes_are_forgotten_after_their_time_and_the_oldest_of_too_many(world, monkeypatch):
    monkeypatch.setattr("celery_clone.transport.revocations.MOST", 3)
    with world.arena.connection() as connection:
        assert read(connection, now=0.0) == Revocations()
        assert remember(connection, Revocations(frozenset({"a"}), {"customer": 17}), now=0.0, kept_s=10)
        assert remember(connection, Revocations(frozenset({"b"})), now=5.0, kept_s=10)
        assert read(connection, now=9.0) == Revocations(frozenset({"a", "b"}), {"customer": [17]})
        assert read(connection, now=12.0) == Revocations(frozenset({"b"}))
        remember(connection, Revocations(frozenset({"c"})), now=20.0, kept_s=10)
        assert read(connection, now=0.0).ids == {"c"}


def test_tasks_are_revoked_one_by_one_many_at_once_and_while_they_run(world):
    worker = world.worker("-l", "INFO")
    control = world.app.control
    running = [world.tasks.wait.delay(f"running-{number}") for number in range(2)]
    for number in range(2):
        world.wait_for(f"running-{number}")
    waiting = [world.tasks.note.delay(f"waiting-{number}") for number in range(3)]
    control.revoke([result.id for result in waiting], reply=True, timeout=10, limit=1)
    control.revoke(running[0].id, terminate=True, signal="SIGUSR2")
    running[1].revoke(terminate=True, signal="KILL")
    for result in (*running, *waiting):
        wait_until(lambda result=result: result.state == states.REVOKED, 10, worker.log)
    assert world.ran("running-0-SIGUSR2")
    assert not any(world.ran(f"waiting-{number}") for number in range(3))
    world.tasks.note.apply_async(("after",)).get(timeout=10)
    assert worker.stop(10) == 0


def test_the_file_of_a_worker_keeps_what_it_heard_over_restarts(world):
    first = world.worker("-S", "revoked.db")
    world.app.control.revoke("some-id", destination=["w@here"], reply=True, timeout=10)
    assert first.stop(10) == 0
    second = world.worker("-S", "revoked.db")
    world.tasks.note.apply_async(("revoked",), task_id="some-id")
    second.wait_for_log(r"Discarding revoked task: project\.note\[some-id\]")
    assert world.app.control.inspect(timeout=10, destination=["w@here"]).revoked() == {"w@here": ["some-id"]}
    assert second.stop(10) == 0
    assert not world.ran("revoked")
