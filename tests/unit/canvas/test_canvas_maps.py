"""``map``, ``starmap`` and ``chunks``."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone import Celery
from celery_clone.canvas import chunks, signature, xmap, xstarmap


def test_they_are_shown_as_what_they_do(tasks: SimpleNamespace) -> None:
    assert repr(tasks.add.map([1, 2])) == "[proj.tasks.add(x) for x in [1, 2]]"
    assert repr(tasks.add.starmap([(1, 2)])) == "[proj.tasks.add(*x) for x in [(1, 2)]]"


def test_json_and_back_gives_the_same(app: Celery, tasks: SimpleNamespace) -> None:
    for made, kind in (
        (tasks.add.map([1, 2]), xmap),
        (tasks.add.starmap([(1, 2)]), xstarmap),
        (tasks.add.chunks([(1, 2)], 1), chunks),
    ):
        named = {**made, "subtask_type": kind.__name__}
        read = signature(json.loads(json.dumps(named)), app=app)
        assert type(read) is kind and json.dumps(read) == json.dumps(made) and read.immutable
        assert "proj.tasks.add" in repr(read)


def test_a_generator_of_arguments_is_read_when_it_is_sent(tasks: SimpleNamespace, sent: list[Any]) -> None:
    read: list[int] = []

    def produce() -> Any:
        for number in range(3):
            read.append(number)
            yield number

    made = tasks.tell.map(produce())
    assert read == []
    made.apply_async()
    assert sent[0].task == "celery.map" and sent[0].kwargs["it"] == [0, 1, 2]
    made.apply_async()
    assert sent[1].kwargs["it"] == [0, 1, 2]


def test_they_are_routed_as_the_mapped_task_is(
    app: Celery, tasks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(app, "send_task", lambda *args, **kwargs: asked.append(kwargs["route_name"]))
    tasks.add.map([1]).apply_async()
    tasks.add.starmap([(1, 2)]).set(queue="q").apply_async()
    tasks.add.chunks([(1, 1), (2, 2)], 1).apply_async()

    assert asked == ["proj.tasks.add"] * 4


def test_stored_options_are_used(tasks: SimpleNamespace, sent: list[Any]) -> None:
    made = tasks.add.map([1]).set(shadow="s", task_id="mine")
    made.link(tasks.tell.s())
    result = made.apply_async(countdown=5)

    assert result.id == "mine" and sent[0].headers["shadow"] == "s" and sent[0].headers["eta"]
    assert len(sent[0].embed["callbacks"]) == 1


def test_chunks_are_a_group_of_starmaps(tasks: SimpleNamespace, sent: list[Any]) -> None:
    made = tasks.add.chunks(zip(range(5), range(5), strict=True), 2).set(shadow="s")
    result = made()

    assert [call.kwargs["it"] for call in sent] == [[(0, 0), (1, 1)], [(2, 2), (3, 3)], [(4, 4)]]
    assert {call.task for call in sent} == {"celery.starmap"} and len(result) == 3
    assert {call.headers["shadow"] for call in sent} == {"s"}


def test_apply_chunks_sends_at_once(app: Celery, tasks: SimpleNamespace, sent: list[Any]) -> None:
    chunks.apply_chunks(tasks.add.s(), [(1, 1), (2, 2)], 1, app=app)

    assert len(sent) == 2


def test_applied_here_they_give_lists(eager: Celery, tasks: SimpleNamespace) -> None:
    assert tasks.add.starmap([(1, 1), (2, 2)]).apply().get() == [2, 4]
    assert tasks.tell.map([1, 2]).apply_async().get() == [(1,), (2,)]
    assert tasks.add.chunks([(1, 1), (2, 2), (3, 3)], 2).apply_async().get() == [[2, 4], [6]]
    assert tasks.add.chunks([(1, 1)], 2).apply().get() == [[2]]
