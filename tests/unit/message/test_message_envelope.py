"""A peek into raw text is right or silent, whatever users put into their messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.exceptions import DecodeError
from kombu.utils.json import dumps

from celery_clone.message import codec, protocol
from celery_clone.message.envelope import Envelope, Peek
from tests.support.messages import kombu_text

NASTY = [
    '"',
    "\\",
    '", "content-encoding": "utf-8", "content-type": "x", "headers": {"lang": "py", "task": "evil", "id": "evil"',
    ', "properties": {"delivery_tag": "evil"}}',
    '", "delivery_tag": "evil"}}',
    '{"body": "',
    "}}",
    "{{",
    "é",
    "\x00",
    "\u2028",
]
texts = st.text() | st.sampled_from(NASTY) | st.tuples(st.sampled_from(NASTY), st.text()).map("".join)
names = st.text(min_size=1) | st.sampled_from(["proj.add", "celery.chord_unlock", *NASTY])
optional_texts = st.none() | texts
user_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
user_keys = texts | st.sampled_from(["delivery_tag", "properties", "headers", "task", "id", "eta", "body"])


calls = st.fixed_dictionaries(
    {"name": names, "task_id": names},
    optional={
        "shadow": optional_texts,
        "eta": optional_texts,
        "expires": optional_texts,
        "group_id": optional_texts,
        "group_index": st.none() | st.integers(),
        "retries": st.integers(),
        "time_limit": st.none() | st.integers() | st.floats(),
        "soft_time_limit": st.none() | st.integers(),
        "argsrepr": texts,
        "kwargsrepr": texts,
        "origin": texts,
        "stamps": st.dictionaries(user_keys, user_values, max_size=2),
    },
)


def check_peek(raw: bytes) -> None:
    """The peek says nothing, or what a full decode says."""
    found = Envelope(raw).peek()
    if found is None:
        return
    message = json.loads(raw)
    headers = message["headers"]
    assert found.task == headers["task"]
    assert found.id == headers["id"]
    assert found.tag == message["properties"]["delivery_tag"]
    nothing_to_decide = (
        headers.get("eta") is None
        and headers.get("expires") is None
        and list(headers.get("timelimit") or [None, None]) == [None, None]
    )
    assert nothing_to_decide or not found.plain


@given(
    calls,
    st.dictionaries(user_keys, user_values, max_size=3),
    st.dictionaries(user_keys, user_values, max_size=3),
    texts,
    st.sampled_from(["base64", "utf-8"]),
)
@example({"name": "t", "task_id": "i"}, {"task": "other"}, {}, "", "base64")
@example({"name": "t", "task_id": "i"}, {}, {"delivery_tag": "evil"}, "", "base64")
@example({"name": "t", "task_id": "i"}, {"x": {"delivery_tag": "evil"}}, {}, NASTY[2], "utf-8")
def test_a_peek_into_a_message_with_anything_in_it_never_lies(
    call: dict[str, Any], more_headers: dict[str, Any], more_properties: dict[str, Any], body: str, encoding: str
) -> None:
    headers = {**protocol.headers_v2(call.pop("name"), call.pop("task_id"), **call), **more_headers}

    check_peek(kombu_text(headers, more_properties, body, encoding))


@given(st.permutations(["body", "content-encoding", "content-type", "headers", "properties"]), st.data())
def test_a_peek_into_another_order_of_keys_never_lies(order: list[str], data: st.DataObject) -> None:
    message = json.loads(kombu_text(protocol.headers_v2("t", "i"), {"correlation_id": "c"}))
    message["headers"] = dict(data.draw(st.permutations(list(message["headers"].items()))))
    message["properties"] = dict(data.draw(st.permutations(list(message["properties"].items()))))

    check_peek(dumps({key: message[key] for key in order}).encode())


@given(st.binary())
def test_a_peek_into_garbage_is_silent(raw: bytes) -> None:
    assert Envelope(raw).peek() is None


def test_an_ordinary_message_is_peeked() -> None:
    raw = kombu_text(protocol.headers_v2("proj.add", "the-id"), {"correlation_id": "the-id", "reply_to": ""})

    assert Envelope(raw).peek() == Peek("proj.add", "the-id", "real-tag", plain=True)


def test_a_redelivered_message_is_peeked() -> None:
    message = json.loads(kombu_text(protocol.headers_v2("proj.add", "the-id"), {"correlation_id": "the-id"}))
    message["headers"]["redelivered"] = message["properties"]["delivery_info"]["redelivered"] = True

    assert Envelope(dumps(message).encode()).peek() == Peek("proj.add", "the-id", "real-tag", plain=True)


@pytest.mark.parametrize(
    "option",
    [{"eta": "2026-01-01T00:00:00"}, {"expires": "2026-01-01T00:00:00"}, {"time_limit": 3}, {"soft_time_limit": 3}],
)
def test_a_message_that_something_must_be_decided_about_is_not_plain(option: dict[str, Any]) -> None:
    found = Envelope(kombu_text(protocol.headers_v2("t", "i", **option), {})).peek()

    assert found == Peek("t", "i", "real-tag", plain=False)


def test_opening_gives_headers_properties_and_body() -> None:
    headers = protocol.headers_v2("t", "i")
    _, _, body = codec.dumps(([1], {}, {}))

    parts = Envelope(kombu_text(headers, {"correlation_id": "i"}, body)).parts()

    assert parts.headers == headers
    assert parts.properties["correlation_id"] == "i"
    assert parts.body == body.encode()
    assert (parts.content_type, parts.content_encoding) == ("application/json", "utf-8")


def test_a_body_that_is_text_is_opened_as_its_bytes() -> None:
    assert Envelope(kombu_text({}, {}, "ü[]", "utf-8")).parts().body == "ü[]".encode()


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "list instead of an object"),
        (b'"text"', "str instead of an object"),
        (b"{}", "no 'body'"),
        (b'{"body": "", "headers": []}', "'headers'"),
        (b'{"body": "", "properties": "p"}', "'properties'"),
        (b'{"body": "%%%", "properties": {"body_encoding": "base64"}}', None),
        (b'{"body": "YQ", "properties": {"body_encoding": "base64"}}', "base64"),
        (b'{"body": 5, "properties": {"body_encoding": "base64"}}', "base64"),
        (b'{"body": "x", "properties": {"body_encoding": "rot13"}}', "rot13"),
        (b'{"a":' * 5000, "not JSON"),
    ],
)
def test_damage_is_described_when_the_message_is_opened(raw: bytes, problem: str | None) -> None:
    envelope = Envelope(raw)

    if problem is None:
        envelope.parts()
        return
    with pytest.raises(DecodeError, match=problem):
        envelope.parts()


def test_a_message_is_decoded_once() -> None:
    envelope = Envelope(kombu_text({"task": "t"}, {}))

    assert envelope.message() is envelope.message()


def test_an_envelope_shows_what_it_holds() -> None:
    assert "proj.add the-id" in repr(Envelope(kombu_text(protocol.headers_v2("proj.add", "the-id"), {})))
    assert "3 bytes" in repr(Envelope(b"abc"))
