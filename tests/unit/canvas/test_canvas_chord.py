"""Chords: header, body, ids, callbacks, and what travels with whom."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone import Celery
from celery_clone.canvas import chain, chord, group, signature
from celery_clone.canvas.chord import earliest
from celery_clone.canvas.counting import completions, completions_of_all


@pytest.fixture
def simple(tasks: SimpleNamespace) -> Any:
    return chord([tasks.add.s(1, 1), tasks.add.s(2, 2)], tasks.xsum.s())


# -- construction


def test_the_repr_shows_the_body_called_with_the_header(tasks: SimpleNamespace, simple: Any) -> None:
    assert repr(simple) == "%proj.tasks.xsum([add(1, 1), add(2, 2)])"
    assert repr(simple | tasks.add.s(3)) == "%(proj.tasks.xsum([add(1, 1), add(2, 2)]) | add(3))"
    assert repr(chord([tasks.add.s(1, 1)])) == "<chord without body: [proj.tasks.add(1, 1)]>"


def test_the_header_is_a_list_of_copies(tasks: SimpleNamespace) -> None:
    member = tasks.add.s(1, 1)
    made = chord([member], tasks.xsum.s())
    made.tasks[0].set(queue="q")

    assert member.options == {}


def test_tasks_in_the_header_stand_for_calls_without_arguments(tasks: SimpleNamespace) -> None:
    made = chord([tasks.add, tasks.add.s(1)], tasks.add.s())

    assert list(made.tasks) == [tasks.add.s(), tasks.add.s(1)]


def test_options_of_a_group_reach_the_header_made_of_it(tasks: SimpleNamespace) -> None:
    made = group(tasks.add.s(1, 1), tasks.add.s(2, 2), queue="q") | tasks.xsum.s()

    assert [member.options for member in made.tasks] == [{"queue": "q"}] * 2


def test_keyword_arguments_are_the_headers(tasks: SimpleNamespace, sent: list[Any]) -> None:
    chord([tasks.tell.s(1)], tasks.tell.s(), kwargs={"a": 1}).clone(kwargs={"b": 2}).apply_async((0,), {"c": 3})

    assert (sent[0].args, sent[0].kwargs) == ([0, 1], {"a": 1, "b": 2, "c": 3})


def test_json_and_back_gives_an_equal_chord(app: Celery, simple: Any) -> None:
    simple.freeze()
    read = signature(json.loads(json.dumps(simple)), app=app)

    assert type(read) is chord
    assert [member.id for member in read.tasks] == [member.id for member in simple.tasks.tasks]
    assert read.id == simple.id and read.body.id == simple.body.id


def test_a_clone_has_members_and_a_body_of_its_own(simple: Any) -> None:
    clone = simple.clone(queue="q")
    clone.tasks[0].set(priority=1)
    clone.body.set(priority=1)

    assert simple.tasks[0].options == simple.body.options == {}
    assert clone.options == {"queue": "q"}


def test_a_clone_may_get_another_body(tasks: SimpleNamespace, simple: Any) -> None:
    assert simple.clone(kwargs={"body": tasks.tell.s()}).body == tasks.tell.s()


@pytest.mark.parametrize("use", [lambda sig: sig.apply_async(), lambda sig: sig.apply(), lambda sig: sig.link(sig)])
def test_a_chord_without_a_body_is_refused_with_a_remedy(tasks: SimpleNamespace, use: Any) -> None:
    with pytest.raises(TypeError, match=r"has no body.*chord\(header, body\)"):
        use(chord([tasks.add.s(1, 1)]))
    with pytest.raises(TypeError, match="has no body"):
        use(chord([tasks.add.s(1, 1)], chain()))


# -- counting


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ("add.s(1, 1)", 1),
        ("group(add.s(1, 1), add.s(2, 2))", 2),
        ("group([])", 0),
        ("chain(add.s(1, 1), add.s(2))", 1),
        ("chain(add.s(1, 1), group(add.s(2), add.s(3)))", 2),
        ("chain(group(add.s(1, 1), add.s(2, 2)), group([]), app=app)", 2),
        ("chord([add.s(1, 1), add.s(2, 2)], xsum.s())", 1),
        ("chord([add.s(1, 1)], group(xsum.s(), xsum.s()))", 2),
        ("chord([add.s(1, 1)])", 0),
        ("group(chord([add.s(1, 1)], group(xsum.s(), xsum.s())), add.s(1, 1))", 3),
        ("[add.s(1, 1), add.s(2, 2)]", 2),
    ],
)
def test_completions_are_counted_by_what_reports_to_the_chord(
    app: Celery, tasks: SimpleNamespace, source: str, size: int
) -> None:
    sig = eval(source, {**vars(tasks), "group": group, "chain": chain, "chord": chord, "app": app})

    assert completions(sig) == size
    assert completions(json.loads(json.dumps(sig))) == size
    assert completions_of_all(sig) == size


def test_the_length_hint_is_the_number_of_completions(tasks: SimpleNamespace, simple: Any) -> None:
    assert simple.__length_hint__() == 2
    simple.freeze()
    assert simple.__length_hint__() == 2


# -- sending


def test_each_member_carries_the_body_and_its_place(simple: Any, sent: list[Any]) -> None:
    result = simple.apply_async()

    assert [call.args for call in sent] == [[1, 1], [2, 2]]
    assert [call.headers["group_index"] for call in sent] == [0, 1]
    for call in sent:
        body = call.embed["chord"]
        assert body["options"]["task_id"] == result.id
        assert body["options"]["group_id"] == call.headers["group"] == result.parent.id
    assert [call.headers["id"] for call in sent] == [each.id for each in result.parent]


def test_the_store_is_told_the_size_before_the_last_member_is_sent(
    app: Celery, tasks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[Any] = []
    monkeypatch.setattr(app.backend, "set_chord_size", lambda *args: order.append(args))
    monkeypatch.setattr(app.backend, "apply_chord", lambda *args, **kwargs: order.append("chord"))
    monkeypatch.setattr(app, "send_task", lambda *args, **kwargs: order.append("sent"))
    made = chord((tasks.add.s(number, 1) for number in range(3)), tasks.xsum.s())
    result = made.apply_async()

    assert order == ["chord", "sent", "sent", (result.parent.id, 3), "sent"]


@pytest.mark.parametrize("last", ["chain", "chord", "chain of chain", "chain ending in group", "chain ending in chord"])
def test_the_store_is_told_the_size_whatever_the_last_member_is(
    app: Celery, tasks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, sent: list[Any], last: str
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(app.backend, "set_chord_size", lambda *args: told.append(args))
    monkeypatch.setattr(app.backend, "apply_chord", lambda *args, **kwargs: None)
    add, xsum = tasks.add, tasks.xsum
    pair = group([add.s(1), add.s(2)])
    member, size = {
        "chain": (chain(add.s(1, 1), add.s(2)), 1),
        "chord": (chord([add.s(1, 1), add.s(2, 2)], xsum.s()), 1),
        "chain of chain": (chain(add.s(1, 1), chain(add.s(2), add.s(3))), 1),
        "chain ending in group": (chain(add.s(1, 1), pair), 2),
        "chain ending in chord": (chain(add.s(1, 1), chord(pair, xsum.s())), 1),
    }[last]
    result = chord([add.s(1, 1), member], xsum.s()).apply_async()

    assert (result.parent.id, size + 1) in told


def test_the_body_of_an_empty_header_is_sent_at_once(tasks: SimpleNamespace, sent: list[Any]) -> None:
    result = chord([], tasks.xsum.s()).apply_async()

    assert [(call.task, call.args) for call in sent] == [("proj.tasks.xsum", [[]])]
    assert sent[0].headers["id"] == result.id and result.parent.results == []


def test_sending_twice_sends_other_calls(simple: Any, sent: list[Any]) -> None:
    first, second = simple.apply_async(), simple.apply_async()

    assert first.id != second.id and first.parent.id != second.parent.id
    assert len({call.headers["id"] for call in sent}) == 4


def test_options_are_for_header_and_body_but_delays_for_the_header(simple: Any, sent: list[Any]) -> None:
    simple.apply_async(shadow="s", countdown=5)

    assert all(call.headers["eta"] and call.headers["shadow"] == "s" for call in sent)
    assert sent[0].embed["chord"]["options"]["shadow"] == "s"
    assert "countdown" not in sent[0].embed["chord"]["options"]


def test_stored_delays_are_for_the_header_too(simple: Any, sent: list[Any]) -> None:
    simple.set(countdown=5).apply_async()

    assert all(call.headers["eta"] for call in sent)
    assert "countdown" not in sent[0].embed["chord"]["options"]


def test_the_id_given_is_the_bodys(simple: Any, sent: list[Any]) -> None:
    assert simple.apply_async(task_id="mine").id == "mine"
    assert simple.set(task_id="stored").apply_async().id == "stored"


def test_what_follows_the_chord_travels_with_the_body(tasks: SimpleNamespace, sent: list[Any]) -> None:
    chain(group(tasks.add.s(1, 1), tasks.add.s(2, 2)), tasks.xsum.s(), tasks.add.s(3), app=tasks.add.app)()

    for call in sent:
        assert call.embed["chain"] is None
        assert [step["args"] for step in call.embed["chord"]["options"]["chain"]] == [(3,)]


def test_a_pending_chord_carries_its_body_once(tasks: SimpleNamespace, sent: list[Any]) -> None:
    mark = "only once " * 20
    inner = chord([tasks.tell.s(number) for number in range(10)], tasks.tell.s(mark))
    chain(tasks.tell.s(), inner, app=tasks.tell.app).apply_async()

    assert json.dumps(sent[0].embed).count(mark) == 1


def test_a_line_of_chords_grows_with_its_length_not_beyond(tasks: SimpleNamespace, sent: list[Any]) -> None:
    def published(length: int) -> int:
        sent.clear()
        pairs = [group(tasks.tell.s(number) for number in range(4)), tasks.tell.s()] * length
        chain(pairs).apply_async()
        return len(json.dumps([call.embed for call in sent]))

    assert published(8) < 3 * published(4)


def test_a_nested_chord_reports_to_the_outer_one(tasks: SimpleNamespace, sent: list[Any]) -> None:
    add, xsum = tasks.add, tasks.xsum
    outer = chord([add.s(1, 1), chord([add.s(2, 2), add.s(3, 3)], xsum.s())], xsum.s())
    result = outer.apply_async()

    inner_body = sent[1].embed["chord"]
    assert sent[0].embed["chord"]["options"]["task_id"] == result.id
    assert inner_body["options"]["chord"]["options"]["task_id"] == result.id
    assert inner_body["options"]["group_id"] == sent[0].headers["group"] == result.parent.id
    assert inner_body["options"]["group_index"] == 1


def test_a_chord_that_takes_the_place_of_a_member_reports_with_all_of_its_group_body(
    tasks: SimpleNamespace, sent: list[Any]
) -> None:
    replacement = chord([tasks.add.s(1, 1)], group(tasks.xsum.s(), tasks.xsum.s()))
    replacement.freeze("replaced")
    replacement.set(chord=tasks.tell.s("outer"), group_id="outer", group_index=4)
    replacement.apply_async()

    members = sent[0].embed["chord"]["kwargs"]["tasks"]
    assert [member["options"]["group_id"] for member in members] == ["outer", "outer"]
    assert [member["options"]["group_index"] for member in members] == [4, 5]
    assert all(member["options"]["chord"]["args"] == ("outer",) for member in members)


def test_the_parents_of_the_result_lead_through_the_body_to_the_header(tasks: SimpleNamespace) -> None:
    result = chord([tasks.add.s(1, 1)], chain(tasks.xsum.s(), tasks.add.s(1), tasks.add.s(2))).apply_async()

    assert len(result.as_list()) == 4
    assert len(result.parent.parent.parent.results) == 1


# -- callbacks


def test_link_is_for_the_body(tasks: SimpleNamespace, simple: Any) -> None:
    callback = tasks.tell.s()

    assert simple.link(callback) is callback
    assert simple.body.options == {"link": [callback]} and simple.tasks[0].options == {}


def test_link_error_is_for_the_body(tasks: SimpleNamespace, simple: Any) -> None:
    errback = tasks.tell.s()

    assert simple.link_error(errback) == errback
    assert simple.body.options == {"link_error": [errback]} and simple.tasks[0].options == {}


def test_link_error_is_for_the_header_too_if_that_is_allowed(app: Celery, tasks: SimpleNamespace, simple: Any) -> None:
    app.conf.task_allow_error_cb_on_chord_header = True
    simple.link_error(tasks.tell.s())

    for signature_with_errback in (*simple.tasks, simple.body):
        assert signature_with_errback.options["link_error"] == [tasks.tell.s()]


def test_callbacks_at_the_call_are_added_to_those_of_the_body(tasks: SimpleNamespace, sent: list[Any]) -> None:
    body = tasks.xsum.s()
    body.link(tasks.tell.s("own"))
    made = chord([tasks.add.s(1, 1)], body)
    made.apply_async(link=tasks.tell.s("more"), link_error=tasks.tell.s("bad"))

    options = sent[0].embed["chord"]["options"]
    assert [callback["args"] for callback in options["link"]] == [("own",), ("more",)]
    assert [errback["args"] for errback in options["link_error"]] == [("bad",)]
    assert len(body.options["link"]) == 1
    assert not sent[0].embed["callbacks"] and not sent[0].embed["errbacks"]


def test_set_immutable_is_for_the_header(simple: Any) -> None:
    simple.set(immutable=True)

    assert all(member.immutable for member in simple.tasks)
    assert not simple.body.immutable and not simple.immutable


# -- here and now


def test_applied_here_the_body_gets_the_results_in_order(eager: Celery, tasks: SimpleNamespace) -> None:
    made = chord([tasks.add.s(1, 1), chain(tasks.add.s(2, 2), tasks.add.s(3))], tasks.tell.s("body"))
    result = made.apply_async()

    assert result.get() == ([2, 7], "body")
    assert result.parent.get() == [2, 7]
    assert chord([tasks.add.s(1)], tasks.xsum.s()).apply((5,)).get() == 6


def test_applied_here_callbacks_are_called(eager: Celery, tasks: SimpleNamespace, simple: Any) -> None:
    simple.set(link=[tasks.tell.s("stored")])
    simple.apply_async()
    simple.apply_async(link=tasks.tell.s("given instead"))

    assert tasks.told == [(6, "stored"), (6, "given instead")]


def test_applied_here_a_failing_header_raises(eager: Celery, tasks: SimpleNamespace) -> None:
    made = chord([tasks.add.s(1, 1), tasks.fail.s()], tasks.tell.s())

    with pytest.raises(ValueError, match="as told"):
        made.apply()
    assert tasks.told == []


def test_run_can_be_told_to_do_it_here(tasks: SimpleNamespace, simple: Any) -> None:
    assert simple.run(group(simple.tasks), simple.body, (), eager=True).get() == 6


def test_freezing_a_chord_without_a_body_gives_no_result(tasks: SimpleNamespace) -> None:
    made = chord([tasks.add.s(1, 1)])

    assert made.freeze() is None and made.tasks.tasks[0].id


def test_members_of_any_shape_carry_a_pending_body_once(tasks: SimpleNamespace, sent: list[Any]) -> None:
    mark = "only once " * 20
    tell = tasks.tell
    header = [
        chain(tell.s(1), tell.s(2)),
        chain(tell.s(3), group(tell.s(4), tell.s(5))),
        chord([tell.s(6), tell.s(7)], group(tell.s(8), tell.s(9))),
    ]
    chain(tell.s(), chord(header, tell.s(mark)), app=tell.app).apply_async()

    assert json.dumps(sent[0].embed).count(mark) == 1


def test_results_that_stand_before_themselves_are_refused(app: Celery) -> None:
    first, second = app.AsyncResult("a"), app.AsyncResult("b")
    first.parent, second.parent = second, first

    with pytest.raises(RuntimeError, match=r"stands before itself.*clone\(\)"):
        earliest(first)


def test_the_callback_of_an_empty_group_as_body_is_kept(tasks: SimpleNamespace, sent: list[Any]) -> None:
    chord([tasks.add.s(1, 1)], group([])).apply_async(link=tasks.tell.s("ok"))

    assert sent[0].embed["chord"]["options"]["link"] == [tasks.tell.s("ok")]
