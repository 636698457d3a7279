"""Results in an SQLite file: stored once, told at once, and chords that fire once."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from celery_clone import Celery, group, states
from celery_clone.backends.sqlite import SQLiteBackend
from celery_clone.exceptions import ChordError, TimeoutError
from celery_clone.execution.context import Context
from celery_clone.utils.ids import uuid
from tests.support.processes import dies_with_its_parent
from tests.support.wait import wait_until

PROGRAMS = Path(__file__).parent / "sqlite_programs.py"
ROOT = Path(__file__).parents[3]


class Program:
    """One of the programs: the lines it says, and its cue to begin."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            dies_with_its_parent([sys.executable, str(PROGRAMS), *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def line(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def run(sqlite_url: str) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(name: str, *arguments: str) -> Program:
        program = Program(name, sqlite_url, *arguments)
        started.append(program)
        return program

    yield start
    for program in started:
        program.close()


@pytest.fixture
def make_app(sqlite_url: str) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(**conf: Any) -> Celery:
        app = Celery("tests", broker=sqlite_url, backend=sqlite_url, set_as_current=False)
        app.conf.update({"task_default_queue": "tasks", **conf})
        app.task(name="sum")(sum)
        app.finalize()
        made.append(app)
        return app

    yield make
    for app in made:
        app.backend.close()
        if app.amqp._publisher is not None:
            app.amqp._publisher.close()
        app.close()


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    return make_app()


@pytest.fixture
def backend(app: Celery) -> SQLiteBackend:
    assert isinstance(app.backend, SQLiteBackend)
    return app.backend


def watches(backend: SQLiteBackend) -> list[str]:
    rows = backend.store.database.read(lambda db: db.execute("SELECT key FROM celery_watches").fetchall())
    return [row[0].removeprefix("celery-task-meta-") for row in rows]


def sent(app: Celery) -> list[dict[str, Any]]:
    """Headers and arguments of the task messages that wait in the queue."""
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("tasks", no_ack=True)
        found = []
        while True:
            try:
                message = queue.get(block=False)
            except queue.Empty:
                return found
            found.append({**message.headers, "args": message.payload[0]})


def member(app: Celery, index: int, size: int, body: Any = None, **more: Any) -> Context:
    """The request of one member of a chord."""
    if body is None:
        body = app.signature("sum", task_id="body", app=app)
    body["chord_size"] = size
    return Context({"id": f"m{index}", "group": "c", "group_index": index, "chord": body, **more})


def test_a_result_comes_back_as_it_was_stored(app, backend) -> None:
    backend.mark_as_done("t", {"answer": [42, None, "ü"]})

    result = app.AsyncResult("t")
    assert result.get(timeout=1) == {"answer": [42, None, "ü"]}
    assert result.state == states.SUCCESS
    assert backend.get("celery-task-meta-t").startswith(b'{"status": "SUCCESS"')


def test_a_failure_comes_back_as_its_exception(app, backend) -> None:
    backend.mark_as_failure("t", KeyError("missing"), traceback="Traceback: here")

    result = app.AsyncResult("t")
    with pytest.raises(KeyError, match="missing"):
        result.get(timeout=1)
    assert result.traceback == "Traceback: here"


def test_what_is_not_stored_is_pending(app) -> None:
    assert app.AsyncResult("never").state == states.PENDING


def test_a_result_can_be_forgotten(app, backend) -> None:
    backend.mark_as_done("t", 1)

    app.AsyncResult("t").forget()

    assert app.AsyncResult("t").state == states.PENDING


def test_results_expire_and_failures_at_their_own_time(make_app) -> None:
    app = make_app(result_expires=timedelta(hours=1), result_failure_expires=60)
    app.backend.mark_as_done("good", 1)
    app.backend.mark_as_failure("bad", KeyError())
    keys = ["celery-task-meta-good", "celery-task-meta-bad"]

    later = time.time() + 120
    assert [value is not None for value in app.backend.store.get(keys, later)] == [True, False]
    assert app.backend.store.get(keys, time.time() + 3601) == [None, None]


def test_cleaning_up_removes_what_has_expired_and_the_watches_of_the_dead(make_app, run) -> None:
    app = make_app(result_expires=0.01)
    app.backend.mark_as_done("t", 1)
    waiter = run("wait", "never")
    waiter.line()
    wait_until(lambda: watches(app.backend) == ["never"], 10)
    waiter.process.kill()
    waiter.process.wait()

    app.backend.cleanup()

    assert watches(app.backend) == []
    count = "SELECT count(*) FROM celery_results"
    assert app.backend.store.database.read(lambda db: db.execute(count).fetchone()) == (0,)


def test_large_and_compressed_results_survive(make_app) -> None:
    app = make_app(result_compression="gzip")
    app.backend.mark_as_done("t", "x" * 100_000)

    assert len(app.backend.get("celery-task-meta-t")) < 2000
    assert app.AsyncResult("t").get(timeout=1) == "x" * 100_000


def test_a_group_can_be_saved_and_restored(app, backend) -> None:
    results = app.GroupResult("g", [app.AsyncResult(name) for name in "abc"])
    results.save(backend=backend)

    restored = backend.restore_group("g")

    assert [result.id for result in restored] == ["a", "b", "c"]
    backend.delete_group("g")
    assert backend.restore_group("g") is None


def test_who_waits_is_woken_as_soon_as_another_process_stores(app, run) -> None:
    task_ids = [uuid() for _ in range(40)]
    late: list[float] = []
    programs = run("store", *task_ids[:1])
    programs.line()
    for task_id in task_ids[:1]:
        programs.go()
        late.append(time.time() - app.AsyncResult(task_id).get(timeout=10))
    storing = app.AsyncResult(task_ids[1])
    other = app.backend.__class__(app=app, url=app.conf.result_backend)
    for task_id in task_ids[1:]:
        storing = app.AsyncResult(task_id)
        timer = threading.Timer(0.01, lambda task_id=task_id: other.mark_as_done(task_id, time.time()))
        timer.start()
        late.append(time.time() - storing.get(timeout=10))
        timer.join()
    other.close()

    # The best quarter: a poll would show in it too, a busy machine does not.
    assert statistics.quantiles(late, n=4)[0] < 0.02


def test_a_wait_that_is_over_in_vain_ends_in_time_and_leaves_no_watch_for_long(app, backend) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        app.AsyncResult("never").get(timeout=0.2)
    assert 0.2 <= time.monotonic() - started < 2

    with pytest.raises(TimeoutError):
        app.AsyncResult("neither").get(timeout=0.05)
    assert "never" not in watches(backend)


def test_many_threads_wait_over_one_doorbell(app, backend, run) -> None:
    task_ids = [f"t{number}" for number in range(20)]
    program = run("store", *task_ids)
    program.line()
    got: list[Any] = []
    threads = [
        threading.Thread(target=lambda task_id=task_id: got.append(app.AsyncResult(task_id).get(timeout=20)))
        for task_id in task_ids
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(watches(backend)) == 20, 10)

    program.go()

    for thread in threads:
        thread.join()
    assert len(got) == 20
    assert len(backend.store.bells()) <= 1


def test_the_results_of_a_large_group_are_joined(app, run) -> None:
    task_ids = [uuid() for _ in range(500)]
    program = run("store", *task_ids)
    program.line()
    results = app.GroupResult(uuid(), [app.AsyncResult(task_id) for task_id in task_ids])
    program.go()

    values = results.get(timeout=30)

    assert len(values) == 500
    assert values == sorted(values)


def test_states_in_between_are_told_to_who_listens(app, backend) -> None:
    told: list[tuple[str, Any]] = []

    def work() -> None:
        wait_until(lambda: watches(backend) == ["t"], 10)
        backend.store_result("t", {"percent": 50}, "PROGRESS")
        wait_until(lambda: told, 10)
        backend.mark_as_done("t", "finished")

    worker = threading.Thread(target=work)
    worker.start()

    value = app.AsyncResult("t").get(
        timeout=20, on_message=lambda meta: told.append((meta["status"], meta["result"]))
    )

    worker.join()
    assert value == "finished"
    assert told == [("PROGRESS", {"percent": 50}), ("SUCCESS", "finished")]


def test_a_waiter_that_was_killed_is_forgotten_by_the_next_store(backend, run) -> None:
    waiter = run("wait", "t")
    waiter.line()
    wait_until(lambda: watches(backend) == ["t"], 10)
    waiter.process.kill()
    waiter.process.wait()

    backend.mark_as_done("t", 1)

    assert watches(backend) == []


def test_a_removed_socket_is_replaced_and_the_wait_goes_on(app, backend) -> None:
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(app.AsyncResult("t").get(timeout=20)))
    waiter.start()
    wait_until(lambda: watches(backend) == ["t"], 10)
    (first,) = backend.store.bells()
    os.unlink(first)
    wait_until(lambda: first not in backend.store.bells() or len(backend.store.bells()) == 2, 10)

    backend.mark_as_done("t", "still")

    waiter.join()
    assert got == ["still"]


def test_a_forked_child_waits_at_a_doorbell_of_its_own(app, backend) -> None:
    with pytest.raises(TimeoutError):
        app.AsyncResult("warm").get(timeout=0.01)
    ours = backend.result_consumer._bell.address
    child = os.fork()
    if child == 0:
        code = 1
        try:
            value = app.AsyncResult("t").get(timeout=20)
            code = int(value != "hello" or backend.result_consumer._bell.address == ours)
        finally:
            os._exit(code)
    wait_until(lambda: "t" in watches(backend), 10)

    backend.mark_as_done("t", "hello")

    assert os.waitpid(child, 0)[1] == 0
    assert os.path.exists(ours)


def test_deferred_results_are_stored_together_and_seen_by_their_own_process_at_once(app, backend) -> None:
    other = SQLiteBackend(app=app, url=app.conf.result_backend)
    writer = backend.defer_results()
    for number in range(3):
        backend.mark_as_done(f"t{number}", number)

    assert other.get_state("t0") == states.PENDING
    assert writer.pending == 3
    assert backend.get_state("t1") == states.SUCCESS
    assert [other.get_result(f"t{number}") for number in range(3)] == [0, 1, 2]
    assert not writer.pending
    other.close()


def test_results_that_cannot_be_stored_wait_for_the_next_attempt(app, backend) -> None:
    writer = backend.defer_results()
    backend.mark_as_done("t", 1)
    backend.store.database.busy_timeout_s = 0.05
    other = SQLiteBackend(app=app, url=app.conf.result_backend)

    def while_locked(db: Any) -> None:
        with pytest.raises(OperationalError, match="locked"):
            writer.flush()

    other.store.database.write(while_locked)
    writer.flush()

    assert other.get_result("t") == 1
    other.close()


class TestChords:
    def test_the_body_is_sent_once_with_the_values_in_order(self, app, backend) -> None:
        for index in (2, 0, 1):
            backend.mark_as_done(f"m{index}", index * 10, request=member(app, index, 3))
        backend.mark_as_done("m1", 99, request=member(app, 1, 3))

        (body,) = sent(app)
        assert (body["id"], body["args"]) == ("body", [[0, 10, 20]])

    def test_a_failed_member_fails_the_body(self, app, backend) -> None:
        backend.mark_as_done("m0", 1, request=member(app, 0, 2))
        backend.mark_as_failure("m1", ValueError("no"), request=member(app, 1, 2))

        assert sent(app) == []
        with pytest.raises(ChordError, match=r"Dependency m1 raised ValueError\('no'\)"):
            app.AsyncResult("body").get(timeout=1)

    def test_values_keep_the_structure_of_a_header_with_groups_in_it(self, app, backend) -> None:
        inner = app.GroupResult("inner", [app.AsyncResult("m0"), app.AsyncResult("m1")])
        backend.apply_chord(("c", [inner, app.AsyncResult("m2")]), app.signature("sum", app=app))
        backend.set_chord_size("c", 3)

        for index in range(3):
            backend.mark_as_done(f"m{index}", index, request=member(app, index, 3))

        (body,) = sent(app)
        assert body["args"] == [[[0, 1], 2]]
        assert backend.restore_group("c") is None

    def test_members_ending_in_batches_in_many_processes_send_the_body_once(self, app, run) -> None:
        indexes = [str(number) for number in range(120)]
        programs = [run("members", "c", "body", "120", *indexes[start::4]) for start in range(4)]
        twice = run("members", "c", "body", "120", *indexes[:30])
        for program in (*programs, twice):
            assert program.line() == ["ready"]
        for program in (*programs, twice):
            program.go()
        for program in (*programs, twice):
            assert program.line() == ["ended"]

        (body,) = sent(app)
        assert body["args"] == [list(range(120))]

    @pytest.mark.chaos
    def test_a_process_that_dies_before_it_sent_the_body_is_stood_in_for(self, app, backend, run) -> None:
        program = run("die_before_sending", "c", "body")
        program.process.wait()
        assert sent(app) == []

        backend.defer_results()

        (body,) = sent(app)
        assert (body["id"], body["args"]) == ("body", [[7]])
        backend.defer_results()
        assert sent(app) == []

    def test_a_real_chord_tells_its_size_before_the_last_member_leaves(self, app, backend) -> None:
        add = app.task(name="add")(lambda x, y: x + y)
        result = (group(add.s(1, 1), add.s(2, 2)) | app.tasks["sum"].s()).apply_async()

        members = sent(app)
        for header in members:
            request = Context({**header, "chord": None})
            request.chord = app.signature("sum", task_id=result.id, app=app)
            backend.mark_as_done(header["id"], sum(header["args"]), request=request)

        (body,) = sent(app)
        assert (body["id"], body["args"]) == (result.id, [[2, 4]])
