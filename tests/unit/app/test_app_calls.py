"""Where one call goes."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from kombu import Exchange, Queue
from kombu.common import Broadcast

from celery_clone.app.calls import SendDefaults, delayed_route, destination, expiration_seconds

DEFAULTS = SendDefaults("celery", "celery", 2, "json", None, True, {}, 10.0)
DIRECT = Queue("images", Exchange("images", "direct"), "images")
TOPIC = Queue("topics", Exchange("topics", "topic"), "a.#")
NOW = datetime(2027, 1, 1, tzinfo=timezone.utc)


def now():
    return NOW


@pytest.mark.parametrize(
    ("queue", "exchange", "key", "expected"),
    [
        pytest.param(DIRECT, None, None, ("", "images"), id="direct-queue-by-name"),
        pytest.param(DIRECT, "other", None, ("", "images"), id="half-an-address-is-none"),
        pytest.param(DIRECT, "other", "key", ("other", "key"), id="full-address-wins"),
        pytest.param(TOPIC, None, None, ("topics", "a.#"), id="topic-through-its-exchange"),
        pytest.param(TOPIC, None, "a.b", ("topics", "a.b"), id="topic-with-key"),
    ],
)
def test_the_address_of_a_call(queue, exchange, key, expected):
    to, name = destination(queue, exchange, key, None, None, DEFAULTS)
    assert (to.exchange, to.routing_key) == expected
    assert name == queue.name
    assert to.declare == (queue,)


def test_a_broadcast_queue_is_not_declared_by_the_sender():
    to, _ = destination(Broadcast("all"), None, None, None, None, DEFAULTS)
    assert to.declare == (Broadcast("all").exchange,)


@pytest.mark.parametrize(
    "expires", [30, NOW + timedelta(seconds=30), (NOW + timedelta(seconds=30)).isoformat()]
)
def test_an_expiry_in_any_form_is_seconds_for_the_broker(expires):
    assert expiration_seconds(expires, "id", now=now) == 30


def test_an_expiry_that_is_over_is_zero_and_warned_of(caplog):
    assert expiration_seconds(-5, "the-id", now=now) == 0
    assert "the-id has an expiration date in the past (5s ago)" in caplog.text


def test_a_delayed_call_on_a_topic_exchange_goes_through_the_delay_exchanges():
    options = {"queue": TOPIC}
    delayed_route(options, None, 5, now=now)
    assert "queue" not in options
    assert options["exchange"].name == "celery_delayed_27"
    assert options["routing_key"].endswith(".1.0.1.a.#")


def test_a_delayed_call_on_a_direct_exchange_stays_where_it_is_and_is_warned_of(caplog):
    options = {"queue": DIRECT}
    delayed_route(options, None, 5, now=now)
    assert options == {"queue": DIRECT}
    assert "Direct exchanges are not supported with native delayed delivery" in caplog.text
