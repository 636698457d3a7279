"""What every publisher promises, whatever the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.exceptions import EncodeError
from kombu.pools import ProducerPool
from kombu.transport import memory

from celery_clone.message import codec, protocol
from celery_clone.transport import open_publisher
from celery_clone.transport.protocols import Destination, SendOptions
from tests.support.wait import wait_until

SERVERS = [
    pytest.param("redis", marks=pytest.mark.redis),
    pytest.param("amqp", marks=pytest.mark.rabbitmq),
    "memory",
    "sqlite",
]


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """The kind of broker, and its server where it has one."""
    fixtures = {"redis": "redis_server", "amqp": "rabbitmq_server"}
    name = fixtures.get(request.param)
    return request.param, request.getfixturevalue(name) if name else None


class Desk:
    """A publisher, and kombu on the other side."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pool = ProducerPool(Connection(url).Pool(limit=10), limit=10)
        self.publisher = open_publisher(self.pool)
        self.reader = Connection(url)

    def queue(self, name: str = "q") -> Queue:
        return Queue(name, Exchange(name), routing_key=name)

    def to(self, name: str = "q") -> Destination:
        return Destination("", name, (self.queue(name),), "direct")

    def read(self, count: int, name: str = "q") -> list[Any]:
        """What kombu's own consumer gets."""
        got: list[Any] = []
        with Consumer(self.reader, [self.queue(name)], on_message=got.append, accept=["json", "pickle", "yaml"]):

            def enough() -> bool:
                try:
                    while len(got) < count:
                        self.reader.drain_events(timeout=0.1)
                except TimeoutError:
                    pass
                return len(got) >= count

            wait_until(enough, 10, lambda: f"{count} messages, not {len(got)}")
            for message in got:
                message.ack()
        return got

    def close(self) -> None:
        self.reader.release()
        getattr(self.publisher, "close", lambda: None)()
        self.pool.connections.force_close_all()


@pytest.fixture
def desk(server: tuple[str, Any], tmp_path: Path) -> Iterator[Desk]:
    kind, running = server
    host = running.new_virtual_host() if kind == "amqp" else ""
    url = {
        "redis": lambda: running.new_database_url(),
        "amqp": lambda: running.url(host),
        "memory": lambda: "memory://",
        "sqlite": lambda: f"sqlite:///{tmp_path}/broker.db",
    }[kind]()
    opened = Desk(url)
    yield opened
    opened.close()
    if kind == "amqp":
        running.drop_virtual_host(host)
    if kind == "memory":
        memory.Channel.queues.clear()
        memory.Transport.global_state.clear()


def call(task_id: str, *args: Any) -> Any:
    return protocol.task_message_v2(task_id, "t", args or (task_id,), origin="test")


def test_a_message_arrives_with_all_that_was_given(desk: Desk) -> None:
    message = call("the-id", 1, "two")

    desk.publisher.publish(message, desk.to(), SendOptions())

    got = desk.read(1)[0]
    assert got.payload == [[1, "two"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    assert {key: got.headers[key] for key in message.headers} == message.headers
    assert got.properties["correlation_id"] == "the-id"
    assert got.content_type == "application/json"


def test_a_batch_arrives_whole_and_in_order(desk: Desk) -> None:
    expected = [str(number) for number in range(1200)]

    desk.publisher.publish_many([(call(task_id), desk.to(), SendOptions()) for task_id in expected])

    assert [message.payload[0][0] for message in desk.read(1200)] == expected


def test_a_batch_may_go_to_many_queues(desk: Desk) -> None:
    names = ["a", "b", "a", "a", "b"]

    desk.publisher.publish_many([(call(str(n)), desk.to(name), SendOptions()) for n, name in enumerate(names)])

    assert [message.payload[0][0] for message in desk.read(3, "a")] == ["0", "2", "3"]
    assert [message.payload[0][0] for message in desk.read(2, "b")] == ["1", "4"]


def test_an_empty_batch_is_nothing(desk: Desk) -> None:
    desk.publisher.publish_many([])


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_serializer_and_compression_are_used(desk: Desk, serializer: str, compression: str | None) -> None:
    desk.publisher.publish(call("i", 1), desk.to(), SendOptions(serializer=serializer, compression=compression))

    got = desk.read(1)[0]
    assert list(got.payload[0]) == [1]
    assert got.content_type in codec.accepted([serializer])  # type: ignore[operator]


def test_properties_of_a_call_reach_the_message(desk: Desk) -> None:
    message = call("i")
    message.properties.update(priority=5, message_id="mine")

    desk.publisher.publish(message, desk.to(), SendOptions(extra={"delivery_mode": 1}))

    got = desk.read(1)[0]
    assert got.properties["priority"] == 5
    assert got.properties["message_id"] == "mine"
    assert got.properties["delivery_mode"] == 1


def test_what_cannot_be_serialised_is_named_and_nothing_is_sent(desk: Desk) -> None:
    desk.publisher.publish(call("before"), desk.to(), SendOptions())

    with pytest.raises(EncodeError, match=r"Positional argument 1 \(a value of type object\)"):
        desk.publisher.publish(call("bad", 1, object()), desk.to(), SendOptions())
    desk.publisher.publish(call("after"), desk.to(), SendOptions())

    assert [message.payload[0][0] for message in desk.read(2)] == ["before", "after"]


def test_a_named_direct_exchange_leads_to_the_queues_bound_there(desk: Desk) -> None:
    exchange = Exchange("named")
    queues = tuple(Queue(name, exchange, routing_key=key) for name, key in (("one", "k"), ("two", "k"), ("three", "x")))
    with Connection(desk.url) as connection:
        for queue in queues:
            queue(connection.default_channel).declare()

        desk.publisher.publish(call("i"), Destination("named", "k", queues, "direct"), SendOptions())

        found = [queue(connection.default_channel).get() for queue in queues]
        assert [message is not None for message in found] == [True, True, False]


def test_threads_may_publish_at_once(desk: Desk) -> None:
    def publish(prefix: str) -> None:
        for number in range(20):
            desk.publisher.publish(call(f"{prefix}{number}"), desk.to(), SendOptions())

    threads = [threading.Thread(target=publish, args=(prefix,)) for prefix in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    got = [message.payload[0][0] for message in desk.read(120)]
    assert sorted(got) == sorted(f"{prefix}{number}" for prefix in "abcdef" for number in range(20))
    for prefix in "abcdef":
        assert [task_id for task_id in got if task_id[0] == prefix] == [f"{prefix}{number}" for number in range(20)]


def test_a_tracing_library_that_replaces_kombus_publish_sees_every_message(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    shipped = Producer.publish

    def traced(self: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["headers"]["traced"] = "yes"
        seen.append(kwargs["headers"]["id"])
        return shipped(self, body, *args, **kwargs)

    monkeypatch.setattr(Producer, "publish", traced)

    desk.publisher.publish(call("1"), desk.to(), SendOptions())
    desk.publisher.publish_many([(call("2"), desk.to(), SendOptions()), (call("3"), desk.to(), SendOptions())])

    assert seen == ["1", "2", "3"]
    assert [message.headers["traced"] for message in desk.read(3)] == ["yes"] * 3


def test_a_publish_costs_no_more_time_than_a_fraction_of_its_deadline(desk: Desk) -> None:
    desk.publisher.publish(call("warm"), desk.to(), SendOptions())

    started = time.monotonic()
    desk.publisher.publish(call("i"), desk.to(), SendOptions(deadline_s=5))

    assert time.monotonic() - started < 2
