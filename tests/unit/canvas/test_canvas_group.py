"""Groups: members, order, sending together, laziness."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone import Celery
from celery_clone.canvas import chain, chord, group, signature
from celery_clone.result import GroupResult


def arguments(members: Any) -> list[Any]:
    return [tuple(member.args) for member in members]


def test_members_are_given_one_by_one_or_as_an_iterable(tasks: SimpleNamespace) -> None:
    pair = [tasks.add.s(1, 1), tasks.add.s(2, 2)]

    for made in (group(*pair), group(pair), group(iter(pair)), group(tuple(pair)), group(group(pair))):
        assert json.dumps(made) == json.dumps(group(pair))
    assert len(group(pair)) == 2 and not group() and group(pair)


def test_the_repr_names_the_module_once(tasks: SimpleNamespace) -> None:
    assert repr(group([tasks.add.s(2, 2), tasks.add.s(4, 4)])) == "group([proj.tasks.add(2, 2), add(4, 4)])"
    assert repr(group()) == "group(<empty>)"


def test_the_list_that_was_given_stays_the_callers(tasks: SimpleNamespace) -> None:
    given = [tasks.add.s(1, 1), tasks.add.s(2, 2)]
    made = group(given)
    made.freeze()

    assert [sig.id for sig in given] == [None, None]
    assert all(sig.id for sig in made.tasks)


def test_a_clone_has_members_of_its_own(tasks: SimpleNamespace) -> None:
    made = group(tasks.add.s(1), tasks.add.s(2))
    clone = made.clone((9,), {"y": 3}, queue="q")
    clone.tasks[0].set(priority=1)

    assert made.tasks[0].options == {} and made.tasks[0].kwargs == {}
    assert clone.args == (9,) and clone.options == {"queue": "q"}
    assert [member.kwargs for member in clone.tasks] == [{"y": 3}, {"y": 3}]


def test_a_member_that_is_a_dictionary_becomes_a_signature(tasks: SimpleNamespace) -> None:
    made = group([dict(tasks.add.s(1, 1))])

    assert made.tasks[0].clone((5,)).args == (5, 1, 1)


# -- ids and order


def test_members_of_nested_groups_keep_their_order(app: Celery, tasks: SimpleNamespace) -> None:
    add = tasks.add
    made = group(add.s(1, 1), group(add.s(2, 2), group(add.s(3, 3), add.s(4, 4))), add.s(5, 5))
    result = made.freeze()

    assert arguments(made.tasks) == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]
    assert [member.options["group_index"] for member in made.tasks] == [0, 1, 2, 3, 4]
    assert [member.id for member in made.tasks] == [each.id for each in result]


def test_options_of_a_nested_group_reach_its_members(tasks: SimpleNamespace, sent: list[Any]) -> None:
    add = tasks.add
    group(add.s(1, 1), group(add.s(2, 2), add.s(3, 3), countdown=5)).apply_async()

    assert [bool(call.headers["eta"]) for call in sent] == [False, True, True]


def test_each_member_is_numbered_by_what_it_completes(tasks: SimpleNamespace) -> None:
    add, xsum = tasks.add, tasks.xsum
    forked = chord([add.s(1, 1)], group(xsum.s(), xsum.s()))
    made = group(add.s(0, 0), forked, add.s(3, 3))
    made.freeze(group_id="outer", chord=tasks.tell.s())
    inner = made.tasks[1].body.tasks

    assert [member.options["group_index"] for member in (made.tasks[0], *inner, made.tasks[2])] == [
        0,
        1,
        2,
        3,
    ]
    assert [member.options["group_id"] for member in inner] == ["outer", "outer"]


def test_freezing_twice_changes_nothing(tasks: SimpleNamespace) -> None:
    made = group(tasks.add.s(1, 1), tasks.add.s(2, 2))

    assert made.freeze() == made.freeze()


def test_freezing_takes_the_id_that_is_given(tasks: SimpleNamespace) -> None:
    made = group(tasks.add.s(1, 1), tasks.add.s(2, 2))

    assert made.freeze("mine").id == "mine" == made.id


def test_a_chain_without_steps_is_no_member(tasks: SimpleNamespace) -> None:
    made = group(tasks.add.s(1, 1), chain(), tasks.add.s(2, 2))

    assert len(made.freeze()) == 2


# -- generators


def produce(tasks: SimpleNamespace, made: list[int], count: int = 4) -> Iterator[Any]:
    for number in range(count):
        made.append(number)
        yield tasks.add.s(number, number)


def test_a_generator_is_not_read_before_it_is_needed(tasks: SimpleNamespace) -> None:
    made: list[int] = []
    lazy = group(produce(tasks, made))
    lazy.clone()
    lazy.freeze()

    # The app of a group is that of its first member.
    assert made in ([], [0])


def test_a_lazy_group_is_frozen_and_sent_like_any_other(tasks: SimpleNamespace, sent: list[Any]) -> None:
    made: list[int] = []
    lazy = group(produce(tasks, made))
    frozen = lazy.freeze()
    ids = [result.id for result in frozen.results]

    assert [member.id for member in lazy.tasks] == ids and made == [0, 1, 2, 3]
    lazy.apply_async()
    assert [call.headers["id"] for call in sent] == ids


def test_a_lazy_group_can_be_stored(tasks: SimpleNamespace) -> None:
    read = signature(json.loads(json.dumps(group(produce(tasks, [])))))

    assert arguments(read.tasks) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_lazy_group_travels_as_a_list_when_it_is_not_the_first_step(tasks: SimpleNamespace, sent: list[Any]) -> None:
    chain(tasks.add.s(1, 1), group(produce(tasks, []))).apply_async()

    (following,) = sent[0].embed["chain"]
    assert type(following["kwargs"]["tasks"]) is list and len(following["kwargs"]["tasks"]) == 4


# -- sending


def test_all_members_are_sent_and_the_result_has_the_groups_id(
    app: Celery, tasks: SimpleNamespace, sent: list[Any]
) -> None:
    result = group(tasks.add.s(1), tasks.add.si(2, 2)).apply_async((10,), root_id="root")

    assert isinstance(result, GroupResult)
    assert [call.args for call in sent] == [[10, 1], [2, 2]]
    assert {call.headers["group"] for call in sent} == {result.id}
    assert [call.headers["group_index"] for call in sent] == [0, 1]
    assert {call.headers["root_id"] for call in sent} == {"root"}
    assert [call.headers["id"] for call in sent] == [each.id for each in result]


def test_arguments_stored_with_the_group_are_given_to_the_members(tasks: SimpleNamespace, sent: list[Any]) -> None:
    group(tasks.tell.s(1), tasks.tell.si(2)).clone((8,)).apply_async((9,))

    assert [call.args for call in sent] == [[9, 8, 1], [2]]


def test_options_of_the_group_are_for_all_members(tasks: SimpleNamespace, sent: list[Any]) -> None:
    group(tasks.add.s(1, 1), tasks.add.s(2, 2), shadow="s").apply_async(ignore_result=True)

    assert [(call.headers["shadow"], call.headers["ignore_result"]) for call in sent] == [("s", True)] * 2


def test_sending_twice_sends_other_calls(tasks: SimpleNamespace, sent: list[Any]) -> None:
    made = group(tasks.add.s(1, 1), tasks.add.s(2, 2))
    made.apply_async()
    made.apply_async()

    assert len({call.headers["id"] for call in sent}) == 4
    assert len({call.headers["group"] for call in sent}) == 2


def test_an_empty_group_sends_nothing_and_has_a_result(tasks: SimpleNamespace, sent: list[Any]) -> None:
    result = group().apply_async()

    assert sent == [] and result.id and result.results == [] and result.get() == []


def test_members_leave_as_one_batch(app: Celery, tasks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    @contextmanager
    def watched() -> Iterator[None]:
        order.append("begin")
        yield
        order.append("end")

    monkeypatch.setattr(app, "publishing_together", watched)
    monkeypatch.setattr(app, "send_task", lambda name, *args, **kwargs: order.append(name))
    group(tasks.add.s(1, 1), tasks.add.s(2, 2)).apply_async()

    assert order == ["begin", "proj.tasks.add", "proj.tasks.add", "end"]


def test_nothing_is_sent_when_a_member_cannot_be_built(tasks: SimpleNamespace) -> None:
    together: list[Any] = []

    def broken() -> Iterator[Any]:
        yield tasks.add.s(1, 1)
        raise OSError("no more")

    publisher = tasks.add.app.amqp.publisher
    before, publisher.publish_many = publisher.publish_many, lambda batch, *_: together.extend(batch)
    try:
        with pytest.raises(OSError, match="no more"):
            group(broken()).apply_async()
    finally:
        publisher.publish_many = before
    assert together == []


def test_a_single_chain_that_ends_in_a_group_gives_that_groups_result(tasks: SimpleNamespace, sent: list[Any]) -> None:
    result = group(chain(tasks.add.s(1, 1), group(tasks.add.s(2), tasks.add.s(3)))).apply_async()

    assert len(result) == 2 and result.parent.id == sent[0].headers["id"]


def test_callbacks_at_the_call_are_refused(tasks: SimpleNamespace) -> None:
    made = group(tasks.add.s(1, 1))
    with pytest.raises(TypeError, match="use a chord"):
        made.apply_async(link=tasks.tell.s())
    with pytest.raises(TypeError, match="on individual tasks"):
        made.apply_async(link_error=tasks.tell.s())


def test_link_is_for_the_first_member_and_link_error_for_all(tasks: SimpleNamespace) -> None:
    made = group(tasks.add.s(1, 1), tasks.add.s(2, 2))
    callback, errback = tasks.tell.s("ok"), tasks.tell.s("bad")

    assert made.link(callback).immutable and not callback.immutable
    assert made.link_error(errback) == (errback, errback)
    assert [sorted(member.options) for member in made.tasks] == [["link", "link_error"], ["link_error"]]
    with pytest.raises(IndexError, match="never ends"):
        group([]).link(callback)


def test_callbacks_set_as_options_are_added_to_those_of_the_members(tasks: SimpleNamespace, sent: list[Any]) -> None:
    own = tasks.add.s(1, 1).on_error(tasks.tell.s("own"))
    group(own, tasks.add.s(2, 2), link_error=[tasks.tell.s("all")]).apply_async()

    told = [[errback["args"][0] for errback in call.embed["errbacks"]] for call in sent]
    assert told == [["own", "all"], ["all"]]


def test_set_immutable_is_for_all_members(tasks: SimpleNamespace) -> None:
    made = group(tasks.add.s(1, 1), tasks.add.s(2, 2)).set(immutable=True)

    assert all(member.immutable for member in made.tasks)


def test_skew_spreads_the_members_over_time(tasks: SimpleNamespace) -> None:
    def countdowns(*args: float, **kwargs: float) -> list[float]:
        made = group(tasks.add.s(number, 1) for number in range(4)).skew(*args, **kwargs)
        return [member.options["countdown"] for member in made.tasks]

    assert countdowns() == [1.0, 2.0, 3.0, 4.0]
    assert countdowns(start=1, stop=2, step=0.5) == [1, 1.5, 2.0, 2.0]


# -- here and now


def test_applied_here_the_members_run_in_order(eager: Celery, tasks: SimpleNamespace) -> None:
    made = group(tasks.tell.s(1), group(tasks.tell.s(2), tasks.tell.s(3)))

    assert made.apply((0,)).get() == [(0, 1), (0, 2), (0, 3)]
    assert made.apply_async().get() == [(1,), (2,), (3,)]
    assert tasks.told[:3] == [(0, 1), (0, 2), (0, 3)]
    assert group().apply().get() == []


def test_a_failure_of_one_member_leaves_the_others_alone(eager: Celery, tasks: SimpleNamespace) -> None:
    result = group(tasks.add.s(1, 1), tasks.fail.s(), tasks.add.s(2, 2)).apply()

    assert [each.state for each in result] == ["SUCCESS", "FAILURE", "SUCCESS"]
    with pytest.raises(ValueError, match="as told"):
        result.get()


def test_a_nested_group_hands_its_callbacks_down(tasks: SimpleNamespace, sent: list[Any]) -> None:
    inner = group(tasks.add.s(1, 1), link=[tasks.tell.s("ok")], link_error=[tasks.tell.s("bad")])
    group(inner, tasks.add.s(2, 2)).apply_async()

    assert [len(call.embed["callbacks"] or ()) for call in sent] == [1, 0]
    assert [len(call.embed["errbacks"] or ()) for call in sent] == [1, 0]


def test_callbacks_set_as_option_are_for_every_member(tasks: SimpleNamespace, sent: list[Any]) -> None:
    group(tasks.add.s(1, 1), tasks.add.s(2, 2), link=[tasks.tell.s("ok")]).apply_async()

    assert [len(call.embed["callbacks"]) for call in sent] == [1, 1]


def test_a_producer_that_is_given_is_used(app: Celery, tasks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    monkeypatch.setattr(app, "send_task", lambda *args, **kwargs: used.append(kwargs["producer"]))
    group(tasks.add.s(1, 1), tasks.add.s(2, 2)).apply_async(producer="mine")

    assert used == ["mine", "mine"]


def test_the_group_becomes_a_child_of_the_task_that_sends_it(
    app: Celery, tasks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail: list[Any] = []
    monkeypatch.setattr(type(app), "current_worker_task", SimpleNamespace(add_trail=trail.append))
    result = group(tasks.add.s(1, 1), tasks.add.s(2, 2)).apply_async()
    group(tasks.add.s(1, 1), tasks.add.s(2, 2)).apply_async(add_to_parent=False)

    assert trail == [result]
