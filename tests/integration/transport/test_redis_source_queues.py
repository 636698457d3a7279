"""Redis: queues, priorities and names are served as kombu serves them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis
from kombu import Connection, Queue
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Timer
from kombu.common import Broadcast

from celery_clone.transport import open_source
from tests.support.wait import wait_until


class Desk:
    """A Redis database, a kombu producer and sources."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = redis.Redis.from_url(url)
        self._open: list[Any] = []

    def source(self, *queues: Any, **options: Any) -> Any:
        connection = Connection(self.url, transport_options=options)
        connection.connect()
        source = open_source(connection, accept=["json"], lease_s=5)
        self._open += [connection, source]
        source.set_queues([Queue(queue) if isinstance(queue, str) else queue for queue in queues])
        return source

    def publish(self, *values: Any, queue: str, options: dict[str, Any] | None = None, **how: Any) -> None:
        with Connection(self.url, transport_options=options or {}) as connection:
            producer = connection.Producer()
            for value in values:
                producer.publish([[value], {}, {}], routing_key=queue, serializer="json", **how)

    def close(self) -> None:
        for opened in reversed(self._open):
            (opened.release if isinstance(opened, Connection) else opened.close)()
        self.store.close()


@pytest.fixture
def desk(redis_url: str) -> Iterator[Desk]:
    opened = Desk(redis_url)
    yield opened
    opened.close()


def values(deliveries: Any) -> list[Any]:
    return [delivery.payload[0][0] for delivery in deliveries]


def test_what_is_urgent_is_taken_first_from_all_queues(desk: Desk) -> None:
    desk.publish("low", queue="a", priority=9)
    desk.publish("middle", queue="a", priority=4)
    desk.publish("high", queue="b", priority=0)
    source = desk.source("a", "b")

    assert values(source.take(10)) == ["high", "middle", "low"]


def test_priority_steps_of_the_channel_are_used(desk: Desk) -> None:
    steps = {"priority_steps": [0, 1, 2], "sep": ":"}
    desk.publish("two", queue="a", priority=2, options=steps)
    desk.publish("one", queue="a", priority=1, options=steps)
    assert set(desk.store.keys()) == {b"a:1", b"a:2"}

    assert values(desk.source("a", **steps).take(10)) == ["one", "two"]


def test_credit_is_shared_among_busy_queues(desk: Desk) -> None:
    for queue in ("a", "b", "c"):
        desk.publish(*[f"{queue}{number}" for number in range(10)], queue=queue)
    source = desk.source("a", "b", "c")

    batch = source.take(9)

    assert sorted(value[0] for value in values(batch)) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


def test_a_credit_of_one_goes_round(desk: Desk) -> None:
    for queue in ("a", "b", "c"):
        desk.publish(*[f"{queue}{number}" for number in range(4)], queue=queue)
    source = desk.source("a", "b", "c")

    served = [values(source.take(1))[0][0] for _ in range(6)]

    assert sorted(served) == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize(("strategy", "expected"), [("priority", "zzzaaa"), ("sorted", "aaazzz")])
def test_other_orders_empty_one_queue_before_the_next(desk: Desk, strategy: str, expected: str) -> None:
    for queue in ("a", "z"):
        desk.publish(*[f"{queue}{number}" for number in range(3)], queue=queue)
    source = desk.source("z", "a", queue_order_strategy=strategy)

    served = ""
    while batch := source.take(2):
        served += "".join(value[0] for value in values(batch))

    assert served == expected


def test_all_keys_carry_the_prefix_of_the_broker(desk: Desk) -> None:
    options = {"global_keyprefix": "app:", "unacked_key": "open", "unacked_index_key": "times"}
    desk.publish("1", "2", "3", queue="q", priority=6, options=options)
    source = desk.source("q", **options)

    one, two, three = source.take(10)
    source.reject(one.tag, requeue=True)
    source.bury(two, "why")
    source.park(three, time.time() + 60)
    source.extend()

    keys = {key.decode() for key in desk.store.scan_iter()}
    assert all(key.startswith("app:") for key in keys)
    assert {"app:q\x06\x166", "app:q.dead", "app:open", "app:times", "app:open_schedule", "app:open_leases"} <= keys


def test_a_parked_message_returns_to_the_list_of_its_priority(desk: Desk) -> None:
    desk.publish("1", queue="q", priority=6)
    source = desk.source("q")
    source.park(source.take(1)[0], time.time() - 1)

    source.extend()

    assert desk.store.llen("q\x06\x166") == 1


def test_more_than_one_claim_holds_can_be_asked_for(desk: Desk) -> None:
    desk.publish(*range(1300), queue="q")
    source = desk.source("q")

    deliveries = source.take(1200)

    assert values(deliveries) == list(range(1200))
    source.ack([delivery.tag for delivery in deliveries])
    source.flush()
    assert desk.store.hlen("unacked") == 0
    assert values(source.take(1200)) == list(range(1200, 1300))


def test_a_message_of_many_megabytes_comes_through(desk: Desk) -> None:
    desk.publish("x" * 5_000_000, queue="q")
    source = desk.source("q")

    delivery = source.take(1)[0]

    assert len(delivery.payload[0][0]) == 5_000_000
    source.ack([delivery.tag])
    source.flush()
    assert desk.store.hlen("unacked") == 0


def test_names_that_are_not_plain_are_names(desk: Desk) -> None:
    name = 'grün "quoted" \\ queue'
    desk.publish("1", "2", queue=name)
    source = desk.source(name)

    one, two = source.take(10)
    source.reject(one.tag, requeue=True)
    source.park(two, time.time() - 1)
    source.extend()
    source.extend()

    assert source.take(1)[0].queue == name
    assert one.queue == name


@pytest.mark.parametrize("with_hub", [True, False])
def test_broadcasts_come_to_every_source(desk: Desk, with_hub: bool) -> None:
    def broadcast() -> Broadcast:
        return Broadcast("everyone")

    sources = [desk.source(broadcast(), "q") for _ in range(2)]
    got: list[list[Any]] = [[], []]
    hub = Hub(timer=Timer()) if with_hub else None
    passes = None
    if hub is not None:
        for number, source in enumerate(sources):
            source.connection.transport.register_with_event_loop(source.connection.connection, hub)
            source.watch(hub, lambda n=number, s=source: got[n].extend(s.take(10)))
        passes = hub.create_loop()

    def turn() -> None:
        if passes is not None:
            next(passes)
        else:
            for number, source in enumerate(sources):
                got[number].extend(source.take(10, timeout=0.05))

    def arrived() -> bool:
        turn()
        return all("all" in values(each) for each in got)

    def subscribed() -> bool:
        turn()
        return int(desk.store.execute_command("PUBSUB", "NUMPAT")) >= 1 and all_subscribed(desk)

    wait_until(subscribed, 10, "two subscriptions")
    with Connection(desk.url) as connection:
        connection.Producer().publish(
            [["all"], {}, {}], exchange=broadcast().exchange, serializer="json", declare=[broadcast().exchange]
        )
    wait_until(arrived, 10, lambda: f"the broadcast at both: {got}")

    for source, deliveries in zip(sources, got, strict=True):
        deliveries[0].ack()
        source.quiet()
        source.close()
    if hub is not None:
        hub.close()


def all_subscribed(desk: Desk) -> bool:
    clients = desk.store.client_list(_type="pubsub")
    return len(clients) >= 2


# -- floods of what is due later --------------------------------------------------------------------------


def eta_in(seconds: float, hours: float = 0.0) -> str:
    """The time in so many seconds, told in a zone so many *hours* east."""
    zone = timezone(timedelta(hours=hours))
    return (datetime.now(zone) + timedelta(seconds=seconds)).isoformat()


def park_all(source: Any, deliveries: Any) -> None:
    for delivery in deliveries:
        assert source.park(delivery, time.time() + 3600)


def after_a_flood(desk: Desk, *queues: str) -> Any:
    """A source that has just met tasks that are due in an hour."""
    desk.publish(*range(8), queue=queues[0], headers={"eta": eta_in(3600)})
    source = desk.source(*queues)
    park_all(source, source.take(8))
    return source


def test_what_is_due_later_does_not_count_as_taken_in_a_flood_of_it(desk: Desk) -> None:
    source = after_a_flood(desk, "a")
    desk.publish(*["later"] * 20, queue="a", headers={"eta": eta_in(3600)})
    desk.publish("one", "two", "three", queue="a", headers={"eta": None})
    desk.publish(*["later"] * 5, queue="a", headers={"eta": eta_in(3600)})

    found = source.take(2)

    assert values(found) == [*["later"] * 20, "one", "two"]
    park_all(source, found[:20])
    assert values(source.take(1)) == ["three"]
    assert desk.store.zcard("unacked_schedule") == 28
    assert values(source.take(9)) == ["later"] * 5


def test_without_a_flood_no_more_is_taken_than_was_asked_for(desk: Desk) -> None:
    desk.publish(*range(20), queue="a", headers={"eta": eta_in(3600)})
    source = desk.source("a")

    assert len(source.take(2)) == 2
    assert len(source.take(2)) == 2


def test_a_flood_in_one_queue_leaves_the_share_of_the_others(desk: Desk) -> None:
    source = after_a_flood(desk, "a", "b")
    desk.publish(*["later"] * 200, queue="a", headers={"eta": eta_in(3600)})
    desk.publish(*range(10), queue="b")

    found = values(source.take(4))

    # 32 beyond the credit, and two of each queue by the credit; what cannot be told from the rest counts.
    assert (found.count("later"), len(found)) == (34, 36)


def test_large_messages_are_taken_within_the_credit(desk: Desk) -> None:
    large = "x" * 2**20
    desk.publish(*[large] * 9, queue="a", headers={"eta": eta_in(3600)})
    source = desk.source("a")
    park_all(source, source.take(4))

    assert len(source.take(1)) <= 4


@pytest.mark.parametrize("hours", [0, 5.5, -8, 14, -11.75])
def test_times_are_compared_in_every_zone(desk: Desk, hours: float) -> None:
    source = after_a_flood(desk, "a")
    for seconds in (-5, 30, 90, 10**7):
        desk.publish(seconds, queue="a", headers={"eta": eta_in(seconds, hours)})

    assert values(source.take(1)) == [-5]
    source._parked = 8
    assert values(source.take(1)) == [30]
    source._parked = 8
    assert values(source.take(1)) == [90, 10**7]


@pytest.mark.parametrize(
    "eta", ["2999-01-01T00:00:00Z", "2096-02-29T23:59:59.9+00:00", "2999-01-01T00:00:00", "2999-01-01", "soon", 4e9]
)
def test_a_time_that_cannot_be_read_at_once_counts(desk: Desk, eta: Any) -> None:
    source = after_a_flood(desk, "a")
    desk.publish("one", "two", queue="a", headers={"eta": eta})

    assert len(source.take(1)) == (2 if str(eta).endswith(("Z", "+00:00")) else 1)
