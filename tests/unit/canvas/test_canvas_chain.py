"""Chains: how steps are laid out, given ids, and sent one after the other."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone import Celery
from celery_clone.canvas import _chain, chain, chord, group, signature
from celery_clone.canvas.chain import flatten, upgrade
from celery_clone.exceptions import Ignore


def arguments(steps: Any) -> list[Any]:
    return [tuple(step.args) for step in steps]


# -- laying out


def test_flatten_splices_chains_at_any_depth(tasks: SimpleNamespace) -> None:
    add = tasks.add
    nested = [_chain(_chain(add.s(1), add.s(2)), add.s(3)), add.s(4), _chain(add.s(5))]

    assert arguments(flatten(nested)) == [(1,), (2,), (3,), (4,), (5,)]


def test_flatten_gives_the_callbacks_of_a_spliced_chain_to_its_steps(tasks: SimpleNamespace) -> None:
    inner = _chain(tasks.add.s(1), tasks.add.s(2))
    inner.link(tasks.tell.s("ok"))
    inner.link_error(tasks.tell.s("bad"))

    assert [sorted(step.options) for step in flatten([inner, tasks.add.s(3)])] == [
        ["link_error"],
        ["link", "link_error"],
        [],
    ]


def test_flatten_gives_arguments_and_options_of_a_spliced_chain_to_its_first_step(
    tasks: SimpleNamespace,
) -> None:
    inner = _chain(tasks.tell.s(1), tasks.tell.s(2)).clone((0,), queue="q")
    first, second = flatten([inner])

    assert (first.args, first.options) == ((0, 1), {"queue": "q"})
    assert (second.args, second.options) == ((2,), {})


def test_flatten_leaves_out_what_is_empty(tasks: SimpleNamespace) -> None:
    assert arguments(flatten([group([]), tasks.add.s(1), _chain(), group([])])) == [(1,)]
    assert flatten([group([]), group([])]) == [group([])]
    assert flatten([_chain()]) == []


def test_flatten_takes_the_chain_out_of_a_chords_body(tasks: SimpleNamespace) -> None:
    made = chord([tasks.add.s(1, 1)], _chain(tasks.xsum.s(), tasks.add.s(1), tasks.add.s(2)))
    first, *rest = flatten([made])

    assert first.body == tasks.xsum.s() and arguments(rest) == [(1,), (2,)]
    assert len(made.body.tasks) == 3


def test_upgrade_makes_chords_of_groups_that_something_follows(tasks: SimpleNamespace) -> None:
    pair = group(tasks.add.s(1), tasks.add.s(2))
    steps = upgrade([tasks.add.s(0), pair, tasks.xsum.s(), pair, pair, tasks.xsum.s(), tasks.add.s(3), pair])

    assert [step.subtask_type for step in steps] == [None, "chord", "chord", None, "group"]
    assert steps[2].body.subtask_type == "chord" and steps[2].body.body == tasks.xsum.s()


def test_upgrade_looks_into_the_body_of_a_chord(tasks: SimpleNamespace) -> None:
    forked = chord([tasks.add.s(1, 1)], group(tasks.xsum.s(), tasks.xsum.s()))
    (made,) = upgrade([forked, tasks.xsum.s()])

    assert made.body.subtask_type == "chord" and made.body.body == tasks.xsum.s()
    assert forked.body.subtask_type == "group"


def test_chunks_are_a_group_among_steps(tasks: SimpleNamespace) -> None:
    made = chain(tasks.tell.si(), tasks.add.chunks([(1, 1), (2, 2)], 1), tasks.tell.s())
    steps, _ = made.prepare_steps((), {}, made.tasks)

    assert [step.subtask_type for step in steps] == ["chord", None]


# -- ids


def test_results_lead_from_the_last_step_to_the_first(tasks: SimpleNamespace) -> None:
    made = chain(tasks.add.s(1, 1), tasks.add.s(2), tasks.add.s(3))
    result = made.freeze("last")

    assert result.as_list() == [step.id for step in reversed(made.tasks)]
    assert result.id == made.id == "last"


def test_freezing_twice_changes_nothing(tasks: SimpleNamespace) -> None:
    made = chain(tasks.add.s(1, 1), group(tasks.add.s(2), tasks.add.s(3)), tasks.xsum.s(), tasks.add.s(4))

    assert made.freeze().as_tuple() == made.freeze().as_tuple()


def test_group_and_chord_are_told_to_the_last_step_only(tasks: SimpleNamespace) -> None:
    made = chain(tasks.add.s(1, 1), tasks.add.s(2))
    made.freeze(group_id="g", chord=tasks.tell.s(), group_index=3, root_id="r")
    first, last = made.tasks

    assert set(first.options) == {"task_id", "reply_to", "root_id"}
    assert (last.options["group_id"], last.options["group_index"]) == ("g", 3)
    assert last.options["chord"] == tasks.tell.s()


def test_the_parents_of_a_chord_in_a_chain_are_its_header_and_then_the_step_before(
    tasks: SimpleNamespace,
) -> None:
    result = chain(tasks.add.s(1, 1), group(tasks.add.s(2), tasks.add.s(3)), tasks.xsum.s(), tasks.add.s(4)).freeze()
    body = result.parent
    header = body.parent

    assert len(header.results) == 2 and header.parent.parent is None


def test_a_chain_without_steps_cannot_be_frozen(tasks: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="chain without steps has no result"):
        chain().freeze()


def test_the_same_signature_twice_is_two_steps(tasks: SimpleNamespace, sent: list[Any]) -> None:
    step = tasks.add.s(1)
    result = chain(step, step, step).apply_async((0,))

    assert len(set(result.as_list())) == 3


# -- sending


def test_the_rest_travels_with_the_last_step_first(tasks: SimpleNamespace, sent: list[Any]) -> None:
    result = chain(tasks.add.s(1), tasks.add.s(2), tasks.add.s(3)).apply_async((0,))

    (call,) = sent
    assert call.args == [0, 1]
    assert [step["args"] for step in call.embed["chain"]] == [(3,), (2,)]
    assert call.embed["chain"][0]["options"]["task_id"] == result.id
    assert result.parent.parent.id == call.headers["id"]


def test_sending_twice_sends_other_calls(tasks: SimpleNamespace, sent: list[Any]) -> None:
    made = chain(tasks.add.s(1, 1), tasks.add.s(2))
    first, second = made.apply_async(), made.apply_async()

    assert set(first.as_list()).isdisjoint(second.as_list())
    assert made.options == {}


def test_arguments_and_options_are_for_the_first_step(tasks: SimpleNamespace, sent: list[Any]) -> None:
    made = chain(tasks.tell.s(), tasks.tell.s())
    made.apply_async((1,), {"a": 2}, shadow="s")

    assert (sent[0].args, sent[0].kwargs, sent[0].headers["shadow"]) == ([1], {"a": 2}, "s")
    assert "shadow" not in sent[0].embed["chain"][0]["options"]


def test_arguments_reach_the_first_real_step(tasks: SimpleNamespace, sent: list[Any]) -> None:
    chain(group([]), chain(tasks.tell.s(1)), tasks.tell.s(2), app=tasks.tell.app).apply_async((0,))

    assert sent[0].args == [0, 1]


def test_arguments_reach_every_member_when_the_first_step_is_a_group(tasks: SimpleNamespace, sent: list[Any]) -> None:
    chain(group(tasks.tell.s(1), tasks.tell.si(2)), tasks.tell.s(), app=tasks.tell.app).apply_async((0,), {"a": 1})

    assert [(call.args, call.kwargs) for call in sent] == [([0, 1], {"a": 1}), ([2], {})]


def test_an_immutable_chain_takes_no_arguments(tasks: SimpleNamespace, sent: list[Any]) -> None:
    made = chain(tasks.tell.s(1), tasks.tell.s(2)).set(immutable=True)
    made.apply_async((0,))
    chain(tasks.tell.s(0), made, app=tasks.tell.app).apply_async()

    assert sent[0].args == [1]
    assert [step["immutable"] for step in sent[1].embed["chain"]] == [False, True]


def test_link_is_called_after_the_last_step_and_link_error_after_any(tasks: SimpleNamespace, sent: list[Any]) -> None:
    chain(tasks.add.s(1, 1), tasks.add.s(2)).apply_async(link=tasks.tell.s("ok"), link_error=tasks.tell.s("bad"))

    (call,) = sent
    (last,) = call.embed["chain"]
    assert not call.embed["callbacks"] and [errback["args"] for errback in call.embed["errbacks"]] == [("bad",)]
    assert [link["args"] for link in last["options"]["link"]] == [("ok",)]
    assert [link["args"] for link in last["options"]["link_error"]] == [("bad",)]


def test_link_of_a_chain_that_ends_in_a_group_is_called_with_the_value_of_each_member(
    tasks: SimpleNamespace, sent: list[Any]
) -> None:
    chain(tasks.add.s(1, 1), group(tasks.add.s(2), tasks.add.s(3))).apply_async(link=tasks.tell.s("ok"))

    (last,) = sent[0].embed["chain"]
    (callback,) = last["options"]["link"]
    assert callback["task"] == tasks.tell.name and not callback["immutable"]


def test_link_of_a_chain_that_ends_in_a_group_is_called_for_each_member_here_too(
    eager: Celery, tasks: SimpleNamespace
) -> None:
    chain(tasks.add.s(1, 1), group(tasks.add.s(2), tasks.add.s(3))).apply_async(link=tasks.tell.s("ok"))

    assert tasks.told == [(4, "ok"), (5, "ok")]


def test_what_followed_already_follows_after(tasks: SimpleNamespace, sent: list[Any]) -> None:
    rest = [tasks.add.s(4), tasks.add.s(3)]
    chain(tasks.add.s(1, 1), tasks.add.s(2)).apply_async(chain=rest)

    assert [step["args"] for step in sent[0].embed["chain"]] == [(4,), (3,), (2,)]
    assert len(rest) == 2


def test_a_chain_of_one_gives_the_result_of_that_one(tasks: SimpleNamespace, sent: list[Any]) -> None:
    assert chain(tasks.add.s(1, 1)).apply_async().id == sent[0].headers["id"]


def test_a_chain_of_none_sends_nothing(tasks: SimpleNamespace, sent: list[Any]) -> None:
    assert chain()() is None and chain().apply_async() is None and sent == []


def test_a_stored_chain_can_be_read_and_sent(app: Celery, tasks: SimpleNamespace, sent: list[Any]) -> None:
    made = chain(tasks.add.s(1, 1), group(tasks.add.s(2), tasks.add.s(3)), tasks.xsum.s())
    signature(json.loads(json.dumps(made)), app=app).apply_async()

    (following,) = sent[0].embed["chain"]
    assert following["subtask_type"] == "chord" and following["kwargs"]["body"]["task"] == "proj.tasks.xsum"


def test_unchain_tasks_gives_copies_that_stand_for_the_chain(tasks: SimpleNamespace) -> None:
    made = chain(tasks.add.s(1), tasks.add.s(2))
    made.link(tasks.tell.s("ok"))
    made.link_error(tasks.tell.s("bad"))
    first, last = made.unchain_tasks()

    assert first is not made.tasks[0]
    assert sorted(first.options) == ["link_error"] and sorted(last.options) == ["link", "link_error"]
    assert chain().unchain_tasks() == []


# -- here and now


def test_applied_here_each_step_gets_the_value_of_the_one_before(eager: Celery, tasks: SimpleNamespace) -> None:
    result = chain(tasks.add.s(4), tasks.add.s(8)).apply_async((2,))

    assert result.get() == 14 and result.parent.get() == 6 and result.parent.parent is None


def test_applied_here_a_group_gives_the_list_of_its_values(eager: Celery, tasks: SimpleNamespace) -> None:
    made = chain(tasks.add.s(1, 1), group(tasks.add.s(2), tasks.add.s(3)), tasks.tell.s(), app=eager)

    assert made.apply().get() == ([4, 5],)


def test_applied_here_callbacks_are_called_once(eager: Celery, tasks: SimpleNamespace) -> None:
    made = chain(tasks.add.s(1, 1), tasks.add.s(2))
    made.apply_async(link=tasks.tell.s("last"))

    assert tasks.told == [(4, "last")]


def test_applied_here_the_id_given_is_the_last_steps(eager: Celery, tasks: SimpleNamespace) -> None:
    result = chain(tasks.add.s(1, 1), tasks.add.s(2)).apply(task_id="mine")

    assert result.id == "mine" and result.parent.id != "mine"


def test_applied_here_an_error_ends_the_chain(eager: Celery, tasks: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="as told"):
        chain(tasks.add.s(1, 1), tasks.fail.s(), tasks.tell.s()).apply()
    assert tasks.told == []


def test_applied_here_an_ignored_step_ends_the_chain(eager: Celery, tasks: SimpleNamespace) -> None:
    @eager.task(shared=False, name="proj.tasks.ignored")
    def ignored(*args: Any) -> None:
        raise Ignore

    result = chain(ignored.s(), tasks.tell.s()).apply()

    assert result.state == "IGNORED" and tasks.told == []


def test_the_repr_is_that_of_the_steps_with_the_module_once(tasks: SimpleNamespace) -> None:
    assert repr(tasks.add.s(2, 2) | tasks.add.s(4)) == "proj.tasks.add(2, 2) | add(4)"
    assert repr(chain()).endswith(": empty>")


def test_a_clone_takes_arguments_for_its_first_step(tasks: SimpleNamespace, sent: list[Any]) -> None:
    made = chain(tasks.tell.s(1), tasks.tell.s(2))
    clone = made.clone((0,), {"a": 3}, shadow="s")
    clone.apply_async((9,))

    assert (sent[0].args, sent[0].kwargs, sent[0].headers["shadow"]) == ([9, 0, 1], {"a": 3}, "s")
    assert made.tasks[0].kwargs == {}
