"""Task messages over the embedded broker: the worker's source, in a hub and without one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue
from kombu.asynchronous import Hub, set_event_loop

import celery_clone.transport
from celery_clone.message.outgoing import TaskMessage
from celery_clone.message.protocol import task_message_v2
from celery_clone.transport.protocols import Destination, SendOptions
from celery_clone.transport.sqlite.session import ring
from celery_clone.transport.sqlite.tables import Letter, QueueTraits
from celery_clone.transport.sqlite_source import SqliteSource, encode
from celery_clone.utils.ids import uuid

TASKS = Queue("tasks", Exchange("tasks"), "tasks")
TO_TASKS = Destination("", "tasks", (TASKS,))


@pytest.fixture
def connection(sqlite_url: str) -> Iterator[Connection]:
    with Connection(sqlite_url) as connection:
        connection.connect()
        yield connection


@pytest.fixture
def open_source(sqlite_url: str) -> Iterator[Callable[..., SqliteSource]]:
    """``open_source(**options)``: a source on a connection of its own."""
    opened: list[tuple[SqliteSource, Connection]] = []

    def open_one(**options: Any) -> SqliteSource:
        connection = Connection(sqlite_url)
        connection.connect()
        source = celery_clone.transport.open_source(connection, accept=["json"], **options)
        assert isinstance(source, SqliteSource)
        source.set_queues([TASKS])
        opened.append((source, connection))
        return source

    yield open_one
    for source, connection in reversed(opened):
        source.quiet()
        source.close()
        source._session.close()
        connection.release()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    set_event_loop(hub)
    yield hub
    hub.close()


def call(*args: Any, **options: Any) -> TaskMessage:
    return task_message_v2(uuid(), "tasks.add", args, {}, **options)


def send(connection: Connection, *args: Any, **how: Any) -> TaskMessage:
    message = call(*args)
    outgoing = encode(message, TO_TASKS, SendOptions(**how))
    ring(connection.transport.broker.publish([outgoing], time.time()))
    return message


def ready(connection: Connection, queue: str = "tasks") -> int:
    found = connection.transport.broker.find_queue(queue)
    return 0 if found is None else found.ready


def arguments(deliveries: Any) -> list[Any]:
    return [delivery.payload[0] for delivery in deliveries]


def test_messages_are_peeked_without_decoding_and_read_as_sent(connection, open_source) -> None:
    message = send(connection, 2, "ü")
    (delivery,) = open_source().take(10)

    found = delivery.peek()
    assert (found.task, found.id, found.plain) == ("tasks.add", message.headers["id"], True)
    assert delivery.payload[0] == [2, "ü"]
    assert delivery.properties["correlation_id"] == message.properties["correlation_id"]
    assert delivery.delivery_info == {"exchange": "", "routing_key": "tasks"}
    assert not delivery.redelivered


def test_no_more_than_the_credit_is_taken(connection, open_source) -> None:
    for number in range(5):
        send(connection, number)
    source = open_source()

    assert arguments(source.take(2)) == [[0], [1]]
    assert arguments(source.take(10)) == [[2], [3], [4]]


def test_acknowledgements_leave_with_the_next_take(connection, open_source) -> None:
    send(connection, 1)
    source = open_source()
    (delivery,) = source.take(1)
    delivery.ack()
    source.take(1)

    source.quiet()
    source.close()

    assert ready(connection) == 0


def test_what_is_not_settled_comes_back_when_a_quiet_source_closes(connection, open_source) -> None:
    send(connection, 1)
    source = open_source()
    source.take(1)

    source.quiet()
    source.close()
    source.close()

    (again,) = open_source().take(1)
    assert again.redelivered
    assert again.delivery_info["routing_key"] == "tasks"


def test_a_quiet_source_takes_nothing_and_settles_on(connection, open_source) -> None:
    send(connection, 1)
    source = open_source()
    (delivery,) = source.take(1)
    send(connection, 2)

    source.quiet()
    delivery.ack()

    assert list(source.take(5)) == []
    source.close()
    assert ready(connection) == 1


def test_after_a_lost_connection_the_next_source_settles_what_the_last_one_took(connection, open_source) -> None:
    send(connection, 1)
    send(connection, 2)
    lost = open_source()
    first, second = lost.take(2)
    first.ack()

    lost.close()
    source = open_source(previous=lost)
    source.flush()
    assert ready(connection) == 0
    source.reject(second.tag, requeue=True)

    assert arguments(source.take(5)) == [[2]]


def test_a_rejected_delivery_is_dropped_or_comes_back(connection, open_source) -> None:
    send(connection, 1)
    send(connection, 2)
    source = open_source()
    first, second = source.take(2)

    first.reject()
    second.reject(requeue=True)
    (again,) = source.take(5)

    assert again.payload[0] == [2]
    assert again.redelivered


def test_a_parked_delivery_comes_to_anybody_when_it_is_due(connection, open_source) -> None:
    send(connection, 1)
    source, other = open_source(), open_source()
    (delivery,) = source.take(1)
    due = time.time() + 0.4

    assert source.park(delivery, due)
    source.flush()

    assert list(other.take(1)) == []
    (again,) = other.take(1, timeout=5)
    assert due <= time.time() < due + 0.3
    assert not again.redelivered


def test_a_delivery_that_cannot_be_used_lies_in_the_dead_queue(connection, open_source) -> None:
    connection.transport.broker.declare_queue("tasks", QueueTraits(), 0)
    connection.transport.broker.publish([Letter("", "tasks", b"\xffgarbage")], time.time())
    source = open_source()
    (delivery,) = source.take(1)
    assert delivery.problem is not None

    source.bury(delivery, delivery.problem)

    assert ready(connection, "tasks.dead") == 1
    assert ready(connection) == 0


def test_waiting_ends_with_the_first_message(connection, open_source) -> None:
    source = open_source()
    started = time.monotonic()
    assert list(source.take(1, timeout=0.1)) == []
    assert time.monotonic() - started >= 0.1

    send(connection, 1)
    assert arguments(source.take(1, timeout=10)) == [[1]]


def test_the_hub_is_told_of_a_new_message_at_once(connection, open_source, hub) -> None:
    source, told, late = open_source(), [], []
    source.watch(hub, lambda: told.append(time.monotonic()))
    source.take(1)
    for number in range(5):  # the best of five: the machine may be busy with other things
        told.clear()
        sent = time.monotonic()
        send(connection, number)
        while not told:
            hub.run_once()
        late.append(told[0] - sent)
        assert arguments(source.take(1)) == [[number]]

    assert min(late) < 0.2


def test_the_hub_is_told_when_a_parked_message_is_due(connection, open_source, hub) -> None:
    send(connection, 1)
    source, told = open_source(), []
    source.watch(hub, lambda: told.append(True))
    (delivery,) = source.take(1)
    due = time.time() + 0.4
    source.park(delivery, due)
    taken: list[Any] = []

    while not taken:
        taken = list(source.take(1))
        if not taken:
            hub.run_once()

    assert due <= time.time() < due + 0.3


def test_closing_leaves_nothing_in_the_hub(open_source, hub) -> None:
    source = open_source()
    source.watch(hub, lambda: None)

    source.close()

    assert not hub.readers
    assert all(entry.canceled for entry in (scheduled.entry for scheduled in hub.timer._queue))


def test_a_source_given_up_by_the_others_enters_anew_and_is_told(connection, open_source, caplog) -> None:
    source = open_source()
    session = source._session
    connection.transport.broker.leave([session.open()], time.time())
    session._kept_at = 0.0

    source.extend()

    assert "others have taken over" in caplog.text
    send(connection, 1)
    assert arguments(source.take(1)) == [[1]]


def test_a_queue_deleted_under_a_source_is_made_again(connection, open_source) -> None:
    source = open_source()
    source._session.open()
    connection.transport.broker.delete_queue("tasks")
    source._session._kept_at = 0.0

    source.extend()

    send(connection, 1)
    assert arguments(source.take(1)) == [[1]]


def test_a_file_deleted_under_a_source_is_made_again(connection, open_source) -> None:
    source = open_source()
    source.take(1)
    database = connection.transport.broker.database
    for suffix in ("", "-wal", "-shm"):
        Path(database.path + suffix).unlink(missing_ok=True)
    source._session._kept_at = 0.0

    source.extend()

    send(connection, 1)
    assert arguments(source.take(1)) == [[1]]
