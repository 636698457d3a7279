"""A delivery is what kombu's messages are to those who know kombu, and never a trap."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Message
from kombu.exceptions import ContentDisallowed, DecodeError, MessageStateError

from celery_clone.message import codec, protocol
from celery_clone.message.delivery import Delivery
from tests.support.messages import kombu_text

JSON_ONLY = codec.accepted(["json"])


class Ledger:
    """A source that writes down how deliveries were settled."""

    def __init__(self, error: Exception | None = None) -> None:
        self.settled: list[tuple[str, str]] = []
        self.error = error

    def ack(self, tags: Iterable[str]) -> None:
        self._settle("ack", *tags)

    def reject(self, tag: str, *, requeue: bool) -> None:
        self._settle("requeue" if requeue else "reject", tag)

    def _settle(self, how: str, *tags: str) -> None:
        if self.error is not None:
            raise self.error
        self.settled += [(how, tag) for tag in tags]


def raw_delivery(source: Any = None, **more: Any) -> Delivery:
    _, _, body = codec.dumps(([1], {"y": 2}, {}))
    headers = {**protocol.headers_v2("proj.add", "the-id"), **more}
    return Delivery.of_raw(
        kombu_text(headers, {"correlation_id": "the-id", "reply_to": "r"}, body),
        "tag",
        "celery",
        source,
        accept=JSON_ONLY,
    )


def test_a_raw_delivery_has_all_that_a_kombu_message_has() -> None:
    delivery = raw_delivery()

    assert delivery.payload == delivery.decode() == [[1], {"y": 2}, {}]
    assert delivery.headers["task"] == "proj.add"
    assert delivery.properties["reply_to"] == "r"
    assert delivery.body == b'[[1], {"y": 2}, {}]'
    assert (delivery.content_type, delivery.content_encoding) == ("application/json", "utf-8")
    assert delivery.delivery_info == {"exchange": "", "routing_key": "celery"}
    assert delivery.delivery_tag == delivery.tag == "tag"
    assert (delivery.acknowledged, delivery.redelivered, delivery.errors) == (False, False, [])
    names = {name for name in dir(Message) if not name.startswith("_")} - {"errors"}
    assert {name for name in names if not hasattr(delivery, name)} == set()


def test_a_delivery_of_parts_has_them_as_they_came() -> None:
    delivery = Delivery.of_parts(
        {"task": "t"}, {"priority": 3}, b"[]", "application/json", "utf-8", "5.7", "q", delivery_tag=7,
        facts={"redelivered": True, "exchange": "e"},
    )  # fmt: skip

    assert delivery.peek() is None
    assert (delivery.headers, delivery.properties, delivery.delivery_tag) == ({"task": "t"}, {"priority": 3}, 7)
    assert delivery.redelivered
    assert delivery.delivery_info["exchange"] == "e"


def test_a_kombu_message_keeps_its_decompressed_body() -> None:
    headers: dict[str, Any] = {}
    encoded = codec.encode(([1], {}, {}), headers, "json", "zlib")
    message = Message(
        encoded.body, delivery_tag=9, content_type=encoded.content_type, content_encoding="utf-8", headers=headers
    )

    delivery = Delivery.of_kombu(message, "q", accept=JSON_ONLY)

    assert delivery.payload == [[1], {}, {}]
    assert (delivery.tag, delivery.delivery_tag) == ("9", 9)
    assert Delivery.of_parts(*delivery.parts, "t", "q", accept=JSON_ONLY).payload == [[1], {}, {}]


def test_a_kombu_message_that_could_not_be_decompressed_has_a_problem() -> None:
    message = Message(b"damaged", content_type="application/json", headers={"compression": "zlib"})

    delivery = Delivery.of_kombu(message, "q", tag="t")

    assert "cannot be read" in (delivery.problem or "")
    with pytest.raises(DecodeError, match="cannot be read"):
        delivery.decode()


def test_a_compressed_body_is_decompressed_for_those_who_ask() -> None:
    headers: dict[str, Any] = {}
    encoded = codec.encode(([1], {}, {}), headers, "json", "zlib")
    delivery = Delivery.of_parts(headers, {}, encoded.body, "application/json", "utf-8", "t", "q", accept=JSON_ONLY)

    assert delivery.body == b"[[1], {}, {}]"
    assert delivery.payload == [[1], {}, {}]


@given(st.binary(max_size=200))
def test_garbage_makes_a_delivery_with_a_problem_and_raises_only_when_decoded(raw: bytes) -> None:
    delivery = Delivery.of_raw(raw, "tag", "q", Ledger())

    assert delivery.problem
    assert (delivery.headers, delivery.properties, delivery.delivery_info) == ({}, {}, {})
    assert delivery.body == raw
    assert "unreadable" in repr(delivery)
    with pytest.raises(DecodeError):
        delivery.decode()
    delivery.reject()
    assert delivery.acknowledged


def test_content_that_is_not_accepted_is_refused_when_decoded() -> None:
    delivery = Delivery.of_parts({}, {}, b"x", "application/x-python-serialize", "binary", "t", "q", accept=JSON_ONLY)

    assert delivery.problem is None
    with pytest.raises(ContentDisallowed):
        delivery.decode()


@pytest.mark.parametrize(
    ("method", "settled", "state"),
    [
        (lambda delivery: delivery.ack(), "ack", "ACK"),
        (lambda delivery: delivery.ack(multiple=True), "ack", "ACK"),
        (lambda delivery: delivery.reject(), "reject", "REJECTED"),
        (lambda delivery: delivery.reject(requeue=True), "requeue", "REQUEUED"),
        (lambda delivery: delivery.requeue(), "requeue", "REQUEUED"),
    ],
)
def test_a_delivery_is_settled_through_its_source_and_only_once(method: Any, settled: str, state: str) -> None:
    ledger = Ledger()
    delivery = raw_delivery(ledger)

    method(delivery)

    assert ledger.settled == [(settled, "tag")]
    assert delivery.acknowledged and delivery.settled == state
    with pytest.raises(MessageStateError, match=state):
        delivery.ack()
    assert ledger.settled == [(settled, "tag")]


def test_a_delivery_without_a_source_cannot_be_settled() -> None:
    with pytest.raises(MessageStateError):
        raw_delivery().ack()


def test_errors_while_settling_are_logged_where_the_caller_asked_for_that(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test")

    raw_delivery(Ledger(ConnectionResetError("gone"))).ack_log_error(logger, (OSError,))
    raw_delivery(Ledger(ConnectionResetError("gone"))).reject_log_error(logger, (OSError,), requeue=True)

    assert [record.levelname for record in caplog.records] == ["CRITICAL", "CRITICAL"]
    assert "Couldn't ack 'tag', reason:ConnectionResetError('gone')" in caplog.text
    assert "Couldn't reject 'tag'" in caplog.text


def test_a_broken_pipe_while_settling_is_raised_all_the_same() -> None:
    with pytest.raises(BrokenPipeError):
        raw_delivery(Ledger(BrokenPipeError())).ack_log_error(logging.getLogger("test"), (OSError,))


def test_errors_that_nobody_asked_to_be_logged_are_raised() -> None:
    with pytest.raises(ValueError, match="other"):
        raw_delivery(Ledger(ValueError("other"))).ack_log_error(logging.getLogger("test"), (OSError,))


def test_a_delivery_shows_what_it_is() -> None:
    assert repr(raw_delivery()) == "<Delivery 'tag' of 'celery': proj.add[the-id], unsettled>"
