"""Stand-ins for large bodies of chords: when they are made, what they carry, how they are undone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone import Celery, signals, states
from celery_clone.backends import stand_ins
from celery_clone.canvas import Signature, chain, chord, group
from celery_clone.exceptions import ChordError

BIG = "x" * 10_000


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("stand-ins", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.task(name="total", shared=False)(sum)
    yield app
    app.close()


def body_of(app: Celery, *args: Any, **options: Any) -> Signature:
    body: Signature = app.signature("total", args, app=app).set(**options)
    body.freeze("body", group_id="outer", group_index=3)
    return body


@pytest.fixture
def sent() -> Iterator[list[SimpleNamespace]]:
    calls: list[SimpleNamespace] = []

    def remember(sender: str, body: Any, headers: Any, **_: Any) -> None:
        calls.append(SimpleNamespace(task=sender, args=body[0], embed=body[2], headers=headers))

    signals.before_task_publish.connect(remember, weak=False)
    yield calls
    signals.before_task_publish.disconnect(remember)


def test_a_small_body_travels_itself(app: Celery) -> None:
    body = body_of(app, "small")

    assert app.backend.body_to_send("g", body) is body


def test_a_large_body_is_kept_and_its_stand_in_is_small(app: Celery) -> None:
    body = body_of(app, BIG, link_error=[app.signature("tell")], link=[app.signature("tell", (BIG,))])
    body.set(chain=[body_of(app, BIG)], queue="far", priority=3)

    stand_in = app.backend.body_to_send("g", body)

    assert len(json.dumps(stand_in)) < 1000
    assert stand_in["task"] == "celery.stored_body"
    # What real Celery reads of it when the header fails, and when it passes it on.
    kept = ("task_id", "group_id", "group_index", "link_error", "queue", "priority")
    assert {name: stand_in.options[name] for name in kept} == {name: body.options[name] for name in kept}
    assert stand_in.options["route_name"] == "total"
    assert stand_ins.body_for(app.backend, stand_in) == json.loads(json.dumps(body))


@pytest.mark.parametrize(
    "text", ["chain(a, b, app=None)", "group(a, b)", "chord([a, b], b)", "chord([chain(a, b, app=None)], b)"]
)
def test_a_stand_in_goes_where_the_first_call_of_the_body_goes(app: Celery, text: str) -> None:
    names = {name: app.signature(name, (BIG,), queue=f"queue of {name}") for name in "ab"}
    body = eval(text, {**names, "chain": chain, "chord": chord, "group": group})
    body.freeze()

    stand_in = app.backend.body_to_send("g", body)

    assert (stand_in.options["route_name"], stand_in.options["queue"]) == ("a", "queue of a")


@pytest.mark.parametrize("limit", [None, 1_000_000])
def test_the_limit_is_a_setting(app: Celery, limit: int | None) -> None:
    app.conf.result_chord_embed_limit = limit
    body = body_of(app, BIG)

    assert app.backend.body_to_send("g", body) is body


def test_a_body_travels_if_the_store_would_write_it_in_another_way_than_messages(app: Celery) -> None:
    app.conf.task_serializer = "pickle"
    body = body_of(app, BIG)

    assert app.backend.body_to_send("g", body) is body


def test_a_body_travels_if_the_store_knows_no_keys() -> None:
    app = Celery("rpc", broker="memory://", backend="rpc://", set_as_current=False)
    body = body_of(app, BIG)

    assert app.backend.body_to_send("g", body) is body
    app.close()


def test_a_body_that_is_gone_is_an_error_that_says_what_to_do(app: Celery) -> None:
    stand_in = app.backend.body_to_send("g", body_of(app, BIG))
    app.backend.delete(app.backend.get_key_for_group("g", ".b"))

    with pytest.raises(ChordError, match="chord g .* result_chord_embed_limit to None"):
        stand_ins.body_for(app.backend, stand_in)


def test_a_chord_whose_body_is_gone_ends_with_that_error(app: Celery) -> None:
    stand_in = app.backend.body_to_send("g", body_of(app, BIG))
    app.backend.delete(app.backend.get_key_for_group("g", ".b"))

    app.backend.chord_error_from_stack(stand_in, ChordError("as told"))

    with pytest.raises(ChordError, match="as told"):
        app.AsyncResult("body").get(timeout=1)


def test_a_stand_in_that_was_sent_sends_the_body(app: Celery, sent: list[SimpleNamespace]) -> None:
    body = body_of(app, BIG, chain=[app.signature("next", app=app)])
    stand_in = app.backend.body_to_send("g", body)

    # As a worker of real Celery does with what it takes for the body.
    ended = app.signature(json.loads(json.dumps(stand_in))).apply(([1, 2],))

    assert ended.state == states.IGNORED
    (call,) = sent
    assert (call.task, call.headers["id"]) == ("total", "body")
    assert (list(call.args), call.embed["chain"][0]["task"]) == ([[1, 2], BIG], "next")
    assert (call.headers["group"], call.headers["group_index"]) == ("outer", 3)
