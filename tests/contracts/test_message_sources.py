"""What every source of messages promises, whatever the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Timer
from kombu.transport import memory

from celery_clone.message import codec, protocol
from celery_clone.message.delivery import Delivery
from celery_clone.transport import open_source
from tests.support.wait import wait_until

LEASE_S = 0.8
PATIENCE_S = 10.0


def queue_named(name: str) -> Queue:
    return Queue(name, Exchange(name), routing_key=name)


class Broker:
    """One broker and one way to publish to it; sources are opened on connections of their own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connections: list[Connection] = []
        self._sources: list[Any] = []
        self._producer: Any = None

    def connect(self) -> Connection:
        connection = Connection(self.url)
        connection.connect()
        self._connections.append(connection)
        return connection

    def source(self, *queues: str, **options: Any) -> Any:
        """A source that consumes from *queues*."""
        lease = {"lease_s": LEASE_S} if self.url.startswith(("redis", "sqlite")) else {}
        source = open_source(self.connect(), accept=["json"], **{"prefetch": 100, **lease, **options})
        self._sources.append(source)
        source.set_queues([queue_named(name) for name in queues or ("q",)])
        return source

    def publish(self, *ids: str, queue: str = "q") -> None:
        """Publish a call of the task ``t`` for each id; its argument is the id."""
        if self._producer is None:
            self._producer = self.connect().Producer()
        for task_id in ids:
            body, headers = ([task_id], {}, {}), protocol.headers_v2("t", task_id)
            content_type, encoding, data = codec.dumps(body)
            self._producer.publish(
                data, routing_key=queue, exchange="", headers=headers, content_type=content_type,
                content_encoding=encoding, declare=[queue_named(queue)], correlation_id=task_id, reply_to="",
            )  # fmt: skip

    def close(self) -> None:
        for source in self._sources:
            source.close()
        for connection in self._connections:
            connection.release()


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


@pytest.fixture
def broker(server: tuple[str, Any], tmp_path: Path) -> Iterator[Broker]:
    """A broker of this test's own."""
    kind, running = server
    host = running.new_virtual_host() if kind == "amqp" else ""
    opened = Broker(
        {
            "redis": lambda: running.new_database_url(),
            "amqp": lambda: running.url(host),
            "memory": lambda: "memory://",
            "sqlite": lambda: f"sqlite:///{tmp_path}/broker.db",
        }[kind]()
    )
    yield opened
    opened.close()
    if kind == "amqp":
        running.drop_virtual_host(host)
    if kind == "memory":
        memory.Channel.queues.clear()
        memory.Transport.global_state.clear()


def ids(deliveries: Any) -> list[str]:
    return [delivery.payload[0][0] for delivery in deliveries]


def take(source: Any, count: int, credit: int = 100) -> list[Delivery]:
    """Take until *count* deliveries came; leases are kept and swept meanwhile."""
    found: list[Delivery] = []

    def enough() -> bool:
        source.extend()
        found.extend(source.take(min(credit, count - len(found)), timeout=0.1))
        return len(found) >= count

    wait_until(enough, PATIENCE_S, lambda: f"{count} deliveries; there are {found}")
    return found


def nothing_comes(source: Any, seconds: float = 0.3) -> bool:
    source.extend()
    return not source.take(10, timeout=seconds)


def test_messages_come_in_the_order_in_which_they_were_sent_with_all_that_was_sent(broker: Broker) -> None:
    source = broker.source()
    broker.publish("1", "2", "3")

    deliveries = take(source, 3)

    assert ids(deliveries) == ["1", "2", "3"]
    first = deliveries[0]
    assert first.headers["task"] == "t" and first.headers["id"] == "1"
    assert first.payload == [["1"], {}, {}]
    assert first.properties["correlation_id"] == "1"
    assert (first.queue, first.problem, first.redelivered, first.acknowledged) == ("q", None, False, False)
    assert first.delivery_info["routing_key"] == "q"
    assert len({delivery.tag for delivery in deliveries}) == 3
    assert all(isinstance(delivery.tag, str) for delivery in deliveries)


def test_no_more_comes_than_was_asked_for(broker: Broker) -> None:
    source = broker.source()
    broker.publish("1", "2", "3", "4", "5")

    assert ids(take(source, 2)) == ["1", "2"]
    assert list(source.take(0)) == []
    assert ids(take(source, 3)) == ["3", "4", "5"]


def test_an_empty_queue_is_waited_for_no_longer_than_asked(broker: Broker) -> None:
    source = broker.source()

    started = time.monotonic()
    assert list(source.take(5, timeout=0.3)) == []
    assert 0.2 < time.monotonic() - started < 2.0

    started = time.monotonic()
    assert list(source.take(5)) == []
    assert time.monotonic() - started < 1.0


def test_a_message_that_arrives_while_waiting_ends_the_wait(broker: Broker) -> None:
    source = broker.source()
    broker.publish("warm")
    source.ack([take(source, 1)[0].tag])
    sender = threading.Timer(0.2, broker.publish, ["late"])
    sender.start()

    started = time.monotonic()
    found = source.take(5, timeout=5)
    waited = time.monotonic() - started
    sender.join()

    assert ids(found) == ["late"]
    assert waited < 2.0


def test_what_was_settled_never_comes_back(broker: Broker) -> None:
    first = broker.source()
    broker.publish("acknowledged 1", "acknowledged 2", "acknowledged 3", "rejected", "buried")
    *done, rejected, buried = take(first, 5)

    first.ack([delivery.tag for delivery in reversed(done)])
    first.reject(rejected.tag, requeue=False)
    first.bury(buried, "nobody knows this task")
    first.close()

    second = broker.source()
    second.extend()
    assert ids(second.take(10, timeout=2.5 * LEASE_S)) == []


def test_what_was_not_acknowledged_comes_back_when_its_source_is_gone(broker: Broker) -> None:
    first = broker.source()
    broker.publish("1", "2", "3")
    deliveries = take(first, 3)
    first.ack([deliveries[1].tag])
    first.close()

    back = take(broker.source(), 2)

    assert sorted(ids(back)) == ["1", "3"]
    assert all(delivery.redelivered for delivery in back)


def test_what_is_put_back_for_a_lost_process_says_how_often_it_was_lost(broker: Broker) -> None:
    source = broker.source()
    broker.publish("1")
    (lost,) = take(source, 1)

    if not source.put_back(lost, 3):
        # Whoever asked must send the message again.
        source.reject(lost.tag, requeue=True)
        assert ids(take(source, 1)) == ["1"]
        return
    (back,) = take(source, 1)

    assert (back.headers["id"], back.headers["losses"], back.came_before) == ("1", 3, True)
    assert back.decode() == lost.decode()


def test_what_is_noted_of_a_message_is_in_it_when_its_worker_is_gone(broker: Broker) -> None:
    first = broker.source()
    broker.publish("1", "2")
    one, two = take(first, 2)
    first.note_losses(one, 2)
    first.ack([two.tag])
    first.flush()
    first.close()

    (back,) = take(broker.source(), 1)

    assert back.headers["id"] == "1"
    assert back.headers.get("losses", 2) == 2
    assert back.redelivered


def test_what_is_held_is_held_as_long_as_its_lease_is_renewed(broker: Broker) -> None:
    first, second = broker.source(), broker.source("other")
    broker.publish("1")
    held = take(first, 1)
    second.set_queues([queue_named("q")])

    deadline = time.monotonic() + 3 * LEASE_S
    while time.monotonic() < deadline:
        first.extend()
        assert nothing_comes(second, 0.1)

    first.ack([held[0].tag])
    first.flush()
    assert nothing_comes(second)


def test_a_delivery_that_is_given_back_comes_again(broker: Broker) -> None:
    source = broker.source()
    broker.publish("1", "2")
    one, two = take(source, 2)

    source.reject(one.tag, requeue=True)
    source.ack([two.tag])
    source.flush()
    again = take(source, 1)[0]

    assert ids([again]) == ["1"]
    assert again.redelivered
    source.ack([again.tag])
    source.flush()
    assert nothing_comes(source)


def test_a_delivery_settles_itself_through_its_source(broker: Broker) -> None:
    source = broker.source()
    broker.publish("ack", "reject", "requeue")
    acked, rejected, requeued = take(source, 3)

    acked.ack()
    rejected.reject()
    requeued.requeue()
    source.flush()

    assert (acked.settled, rejected.settled, requeued.settled) == ("ACK", "REJECTED", "REQUEUED")
    assert ids(take(source, 1)) == ["requeue"]
    assert nothing_comes(source)


def test_a_parked_delivery_comes_when_it_is_due_and_not_before(broker: Broker) -> None:
    source = broker.source()
    broker.publish("later")
    delivery = take(source, 1)[0]
    due = time.time() + 1.0

    if not source.park(delivery, due):
        source.ack([delivery.tag])
        source.flush()
        return
    source.flush()
    found: list[Delivery] = []
    while time.time() < due - 0.1:
        source.extend()
        assert not source.take(1, timeout=0.05)
    found = take(source, 1)

    assert ids(found) == ["later"]
    assert not found[0].redelivered
    source.ack([found[0].tag])
    source.flush()
    assert nothing_comes(source, 2.5 * LEASE_S)


def test_a_parked_delivery_is_there_although_the_worker_that_parked_it_is_gone(broker: Broker) -> None:
    source = broker.source()
    broker.publish("later")
    delivery = take(source, 1)[0]
    parked = source.park(delivery, time.time() + 0.5)
    source.close()

    assert ids(take(broker.source(), 1)) == ["later"]
    assert parked == source.survives_reconnect


def test_a_quiet_source_takes_nothing_and_goes_on_acknowledging(broker: Broker) -> None:
    source = broker.source()
    broker.publish("held")
    held = take(source, 1)
    broker.publish("1", "2")
    source.take(0)

    source.quiet()
    assert list(source.take(5, timeout=0.2)) == []
    source.ack([held[0].tag])
    source.flush()

    other = broker.source()
    assert sorted(ids(take(other, 2))) == ["1", "2"]
    source.close()
    assert nothing_comes(other, 2.5 * LEASE_S)


def test_what_a_quiet_source_gives_back_is_there_for_others_at_once(broker: Broker) -> None:
    source = broker.source()
    broker.publish("1", "2")
    held = take(source, 2)

    source.quiet()
    for delivery in held:
        source.reject(delivery.tag, requeue=True)
    source.flush()

    assert sorted(ids(take(broker.source(), 2))) == ["1", "2"]


def test_a_source_may_be_closed_at_any_time_and_twice(broker: Broker) -> None:
    untouched = open_source(broker.connect())
    untouched.close()
    untouched.close()
    source = broker.source()
    broker.publish("1")
    take(source, 1)
    source.quiet()
    source.quiet()
    source.close()
    source.close()

    assert list(source.take(5)) == []
    source.ack(["unknown"])
    source.flush()


def test_queues_may_be_added_and_left(broker: Broker) -> None:
    source = broker.source("a")
    broker.publish("a1", queue="a")
    broker.publish("b1", queue="b")
    taken = take(source, 1)
    assert [delivery.queue for delivery in taken] == ["a"]
    assert nothing_comes(source)

    source.set_queues([queue_named("a"), queue_named("b")])
    taken += take(source, 1)
    assert taken[-1].queue == "b"

    source.set_queues([queue_named("b")])
    broker.publish("a2", queue="a")
    broker.publish("b2", queue="b")
    assert ids(take(source, 1)) == ["b2"]
    assert nothing_comes(source)

    source.set_queues([queue_named("a")])
    assert ids(take(source, 1)) == ["a2"]


def test_a_busy_queue_does_not_starve_another(broker: Broker) -> None:
    source = broker.source("busy", "calm", prefetch=10)
    broker.publish(*[str(number) for number in range(200)], queue="busy")
    broker.publish("calm", queue="calm")

    seen = []
    for _ in range(30):
        batch = source.take(5, timeout=1)
        source.ack([delivery.tag for delivery in batch])
        seen += [delivery.queue for delivery in batch]
        if "calm" in seen:
            break

    assert "calm" in seen


def test_many_sources_take_every_message_once(broker: Broker) -> None:
    expected = [str(number) for number in range(300)]
    sources = [broker.source(prefetch=20) for _ in range(3)]
    broker.publish(*expected)

    got: list[str] = []
    empty = 0
    while empty < 3:
        empty += 1
        for source in sources:
            batch = source.take(7, timeout=0.1)
            got += ids(batch)
            source.ack([delivery.tag for delivery in batch])
            if batch:
                empty = 0

    assert sorted(got, key=int) == expected


def test_tags_nobody_knows_are_no_harm(broker: Broker) -> None:
    source = broker.source()

    source.ack(["0.999", "nonsense"])
    source.reject("0.998", requeue=True)
    source.reject("other", requeue=False)
    source.flush()
    broker.publish("1")

    assert ids(take(source, 1)) == ["1"]


def test_after_a_reconnect_a_delivery_is_settled_where_the_source_says_so(broker: Broker) -> None:
    first = broker.source()
    broker.publish("1")
    held = take(first, 1)[0]
    first.close()

    second = broker.source(epoch=1, previous=first)
    second.ack([held.tag])
    second.flush()

    if second.survives_reconnect:
        assert nothing_comes(second, 2.5 * LEASE_S)
    else:
        assert ids(take(second, 1)) == ["1"]


def test_after_a_reconnect_what_is_held_stays_held(broker: Broker) -> None:
    first = broker.source()
    broker.publish("1")
    held = take(first, 1)[0]
    first.close()

    second, third = broker.source("unused", epoch=1, previous=first), broker.source("unused")
    if not second.survives_reconnect:
        return
    third.set_queues([queue_named("q")])
    deadline = time.monotonic() + 3 * LEASE_S
    while time.monotonic() < deadline:
        second.extend()
        assert nothing_comes(third, 0.1)
    second.reject(held.tag, requeue=True)
    second.flush()

    assert ids(take(third, 1)) == ["1"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub(timer=Timer())
    yield made
    made.close()


def run_hub(hub: Hub, until: Callable[[], bool]) -> None:
    """Let the loop turn until something is true."""
    passes = hub.create_loop()
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < deadline, "the loop turned for long and nothing happened"
        next(passes)


def test_a_loop_is_told_when_messages_may_be_there(broker: Broker, hub: Hub) -> None:
    source = broker.source()
    broker.publish("warm")
    source.ack([take(source, 1)[0].tag])
    found: list[Delivery] = []
    source.connection.transport.register_with_event_loop(source.connection.connection, hub)
    source.watch(hub, lambda: found.extend(source.take(10)))
    found.extend(source.take(10))

    for number in range(3):
        broker.publish(str(number))
        run_hub(hub, lambda number=number: len(found) > number)  # type: ignore[misc]

    assert ids(found) == ["0", "1", "2"]
    source.ack([delivery.tag for delivery in found])
    source.flush()
    source.close()


def test_a_loop_hears_of_messages_that_were_there_before(broker: Broker, hub: Hub) -> None:
    broker.publish("early")
    source = broker.source()
    source.connection.transport.register_with_event_loop(source.connection.connection, hub)
    found: list[Delivery] = []
    source.watch(hub, lambda: found.extend(source.take(10)))

    found.extend(source.take(10))
    run_hub(hub, lambda: bool(found))

    assert ids(found) == ["early"]
    source.close()
