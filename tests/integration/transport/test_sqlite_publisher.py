"""Task messages into the embedded broker: the app's publisher."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Exchange, Producer, Queue
from kombu.exceptions import EncodeError, OperationalError
from kombu.pools import ProducerPool

from celery_clone.message.envelope import Envelope
from celery_clone.message.outgoing import TaskMessage
from celery_clone.message.protocol import task_message_v2
from celery_clone.transport import open_publisher
from celery_clone.transport.protocols import Destination, SendOptions
from celery_clone.transport.sqlite_source import SqlitePublisher
from celery_clone.utils.ids import uuid
from tests.support.wait import wait_until

TASKS = Queue("tasks", Exchange("tasks"), "tasks")
TO_TASKS = Destination("", "tasks", (TASKS,))
HOW = SendOptions()


def open_pool(url: str, **options: Any) -> ProducerPool:
    return ProducerPool(Connection(url, transport_options=options).Pool(limit=4), limit=4)


@pytest.fixture
def publisher(sqlite_url: str) -> Iterator[SqlitePublisher]:
    pool = open_pool(sqlite_url)
    publisher = open_publisher(pool)
    assert isinstance(publisher, SqlitePublisher)
    yield publisher
    publisher.close()
    pool.connections.force_close_all()


@pytest.fixture
def reader(sqlite_url: str) -> Iterator[Connection]:
    with Connection(sqlite_url) as connection:
        connection.connect()
        yield connection


def call(*args: Any) -> TaskMessage:
    return task_message_v2(uuid(), "tasks.add", args, {})


def texts(reader: Connection, queue: str = "tasks") -> list[dict[str, Any]]:
    """The messages of a queue as they lie there."""
    rows = reader.transport.broker.database.read(
        lambda db: db.execute(
            "SELECT body FROM celery_bodies JOIN celery_messages USING (id) JOIN celery_queues"
            " ON celery_queues.id = queue WHERE name = ? ORDER BY celery_messages.id",
            (queue,),
        ).fetchall()
    )
    return [json.loads(row[0]) for row in rows]


def test_the_text_is_the_one_kombu_writes(publisher, reader) -> None:
    message = call(2, 2)
    how = SendOptions(extra={"delivery_mode": 2, "priority": 3})
    publisher.publish(message, TO_TASKS, how)
    publisher.kombu.publish(message, TO_TASKS, how)

    ours, kombus = texts(reader)

    for text in (ours, kombus):
        assert text["properties"].pop("delivery_tag")
    assert ours == kombus
    assert json.dumps(ours) == json.dumps(kombus), "the order of keys is part of it: readers peek"


def test_the_envelope_can_be_peeked(publisher, reader) -> None:
    message = call(2, 2)
    publisher.publish(message, TO_TASKS, HOW)
    (raw,) = reader.transport.broker.database.read(lambda db: db.execute("SELECT body FROM celery_bodies").fetchone())

    found = Envelope(raw).peek()

    assert found is not None
    assert (found.task, found.id, found.plain) == ("tasks.add", message.headers["id"], True)


def test_a_batch_keeps_its_order(publisher, reader) -> None:
    messages = [call(number) for number in range(20)]

    publisher.publish_many([(message, TO_TASKS, HOW) for message in messages])

    assert [text["headers"]["id"] for text in texts(reader)] == [m.headers["id"] for m in messages]


def test_a_batch_that_cannot_be_serialised_sends_nothing(publisher, reader) -> None:
    with pytest.raises(EncodeError, match="Positional argument 0"):
        publisher.publish_many([(call(1), TO_TASKS, HOW), (call(object()), TO_TASKS, HOW)])

    assert texts(reader) == []


def test_expiring_messages_expire(publisher, reader) -> None:
    publisher.publish(call(1), TO_TASKS, SendOptions(extra={"expiration": 1.5}))

    (text,) = texts(reader)
    assert text["properties"]["expiration"] == "1500"
    reader.transport.broker.tidy(1e12)
    assert texts(reader) == []


def test_a_route_that_leads_nowhere_is_an_error_at_the_producer(publisher) -> None:
    elsewhere = Destination("tasks", "typo", (TASKS,))

    with pytest.raises(OperationalError, match=r"'typo': declare the queue in task_queues"):
        publisher.publish(call(1), elsewhere, HOW)


def test_a_queue_that_was_deleted_is_declared_again(publisher, reader) -> None:
    by_exchange = Destination("tasks", "tasks", (TASKS,))
    publisher.publish(call(1), by_exchange, HOW)
    reader.transport.broker.delete_queue("tasks")

    publisher.publish(call(2), by_exchange, HOW)

    assert len(texts(reader)) == 1


def test_a_file_that_was_deleted_is_made_again(publisher, reader) -> None:
    by_exchange = Destination("tasks", "tasks", (TASKS,))
    publisher.publish(call(1), by_exchange, HOW)
    path = reader.transport.broker.database.path
    for suffix in ("", "-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)

    publisher.publish(call(2), by_exchange, HOW)

    assert len(texts(reader)) == 1


def test_a_locked_file_is_told_within_the_deadline(publisher, reader) -> None:
    publisher.publish(call(1), TO_TASKS, HOW)
    database = reader.transport.broker.database

    def while_locked(db: Any) -> None:
        with pytest.raises(OperationalError, match="locked"):
            publisher.publish(call(2), TO_TASKS, SendOptions(deadline_s=0.2))

    database.write(while_locked)


def test_a_file_that_cannot_be_made_is_told_at_once(tmp_path: Path) -> None:
    publisher = open_publisher(open_pool(f"sqlite:///{tmp_path}/missing/broker.db"))

    with pytest.raises(OperationalError, match="does not exist: create it"):
        publisher.publish(call(1), TO_TASKS, HOW)


def test_a_tracer_that_replaced_kombus_publish_sees_every_message(publisher, reader, monkeypatch) -> None:
    seen: list[Any] = []
    shipped = Producer.publish

    def traced(self: Producer, body: Any, *args: Any, **options: Any) -> Any:
        seen.append(options["headers"]["id"])
        return shipped(self, body, *args, **options)

    monkeypatch.setattr(Producer, "publish", traced)
    one, two = call(1), call(2)

    publisher.publish(one, TO_TASKS, HOW)
    publisher.publish_many([(two, TO_TASKS, HOW)])

    assert seen == [one.headers["id"], two.headers["id"]]
    assert len(texts(reader)) == 2


def test_many_threads_publish_at_once(publisher, reader) -> None:
    errors: list[BaseException] = []

    def publish() -> None:
        try:
            for number in range(50):
                publisher.publish(call(number), TO_TASKS, HOW)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(texts(reader)) == 400


def test_a_forked_child_publishes_over_its_own_connection(publisher, reader) -> None:
    publisher.publish(call(1), TO_TASKS, HOW)
    before = publisher._connection
    child = os.fork()
    if child == 0:
        code = 1
        try:
            publisher.publish(call(2), TO_TASKS, HOW)
            code = int(publisher._connection is before)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)

    assert status == 0
    publisher.publish(call(3), TO_TASKS, HOW)
    wait_until(lambda: len(texts(reader)) == 3, 5)


def test_full_durability_can_be_asked_for(tmp_path: Path) -> None:
    publisher = open_publisher(open_pool(f"sqlite:///{tmp_path}/broker.db", synchronous="FULL"))
    publisher.publish(call(1), TO_TASKS, HOW)

    database = publisher._connection.transport.broker.database
    assert database.read(lambda db: db.execute("PRAGMA synchronous").fetchone()) == (2,)
    publisher.close()
