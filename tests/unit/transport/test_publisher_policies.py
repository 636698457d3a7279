"""How long and how often a publish is tried, and which publisher and source is taken."""

from __future__ import annotations

from typing import Any

import pytest
from kombu import Connection, Exchange, pools
from kombu.exceptions import OperationalError

from celery_clone import transport
from celery_clone.transport.amqp_publisher import Confirms, must_arrive
from celery_clone.transport.protocols import Destination
from celery_clone.transport.publisher import Deadline, RetryPolicy, not_sent


def attempts(policy: RetryPolicy) -> int:
    """How often something that always fails is tried."""
    count = 1
    while policy.again():
        count += 1
    return count


@pytest.mark.parametrize(
    ("wanted", "policy", "expected"),
    [
        (False, {"max_retries": 5}, 1),
        (True, {"max_retries": 0}, 1),
        (True, {"max_retries": 3, "interval_start": 0, "interval_step": 0}, 4),
        (True, {"interval_start": 0, "interval_step": 0}, 4),
    ],
)
def test_a_policy_says_how_often_to_try(wanted: bool, policy: dict[str, Any], expected: int) -> None:
    assert attempts(RetryPolicy(wanted, policy, Deadline(60))) == expected


def test_a_policy_without_an_end_ends_with_the_deadline() -> None:
    policy = RetryPolicy(True, {"max_retries": None, "interval_start": 0, "interval_step": 0}, Deadline(0.02))

    assert attempts(policy) > 1
    assert policy.deadline.over


def test_a_pause_never_outlasts_the_deadline() -> None:
    policy = RetryPolicy(True, {"max_retries": 9, "interval_start": 60, "interval_max": 60}, Deadline(0.02))

    assert attempts(policy) == 1


def test_no_deadline_is_no_bound() -> None:
    assert Deadline(None).left() is None
    assert Deadline(None).left(4) == 4
    assert not Deadline(None).over


def test_what_is_left_is_never_nothing_because_nothing_would_mean_no_timeout() -> None:
    assert Deadline(0).over
    assert (Deadline(0).left() or 0) > 0
    assert (Deadline(60).left(2) or 0) == 2


def test_the_error_names_the_broker_the_time_the_cause_and_the_remedy() -> None:
    policy = RetryPolicy(True, {}, Deadline(10))
    policy.failures = 4

    text = str(not_sent("redis://:**@host/0", policy, OperationalError("refused")))

    for part in ("redis://:**@host/0", "within 10 s", "4 attempts", "refused", "broker_url", "publish_deadline"):
        assert part in text


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        (Destination("", "q"), True),
        (Destination("e", "k", exchange_type="direct"), True),
        (Destination("e", "k", exchange_type="topic"), True),
        (Destination("e", "k", exchange_type="fanout"), False),
        (Destination(Exchange("e", type="fanout"), "k"), False),  # type: ignore[arg-type]
    ],
)
def test_only_a_broadcast_may_arrive_nowhere(to: Destination, expected: bool) -> None:
    assert must_arrive(to) is expected


def test_confirmations_are_counted_whatever_their_order() -> None:
    confirms = Confirms(["a", "b", "c", "d", "e"])  # type: ignore[list-item]

    confirms.on_ack(3, False)
    confirms.on_ack(2, True)
    confirms.on_nack(4, False)
    confirms.on_ack(4, True)
    assert confirms.open == ["d", "e"]
    assert not confirms.complete

    confirms.on_ack(5, True)
    assert confirms.complete
    assert confirms.open == ["d"]


@pytest.mark.parametrize(
    ("url", "options", "source", "publisher"),
    [
        ("redis://", {}, "RedisSource", "RedisPublisher"),
        ("rediss://", {}, "RedisSource", "RedisPublisher"),
        ("sentinel://", {}, "RedisSource", "RedisPublisher"),
        ("redis://", {"ack_emulation": False}, "KombuSource", "KombuPublisher"),
        ("amqp://", {}, "AmqpSource", "AmqpPublisher"),
        ("pyamqp://", {}, "AmqpSource", "AmqpPublisher"),
        ("amqps://", {}, "AmqpSource", "AmqpPublisher"),
        ("memory://", {}, "KombuSource", "KombuPublisher"),
        ("filesystem://", {}, "KombuSource", "KombuPublisher"),
        ("sqlite://", {}, "SqliteSource", "SqlitePublisher"),
    ],
)
def test_the_driver_decides_which_source_and_publisher_is_taken(
    url: str, options: dict[str, Any], source: str, publisher: str
) -> None:
    connection = Connection(url, transport_options=options)

    assert transport.chosen(transport.SOURCES, connection, transport.ANY_SOURCE).name.endswith(f":{source}")
    assert transport.chosen(transport.PUBLISHERS, connection, transport.ANY_PUBLISHER).endswith(f":{publisher}")


def test_a_publisher_is_opened_without_connecting() -> None:
    pool = pools.producers[Connection("redis://nowhere.invalid:1")]

    assert type(transport.open_publisher(pool)).__name__ == "RedisPublisher"


def test_amqp_confirms_unless_told_otherwise() -> None:
    confirming = Connection("amqp://nowhere.invalid")
    plain = Connection("amqp://nowhere.invalid", transport_options={"confirm_publish": False})

    assert transport.open_publisher(pools.producers[confirming]).confirms  # type: ignore[attr-defined]
    assert not transport.open_publisher(pools.producers[plain]).confirms  # type: ignore[attr-defined]
    assert confirming.transport_options["confirm_publish"] is True
