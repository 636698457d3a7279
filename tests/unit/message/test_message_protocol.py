"""Messages are Celery's, byte for byte, and old ones are read."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from celery_clone.exceptions import InvalidTaskError
from celery_clone.message import protocol

GOLDEN = json.loads((Path(__file__).parent / "golden_messages.json").read_text())
"""Calls and what Celery 5.7 made of them, written by a run of Celery itself."""


def live(value: Any) -> Any:
    """Values that JSON cannot hold, as the golden file spells them."""
    if isinstance(value, list):
        return [live(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tuple" in value:
        return tuple(live(item) for item in value["$tuple"])
    if "$time" in value:
        return datetime.fromisoformat(value["$time"])
    if "$zone" in value:
        return ZoneInfo(value["$zone"])
    return {key: live(item) for key, item in value.items()}


def text_of(message: Any) -> str:
    return json.dumps([message.headers, message.properties, message.body, message.sent_event])


@pytest.mark.parametrize("row", GOLDEN["v2"], ids=lambda row: ",".join(sorted(row["call"])[:8]))
def test_a_call_becomes_the_very_message_that_celery_makes_of_it(row: dict[str, Any]) -> None:
    message = protocol.task_message_v2(**live(row["call"]))

    assert text_of(message) == row["message"]


@pytest.mark.parametrize("row", GOLDEN["v1"], ids=lambda row: ",".join(sorted(row["call"])[:8]))
def test_a_call_becomes_the_very_message_of_protocol_1_that_celery_makes_of_it(row: dict[str, Any]) -> None:
    message = protocol.task_message_v1(**live(row["call"]))

    assert text_of(message) == row["message"]


@pytest.mark.parametrize("row", GOLDEN["refused"], ids=lambda row: row["error"][1])
def test_what_celery_refuses_is_refused_in_the_same_words(row: dict[str, Any]) -> None:
    kind = {"TypeError": TypeError, "ValueError": ValueError}[row["error"][0]]

    with pytest.raises(kind) as refused:
        protocol.task_message_v2(**live(row["call"]))

    assert str(refused.value) == row["error"][1]


def test_the_clock_is_asked_only_when_a_relative_time_needs_it() -> None:
    asked: list[datetime] = []

    def clock() -> datetime:
        asked.append(datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")))
        return asked[-1]

    protocol.task_message_v2("id", "t", clock=clock, eta="2026-01-01T00:00:00")
    assert asked == []

    message = protocol.task_message_v2("id", "t", clock=clock, countdown=1, expires=2, timezone=ZoneInfo("UTC"))
    assert len(asked) == 1
    assert message.headers["eta"] == "2026-01-01T00:00:01+00:00"
    assert message.headers["expires"] == "2026-01-01T00:00:02+00:00"


def test_a_message_of_protocol_2_is_read_as_it_is() -> None:
    headers = protocol.headers_v2("t", "id")

    incoming = protocol.to_v2(headers, {}, b"[[], {}, {}]")

    assert incoming == (headers, b"[[], {}, {}]", False, None)


def test_a_message_of_protocol_1_is_read_with_all_it_says() -> None:
    sent = protocol.task_message_v1(
        "id", "t", (1,), {"y": 2}, group_id="g", retries=4, time_limit=3, callbacks=[{"task": "cb"}], utc=False
    )
    body = {**json.loads(json.dumps(sent.body)), "own": "field"}

    headers, call, decoded, utc = protocol.to_v2({"x": 1}, sent.properties, body)

    assert decoded and utc is False
    assert call == ([1], {"y": 2}, {"callbacks": [{"task": "cb"}], "errbacks": None, "chain": None, "chord": None})
    assert (headers["task"], headers["id"], headers["group"], headers["retries"]) == ("t", "id", "g", 4)
    assert headers["timelimit"] == [3, None]
    assert (headers["argsrepr"], headers["kwargsrepr"]) == ("[1]", "{'y': 2}")
    assert headers["own"] == "field"
    assert headers["headers"] == {"x": 1}


def test_the_headers_of_a_hybrid_message_win_over_its_body() -> None:
    body = {"task": "t", "id": "id", "args": [1], "kwargs": {}, "retries": 1, "eta": None}

    headers, call, decoded, utc = protocol.to_v2({"task": "t", "id": "id", "retries": 9}, {}, body)

    assert headers["retries"] == 9
    assert call[0] == [1]
    assert decoded and utc is True


def test_an_old_message_without_arguments_is_a_call_without_arguments() -> None:
    _, call, _, _ = protocol.to_v2({}, {}, {"task": "t", "id": "id"})

    assert call[:2] == ((), {})


@pytest.mark.parametrize(
    ("headers", "body", "named"),
    [
        ({}, b"", "task"),
        (None, ["x"], "task"),
        ({}, {"id": "i"}, "task"),
        ({"task": ""}, b"", "task"),
        ({"task": None}, b"", "task"),
        ({"task": ["t"]}, b"", "task"),
        ({"task": "t"}, b"", "id"),
        ({"task": "t", "id": 5}, b"", "id"),
        ({"task": "t", "id": "i", "retries": "many"}, b"", "retries"),
        ({"task": "t", "id": "i", "retries": True}, b"", "retries"),
        ({"task": "t", "id": "i", "eta": 5}, b"", "eta"),
        ({"task": "t", "id": "i", "expires": []}, b"", "expires"),
        ({"task": "t", "id": "i", "timelimit": [1]}, b"", "timelimit"),
        ({"task": "t", "id": "i", "timelimit": [1, "2"]}, b"", "timelimit"),
        ({"task": "t", "id": "i", "timelimit": 3}, b"", "timelimit"),
        ({"task": "t", "id": "i", "group": 1}, b"", "group"),
        ({"task": "t", "id": "i", "group_index": "1"}, b"", "group_index"),
        ({"task": "t", "id": "i", "stamps": []}, b"", "stamps"),
        ({"task": "t", "id": "i", "stamped_headers": "s"}, b"", "stamped_headers"),
        ({}, {"task": "t", "id": "i", "kwargs": []}, "keyword"),
        ({}, {"task": "t", "id": "i", "args": 1}, "positional"),
        ({}, {"task": "t", "id": "i", "retries": "x"}, "retries"),
    ],
)
def test_a_message_that_describes_no_task_is_refused_by_the_name_of_the_field(
    headers: Any, body: Any, named: str
) -> None:
    with pytest.raises(InvalidTaskError, match=named):
        protocol.to_v2(headers, {}, body)


def test_a_refusal_tells_the_value_and_whom_to_correct() -> None:
    with pytest.raises(InvalidTaskError) as refused:
        protocol.to_v2({"task": "proj.add", "id": "the-id", "retries": "many"}, {}, b"")

    assert "'many'" in str(refused.value)
    assert "proj.add" in str(refused.value) and "the-id" in str(refused.value)
