"""Keys are kombu's, and what is put back is marked as kombu marks it."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.redis import Channel as KombuChannel
from redis._parsers.encoders import Encoder
from redis.connection import PythonRespSerializer

from celery_clone.transport.redis_layout import SCRIPTS, Layout, pack, restorable
from celery_clone.transport.redis_replies import Notice, Replies, parse


class Options:
    """The attributes of a kombu channel that a layout is read from."""

    global_keyprefix = ""
    sep = KombuChannel.sep
    priority_steps = KombuChannel.priority_steps
    unacked_key = KombuChannel.unacked_key
    unacked_index_key = KombuChannel.unacked_index_key
    visibility_timeout = KombuChannel.visibility_timeout
    queue_order_strategy = KombuChannel.queue_order_strategy
    priority = KombuChannel.priority

    def __init__(self, **options: Any) -> None:
        vars(self).update(options)


def test_the_keys_are_kombus_and_ours_stand_beside_them() -> None:
    layout = Layout.of_channel(Options())

    assert (layout.unacked, layout.unacked_index) == ("unacked", "unacked_index")
    assert (layout.leases, layout.schedule, layout.sweeps) == (
        "unacked_leases",
        "unacked_schedule",
        "unacked_sweeps",
    )
    assert layout.dead_list_of("celery") == "celery.dead"
    assert layout.visibility_s == 3600.0
    assert layout.fair


def test_every_key_carries_the_global_prefix_and_the_names_of_the_options() -> None:
    layout = Layout.of_channel(Options(global_keyprefix="app:", unacked_key="open", unacked_index_key="times"))

    keys = [layout.unacked, layout.unacked_index, layout.leases, layout.schedule, layout.sweeps]
    assert keys == ["app:open", "app:times", "app:open_leases", "app:open_schedule", "app:open_sweeps"]
    assert layout.list_of("q", 5) == "app:q\x06\x163"
    assert layout.dead_list_of("q") == "app:q.dead"


@given(st.lists(st.integers(0, 9), min_size=1, unique=True).map(sorted), st.integers(0, 9))
def test_a_priority_leads_to_the_list_that_kombu_uses_for_it(steps: list[int], priority: int) -> None:
    channel = Options(priority_steps=steps)

    assert Layout.of_channel(channel).list_of("q", priority) == KombuChannel._q_for_pri(channel, "q", priority)


@pytest.mark.parametrize("priority", [None, "x", -5, 99, 0.0])
def test_a_strange_priority_leads_to_a_list_all_the_same(priority: Any) -> None:
    layout = Layout.of_channel(Options())

    assert layout.list_of("q", priority) in {"q", "q\x06\x169"}


def test_lists_are_served_by_priority_before_they_are_served_by_queue() -> None:
    layout = Layout.of_channel(Options(priority_steps=[0, 5]))

    assert layout.lists_of(["a", "b"]) == ["a", "b", "a\x06\x165", "b\x06\x165"]


@given(st.lists(st.text() | st.binary() | st.integers() | st.floats(allow_nan=False), min_size=1))
def test_commands_are_packed_as_redis_py_packs_them(arguments: list[Any]) -> None:
    # redis-py takes the first argument apart at its blanks.
    arguments[0] = "COMMAND"
    theirs = PythonRespSerializer(6000, Encoder("utf-8", "strict", False).encode).pack(*arguments)

    assert pack(*arguments) == b"".join(theirs)


def nowhere(exchange: str, routing_key: str) -> list[str]:
    raise AssertionError("the default exchange needs no bindings")


def entry(message: Any, exchange: str = "", routing_key: str = "q") -> bytes:
    return json.dumps([message, exchange, routing_key]).encode()


def test_an_entry_goes_back_to_its_queue_with_both_marks_of_a_redelivery() -> None:
    layout = Layout.of_channel(Options())
    message = {"body": "x", "headers": {"task": "t"}, "properties": {"priority": 6, "delivery_info": {"exchange": ""}}}

    lists, text = restorable(entry(message), layout, nowhere)

    assert lists == ["q\x06\x166"]
    restored = json.loads(text)
    assert restored["headers"] == {"task": "t", "redelivered": True}
    assert restored["properties"]["delivery_info"] == {"exchange": "", "redelivered": True}
    assert restored["body"] == "x"


def test_an_entry_of_a_named_exchange_goes_to_all_queues_bound_there() -> None:
    layout = Layout.of_channel(Options())

    lists, _ = restorable(entry({"body": ""}, "e", "k"), layout, lambda exchange, key: [exchange + "1", key + "2"])

    assert lists == ["e1", "k2"]


@pytest.mark.parametrize("message", [{}, {"headers": 5, "properties": []}, [1], 7, {"headers": None}])
def test_an_entry_of_a_strange_shape_goes_back_as_it_is(message: Any) -> None:
    lists, text = restorable(entry(message), Layout.of_channel(Options()), nowhere)

    assert lists == ["q"]
    assert json.loads(text) == message


def test_an_entry_that_held_garbage_goes_back_as_the_same_bytes() -> None:
    garbage = bytes(range(256))
    quoted = json.dumps(garbage.decode("latin-1"))

    lists, text = restorable(f'[{quoted}, "", "q"]'.encode(), Layout.of_channel(Options()), nowhere)

    assert (lists, text) == (["q"], garbage)


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b"[1,2,3,4]", b"7"])
def test_a_damaged_entry_is_an_error_that_the_caller_expects(damaged: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        restorable(damaged, Layout.of_channel(Options()), nowhere)


PRELUDE = resources.files("celery_clone.transport").joinpath("due_time.lua").read_bytes()


def test_every_script_opens_with_a_legend_of_its_keys() -> None:
    for script in SCRIPTS:
        assert script.text.startswith(b"-- ")
        own = script.text.removeprefix(PRELUDE)
        assert b"KEYS[1]" in own.split(b"\n\n")[0]
        assert len(script.sha) == 40


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b":3\r\n", 3),
        (b"$5\r\nhello\r\n", b"hello"),
        (b"$0\r\n\r\n", b""),
        (b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nq\r\n", [b"invalidate", [b"q"]]),
        (b"+OK\r\n", b"OK"),
        (b"_\r\n", None),
        (b"*-1\r\n", None),
        (b"$-1\r\n", None),
    ],
)
def test_replies_are_cut_out_of_a_stream(data: bytes, value: Any) -> None:
    assert parse(data + b"rest", 0) == (value, len(data))
    for length in range(len(data)):
        assert parse(data[:length], 0) is None


class Wire:
    """A socket from which what was put into it comes in pieces."""

    def __init__(self, data: bytes, piece: int) -> None:
        self.pieces = [data[at : at + piece] for at in range(0, len(data), piece)]

    def recv(self, size: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


@pytest.mark.parametrize("piece", [1, 2, 7, 40, 1000])
def test_replies_are_read_in_whatever_pieces_they_come(piece: int) -> None:
    wire = Wire(b">2\r\n$1\r\na\r\n$2\r\n\r\n\r\n:1\r\n*2\r\n$-1\r\n$1\r\nb\r\n" * 3, piece)
    replies, found = Replies(wire), []
    while wire.pieces:
        found += replies.read()

    assert found == [[b"a", b"\r\n"], 1, [None, b"b"]] * 3
    assert [isinstance(value, Notice) for value in found] == [True, False, False] * 3
    with pytest.raises(redis.ConnectionError):
        replies.read()


def test_an_error_among_the_replies_is_a_value() -> None:
    parsed = parse(b"-NOPERM no\r\n", 0)

    assert parsed is not None
    assert "NOPERM" in str(parsed[0])
