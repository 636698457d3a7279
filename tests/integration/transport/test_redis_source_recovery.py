"""Redis: what a worker held is neither lost nor run twice, whoever dies, and whoever shares the broker."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue
from kombu.pools import producers

from celery_clone.message import protocol
from celery_clone.transport import open_publisher, open_source
from celery_clone.transport.protocols import Destination, SendOptions
from celery_clone.transport.redis_layout import PROMOTE, SWEEP, pack, pack_script
from celery_clone.transport.redis_source import RedisSource
from celery_clone.worker.consumer.consumer import BACKOFF_MAX_S
from tests.support.proxy import TcpProxy
from tests.support.redis import RedisServer
from tests.support.wait import wait_until

LEASE_S = 0.8


class Fleet:
    """A Redis database with workers on it: ours and real kombu ones."""

    def __init__(self, url: str, **options: Any) -> None:
        self.url, self.options = url, options
        self.store = redis.Redis.from_url(url)
        self._open: list[Any] = []

    def connect(self, url: str | None = None, **options: Any) -> Connection:
        connection = Connection(url or self.url, transport_options={**self.options, **options})
        connection.connect()
        self._open.append(connection)
        return connection

    def source(self, *queues: str, url: str | None = None, **how: Any) -> RedisSource:
        options = {"lease_s": LEASE_S, **how}
        source: Any = open_source(self.connect(url, **options.pop("options", {})), accept=["json"], **options)
        self._open.append(source)
        source.set_queues([Queue(name) for name in queues or ("q",)])
        return source

    def publish(self, *ids: str, queue: str = "q", eta: datetime | None = None, **how: Any) -> None:
        publisher = open_publisher(producers[Connection(self.url, transport_options=self.options)])
        for task_id in ids:
            message = protocol.task_message_v2(task_id, "t", (task_id,), origin="test", eta=eta)
            publisher.publish(message, Destination("", queue), SendOptions(extra=how))
        publisher.close()  # type: ignore[attr-defined]

    def kombu_consumer(self, *queues: str, **options: Any) -> tuple[Any, list[Any]]:
        """A channel of real kombu that consumes, and the messages it got."""
        channel = self.connect(**options).channel()
        got: list[Any] = []
        consumer = Consumer(channel, [Queue(name) for name in queues or ("q",)], on_message=got.append, accept=["json"])
        consumer.consume()
        return channel, got

    def close(self) -> None:
        for opened in reversed(self._open):
            if hasattr(opened, "close") and not isinstance(opened, Connection):
                opened.close()
            else:
                opened.release()
        self.store.close()


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Fleet]:
    opened = Fleet(redis_url)
    yield opened
    opened.close()


def ids(deliveries: Any) -> list[str]:
    return [delivery.payload[0][0] for delivery in deliveries]


def take(source: Any, count: int, patience_s: float = 10) -> list[Any]:
    found: list[Any] = []

    def enough() -> bool:
        source.extend()
        found.extend(source.take(count - len(found), timeout=0.05))
        return len(found) >= count

    wait_until(enough, patience_s, lambda: f"{count} deliveries; there are {found}")
    return found


def drain(channel: Any, got: list[Any], count: int) -> None:
    """Let kombu consume until it got *count* messages."""

    def enough() -> bool:
        try:
            channel.connection.client.drain_events(timeout=0.1)
        except TimeoutError:
            pass
        return len(got) >= count

    wait_until(enough, 10, lambda: f"{count} messages at kombu; there are {got}")


def idle_for(source: Any, seconds: float, *others: Any) -> bool:
    """Nothing comes to *source* for so long, though everything is swept and the *others* live."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for living in (*others, source):
            living.extend()
        if source.take(5, timeout=0.02):
            return False
    return True


# -- death ------------------------------------------------------------------------------------------------


def dies_after(url: str, action: Callable[[RedisSource], None]) -> None:
    """Run *action* in a process that then dies by SIGKILL."""
    pid = os.fork()
    if pid == 0:
        try:
            connection = Connection(url)
            connection.connect()
            source: Any = open_source(connection, accept=["json"], lease_s=LEASE_S)
            source.set_queues([Queue("q")])
            action(source)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_what_a_killed_worker_had_claimed_comes_to_another_within_a_few_leases(fleet: Fleet) -> None:
    fleet.publish("1", "2", "3")
    dies_after(fleet.url, lambda source: assert_equal(len(source.take(10)), 3))
    assert fleet.store.llen("q") == 0

    started = time.monotonic()
    back = take(fleet.source(), 3)

    assert sorted(ids(back)) == ["1", "2", "3"]
    assert all(delivery.redelivered for delivery in back)
    assert time.monotonic() - started < 6 * LEASE_S


def assert_equal(one: Any, other: Any) -> None:
    assert one == other


def test_a_claim_whose_answer_was_never_read_is_not_lost(fleet: Fleet) -> None:
    fleet.publish("1", "2")

    def claim_and_die(source: RedisSource) -> None:
        source._redis = source._connect()
        source.talk(source._redis, [pack("PING"), source._claim_command(10, [])])

    dies_after(fleet.url, claim_and_die)

    assert sorted(ids(take(fleet.source(), 2))) == ["1", "2"]


def test_what_was_acknowledged_before_the_death_does_not_come_back(fleet: Fleet) -> None:
    fleet.publish("1", "2", "3")

    def work_and_die(source: RedisSource) -> None:
        one, two, _ = source.take(10)
        source.ack([one.tag, two.tag])
        source.flush()

    dies_after(fleet.url, work_and_die)
    source = fleet.source()

    assert ids(take(source, 1)) == ["3"]
    assert idle_for(source, 3 * LEASE_S)


def test_a_dead_workers_message_is_put_back_once_though_all_others_sweep(fleet: Fleet) -> None:
    expected = [str(number) for number in range(50)]
    fleet.publish(*expected)
    dies_after(fleet.url, lambda source: assert_equal(len(source.take(100)), 50))
    sources = [fleet.source() for _ in range(5)]

    got: list[str] = []

    def all_back() -> bool:
        for source in sources:
            source.extend()
            got.extend(ids(source.take(3)))
        return len(got) >= 50

    wait_until(all_back, 10, lambda: f"50 messages, not {len(got)}")
    assert sorted(got, key=int) == expected
    assert all(idle_for(source, 0.2, *sources) for source in sources)
    assert fleet.store.hlen("unacked") == 50


def test_the_late_acknowledgement_of_a_lost_claim_does_not_settle_the_new_one(fleet: Fleet) -> None:
    slow, quick = fleet.source(), fleet.source("other")
    fleet.publish("1")
    lost = take(slow, 1)[0]
    quick.set_queues([Queue("q")])
    again = take(quick, 1)[0]
    assert again.tag != lost.tag

    slow.ack([lost.tag])
    slow.flush()

    assert fleet.store.hexists("unacked", again.tag)
    quick.ack([again.tag])
    quick.flush()
    assert fleet.store.hlen("unacked") == 0


def test_a_worker_that_lost_its_claims_is_told(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    slow, quick = fleet.source(), fleet.source("other")
    fleet.publish("1")
    lost = take(slow, 1)[0]
    quick.set_queues([Queue("q")])
    take(quick, 1)

    with caplog.at_level(logging.WARNING):
        slow.extend()

    assert lost.tag in caplog.text and "lease" in caplog.text
    assert slow.held.tags == {}


def test_a_loop_that_stands_still_keeps_its_claims_when_they_are_renewed_in_the_background(fleet: Fleet) -> None:
    busy, other = fleet.source(renew_in_background=True), fleet.source("unused")
    fleet.publish("1")
    held = take(busy, 1)[0]
    other.set_queues([Queue("q")])

    assert idle_for(other, 4 * LEASE_S)

    busy.ack([held.tag])
    busy.close()
    assert fleet.store.hlen("unacked") == 0


def test_nothing_is_taken_over_after_the_server_stood_still_for_longer_than_a_lease(fleet: Fleet) -> None:
    first, second = fleet.source(), fleet.source("unused")
    fleet.publish("1")
    held = take(first, 1)[0]
    second.set_queues([Queue("q")])
    # Sweeps go on for long enough that leases count.
    end = time.monotonic() + 2 * LEASE_S
    while time.monotonic() < end:
        first.extend()
        second.extend()

    fleet.store.execute_command("DEBUG", "SLEEP", str(2 * LEASE_S))

    second.extend()  # comes to the server before the owner's renewal does
    assert list(second.take(5)) == []
    first.extend()
    assert idle_for(second, 3 * LEASE_S, first)
    assert held.tag in first.held.tags


class Time:
    """Time that passes at once, for the server and for some workers."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.passed_s = 0.0

    def rules(self, source: RedisSource) -> RedisSource:
        """*source* goes by this clock, and has been connected since it began."""
        source._clock = lambda: self.passed_s
        source._sweeps_from = source.lease_s
        return source

    def passes(self, seconds: float) -> None:
        self.passed_s += seconds
        store = self.fleet.store
        for key in ("unacked_index", "unacked_leases"):
            for member, score in store.zrange(key, 0, -1, withscores=True):
                store.zadd(key, {member: score - seconds})
        for field, at in store.hgetall("unacked_sweeps").items():
            store.hset("unacked_sweeps", field, str(float(at) - seconds))

    def passes_for(self, seconds: float, *living: RedisSource) -> None:
        """As :meth:`passes`, with the *living* at work meanwhile."""
        ends = self.passed_s + seconds
        while self.passed_s < ends - 1e-6:
            self.passes(min(living[0].lease_s / 3, ends - self.passed_s))
            for source in living:
                source.extend()


LONG_S = 60.0
"""A lease that does not run out in the time that a test takes."""


def test_leases_that_ran_out_in_an_outage_shorter_than_one_are_left_to_their_owners(fleet: Fleet) -> None:
    time = Time(fleet)
    owner, other = time.rules(fleet.source(lease_s=LONG_S)), time.rules(fleet.source("unused", lease_s=LONG_S))
    fleet.publish("1")
    (held,) = owner.take(1)
    other.set_queues([Queue("q")])
    time.passes_for(3 * LONG_S, owner, other)
    time.passes(LONG_S / 4)
    other.extend()  # its renewal comes just before the server is gone, the owner's would come just after that

    time.passes(0.9 * LONG_S)
    other.extend()
    assert fleet.store.zrangebyscore("unacked_leases", "-inf", f"({time_of(fleet)}") != []
    assert list(other.take(5)) == []
    owner.extend()
    time.passes_for(3 * LONG_S, owner, other)

    assert list(other.take(5)) == []
    assert held.tag in owner.held.tags


def time_of(fleet: Fleet) -> str:
    seconds, micros = fleet.store.time()
    return f"{seconds}.{micros:06d}"


def test_what_a_dead_worker_held_is_taken_over_one_lease_after_an_outage(fleet: Fleet) -> None:
    time = Time(fleet)
    dead, other = time.rules(fleet.source(lease_s=LONG_S)), time.rules(fleet.source("unused", lease_s=LONG_S))
    fleet.publish("1")
    assert len(dead.take(1)) == 1
    other.set_queues([Queue("q")])
    time.passes_for(LONG_S / 2, other)

    time.passes(3 * LONG_S)
    other.extend()
    time.passes_for(0.9 * LONG_S, other)
    assert list(other.take(1)) == []
    time.passes_for(0.2 * LONG_S, other)
    assert ids(wait_until(lambda: other.take(1), 5, "the bell")) == ["1"]


@pytest.mark.parametrize("again", [True, False], ids=["again", "first"])
def test_a_worker_that_has_just_connected_takes_over_nothing_for_a_lease(fleet: Fleet, again: bool) -> None:
    """Who was away with it may need as long, though a third has seen no outage."""
    time = Time(fleet)
    owner, third = time.rules(fleet.source(lease_s=LONG_S)), time.rules(fleet.source("unused", lease_s=LONG_S))
    fleet.publish("1")
    (held,) = owner.take(1)
    time.passes_for(0.8 * LONG_S, third)
    previous = fleet.source("unused") if again else None
    back = fleet.source("unused", lease_s=LONG_S, previous=previous)
    back._clock = lambda: time.passed_s
    back._defer_sweeping()
    third.close()
    time.passes_for(0.9 * LONG_S, back)
    assert fleet.store.zscore("unacked_leases", held.tag) < float(time_of(fleet))
    assert fleet.store.llen("q") == 0

    time.passes_for(0.2 * LONG_S, back)
    assert fleet.store.llen("q") == 1


def test_who_lost_the_connection_waits_for_the_others_longer_than_their_pauses(fleet: Fleet) -> None:
    back = fleet.source(previous=fleet.source())

    assert back._sweeps_from - back._clock() > BACKOFF_MAX_S > LEASE_S
    assert fleet.source()._sweeps_from - back._clock() < 2 * LEASE_S


def test_a_loop_that_stands_still_and_holds_nothing_tells_that_leases_could_be_renewed(fleet: Fleet) -> None:
    fleet.source("unused", renew_in_background=True)
    first = fleet.store.hget("unacked_sweeps", "last")
    wait_until(lambda: fleet.store.hget("unacked_sweeps", "last") != first, 5 * LEASE_S, "a renewal")


# -- a mixed fleet ----------------------------------------------------------------------------------------


def test_kombu_reads_what_we_publish(fleet: Fleet) -> None:
    channel, got = fleet.kombu_consumer()
    fleet.publish("1", "2")

    drain(channel, got, 2)

    assert [message.payload[0] for message in got] == [["1"], ["2"]]
    assert got[0].headers["task"] == "t"
    got[0].ack()
    got[1].ack()
    assert fleet.store.hlen("unacked") == 0


def test_kombu_gives_back_what_we_claimed_when_none_of_us_is_left(fleet: Fleet) -> None:
    fleet.publish("1", "2")
    dies_after(fleet.url, lambda source: assert_equal(len(source.take(10)), 2))
    channel, got = fleet.kombu_consumer(visibility_timeout=1)

    def restored() -> bool:
        channel.qos.restore_visible(interval=1)
        return bool(fleet.store.llen("q"))

    wait_until(restored, 10, "kombu's restore")
    drain(channel, got, 2)

    assert sorted(message.payload[0][0] for message in got) == ["1", "2"]
    assert all(message.delivery_info["redelivered"] for message in got)


def test_kombu_leaves_alone_what_we_hold(fleet: Fleet) -> None:
    source = fleet.source()
    fleet.publish("1")
    take(source, 1)
    channel, _ = fleet.kombu_consumer("unused", visibility_timeout=1)

    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        source.extend()
        channel.qos.restore_visible(interval=1)
        time.sleep(0.1)

    assert fleet.store.llen("q") == 0
    assert fleet.store.hlen("unacked") == 1


def test_we_give_back_what_a_dead_kombu_worker_held_after_the_visibility_timeout(fleet: Fleet) -> None:
    fleet.publish("1")
    pid = os.fork()
    if pid == 0:
        try:
            channel, got = Fleet(fleet.url).kombu_consumer()
            drain(channel, got, 1)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert fleet.store.hlen("unacked") == 1

    patient = fleet.source(options={"visibility_timeout": 3600})
    assert idle_for(patient, 3 * LEASE_S)
    hasty = fleet.source(options={"visibility_timeout": 1})

    back = take(hasty, 1)
    assert ids(back) == ["1"] and back[0].redelivered


def test_a_parked_message_is_given_back_by_kombu_when_it_is_due_and_none_of_us_is_left(fleet: Fleet) -> None:
    fleet.publish("1")
    due = time.time() + 1.0

    def park_and_die(source: RedisSource) -> None:
        assert source.park(source.take(1)[0], due)
        source.flush()

    dies_after(fleet.url, park_and_die)
    channel, got = fleet.kombu_consumer()  # the visibility timeout that the parking worker had

    def restored() -> bool:
        channel.qos.restore_visible(interval=1)
        return bool(fleet.store.llen("q"))

    wait_until(restored, 10, "kombu's restore")
    assert time.time() >= due
    drain(channel, got, 1)


def test_a_parked_message_that_kombu_gave_back_and_runs_is_not_given_out_by_us(fleet: Fleet) -> None:
    fleet.publish("one")
    source = fleet.source()
    assert source.park(take(source, 1)[0], time.time() + 0.3)
    source.flush()
    channel, got = fleet.kombu_consumer(visibility_timeout=1)

    def given_back() -> bool:
        channel.qos.restore_visible(num=10, interval=1)
        return fleet.store.llen("q") == 1

    wait_until(given_back, 10, "the message in its queue")
    drain(channel, got, 1)

    def looked() -> bool:
        source.extend()
        assert source.take(1, timeout=0.05) == []
        return fleet.store.zcard("unacked_leases") == 0

    wait_until(looked, 10, "the end of the lease")
    assert fleet.store.hlen("unacked") == 1
    assert fleet.store.zcard("unacked_schedule") == 0
    got[0].ack()


def test_a_worker_with_a_short_visibility_timeout_leaves_parked_messages_parked(fleet: Fleet) -> None:
    source = fleet.source()
    fleet.publish("1")
    assert source.park(take(source, 1)[0], time.time() + 60)
    source.flush()

    assert idle_for(fleet.source(options={"visibility_timeout": 1}), 3 * LEASE_S)


def test_parking_can_be_turned_off(fleet: Fleet) -> None:
    source = fleet.source(options={"park": False})
    fleet.publish("1")

    assert source.park(take(source, 1)[0], time.time() + 60) is False


def test_many_workers_promote_a_parked_message_once(fleet: Fleet) -> None:
    sources = [fleet.source() for _ in range(4)]
    expected = [str(number) for number in range(30)]
    fleet.publish(*expected)
    due = time.time() + 0.5
    for delivery in take(sources[0], 30):
        assert sources[0].park(delivery, due + int(ids([delivery])[0]) / 1000)
    sources[0].flush()
    assert fleet.store.zcard("unacked_schedule") == 30

    got: list[str] = []

    def all_here() -> bool:
        for source in sources:
            source.extend()
            got.extend(ids(source.take(3)))
        return len(got) >= 30

    wait_until(all_here, 10, lambda: f"30 messages, not {got}")
    assert sorted(got, key=int) == expected
    assert fleet.store.zcard("unacked_schedule") == 0


@pytest.mark.parametrize("moment", ["after", "before"])
def test_what_a_kombu_worker_claimed_around_the_end_of_a_lease_stays_with_it(fleet: Fleet, moment: str) -> None:
    fleet.publish("one")
    dies_after(fleet.url, lambda source: assert_equal(len(source.take(1)), 1))
    channel, got = fleet.kombu_consumer()
    channel.qos.visibility_timeout = LEASE_S + 1 if moment == "after" else 0

    def given_back() -> bool:
        channel.qos.restore_visible(num=10, interval=1)
        return fleet.store.llen("q") == 1

    wait_until(given_back, 10, "the message in its queue")
    drain(channel, got, 1)
    ((_, claimed),), ((_, ended),) = (
        fleet.store.zrange(key, 0, -1, withscores=True) for key in ("unacked_index", "unacked_leases")
    )
    assert (claimed > ended) == (moment == "after")

    source = fleet.source()

    def looked() -> bool:
        source.extend()
        assert source.take(1, timeout=0.05) == []
        return fleet.store.zcard("unacked_leases") == 0

    wait_until(looked, 10, "the end of the lease")
    assert fleet.store.hlen("unacked") == 1
    got[0].ack()


def test_a_lease_is_never_longer_than_the_visibility_timeout(fleet: Fleet) -> None:
    assert fleet.source(lease_s=None).lease_s == 10
    assert fleet.source(lease_s=None, options={"visibility_timeout": 3}).lease_s == 3
    assert fleet.source(lease_s=None, options={"visibility_timeout": 3, "lease": 5}).lease_s == 5


# -- garbage ----------------------------------------------------------------------------------------------

GARBAGE = [
    b"",
    b"\xff\xfe\x00",
    b"{",
    b"[1]",
    b'"text"',
    b"null",
    b'{"body": 1}',
    b"x" * 5000,
    b'{"a"}"delivery_tag": "t"}}',
]


def test_garbage_neither_blocks_a_queue_nor_is_it_lost(fleet: Fleet) -> None:
    source = fleet.source()
    for text in GARBAGE:
        fleet.store.lpush("q", text)
    fleet.publish("good")

    deliveries = take(source, len(GARBAGE) + 1)

    assert ids(deliveries[-1:]) == ["good"]
    assert [delivery.body for delivery in deliveries[:-1] if delivery.problem] != []
    assert len({delivery.tag for delivery in deliveries}) == len(deliveries)
    for delivery in deliveries[:-1]:
        source.bury(delivery, f"why: {delivery.problem}")
    source.ack([deliveries[-1].tag])
    source.flush()

    assert fleet.store.hlen("unacked") == 0
    assert fleet.store.zcard("unacked_leases") == 0
    dead = [json.loads(text) for text in fleet.store.lrange("q.dead", 0, -1)]
    assert len(dead) == len(GARBAGE)
    assert all(set(record) == {"reason", "message", "at"} for record in dead)
    assert "x" * 5000 in [record["message"] for record in dead]


def test_garbage_that_a_dead_worker_held_comes_back_byte_for_byte(fleet: Fleet) -> None:
    every_byte = bytes(range(256))
    fleet.store.lpush("q", every_byte)
    dies_after(fleet.url, lambda source: assert_equal(len(source.take(1)), 1))

    back = take(fleet.source(), 1)

    assert back[0].body == every_byte


def test_garbage_that_we_claimed_does_not_stop_kombus_restore(fleet: Fleet) -> None:
    fleet.store.lpush("q", b"\xff garbage")
    fleet.publish("good")
    dies_after(fleet.url, lambda source: assert_equal(len(source.take(10)), 2))
    channel, got = fleet.kombu_consumer(visibility_timeout=1)

    def restored() -> bool:
        channel.qos.restore_visible(interval=1)
        return bool(fleet.store.llen("q"))

    wait_until(restored, 10, "kombu's restore")
    drain(channel, got, 1)
    assert got[0].payload[0] == ["good"]


def test_a_message_without_a_tag_can_be_run(fleet: Fleet) -> None:
    source = fleet.source()
    body = {"body": "[[1], {}, {}]", "content-type": "application/json", "headers": {"task": "t", "id": "i"}}
    fleet.store.lpush("q", json.dumps({**body, "properties": {}}))

    delivery = take(source, 1)[0]

    assert delivery.problem is None
    assert delivery.payload == [[1], {}, {}]
    source.ack([delivery.tag])
    source.flush()
    assert fleet.store.hlen("unacked") == 0


def test_two_messages_with_the_same_tag_are_two_messages(fleet: Fleet) -> None:
    fleet.publish("1")
    text = fleet.store.lindex("q", 0)
    fleet.store.lpush("q", text, text)
    source = fleet.source()

    deliveries = take(source, 3)
    assert len({delivery.tag for delivery in deliveries}) == 3
    source.ack([deliveries[0].tag])
    source.flush()

    assert fleet.store.hlen("unacked") == 2


def test_entries_of_unacked_that_are_damaged_end_where_an_operator_finds_them(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    source = fleet.source(options={"visibility_timeout": 1})
    fleet.store.hset("unacked", "t", "damaged")
    fleet.store.zadd("unacked_index", {"t": 1})

    source.extend()

    assert fleet.store.lrange("unacked.dead", 0, -1) == [b"damaged"]
    assert fleet.store.hlen("unacked") == 0
    assert "unacked.dead" in caplog.text


# -- connections ------------------------------------------------------------------------------------------


def test_scripts_that_the_server_forgot_are_sent_again(fleet: Fleet) -> None:
    source = fleet.source()
    fleet.publish("1", "2")
    one = take(source, 1)[0]

    fleet.store.script_flush()
    source.ack([one.tag])

    assert ids(take(source, 1)) == ["2"]
    assert fleet.store.hlen("unacked") == 1


def test_acknowledgements_that_a_broken_connection_swallowed_are_sent_by_the_next_source(
    fleet: Fleet, redis_server: RedisServer, proxy_to: Callable[[int], TcpProxy]
) -> None:
    proxy = proxy_to(redis_server.port)
    through = fleet.url.replace(str(redis_server.port), str(proxy.port))
    first = fleet.source(url=through)
    fleet.publish("1", "2")
    one, two = take(first, 2)

    first.ack([one.tag])
    first.reject(two.tag, requeue=True)
    proxy.refuse()
    proxy.cut()
    with pytest.raises(first.connection.connection_errors):
        first.flush()
    first.close()
    second = fleet.source(previous=first, epoch=1)
    second.flush()

    assert ids(take(second, 1)) == ["2"]
    assert fleet.store.hlen("unacked") == 1


def test_a_claim_whose_answer_the_connection_swallowed_is_given_out_at_once_by_the_next_source(fleet: Fleet) -> None:
    first = fleet.source()
    fleet.publish("1", "2", "3")
    assert len(first.take(1)) == 1
    first.talk(first._redis, [first._claim_command(10, [])])

    second = fleet.source(previous=first, epoch=1)

    back = second.take(10)
    assert sorted(ids(back)) == ["2", "3"]
    assert all(delivery.redelivered for delivery in back)
    assert fleet.store.hlen("unacked") == 3


def test_what_was_heard_of_is_not_taken_for_a_claim_that_was_not(fleet: Fleet) -> None:
    first = fleet.source()
    fleet.publish("held", "done", "parked", "back")
    held, done, parked, back = first.take(10)
    first.ack([done.tag])
    assert first.park(parked, time.time() + 60)
    first.reject(back.tag, requeue=True)

    second = fleet.source(previous=first, epoch=1)

    assert ids(second.take(10)) == ["back"]
    assert held.tag in second.held.tags
    assert fleet.store.hlen("unacked") == 3
    third = fleet.source(previous=second, epoch=2)
    assert third.take(10) == []


def test_what_was_claimed_is_given_out_although_the_bell_broke_behind_the_claim(fleet: Fleet) -> None:
    source = fleet.source()
    fleet.publish("1", "2")
    assert ids(source.take(1)) == ["1"]
    source._bell.open()
    # What is waited with breaks, and what is claimed with does not.
    source._bell._connection._sock.shutdown(socket.SHUT_RDWR)
    fleet.publish("3")

    assert ids(source.take(5)) == ["2", "3"]
    later = threading.Timer(0.2, fleet.publish, ("4",))
    later.start()
    assert ids(source.take(5, timeout=10)) == ["4"]
    later.join()


def test_a_server_that_does_not_answer_is_a_broken_connection(fleet: Fleet, own_redis_server: RedisServer) -> None:
    source = fleet.source(url=own_redis_server.url(), options={"socket_timeout": 0.5})
    own_redis_server.freeze()
    try:
        started = time.monotonic()
        with pytest.raises(source.connection.connection_errors):
            source.extend()
        assert time.monotonic() - started < 3
    finally:
        own_redis_server.thaw()


def test_a_server_that_refuses_to_track_keys_is_polled(fleet: Fleet, redis_server: RedisServer) -> None:
    fleet.store.execute_command("ACL", "SETUSER", "plain", "on", ">secret", "~*", "&*", "+@all", "-client|tracking")
    source = fleet.source(url=fleet.url.replace("redis://", "redis://plain:secret@"))
    assert list(source.take(5, timeout=0.05)) == []
    assert source._bell.polling

    fleet.publish("1")

    assert ids(source.take(5, timeout=5)) == ["1"]


def test_a_sweep_is_a_command_that_any_worker_may_send(fleet: Fleet) -> None:
    source = fleet.source()
    layout = source.layout
    keys = layout.unacked, layout.unacked_index, layout.leases, layout.sweeps

    (looked_at,) = source._call([pack_script(SWEEP, keys, LEASE_S, 3600, 10, 10)])[0]

    assert abs(float(looked_at) - time.time()) < 5


def test_what_is_due_comes_before_what_waits_and_does_not_overtake_what_was_due_before(fleet: Fleet) -> None:
    source = fleet.source()
    due = time.time() + 0.5
    fleet.publish("due-1", "due-2", "due-3", "due-4", eta=datetime.fromtimestamp(due, timezone.utc))
    for number, delivery in enumerate(take(source, 4)):
        assert source.park(delivery, due + number / 1000)
    source.flush()
    fleet.publish("waiting-1", "waiting-2")
    wait_until(lambda: time.time() > due + 0.1, 5)
    layout = source.layout
    keys = layout.unacked, layout.unacked_index, layout.leases, layout.schedule

    for _ in range(2):
        source._call([pack_script(PROMOTE, keys, 2)])

    assert ids(source.take(10)) == ["due-1", "due-2", "waiting-1", "waiting-2", "due-3", "due-4"]
