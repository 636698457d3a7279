"""Due messages wait in RabbitMQ's delay queues, and come back to the queue they were taken from, as they were."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue

from celery_clone.transport import open_source
from celery_clone.transport.amqp_parking import LONGEST_S
from celery_clone.transport.amqp_source import AmqpSource
from tests.support.rabbitmq import RabbitServer
from tests.support.wait import wait_until


@pytest.fixture
def connect(rabbitmq_url: str) -> Iterator[Callable[[], Connection]]:
    opened: list[Connection] = []

    def open_connection() -> Connection:
        opened.append(Connection(rabbitmq_url))
        opened[-1].connect()
        return opened[-1]

    yield open_connection
    for connection in opened:
        connection.release()


@pytest.fixture
def sources(connect: Callable[[], Connection]) -> Iterator[Callable[..., AmqpSource]]:
    opened: list[Any] = []

    def open_one(*queues: Queue, connection: Any = None, **options: Any) -> AmqpSource:
        source: Any = open_source(connection or connect(), accept=["json"], **{"prefetch": 10, **options})
        opened.append(source)
        source.set_queues(queues or [Queue("q")])
        return source

    yield open_one
    for source in opened:
        source.close()


def take(source: Any, count: int, timeout: float = 10.0) -> list[Any]:
    found: list[Any] = []
    wait_until(lambda: found.extend(source.take(count - len(found), 0.05)) or len(found) == count, timeout)
    return found


def unacknowledged(source: Any) -> int:
    source.flush()
    return len(source._taken)


def publish(connection: Connection, *values: Any, queue: str = "q", **how: Any) -> None:
    for value in values:
        connection.Producer().publish([[value], {}, {}], routing_key=queue, declare=[Queue(queue)], **how)


@pytest.mark.rabbitmq
def test_a_parked_message_comes_back_as_it_was_and_on_time(connect, sources) -> None:
    connection, source = connect(), sources()
    properties = {"correlation_id": "one", "reply_to": "me", "priority": 3, "delivery_mode": 2}
    publish(connection, "x" * 300_000, headers={"id": "one", "n": [1, None, True]}, **properties)
    (delivery,) = take(source, 1)
    headers, body = delivery.headers, delivery.body

    since = time.time()
    assert source.park(delivery, since + 2.0)
    wait_until(lambda: unacknowledged(source) == 0, 5)
    assert int(connection.default_channel.queue_declare("q", passive=True).message_count) == 0

    (again,) = take(source, 1)
    assert 1.0 < time.time() - since < 4.0
    assert again.body == body
    assert {name: value for name, value in again.headers.items() if not name.startswith("x-")} == headers
    assert {name: again.properties[name] for name in properties} == properties
    assert again.queue == "q"
    # A second time, with the marks of the first on it.
    assert source.park(again, time.time() + 1.5)
    (third,) = take(source, 1)
    assert third.headers["id"] == "one"


@pytest.mark.rabbitmq
def test_a_parked_message_comes_back_to_its_own_queue_alone(connect, sources) -> None:
    connection = connect()
    everything = Exchange("everything", type="fanout")
    queues = [Queue(name, everything) for name in ("a.a", "b", "a")]
    source = sources(*queues)
    connection.Producer().publish([["once"], {}, {}], exchange=everything)
    deliveries = take(source, 3)
    parked = next(each for each in deliveries if each.queue == "a")
    source.ack([each.tag for each in deliveries if each is not parked])

    assert source.park(parked, time.time() + 1.2)
    assert [each.queue for each in take(source, 1)] == ["a"]
    assert source.take(10, 0.3) == []


@pytest.mark.rabbitmq
def test_messages_wait_in_queues_and_the_source_is_free_for_others(connect, sources) -> None:
    connection, source = connect(), sources(global_qos=False, prefetch=2)
    publish(connection, *range(20))
    for _ in range(10):
        for delivery in take(source, 2):
            assert source.park(delivery, time.time() + 3600)
        wait_until(lambda: unacknowledged(source) == 0, 5)
    channel = connection.default_channel
    levels = (channel.queue_declare(f"celery_delayed_{level}", passive=True) for level in range(28))
    assert sum(level.message_count for level in levels) == 20


@pytest.mark.rabbitmq
def test_what_cannot_be_parked_is_left_to_the_worker(connect, sources) -> None:
    connection = connect()
    publish(connection, 1)
    source = sources()
    (delivery,) = take(source, 1)

    assert not source.park(delivery, time.time() + LONGEST_S + 60)
    assert not source.park(delivery, time.time() + 0.5)
    source.reject(delivery.tag, requeue=True)
    source.close()
    forbidding = connect()
    forbidding.transport_options = {"park": False}
    other = sources(connection=forbidding)
    (delivery,) = take(other, 1)
    assert not other.park(delivery, time.time() + 60)


@pytest.mark.rabbitmq
def test_who_may_not_declare_the_delay_queues_holds_its_messages(
    connect, sources, rabbitmq_server: RabbitServer, rabbitmq_url: str, caplog
) -> None:
    connection = connect()
    publish(connection, 1)
    name = rabbitmq_url.rsplit("/", 1)[1]
    rabbitmq_server.ask("PUT", f"users/humble-{name}", {"password": "p", "tags": ""})
    rights = {"configure": "^q$", "write": "^q$", "read": "^q$"}
    rabbitmq_server.ask("PUT", f"permissions/{name}/humble-{name}", rights)
    humble = Connection(rabbitmq_url.replace("guest:guest", f"humble-{name}:p"))
    try:
        humble.connect()
        source = sources(connection=humble)
        (delivery,) = take(source, 1)
        assert not source.park(delivery, time.time() + 60)
        assert "held by this worker" in caplog.text
        source.ack([delivery.tag])
        source.flush()
        wait_until(lambda: unacknowledged(source) == 0, 5)
        source.close()
    finally:
        humble.release()
        rabbitmq_server.ask("DELETE", f"users/humble-{name}")
