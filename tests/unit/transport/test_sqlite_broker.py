"""Queues in a file: what each transaction of the embedded broker does, at times the test gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_clone.transport.sqlite.broker import EmbeddedBroker
from celery_clone.transport.sqlite.database import Database
from celery_clone.transport.sqlite.tables import (
    BROKER_TABLES,
    Claimed,
    Letter,
    NoRoute,
    QueueTraits,
    Settlement,
    UnknownExchange,
)

NOW = 1_000_000.0


class House:
    """A broker, with the few words the tests need."""

    def __init__(self, path: Path) -> None:
        self.broker = EmbeddedBroker(Database(str(path), BROKER_TABLES))

    def queue(self, name: str, **traits: Any) -> int:
        return self.broker.declare_queue(name, QueueTraits(**traits), NOW).id

    def exchange(self, name: str, kind: str, **keys: list[str]) -> None:
        self.broker.declare_exchange(name, kind, durable=True, auto_delete=False, arguments={})
        for queue, routing_keys in keys.items():
            for key in routing_keys:
                self.broker.bind(queue, name, key)

    def session(self, *queues: int, bell: str | None = None) -> int:
        return self.broker.enter(bell, "1@here", 10.0, queues)

    def send(self, key: str, text: str, exchange: str = "", **how: Any) -> list[str]:
        return self.broker.publish([Letter(exchange, key, text.encode(), **how)], NOW)

    def claim(self, session: int, *queues: int, **how: Any) -> list[str]:
        return [message.body.decode() for message in self.claimed(session, *queues, **how)]

    def claimed(
        self, session: int, *queues: int, limit: int = 100, now: float = NOW, **how: Any
    ) -> list[Claimed]:
        return self.broker.claim(session, queues, limit, now, **how).messages

    def ready(self, name: str) -> int:
        found = self.broker.find_queue(name)
        assert found is not None
        return found.ready


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "broker.db")
    yield house
    house.broker.database.close()


def test_messages_come_in_the_order_they_were_sent(house: House) -> None:
    jobs = house.queue("jobs")
    for text in "abc":
        house.send("jobs", text)

    assert house.claim(house.session(jobs), jobs) == ["a", "b", "c"]


def test_the_highest_priority_comes_first_as_on_rabbitmq(house: House) -> None:
    jobs = house.queue("jobs")
    for priority in (0, 9, 5, 9):
        house.send("jobs", str(priority), priority=priority)

    assert house.claim(house.session(jobs), jobs) == ["9", "9", "5", "0"]


def test_priorities_above_the_queues_own_bound_count_as_that_bound(house: House) -> None:
    jobs = house.queue("jobs", max_priority=3)
    house.send("jobs", "first", priority=3)
    house.send("jobs", "second", priority=9)

    assert house.claim(house.session(jobs), jobs) == ["first", "second"]


def test_what_one_session_holds_no_other_gets(house: House) -> None:
    jobs = house.queue("jobs")
    for text in "abc":
        house.send("jobs", text)

    assert house.claim(house.session(jobs), jobs, limit=2) == ["a", "b"]
    assert house.claim(house.session(jobs), jobs) == ["c"]


def test_settled_messages_are_gone_and_leave_with_the_next_claim(house: House) -> None:
    jobs = house.queue("jobs")
    house.send("jobs", "a")
    house.send("jobs", "b")
    session = house.session(jobs)
    (first,) = house.claimed(session, jobs, limit=1)

    assert house.claim(session, jobs, settlement=Settlement(done=[first.id])) == ["b"]

    house.broker.release(session)
    assert house.claim(session, jobs) == ["b"]


def test_released_messages_return_to_their_old_place_and_are_counted(house: House) -> None:
    jobs = house.queue("jobs")
    for text in "abc":
        house.send("jobs", text)
    session = house.session(jobs)
    first, second = house.claimed(session, jobs, limit=2)

    house.broker.release(session, [first.id])

    again, third = house.claimed(session, jobs)
    assert (again.body, again.deliveries) == (b"a", 1)
    assert (third.body, third.deliveries) == (b"c", 0)


def test_a_session_cannot_release_what_another_holds(house: House) -> None:
    jobs = house.queue("jobs")
    house.send("jobs", "a")
    (message,) = house.claimed(house.session(jobs), jobs)

    house.broker.release(house.session(jobs), [message.id])

    assert house.ready("jobs") == 0


def test_messages_nobody_will_acknowledge_are_gone_when_claimed(house: House) -> None:
    jobs = house.queue("jobs")
    house.send("jobs", "a")
    session = house.session(jobs)

    assert house.claim(session, jobs, forget=True) == ["a"]

    house.broker.leave([session], NOW)
    assert house.ready("jobs") == 0


def test_a_parked_message_comes_when_it_is_due_and_was_not_delivered_before(house: House) -> None:
    jobs = house.queue("jobs")
    house.send("jobs", "later")
    session = house.session(jobs)
    (message,) = house.claimed(session, jobs)

    house.broker.settle(session, Settlement(parked=[(message.id, NOW + 60)]))

    assert house.claim(session, jobs) == []
    assert house.broker.outlook([jobs], NOW) == (False, NOW + 60)
    assert house.broker.outlook([jobs], NOW + 60).ready
    (again,) = house.claimed(house.session(jobs), jobs, now=NOW + 60)
    assert (again.body, again.deliveries) == (b"later", 0)


def test_a_parked_message_outlives_the_session_that_parked_it(house: House) -> None:
    jobs = house.queue("jobs")
    house.send("jobs", "later")
    session = house.session(jobs)
    (message,) = house.claimed(session, jobs)
    house.broker.settle(session, Settlement(parked=[(message.id, NOW + 60)]))

    house.broker.leave([session], NOW)

    assert house.claim(house.session(jobs), jobs) == []
    assert house.claim(house.session(jobs), jobs, now=NOW + 61) == ["later"]


def test_what_is_no_longer_held_cannot_be_parked(house: House) -> None:
    jobs = house.queue("jobs")
    house.send("jobs", "a")
    session, other = house.session(jobs), house.session(jobs)
    (message,) = house.claimed(session, jobs)
    house.broker.leave([session], NOW)
    house.claim(other, jobs)

    house.broker.settle(session, Settlement(parked=[(message.id, NOW + 60)]))

    house.broker.leave([other], NOW)
    assert house.ready("jobs") == 1


def test_a_claim_tells_when_the_next_message_is_due(house: House) -> None:
    jobs = house.queue("jobs")
    house.send("jobs", "a")
    house.send("jobs", "b")
    session = house.session(jobs)
    first, second = house.claimed(session, jobs)
    house.broker.settle(session, Settlement(parked=[(first.id, NOW + 60), (second.id, NOW + 30)]))

    assert house.broker.claim(session, [jobs], 5, NOW).next_due == NOW + 30


def test_what_a_gone_session_held_comes_back_marked(house: House) -> None:
    jobs = house.queue("jobs")
    house.send("jobs", "a")
    session = house.session(jobs)
    house.claim(session, jobs)

    house.broker.leave([session], NOW)

    (message,) = house.claimed(house.session(jobs), jobs)
    assert (message.body, message.deliveries) == (b"a", 1)


def test_a_session_that_showed_life_meanwhile_is_left_alone(house: House) -> None:
    jobs = house.queue("jobs")
    house.send("jobs", "a")
    session = house.session(jobs)
    house.claim(session, jobs)
    (seen,) = house.broker.others(None)
    house.broker.beat(session, None)

    house.broker.leave([seen], NOW)

    assert house.ready("jobs") == 0
    assert house.broker.beat(session, None) == 1


def test_a_session_that_was_given_up_learns_it_from_its_next_beat(house: House) -> None:
    session = house.session(house.queue("jobs"))
    house.broker.leave([session], NOW)

    assert house.broker.beat(session, None) is None


def test_a_claim_is_shared_fairly_among_queues_and_leftovers_are_used(house: House) -> None:
    few, many = house.queue("few"), house.queue("many")
    house.send("few", "f")
    for number in range(5):
        house.send("many", f"m{number}")

    assert house.claim(house.session(few, many), few, many, limit=4) == ["f", "m0", "m1", "m2"]


def test_a_direct_exchange_matches_whole_keys(house: House) -> None:
    a, b = house.queue("a"), house.queue("b")
    house.exchange("ex", "direct", a=["one"], b=["one", "two"])
    house.send("one", "both", exchange="ex")
    house.send("two", "b only", exchange="ex")

    assert house.claim(house.session(a), a) == ["both"]
    assert house.claim(house.session(b), b) == ["both", "b only"]


def test_a_topic_exchange_matches_patterns_and_delivers_once_to_a_queue(house: House) -> None:
    a = house.queue("a")
    house.exchange("ex", "topic", a=["task.#", "*.sent"])
    house.send("task.sent", "x", exchange="ex")

    assert house.claim(house.session(a), a) == ["x"]


def test_a_fanout_exchange_copies_to_every_queue(house: House) -> None:
    a, b = house.queue("a"), house.queue("b")
    house.exchange("ex", "fanout", a=[""], b=["ignored"])
    house.send("whatever", "news", exchange="ex")

    assert house.claim(house.session(a), a) == ["news"]
    assert house.claim(house.session(b), b) == ["news"]


def test_a_message_to_an_undeclared_exchange_is_refused(house: House) -> None:
    with pytest.raises(UnknownExchange):
        house.send("key", "x", exchange="nowhere")


def test_a_batch_with_an_unroutable_message_is_refused_whole_when_mandatory(house: House) -> None:
    house.queue("a")
    house.exchange("ex", "direct", a=["one"])
    batch = [Letter("ex", "one", b"fine"), Letter("ex", "elsewhere", b"lost")]

    with pytest.raises(NoRoute):
        house.broker.publish(batch, NOW, mandatory=True)

    assert house.ready("a") == 0


def test_an_unroutable_message_goes_to_the_queue_for_such_if_there_is_one(house: House) -> None:
    house.exchange("ex", "direct")
    lost = Letter("ex", "elsewhere", b"lost")

    house.broker.publish([lost], NOW)
    house.broker.publish([lost], NOW, unroutable_queue="strays")

    assert house.ready("strays") == 1


def test_a_message_to_the_nameless_exchange_makes_its_queue(house: House) -> None:
    house.send("new", "x")

    assert house.ready("new") == 1


def test_a_queue_made_so_goes_after_a_day_unless_somebody_declares_it(house: House) -> None:
    house.send("forgotten", "x")
    house.send("wanted", "x")
    house.queue("wanted")

    house.broker.tidy(NOW + 86401)

    assert house.broker.find_queue("forgotten") is None
    assert house.ready("wanted") == 1


def test_messages_past_their_time_to_live_are_not_given_out_and_are_deleted(house: House) -> None:
    jobs = house.queue("jobs", message_ttl_s=60.0)
    house.send("jobs", "short", ttl_s=5.0)
    house.send("jobs", "long")
    session = house.session(jobs)

    assert house.claim(session, jobs, now=NOW + 6) == ["long"]
    house.broker.release(session)

    house.broker.tidy(NOW + 61)
    assert house.ready("jobs") == 0


def test_a_held_message_does_not_expire(house: House) -> None:
    jobs = house.queue("jobs", message_ttl_s=5.0)
    house.send("jobs", "x")
    session = house.session(jobs)
    house.claim(session, jobs)

    house.broker.tidy(NOW + 60)

    assert house.broker.holds(session)


def test_a_bounded_queue_drops_from_its_head(house: House) -> None:
    jobs = house.queue("jobs", max_length=2)
    for text in "abc":
        house.send("jobs", text)

    assert house.claim(house.session(jobs), jobs) == ["b", "c"]


def test_a_private_queue_goes_with_its_last_consumer(house: House) -> None:
    mine = house.queue("mine", private=True)
    house.exchange("ex", "fanout", mine=[""])
    first, second = house.session(mine), house.session(mine)
    house.send("", "x", exchange="ex")

    house.broker.leave([first], NOW)
    assert house.ready("mine") == 1
    house.broker.leave([second], NOW)

    assert house.broker.find_queue("mine") is None
    assert house.broker.bindings() == []


def test_a_private_queue_that_nobody_ever_consumed_goes_after_a_while(house: House) -> None:
    house.queue("mine", private=True)
    house.queue("reply", private=True, expires_s=10.0)

    house.broker.tidy(NOW + 11)
    assert house.broker.find_queue("reply") is None
    assert house.broker.find_queue("mine") is not None
    house.broker.tidy(NOW + 61)

    assert house.broker.find_queue("mine") is None


def test_a_queue_in_use_does_not_expire(house: House) -> None:
    reply = house.queue("reply", private=True, expires_s=10.0)
    house.session(reply)

    house.broker.tidy(NOW + 3600)

    assert house.broker.find_queue("reply") is not None


def test_purging_spares_what_is_held_and_takes_what_is_parked(house: House) -> None:
    jobs = house.queue("jobs")
    for text in "abc":
        house.send("jobs", text)
    session = house.session(jobs)
    held, parked = house.claimed(session, jobs, limit=2)
    house.broker.settle(session, Settlement(parked=[(parked.id, NOW + 60)]))

    assert house.broker.purge("jobs") == 2

    house.broker.release(session)
    assert house.claim(session, jobs, now=NOW + 61) == ["a"]


def test_deleting_a_queue_honours_its_conditions(house: House) -> None:
    jobs = house.queue("jobs")
    house.send("jobs", "a")
    session = house.session(jobs)

    assert house.broker.delete_queue("jobs", if_empty=True) == 0
    assert house.broker.delete_queue("jobs", if_unused=True) == 0
    house.broker.leave([session], NOW)
    assert house.broker.delete_queue("jobs", if_unused=True) == 1
    assert house.broker.find_queue("jobs") is None


def test_a_buried_message_lies_in_the_dead_queue_with_its_reason(house: House) -> None:
    jobs = house.queue("jobs")
    house.send("jobs", "bad")
    session = house.session(jobs)
    (message,) = house.claimed(session, jobs)

    house.broker.bury(session, message.id, "not JSON", NOW)

    dead = house.broker.find_queue("jobs.dead")
    assert dead is not None
    (found,) = house.claimed(session, dead.id)
    assert (found.queue, found.body, found.origin, found.reason) == ("jobs.dead", b"bad", "jobs", "not JSON")


def test_the_dead_stay_in_the_dead_queue_for_good(house: House) -> None:
    jobs = house.queue("jobs", message_ttl_s=5.0)
    house.send("jobs", "bad")
    session = house.session(jobs)
    (message,) = house.claimed(session, jobs)
    house.broker.bury(session, message.id, "not JSON", NOW)

    house.broker.tidy(NOW + 1e8)

    assert house.ready("jobs.dead") == 1


def test_declaring_an_exchange_differently_is_noticed(house: House) -> None:
    house.exchange("ex", "direct")

    declare = house.broker.declare_exchange
    assert declare("ex", "direct", durable=True, auto_delete=False, arguments={})
    assert not declare("ex", "topic", durable=True, auto_delete=False, arguments={})


def test_an_exchange_to_be_deleted_automatically_goes_with_its_last_binding(house: House) -> None:
    house.queue("a")
    house.broker.declare_exchange("ex", "direct", durable=False, auto_delete=True, arguments={})
    house.broker.bind("a", "ex", "key")

    house.broker.unbind("a", "ex", "key")

    assert not house.broker.has_exchange("ex")


class TestBells:
    """Whom a change wakes."""

    def test_a_session_that_found_nothing_is_rung(self, house: House) -> None:
        jobs = house.queue("jobs")
        session = house.session(jobs, bell="bell")

        assert house.send("jobs", "unheard") == []
        house.claim(session, jobs)

        assert house.send("jobs", "heard") == ["bell"]

    def test_a_session_that_left_work_behind_is_not_rung(self, house: House) -> None:
        jobs = house.queue("jobs")
        session = house.session(jobs, bell="bell")
        for text in "abc":
            house.send("jobs", text)
        harvest = house.broker.claim(session, [jobs], 1, NOW)

        assert not harvest.waiting
        assert house.send("jobs", "d") == []

    def test_only_those_who_consume_the_queue_are_rung(self, house: House) -> None:
        other = house.queue("other")
        house.queue("jobs")
        house.claim(house.session(other, bell="bell"), other)

        assert house.send("jobs", "x") == []

    def test_released_messages_wake_the_others(self, house: House) -> None:
        jobs = house.queue("jobs")
        house.send("jobs", "x")
        holder, waiter = house.session(jobs), house.session(jobs, bell="bell")
        house.claim(holder, jobs)
        house.claim(waiter, jobs)

        assert house.broker.leave([holder], NOW) == ["bell"]

    def test_a_crowd_is_not_woken_as_a_whole(self, house: House) -> None:
        jobs = house.queue("jobs")
        for number in range(40):
            house.claim(house.session(jobs, bell=f"bell {number}"), jobs)

        assert 1 <= len(house.send("jobs", "x")) <= 16
