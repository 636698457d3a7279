"""The embedded broker between processes: nothing lost, nothing doubled, woken at once, rid of the dead."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue, pidbox
from kombu.exceptions import OperationalError

import celery_clone.transport  # noqa: F401 registers sqlite://
from celery_clone.transport.sqlite.doorbell import FOLDER_SUFFIX
from tests.support.processes import dies_with_its_parent
from tests.support.wait import wait_until

PROGRAMS = Path(__file__).parent / "sqlite_programs.py"
ROOT = Path(__file__).parents[3]
LEASE_S = 1.0


class Program:
    """One of the programs, and the lines it says."""

    def __init__(self, *arguments: str) -> None:
        command = dies_with_its_parent([sys.executable, str(PROGRAMS), *arguments])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def line(self) -> list[str]:
        """The next line, in words; waits for it."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def close(self) -> None:
        """End it, if it has not ended."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def sqlite_url() -> Iterator[str]:
    """In a folder with a short name, however long the others are: the addresses beside the file may not be longer."""
    with tempfile.TemporaryDirectory(prefix="bells-") as folder:
        yield f"sqlite:///{folder}/broker.db"


@pytest.fixture
def run(sqlite_url: str) -> Iterator[Callable[..., Program]]:
    """``run(name, *arguments)``: a program on this test's file."""
    started: list[Program] = []

    def start(name: str, *arguments: str) -> Program:
        program = Program(name, sqlite_url, *arguments)
        started.append(program)
        return program

    yield start
    for program in started:
        program.close()


@pytest.fixture
def connection(sqlite_url: str) -> Iterator[Connection]:
    options = {"lease": LEASE_S, "visibility_timeout": 30.0}
    with Connection(sqlite_url, transport_options=options) as connection:
        connection.connect()
        yield connection


@pytest.fixture
def tasks(connection: Connection) -> Queue:
    queue = Queue("tasks", Exchange("tasks"), "tasks")(connection.default_channel)
    queue.declare()
    return queue


def send(connection: Connection, number: int, task: str = "add", **how: Any) -> None:
    headers = {"task": task, "id": str(number)}
    Producer(connection.default_channel).publish([[], {}, {}], routing_key="tasks", headers=headers, **how)


def row_counts(connection: Connection) -> dict[str, int]:
    """How many rows each table of the broker has."""
    names = ("messages", "bodies", "queues", "bindings", "sessions", "consumers")
    database = connection.transport.broker.database
    return {
        name: database.read(lambda db: db.execute(f"SELECT count(*) FROM celery_{name}").fetchone()[0])  # noqa: B023
        for name in names
    }


def bells(url: str) -> list[str]:
    folder = Path(url.removeprefix("sqlite:///") + FOLDER_SUFFIX)
    return sorted(os.listdir(folder)) if folder.exists() else []


def next_message(queue: Any, timeout: float) -> Any:
    """The next message of a simple queue; it is waited for."""
    return queue.get(timeout=timeout)


@pytest.mark.parametrize("size", ["1", "16"])
def test_four_competing_consumers_lose_and_double_nothing(run, connection, tasks, size: str) -> None:
    consumers = [run("compete", size) for _ in range(4)]
    for consumer in consumers:
        assert consumer.line() == ["ready"]

    for number in range(1000):
        send(connection, number)
    for number in range(4):
        send(connection, -1 - number, task="end")
    wait_until(lambda: row_counts(connection)["messages"] == 0, 40, lambda: str(row_counts(connection)))
    for _ in range(8):  # a batch may have taken more than one end
        send(connection, -9, task="end")

    taken = [number for consumer in consumers for number in consumer.line()[1:]]
    assert sorted(int(number) for number in taken if int(number) >= 0) == list(range(1000))


@pytest.mark.chaos
def test_what_a_killed_consumer_held_comes_back_within_two_leases(run, connection, tasks) -> None:
    for number in range(3):
        send(connection, number)
    holder = run("hold", "3", "alive")
    assert holder.line() == ["holding", "3"]
    with contextlib.closing(connection.SimpleQueue(tasks)) as queue:
        with pytest.raises(queue.Empty):
            queue.get(timeout=2.5 * LEASE_S)  # it lives: not ours, however long it holds them

        holder.process.kill()
        holder.process.wait()
        started = time.monotonic()
        messages = [next_message(queue, 20) for _ in range(3)]

        # This consumer looks for the dead every few seconds; the next worker to start would at once.
        assert time.monotonic() - started < 20
        assert all(message.delivery_info["redelivered"] for message in messages)
        for message in messages:
            message.ack()
    assert row_counts(connection)["messages"] == 0


@pytest.mark.chaos
def test_a_source_takes_over_what_a_killed_one_held_within_two_leases(run, connection, tasks) -> None:
    for number in range(3):
        send(connection, number)
    holder, waiter = run("hold", "3", "alive"), run("hold", "0", "alive")
    assert holder.line() == ["holding", "3"]
    waiter.line()

    holder.process.kill()
    started = time.monotonic()
    wait_until(lambda: tasks.queue_declare(passive=True).message_count == 3, 10, "the messages to be back")

    assert time.monotonic() - started <= 2 * LEASE_S


@pytest.mark.chaos
def test_a_killed_kombu_consumer_gives_back_though_its_lease_is_long(run, connection, tasks) -> None:
    send(connection, 1)
    holder, waiter = run("hold_by_kombu"), run("hold", "0", "alive")
    assert holder.line() == ["holding", "1"]
    waiter.line()

    holder.process.kill()

    wait_until(lambda: tasks.queue_declare(passive=True).message_count == 1, 10, "the message to be back")


@pytest.mark.chaos
def test_a_stopped_process_keeps_what_it_holds(run, connection, tasks) -> None:
    send(connection, 1)
    holder, waiter = run("hold", "1", "stopped"), run("hold", "0", "alive")
    assert holder.line() == ["holding", "1"]
    waiter.line()

    with contextlib.closing(connection.SimpleQueue(tasks)) as queue, pytest.raises(queue.Empty):
        queue.get(timeout=3 * LEASE_S)


@pytest.mark.chaos
def test_a_silent_session_whose_doorbell_is_gone_is_given_up_after_its_lease(
    run, connection, tasks, sqlite_url
) -> None:
    send(connection, 1)
    holder = run("hold", "1", "stopped")
    assert holder.line() == ["holding", "1"]
    for name in bells(sqlite_url):
        os.unlink(Path(sqlite_url.removeprefix("sqlite:///") + FOLDER_SUFFIX) / name)
    waiter = run("hold", "0", "alive")
    waiter.line()

    wait_until(lambda: tasks.queue_declare(passive=True).message_count == 1, 10, "the message to be back")


def test_a_waiting_consumer_is_woken_at_once(run, connection, tasks) -> None:
    answers = connection.SimpleQueue("answers", no_ack=True)
    program = run("echo")
    assert program.line() == ["ready"]
    took: list[float] = []
    for number in range(60):
        started = time.perf_counter()
        Producer(connection.default_channel).publish(number, routing_key="tasks")
        assert answers.get(timeout=5).payload == number
        took.append(time.perf_counter() - started)
    Producer(connection.default_channel).publish("end", routing_key="tasks")
    answers.close()

    # There and back, each with a wake-up; a poll in between would show as a multiple of this, even in the best quarter.
    assert statistics.quantiles(took, n=4)[0] < 0.02


def test_waiting_costs_next_to_nothing(run, connection, tasks) -> None:
    _, share = run("idle", "4").line()

    assert float(share) < 0.01


def test_a_fanout_reaches_every_listener_and_the_dead_leave_nothing(run, connection, sqlite_url) -> None:
    listeners = [run("listen", f"listener.{number}") for number in range(3)]
    for listener in listeners:
        assert listener.line() == ["ready"]
    news = Exchange("news", "fanout")
    producer = Producer(connection.default_channel, news)

    producer.publish("first")

    assert [listener.line() for listener in listeners] == [["heard", "first"]] * 3

    for listener in listeners:
        listener.process.kill()
        listener.process.wait()
    producer.publish("to nobody")
    with contextlib.closing(connection.SimpleQueue("own", no_ack=True)) as queue:
        with pytest.raises(queue.Empty):
            queue.get(timeout=0.05)  # who begins to consume looks for the dead first
        counts = row_counts(connection)
        assert (counts["queues"], counts["messages"], counts["sessions"]) == (1, 0, 1)
        assert len(bells(sqlite_url)) == 1


def test_remote_control_works_over_it(run, sqlite_url, connection) -> None:
    nodes = [run("mailbox", f"worker{number}@here") for number in range(2)]
    for node in nodes:
        assert node.line() == ["ready"]
    box = pidbox.Mailbox("celery", type="fanout", connection=connection)

    replies = box.multi_call("ping", timeout=5, limit=2)

    assert sorted(next(iter(reply)) for reply in replies) == ["worker0@here", "worker1@here"]
    assert box.call(["worker1@here"], "ping", timeout=5) == [{"worker1@here": "pong"}]
    assert not [name for name, _, _ in connection.default_channel.list_bindings() if name.startswith(box.oid)]


def test_a_forked_child_leaves_the_parents_connection_and_messages_alone(run, connection, tasks) -> None:
    send(connection, 1)
    program = run("fork_and_use")

    assert program.line() == ["child", "0"]
    assert program.line() == ["tasks", "0", "children", "2"]
    assert program.line() == ["got", "still", "works"]


def test_what_a_forked_child_writes_outlives_the_parents_connection(run) -> None:
    # SQLite believes in a child that locks are held which only the parent holds.
    program = run("outlive_the_parents_connection")

    lines = [" ".join(program.line()) for _ in range(4)]
    assert lines == ["from the parent", "from the child", "from another", "from the child, later"]


def test_leaving_takes_socket_and_session_along(connection, sqlite_url) -> None:
    with Connection(sqlite_url) as other:
        channel = other.channel()
        with Consumer(channel, [Queue("tasks")]), pytest.raises(socket.timeout):
            other.drain_events(timeout=0.05)
        assert row_counts(connection)["sessions"] == 1
        assert len(bells(sqlite_url)) == 1

    assert row_counts(connection)["sessions"] == 0
    assert bells(sqlite_url) == []


CARELESS = """
import sys
from celery_clone import Celery

app = Celery(broker=sys.argv[1], backend=sys.argv[1])
try:
    app.AsyncResult("never").get(timeout=0.1)
except app.backend.TimeoutError:
    app.connection_for_read().default_channel.queue_declare("celery")
    kept = app.connection_for_read()
    consumer = kept.Consumer(app.amqp.queues["celery"]).consume()
    print(app.backend.result_consumer._bell.address)
"""


@pytest.mark.parametrize("name", ["a.db", "x" * 100 + ".db"], ids=["beside-the-file", "in-a-folder-of-its-own"])
def test_a_program_that_closes_nothing_leaves_no_doorbell_when_it_ends(sqlite_url: str, name: str) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///")).with_name(name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(path.parent)}
    ended = subprocess.run(
        [sys.executable, "-c", CARELESS, f"sqlite:///{path}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    address = ended.stdout.strip()
    assert address.startswith(str(path.parent)), ended.stderr
    assert not os.path.exists(address)
    assert not [*path.parent.glob("celery-bells-*"), *path.parent.glob("*-bells/*")]
    assert not ended.stderr


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; those of pytest are their owner's alone."""
    with tempfile.TemporaryDirectory(prefix="celery-test-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("folder_mode", "file_mode"),
    [(0o777, 0o644), (0o755, 0o666), (0o700, 0o666)],
    ids=["file", "folder", "way"],
)
def test_a_file_that_may_not_be_written_names_itself_and_the_remedy(
    open_folder: Path, folder_mode: int, file_mode: int
) -> None:
    path = open_folder / "broker.db"
    with Connection(f"sqlite:///{path}") as connection:
        connection.ensure_connection()
    path.chmod(file_mode)
    open_folder.chmod(folder_mode)
    program = Program("write_as_nobody", f"sqlite:///{path}")

    words = " ".join(program.line())

    program.close()
    assert words.startswith(("OperationalError", "DatabaseUnavailable"))
    assert str(path) in words
    assert "change its owner or mode" in words


def test_a_second_process_waits_its_turn_for_the_lock(run, connection, tasks) -> None:
    consumers = [run("compete", "1") for _ in range(3)]
    for consumer in consumers:
        consumer.line()
    # One hundred transactions against three others' thousands: nobody is told that the file is locked.
    for number in range(300):
        send(connection, number)
    for _ in range(3):
        send(connection, -1, task="end")
    taken = [number for consumer in consumers for number in consumer.line()[1:]]

    assert sorted(int(number) for number in taken if int(number) >= 0) == list(range(300))


def test_a_path_too_long_for_a_socket_still_gets_woken(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 12) / ("deeper" * 10)
    folder.mkdir(parents=True)
    with Connection(f"sqlite:///{folder}/broker.db") as connection:
        queue = connection.SimpleQueue("q")
        with pytest.raises(queue.Empty):
            queue.get(timeout=0.05)
        address = connection.transport.session.address
        assert address is not None
        assert len(address) < 104
        assert Path(address).exists()
    assert not Path(address).parent.exists()


def test_a_missing_folder_is_told_by_kombus_own_error(tmp_path: Path) -> None:
    connection = Connection(f"sqlite:///{tmp_path}/missing/broker.db")

    with connection, pytest.raises(OperationalError, match="does not exist: create it"):
        connection.ensure_connection(max_retries=1)
