"""The table of queues."""

from __future__ import annotations

import pytest
from kombu import Exchange, Queue

from celery_clone.app.queues import Queues


def test_a_missing_queue_is_made_when_that_is_allowed():
    queue = Queues()["images"]
    assert (queue.name, queue.exchange.name, queue.routing_key) == ("images", "images", "images")


def test_a_missing_queue_is_a_key_error_when_it_is_not():
    with pytest.raises(KeyError, match="images"):
        _ = Queues(create_missing=False)["images"]


def test_a_missing_queue_may_be_a_quorum_queue():
    assert Queues(create_missing_queue_type="quorum")["q"].queue_arguments == {"x-queue-type": "quorum"}


def test_a_queue_type_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="Invalid queue type 'fast'"):
        _ = Queues(create_missing_queue_type="fast")["q"]


def test_queues_without_an_exchange_take_the_default_one():
    table = Queues([Queue("a")], default_exchange=Exchange("celery"), default_routing_key="celery")
    assert (table["a"].exchange.name, table["a"].routing_key) == ("celery", "celery")


def test_a_queue_is_found_by_its_alias():
    queue = Queue("a", alias="b")
    assert Queues([queue])["b"] is queue


def test_plain_options_make_a_queue():
    table = Queues({"a": {"exchange": "x", "binding_key": "k"}})
    assert (table["a"].exchange.name, table["a"].routing_key) == ("x", "k")


def test_priorities_are_declared_where_no_queue_says_otherwise():
    table = Queues([Queue("a"), Queue("b", queue_arguments={"x-max-priority": 3})], max_priority=10)
    assert [table[name].queue_arguments["x-max-priority"] for name in "ab"] == [10, 3]


def test_selecting_and_deselecting_choose_what_is_consumed():
    table = Queues([Queue("a"), Queue("b")])
    assert set(table.consume_from) == {"a", "b"}
    table.deselect("b")
    assert set(table.consume_from) == {"a"}
    table.select(["b", "c"])
    assert set(table.consume_from) == {"b", "c"}
    table.select_add("d")
    assert set(table.consume_from) == {"b", "c", "d"}
    assert "a" in table


def test_the_banner_shows_a_line_for_each_consumed_queue():
    table = Queues([Queue("celery", Exchange("celery", "direct"), "celery")])
    assert table.format() == ".> celery           exchange=celery(direct) key=celery"
