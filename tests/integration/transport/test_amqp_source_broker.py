"""RabbitMQ: windows, runs of acknowledgements, big bodies, shared connections and lost ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Timer

from celery_clone.transport import open_source
from celery_clone.transport.amqp_source import AmqpSource
from tests.support.proxy import TcpProxy
from tests.support.rabbitmq import RabbitServer
from tests.support.wait import wait_until


class Desk:
    """A virtual host, a kombu producer and sources."""

    def __init__(self, url: str, server: RabbitServer) -> None:
        self.url, self.server = url, server
        self._open: list[Any] = []
        self.channel = self.connect().channel()

    def connect(self, url: str | None = None) -> Connection:
        connection = Connection(url or self.url)
        connection.connect()
        self._open.append(connection)
        return connection

    def source(self, *queues: Queue, url: str | None = None, **options: Any) -> AmqpSource:
        source: Any = open_source(self.connect(url), accept=["json"], **{"prefetch": 10, **options})
        self._open.append(source)
        source.set_queues(queues or [Queue("q")])
        return source

    def publish(self, *values: Any, queue: str = "q", headers: dict[str, Any] | None = None, **how: Any) -> None:
        producer = self.connect().Producer()
        for value in values:
            producer.publish(
                [[value], {}, {}], routing_key=queue, serializer="json", headers=headers or {}, declare=[Queue(queue)],
                **how,
            )  # fmt: skip

    def ready(self, queue: str = "q") -> int:
        """Messages that nobody holds."""
        return int(self.channel.queue_declare(queue, passive=True).message_count)

    def close(self) -> None:
        for opened in reversed(self._open):
            (opened.release if isinstance(opened, Connection) else opened.close)()


@pytest.fixture
def desk(rabbitmq_url: str, rabbitmq_server: RabbitServer) -> Iterator[Desk]:
    opened = Desk(rabbitmq_url, rabbitmq_server)
    yield opened
    opened.close()


def take(source: Any, count: int) -> list[Any]:
    found: list[Any] = []

    def enough() -> bool:
        found.extend(source.take(count - len(found), timeout=0.1))
        return len(found) >= count

    wait_until(enough, 10, lambda: f"{count} deliveries, not {len(found)}")
    return found


def values(deliveries: Any) -> list[Any]:
    return [delivery.payload[0][0] for delivery in deliveries]


def test_the_broker_sends_no_further_ahead_than_the_window(desk: Desk) -> None:
    source = desk.source(prefetch=4)
    desk.publish(*range(20))

    take(source, 4)
    source.take(0)

    wait_until(lambda: desk.ready() == 16, 5, lambda: f"16 waiting messages, not {desk.ready()}")


@pytest.mark.parametrize("global_qos", [True, False])
def test_the_window_grows_with_what_may_be_held(desk: Desk, global_qos: bool) -> None:
    source = desk.source(prefetch=2, global_qos=global_qos)
    desk.publish(*range(20))

    held = take(source, 2)
    held += take(source, 10)

    assert values(held) == list(range(12))
    assert desk.ready() >= 4
    source.ack([delivery.tag for delivery in held])
    source.ack([delivery.tag for delivery in take(source, 8)])
    source.flush()
    assert source._taken == {}


def test_no_window_is_no_bound(desk: Desk) -> None:
    source = desk.source(prefetch=0)
    desk.publish(*range(50))

    take(source, 1)

    wait_until(lambda: desk.ready() == 0, 5, "all messages at the consumer")


def test_acknowledgements_in_any_order_settle_what_they_name_and_nothing_else(desk: Desk) -> None:
    source = desk.source(prefetch=20)
    desk.publish(*range(12))
    held = take(source, 12)

    source.ack([held[number].tag for number in (11, 0, 2, 1, 5, 4)])
    source.flush()
    source.close()

    back = take(desk.source(), 6)
    assert sorted(values(back)) == [3, 6, 7, 8, 9, 10]


def test_acknowledging_twice_is_no_error_of_the_channel(desk: Desk) -> None:
    source = desk.source()
    desk.publish(1, 2)
    one, two = take(source, 2)

    source.ack([one.tag, one.tag])
    source.flush()
    source.ack([one.tag])
    source.reject(one.tag, requeue=True)
    source.ack([two.tag])
    source.flush()
    desk.publish(3)

    assert values(take(source, 1)) == [3]


def test_tags_of_an_older_connection_are_dropped(desk: Desk) -> None:
    first = desk.source(epoch=1)
    desk.publish(1)
    old = take(first, 1)[0]
    first.close()
    second = desk.source(epoch=2)
    again = take(second, 1)[0]
    assert old.tag != again.tag and old.delivery_tag == again.delivery_tag == 1

    second.ack([old.tag])
    second.flush()
    second.close()

    assert values(take(desk.source(epoch=3), 1)) == [1]


def test_a_body_of_many_frames_comes_through(desk: Desk) -> None:
    source = desk.source()
    big = "x" * 1_000_000
    desk.publish("small", big, "small too")

    assert values(take(source, 3)) == ["small", big, "small too"]


def test_an_empty_body_comes_through(desk: Desk) -> None:
    source = desk.source()
    desk.connect().Producer().publish(b"", routing_key="q", content_type="application/data")

    assert take(source, 1)[0].body == b""


def test_headers_of_every_type_come_through(desk: Desk) -> None:
    headers = {
        "text": "ü",
        "number": 2**40,
        "negative": -3,
        "float": 1.5,
        "yes": True,
        "nothing": None,
        "list": [1, "two", [3]],
        "table": {"a": {"b": "c"}},
        "decimal": Decimal("1.25"),
        "time": datetime(2026, 1, 2, 3, 4, 5),
    }
    source = desk.source()
    desk.publish("v", headers=headers, priority=3, correlation_id="c", reply_to="r", expiration=60)

    delivery = take(source, 1)[0]

    assert delivery.headers == headers
    assert delivery.properties["priority"] == 3
    assert delivery.properties["expiration"] == "60000"
    assert delivery.delivery_info["exchange"] == ""
    assert delivery.delivery_info["redelivered"] is False


def test_other_channels_of_the_connection_work_while_deliveries_come(desk: Desk) -> None:
    source = desk.source(prefetch=100)
    replies: list[Any] = []
    other = source.connection.channel()
    Queue("replies")(other).declare()
    other.basic_consume("replies", callback=lambda message: replies.append(message.body), no_ack=True)

    for number in range(30):
        desk.publish(number)
        desk.publish(f"reply {number}", queue="replies")
        other.queue_declare("replies", passive=True)
        source.channel.queue_declare("q", passive=True)
    found = take(source, 30)
    wait_until(lambda: source.take(0) == [] and source._read(0.05) is None and len(replies) == 30, 10, "all replies")

    assert values(found) == list(range(30))


def test_a_loop_goes_on_reading_the_connection_after_the_source_is_closed(desk: Desk) -> None:
    source = desk.source()
    hub = Hub(timer=Timer())
    source.connection.transport.register_with_event_loop(source.connection.connection, hub)
    source.watch(hub, lambda: None)
    replies: list[Any] = []
    other = source.connection.channel()
    Queue("replies")(other).declare()
    other.basic_consume("replies", callback=lambda message: replies.append(message.body), no_ack=True)

    source.close()
    desk.publish("reply", queue="replies")
    passes = hub.create_loop()

    def replied() -> bool:
        next(passes)
        return bool(replies)

    wait_until(replied, 10, "the reply")
    hub.close()


def test_what_is_buried_reaches_the_dead_letter_exchange(desk: Desk) -> None:
    graves = Queue("graves", Exchange("graves"), routing_key="q")
    graves(desk.channel).declare()
    queue = Queue("q", queue_arguments={"x-dead-letter-exchange": "graves"})
    queue(desk.channel).declare()
    source = desk.source(queue)
    desk.connect().Producer().publish([["dead"], {}, {}], routing_key="q", serializer="json")

    source.bury(take(source, 1)[0], "nobody knows it")

    wait_until(lambda: desk.ready("graves") == 1, 5, "the dead letter")


def test_quorum_queues_are_consumed_with_a_window_of_their_own(desk: Desk) -> None:
    queue = Queue("quorum", queue_arguments={"x-queue-type": "quorum"})
    source = desk.source(queue, global_qos=False, prefetch=3)
    desk.connect().Producer().publish([["v"], {}, {}], routing_key="quorum", serializer="json")

    delivery = take(source, 1)[0]
    source.ack([delivery.tag])
    source.flush()

    assert values([delivery]) == ["v"]


def test_a_cut_connection_is_a_connection_error(
    desk: Desk, rabbitmq_server: RabbitServer, proxy_to: Callable[[int], TcpProxy]
) -> None:
    proxy = proxy_to(rabbitmq_server.port)
    source = desk.source(url=desk.url.replace(str(rabbitmq_server.port), str(proxy.port)))
    desk.publish(1)
    held = take(source, 1)

    proxy.cut()

    with pytest.raises(source.connection.connection_errors):
        source.ack([held[0].tag])
        end = time.monotonic() + 5
        while time.monotonic() < end:
            source.take(1, timeout=0.05)
    source.close()
    assert values(take(desk.source(epoch=1), 1)) == [1]


def test_a_queue_that_is_deleted_is_declared_and_consumed_anew_and_no_delivery_is_given_up(desk: Desk) -> None:
    source = desk.source(Queue("kept"), Queue("deleted"))
    desk.publish(1, queue="kept")
    held = take(source, 1)

    desk.channel.queue_delete("deleted")
    wait_until(lambda: source._read(0.05) or source._cancelled, 5, "the broker to say so")
    source.take(1)
    desk.publish(2, queue="deleted")

    assert values(take(source, 1)) == [2]
    source.ack([held[0].tag])
    source.flush()
    source.close()
    assert desk.ready("kept") == 0


def test_a_queue_that_is_deleted_and_no_longer_wanted_stays_deleted(desk: Desk) -> None:
    source = desk.source(Queue("kept"), Queue("deleted"))

    desk.channel.queue_delete("deleted")
    wait_until(lambda: source._read(0.05) or source._cancelled, 5, "the broker to say so")
    source.set_queues([Queue("kept")])
    source.take(1)

    names = {queue["name"] for queue in desk.server.ask("GET", f"queues/{desk.url.rpartition('/')[2]}")}
    assert names == {"kept"}


def test_deliveries_that_were_pushed_before_the_source_went_quiet_are_given_back(desk: Desk) -> None:
    source = desk.source(prefetch=10)
    desk.publish(*range(10))
    held = take(source, 1)
    wait_until(lambda: desk.ready() == 0, 5, "the push of all")

    source.quiet()

    wait_until(lambda: desk.ready() == 9, 5, lambda: f"9 waiting messages, not {desk.ready()}")
    source.ack([held[0].tag])
    source.close()
    assert sorted(values(take(desk.source(), 9))) == list(range(1, 10))


def test_many_deliveries_come_in_order_through_small_reads(desk: Desk) -> None:
    source = desk.source(prefetch=500)
    desk.publish(*range(500), headers={"filler": "y" * 500})

    assert values(take(source, 500)) == list(range(500))
