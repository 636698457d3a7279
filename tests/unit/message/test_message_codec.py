"""Bodies are what kombu makes of them, and errors name the argument."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import date, datetime, time, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import serialization
from kombu.exceptions import ContentDisallowed, DecodeError, EncodeError, SerializerNotInstalled
from kombu.utils import json as kombu_json

from celery_clone.exceptions import InvalidTaskError
from celery_clone.message import codec

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
kombus_own = (
    st.datetimes() | st.dates() | st.times() | st.decimals(allow_nan=False) | st.uuids() | st.binary(max_size=20)
)
values = st.recursive(
    plain | kombus_own,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
bodies = st.tuples(st.lists(values, max_size=3), st.dictionaries(st.text(), values, max_size=3), plain)


@given(bodies)
def test_json_bodies_are_the_bytes_that_kombu_writes(body: Any) -> None:
    assert codec.dumps(body) == serialization.dumps(body, serializer="json")


@given(bodies)
def test_json_bodies_are_read_as_kombu_reads_them(body: Any) -> None:
    content_type, encoding, text = serialization.dumps(body, serializer="json")
    accept = codec.accepted(["json"])

    ours = codec.loads(text.encode(), content_type, encoding, accept)

    assert repr(ours) == repr(serialization.loads(text.encode(), content_type, encoding, accept))


@pytest.mark.parametrize(
    "text",
    [
        '{"__type__": "uuid", "__value__": {"hex": "00000000000000000000000000000001"}}',
        '{"\\u005f_type__": "decimal", "__value__": "1.5"}',
        '{"__\\u0074ype__": "decimal", "__value__": "1.5"}',
        '{"__typ\\u0065\\u005F_": "decimal", "__value__": "1.5"}',
    ],
)
def test_typed_values_are_found_however_their_mark_is_written(text: str) -> None:
    found = codec.loads(text.encode(), "application/json", "utf-8", codec.accepted(["json"]))

    assert isinstance(found, uuid.UUID | Decimal)


def test_values_with_a_json_method_are_asked_for_it() -> None:
    class Money:
        def __json__(self) -> Any:
            return {"amount": 3}

    assert json.loads(codec.dumps(((Money(),), {}, {}))[2])[0] == [{"amount": 3}]


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
def test_every_serializer_brings_a_body_through(serializer: str) -> None:
    body = [[1, "two", None], {"k": [1.5]}, {"callbacks": None}]

    content_type, encoding, data = codec.dumps(body, serializer)

    assert codec.loads(data, content_type, encoding, codec.accepted([serializer])) == body


@pytest.fixture
def replaced_json() -> Iterator[None]:
    """Somebody registered a JSON of their own."""
    serialization.register("json", lambda value: "mine", lambda text: "read by mine", "application/json", "utf-8")
    yield
    serialization.register_json()


@pytest.mark.usefixtures("replaced_json")
def test_a_serializer_that_was_registered_for_json_is_used() -> None:
    assert codec.dumps([])[2] == "mine"
    assert codec.loads(b"[]", "application/json", "utf-8", codec.accepted(["json"])) == "read by mine"


class Unknown:
    """Nothing knows how to serialise this."""


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (((1, Unknown()), {}, {}), "Positional argument 1 "),
        (((), {"user": Unknown()}, {}), "Keyword argument 'user' "),
        ((({"a": [0, {"b": Unknown()}]},), {}, {}), "Positional argument 0['a'][1]['b'] "),
        (((), {}, {"chain": [Unknown()]}), "Option 'chain' of the call[0] "),
        ({"task": "t", "args": (Unknown(),), "kwargs": {}}, "Positional argument 0 "),
        ((({1, 2},), {}, {}), "Positional argument 0 "),
    ],
)
def test_an_argument_that_cannot_be_serialised_is_named_with_its_type(body: Any, place: str) -> None:
    with pytest.raises(EncodeError) as refused:
        codec.dumps(body)

    text = str(refused.value)
    assert text.startswith(place)
    assert "Unknown" in text or "type set" in text
    assert "Pass plain data" in text


def test_the_culprit_is_named_for_other_serializers_too() -> None:
    with pytest.raises(EncodeError, match="Positional argument 0 .*function.* pickle"):
        codec.dumps(((lambda: None,), {}, {}), "pickle")


def test_a_circle_is_an_error_and_not_the_end_of_the_process() -> None:
    circle: list[Any] = []
    circle.append(circle)

    with pytest.raises(EncodeError, match="Circular"):
        codec.dumps(((circle,), {}, {}))


def test_an_unknown_serializer_is_said_to_be_missing() -> None:
    with pytest.raises(SerializerNotInstalled):
        codec.dumps([], "nonesuch")


def test_content_that_is_not_accepted_is_refused() -> None:
    with pytest.raises(ContentDisallowed):
        codec.loads(b"[]", "application/json", "utf-8", codec.accepted(["pickle"]))
    with pytest.raises(ContentDisallowed):
        codec.loads(b"x", "application/x-python-serialize", "binary", codec.accepted(["json"]))
    with pytest.raises(ContentDisallowed):
        codec.loads(b"x", "application/x-python-serialize", "binary")


@pytest.mark.parametrize("data", [b"[", b"\xff", b'{"a"}', b"[" * 100_000])
def test_damaged_json_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        codec.loads(data, "application/json", "utf-8", codec.accepted(["json"]))


@pytest.mark.parametrize("data", [memoryview(b"[1]"), bytearray(b"[1]"), b"[1]", "[1]"])
def test_bodies_come_in_many_kinds_of_bytes(data: Any) -> None:
    assert codec.loads(data, "application/json", "utf-8", codec.accepted(["json"])) == [1]


def test_names_and_types_may_be_accepted() -> None:
    assert codec.accepted(["json", "application/x-yaml"]) == {"application/json", "application/x-yaml"}
    assert codec.accepted(None) is None


def test_a_compressed_body_says_so_in_its_headers_and_comes_back() -> None:
    headers: dict[str, Any] = {}
    body = ([1] * 100, {}, {})

    encoded = codec.encode(body, headers, "json", "zlib")

    assert headers == {"compression": "application/x-gzip"}
    assert codec.uncompressed(encoded.body, headers) == json.dumps(body).encode()


def test_an_unknown_compression_is_named() -> None:
    with pytest.raises(DecodeError, match="nonesuch"):
        codec.uncompressed(b"x", {"compression": "nonesuch"})


def test_damaged_compressed_data_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="zlib"):
        codec.uncompressed(b"damaged", {"compression": "zlib"})


def test_a_body_that_is_serialised_already_is_left_alone() -> None:
    assert codec.encode(b"raw", {}, content_type="x/y") == (b"raw", "x/y", "binary")
    assert codec.encode("text", {}, content_type="x/y") == (b"text", "x/y", "utf-8")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ([], "list of 0"),
        ("text", "type str"),
        ([[], {}], "list of 2"),
        ([1, {}, {}], "positional"),
        ([[], [], {}], "keyword"),
        ([[], {}, []], "last part"),
    ],
)
def test_a_body_of_the_wrong_shape_is_refused_by_its_wrong_part(body: Any, named: str) -> None:
    with pytest.raises(InvalidTaskError, match=named):
        codec.split_call(body)


def test_a_body_may_come_without_what_follows() -> None:
    assert codec.split_call([[1], {}, None]) == ([1], {}, {})


def test_the_shortcut_stands_only_on_what_kombu_ships() -> None:
    assert codec.json_is_kombus()
    assert kombu_json.JSONEncoder is type(codec.encode_json.__self__)


def test_dates_and_times_keep_their_types() -> None:
    sent = [date(2026, 1, 2), time(3, 4), datetime(2026, 1, 2, tzinfo=timezone.utc), Decimal("1.50"), b"\xff"]

    content_type, encoding, text = codec.dumps(sent)

    assert codec.loads(text, content_type, encoding, codec.accepted(["json"])) == sent
