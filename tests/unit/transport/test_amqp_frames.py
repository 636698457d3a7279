"""Frames are read as py-amqp reads them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from struct import pack
from typing import Any

import pytest
from amqp.basic_message import Message
from amqp.exceptions import FrameSyntaxError
from amqp.serialization import dumps, loads
from hypothesis import given
from hypothesis import strategies as st

from celery_clone.transport.amqp_frames import FrameTap, RawDelivery, decode_properties, decode_table

short_texts = st.text(max_size=60)
fields = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)).map(lambda when: when.replace(microsecond=0))
    | st.decimals(min_value=-1000, max_value=1000, places=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short_texts, inner, max_size=3),
    max_leaves=10,
)
tables = st.dictionaries(short_texts, fields, max_size=6)
messages = st.fixed_dictionaries(
    {},
    optional={
        "content_type": short_texts,
        "content_encoding": short_texts,
        "application_headers": tables,
        "delivery_mode": st.integers(0, 255),
        "priority": st.integers(0, 255),
        "correlation_id": short_texts,
        "reply_to": short_texts,
        "expiration": short_texts,
        "message_id": short_texts,
        "timestamp": st.integers(0, 2**63),
        "type": short_texts,
        "user_id": short_texts,
        "app_id": short_texts,
        "cluster_id": short_texts,
    },
)


def header_of(properties: dict[str, Any], size: int) -> bytes:
    return pack(">HHQ", 60, 0, size) + Message("", **properties)._serialize_properties()


@given(messages)
def test_properties_are_decoded_as_py_amqp_decodes_them(properties: dict[str, Any]) -> None:
    header = header_of(properties, 5)
    theirs = Message()
    theirs.inbound_header(header)

    assert repr(decode_properties(header)) == repr(theirs.properties)


@given(tables)
def test_field_tables_are_decoded_as_py_amqp_decodes_them(table: dict[str, Any]) -> None:
    data = dumps("F", (table,))
    (theirs,), _ = loads("F", data, 0)

    assert repr(decode_table(data, 4, len(data))) == repr(theirs)


@pytest.mark.parametrize(
    "field",
    [b"s\xff\xfe", b"b\xff", b"B\xff", b"U\xff\xfe", b"u\xff\xfe", b"I\xff\xff\xff\xfe", b"i\xff\xff\xff\xfe",
     b"L" + b"\xff" * 8, b"l" + b"\xff" * 8, b"f\x3f\xc0\x00\x00", b"d\x3f\xf8" + b"\x00" * 6, b"t\x01", b"V",
     b"x\x00\x00\x00\x02\xff\xfe", b"S\x00\x00\x00\x02\xff\xfe", b"D\x02\x00\x00\x00\x96",
     b"T\x00\x00\x00\x00\x65\x00\x00\x00", b"A\x00\x00\x00\x02tt"[:8] + b"\x01", b"F\x00\x00\x00\x00"],
    ids=lambda field: chr(field[0]),
)  # fmt: skip
def test_kinds_that_other_clients_write_are_decoded_as_py_amqp_decodes_them(field: bytes) -> None:
    if field[:1] == b"A":
        field = b"A\x00\x00\x00\x04t\x01t\x00"
    entry = b"\x01k" + field
    (theirs,), _ = loads("F", pack(">I", len(entry)) + entry, 0)

    assert repr(decode_table(entry, 0, len(entry))) == repr(theirs)


def test_an_unknown_kind_is_an_error_of_the_protocol() -> None:
    with pytest.raises(FrameSyntaxError, match="'?'"):
        decode_table(b"\x01k?", 0, 3)


class Line:
    """What a connection of py-amqp is to a tap: a place for a handler of frames."""

    def __init__(self) -> None:
        self.bytes_recv = 0
        self.passed_on: list[tuple[int, int, bytes]] = []
        self.on_inbound_frame: Any = self._passed_on

    def _passed_on(self, frame: tuple[int, int, bytes]) -> bool:
        self.passed_on.append(frame)
        return True


def deliver_frame(consumer_tag: str = "c", number: int = 7, redelivered: bool = True) -> bytes:
    return pack(">HH", 60, 60) + dumps("sLbss", (consumer_tag, number, redelivered, "exchange", "key"))


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=4))
def test_a_delivery_is_put_together_from_its_frames(chunks: list[bytes]) -> None:
    line, found = Line(), []
    tap = FrameTap(line, 3, found.append)
    body = b"".join(chunks)
    header = header_of({"priority": 2}, len(body))

    answers = [
        line.on_inbound_frame(frame)
        for frame in [(1, 3, deliver_frame()), (2, 3, header), *((3, 3, chunk) for chunk in chunks)]
    ]

    assert found == [RawDelivery("c", 7, True, "exchange", "key", header, body)]
    assert answers == [False] * (len(answers) - 1) + [True]
    assert line.bytes_recv == len(answers)
    assert line.passed_on == []
    assert tap.owns(1, 3, deliver_frame())


def test_frames_of_others_are_passed_on_even_in_the_middle_of_a_delivery() -> None:
    line, found = Line(), []
    FrameTap(line, 3, found.append)
    foreign = [(1, 3, pack(">HH", 60, 80) + b"ack"), (1, 4, deliver_frame()), (2, 4, b"header"), (8, 0, b"")]

    line.on_inbound_frame((1, 3, deliver_frame()))
    for frame in foreign:
        line.on_inbound_frame(frame)
    line.on_inbound_frame((2, 3, header_of({}, 0)))

    assert line.passed_on == foreign
    assert len(found) == 1


def test_a_tap_that_is_removed_leaves_the_line_as_it_was() -> None:
    line = Line()
    before = line.on_inbound_frame
    tap = FrameTap(line, 1, lambda raw: None)

    tap.remove()
    tap.remove()

    assert line.on_inbound_frame == before


def test_decimals_and_times_keep_their_types() -> None:
    data = dumps("F", ({"d": Decimal("1.5"), "t": datetime(2026, 1, 2, 3, 4, 5)},))

    assert decode_table(data, 4, len(data)) == {"d": Decimal("1.5"), "t": datetime(2026, 1, 2, 3, 4, 5)}
