"""Stamps: which parts of a workflow get them, and what becomes of several."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone.canvas import StampingVisitor, chain, chord, group
from celery_clone.canvas.stamping import combined


class Every(StampingVisitor):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        self.calls.append(f"signature {sig.args}")
        return {"stamp": "value"}


def stamps(sig: Any) -> dict[str, Any]:
    return {name: sig.options[name] for name in sig.options.get("stamped_headers", ())}


@pytest.mark.parametrize(
    ("headers", "visitor", "own", "append", "expected"),
    [
        ({"a": 1}, None, None, False, {"a": 1}),
        ({"a": 1}, {"b": 2}, None, False, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": 2}, None, False, {"a": 1}),
        ({"a": 1}, {"a": 2}, None, True, {"a": [1, 2]}),
        ({"a": [1]}, {"a": [2]}, None, True, {"a": [1, 2]}),
        ({"a": None}, {"a": 2}, None, True, {"a": [2]}),
        ({"a": (1,)}, {"a": 2}, None, True, {"a": [1, 2]}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, None, False, {"a": {"b": 1, "c": 2}}),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, None, True, {"a": {"b": [1, 2]}}),
        ({}, {"a": 1}, {"a": 0, "stamped_headers": ["a"]}, False, {"a": 1}),
        ({}, {}, {"a": 0, "queue": "q", "stamped_headers": ["a"]}, False, {"a": 0}),
    ],
)
def test_stamps_of_several_origins_are_put_together(
    headers: Any, visitor: Any, own: Any, append: bool, expected: Any
) -> None:
    made = combined(headers, visitor, own, append=append)

    assert {key: value for key, value in made.items() if key != "stamped_headers"} == expected
    assert sorted(made["stamped_headers"]) == sorted(expected)


def test_putting_together_changes_none_of_the_origins() -> None:
    headers, visitor = {"a": {"b": [1]}}, {"a": {"b": [2]}}
    combined(headers, visitor, None, append=True)

    assert (headers, visitor) == ({"a": {"b": [1]}}, {"a": {"b": [2]}})


def test_only_what_the_visitor_names_is_a_stamp(tasks: SimpleNamespace) -> None:
    class Named(StampingVisitor):
        def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return {"stamp": 1, "header": 2, "stamped_headers": ["stamp"]}

    sig = tasks.add.s(1, 1).stamp(Named())

    assert sig.options["stamped_headers"] == ["stamp"] and sig.options["header"] == 2


def test_every_part_of_a_workflow_is_stamped(tasks: SimpleNamespace) -> None:
    add, xsum, tell = tasks.add, tasks.xsum, tasks.tell
    first = add.s(1, 1)
    first.link(tell.s("ok"))
    first.link_error(tell.s("bad"))
    pair = group(add.s(2), chain(add.s(3), add.s(4)))
    made = chain(first, pair, xsum.s(), add.s(5))
    made.stamp(Every())

    head, middle = made.tasks
    parts = [head, head.options["link"][0], head.options["link_error"][0], *middle.tasks.tasks[:1]]
    parts += [*middle.tasks.tasks[1].tasks, *middle.body.tasks]
    assert len(parts) == 8
    assert all(stamps(part) == {"stamp": "value"} for part in parts)


def test_headers_alone_stamp_the_body_of_a_chord_too(tasks: SimpleNamespace) -> None:
    made = chord([tasks.add.s(1, 1)], tasks.xsum.s())
    made.stamp(stamp="value")

    assert stamps(made.body) == stamps(made.tasks[0]) == {"stamp": "value"}


def test_a_generator_is_stamped_when_it_is_read(tasks: SimpleNamespace) -> None:
    visitor = Every()
    made = group(tasks.add.s(number, 1) for number in range(3))
    made.stamp(visitor)

    assert visitor.calls == []
    assert [stamps(member) for member in made.tasks] == [{"stamp": "value"}] * 3


def test_the_visitor_is_told_in_order(tasks: SimpleNamespace) -> None:
    class Telling(Every):
        def on_group_start(self, group: Any, **headers: Any) -> dict[str, Any]:
            self.calls.append("group start")
            return {"in_group": True}

        def on_group_end(self, group: Any, **headers: Any) -> None:
            self.calls.append(f"group end {headers['in_group']}")

        def on_chain_start(self, chain: Any, **headers: Any) -> dict[str, Any]:
            self.calls.append("chain start")
            return {}

        def on_chain_end(self, chain: Any, **headers: Any) -> None:
            self.calls.append("chain end")

        def on_chord_body(self, sig: Any, **header: Any) -> dict[str, Any]:
            self.calls.append("body")
            return {"is_body": True}

    visitor = Telling()
    made = chain(tasks.add.s(1, 1), chord([tasks.add.s(2)], tasks.xsum.s()))
    made.stamp(visitor)

    assert visitor.calls == [
        "chain start",
        "signature (1, 1)",
        "group start",
        "signature (2,)",
        "group end True",
        "body",
        "signature ()",
        "chain end",
    ]
    assert stamps(made.tasks[1].body) == {"in_group": True, "is_body": True, "stamp": "value"}


def test_one_callbacks_stamps_do_not_reach_the_next(tasks: SimpleNamespace) -> None:
    class Numbering(StampingVisitor):
        def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return {}

        def on_callback(self, callback: Any, **header: Any) -> dict[str, Any]:
            return {f"callback {callback.args[0]}": True}

    sig = tasks.add.s(1, 1).set(link=[tasks.tell.s(1), tasks.tell.s(2)])
    sig.stamp(Numbering())

    assert [stamps(link) for link in sig.options["link"]] == [{"callback 1": True}, {"callback 2": True}]
    assert stamps(sig) == {}


def test_a_stamp_given_again_replaces_the_first_unless_both_are_wanted(tasks: SimpleNamespace) -> None:
    assert stamps(tasks.add.s().stamp(stamp="a").stamp(stamp="b")) == {"stamp": "b"}
    appended = tasks.add.s().stamp(stamp="a").stamp(stamp="b", append_stamps=True)
    assert stamps(appended) == {"stamp": ["b", "a"]}


def test_stamps_outlive_options_given_at_the_call(tasks: SimpleNamespace) -> None:
    clone = tasks.add.s(1, 1).stamp(stamp="a").clone(stamp="b", queue="q")

    assert stamps(clone) == {"stamp": "a"} and clone.options["queue"] == "q"


def test_stamps_travel_in_the_message(tasks: SimpleNamespace, sent: list[Any]) -> None:
    tasks.add.s(1, 1).stamp(stamp="value").apply_async()

    assert sent[0].headers["stamps"] == {"stamp": "value"}
    assert sent[0].headers["stamped_headers"] == ["stamp"]
