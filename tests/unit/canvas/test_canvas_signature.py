"""Signatures: arguments, options, ids and callbacks of a call that was not made yet."""

from __future__ import annotations

import copy
import json
import pickle
import re
from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone import Celery
from celery_clone.canvas import Signature, chain, chord, group, maybe_signature, signature, subtask
from celery_clone.canvas.signature import written_call
from celery_clone.utils.abstract import CallableSignature

KEYS = {"task", "args", "kwargs", "options", "subtask_type", "immutable"}


def test_a_signature_is_a_dictionary_with_celerys_keys(tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1, y=2)

    assert isinstance(sig, dict) and isinstance(sig, CallableSignature)
    assert set(sig) == KEYS
    assert (sig.task, sig.name, sig.args, sig.kwargs) == ("proj.tasks.add", "proj.tasks.add", (1,), {"y": 2})
    assert sig.options == {} and sig.subtask_type is None and sig.immutable is False


def test_it_is_shown_as_the_call_it_stands_for(tasks: SimpleNamespace) -> None:
    assert repr(tasks.add.s(2, 2)) == "proj.tasks.add(2, 2)"
    assert repr(tasks.add.s("a", y=2)) == "proj.tasks.add('a', y=2)"
    assert tasks.add.s(2).reprcall(1, y=3) == "proj.tasks.add(1, 2, y=3)"
    assert tasks.add.si(2).reprcall(1) == "proj.tasks.add(1, 2)"


def test_an_argument_that_cannot_be_shown_does_not_break_the_repr() -> None:
    class Unshowable:
        def __repr__(self) -> str:
            raise OSError

    assert written_call("t", [Unshowable()], {}) == "t(<Unshowable: repr failed with OSError>)"


def test_called_it_runs_the_task_here(tasks: SimpleNamespace) -> None:
    assert tasks.add.s(2)(1) == 3
    assert tasks.add.s()(1, y=4) == 5


def test_json_and_back_gives_an_equal_signature(app: Celery, tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1, 2).set(queue="q", link=[tasks.tell.s()])
    read = signature(json.loads(json.dumps(sig)), app=app)

    assert type(read) is Signature and read.app is app
    assert json.dumps(read) == json.dumps(sig)
    assert read.__json__() == dict(read) and type(read.__json__()) is dict


def test_pickle_and_copy_give_equal_signatures(tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1, 2).set(queue="q")
    for twin in (pickle.loads(pickle.dumps(sig)), copy.copy(sig), copy.deepcopy(sig), signature(sig)):
        assert type(twin) is Signature and twin == sig and twin is not sig


def test_a_pickle_names_the_public_path(tasks: SimpleNamespace) -> None:
    pickled = pickle.dumps(tasks.add.s(1), protocol=0)

    assert b"ccelery_clone.canvas\nsignature\n" in pickled


def test_a_dictionary_may_leave_out_what_is_not_used(app: Celery) -> None:
    assert signature({"task": "t"}, app=app) == Signature("t")


def test_subtask_and_signature_are_one_function() -> None:
    assert subtask is signature


def test_maybe_signature_reads_dictionaries_and_lets_the_rest_be(app: Celery, tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1)

    assert maybe_signature(None) is None
    assert maybe_signature(sig) is sig
    assert maybe_signature(sig, clone=True) is not sig
    assert maybe_signature(dict(sig), app=app).app is app


def test_an_unknown_type_is_refused_with_the_known_ones_named(app: Celery) -> None:
    with pytest.raises(KeyError, match=r"no signature type 'mystery'.*chain, chord, chunks, group"):
        signature({"task": "t", "subtask_type": "mystery"}, app=app)


def test_a_registered_type_is_read_by_its_own_class(app: Celery) -> None:
    @Signature.register_type(name="special")
    class Special(Signature):
        @classmethod
        def from_dict(cls, d: dict[str, Any], app: Any = None) -> Any:
            return cls(d, app=app)

    try:
        read = signature({"task": "t", "subtask_type": "special"}, app=app)
        assert type(read) is Special
        assert type(read.clone()) is Special
    finally:
        del Signature.TYPES["special"]


# -- arguments


def test_partial_arguments_come_first_and_keywords_win(tasks: SimpleNamespace) -> None:
    clone = tasks.tell.s(2, a=1, b=1).clone((1,), {"b": 2})

    assert clone.args == (1, 2) and clone.kwargs == {"a": 1, "b": 2}


def test_an_immutable_signature_takes_options_only(tasks: SimpleNamespace) -> None:
    clone = tasks.tell.si(2).clone((1,), {"b": 2}, queue="q")

    assert clone.args == (2,) and clone.kwargs == {} and clone.options == {"queue": "q"}
    assert clone.immutable


def test_a_clone_shares_nothing_that_can_be_set(tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1, y=2).set(link=[tasks.tell.s()], headers={"a": {"b": 1}})
    clone = sig.clone()
    clone.kwargs["y"] = 3
    clone.options["headers"]["a"]["b"] = 2
    clone.options["link"][0].set(queue="q")

    assert sig.kwargs == {"y": 2}
    assert sig.options["headers"] == {"a": {"b": 1}}
    assert sig.options["link"][0].options == {}


def test_a_clone_keeps_callbacks_as_signatures(tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1).set(link=[tasks.tell.s()])

    assert isinstance(sig.clone().options["link"][0], Signature)


def test_values_of_arguments_are_shared_not_copied(tasks: SimpleNamespace) -> None:
    payload: list[int] = []

    assert tasks.tell.s(payload).clone().args[0] is payload


def test_replace_changes_only_what_is_given(tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1, y=2).set(queue="q")

    assert sig.replace(args=(5,)) == {**sig, "args": (5,)}
    assert sig.replace(kwargs={}) == {**sig, "kwargs": {}}
    assert sig.replace(options={}) == {**sig, "options": {}}


def test_partial_is_clone(tasks: SimpleNamespace) -> None:
    assert tasks.add.s(2).partial((1,), queue="q") == tasks.add.s(2).clone((1,), queue="q")
    members = group(tasks.add.s(1), tasks.add.s(2))
    assert members.partial().tasks[0] is not members.tasks[0]


def test_set_gives_the_signature_itself(tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1)

    assert sig.set(countdown=1, immutable=True) is sig
    assert sig.options == {"countdown": 1} and sig.immutable


# -- ids


def test_freezing_twice_changes_nothing(app: Celery, tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1, 1)
    first = sig.freeze(group_id="g", group_index=2, root_id="r", parent_id="p")
    options = dict(sig.options)
    second = sig.freeze("other", group_id="other")

    assert first == second and sig.id == first.id == sig.options["task_id"]
    assert sig.options == options
    assert options["reply_to"] == app.thread_oid
    assert (sig.root_id, sig.parent_id, options["group_id"], options["group_index"]) == ("r", "p", "g", 2)


def test_freezing_takes_the_id_that_is_given(tasks: SimpleNamespace) -> None:
    assert tasks.add.s(1, 1).freeze("mine").id == "mine"


def test_clones_of_a_frozen_signature_keep_its_id_and_group(tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1, 1)
    sig.freeze(group_id="g")
    clone = sig.clone(group_id="other", queue="q")

    assert clone.id == sig.id and clone.options["group_id"] == "g" and clone.options["queue"] == "q"


# -- callbacks


def test_link_gives_the_callback_and_on_error_the_signature(tasks: SimpleNamespace) -> None:
    sig, callback, errback = tasks.add.s(1, 1), tasks.tell.s(1), tasks.tell.s(2)

    assert sig.link(callback) is callback
    assert sig.on_error(errback) is sig
    assert sig.link_error(errback) is errback
    assert sig.options == {"link": [callback], "link_error": [errback]}


def test_a_single_callback_becomes_a_list(tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1, 1).set(link=tasks.tell.s(1))
    sig.link(tasks.tell.s(2))
    sig.extend_list_option("link", [tasks.tell.s(3)])
    sig.extend_list_option("link", tasks.tell.s(4))

    assert [link.args for link in sig.options["link"]] == [(1,), (2,), (3,), (4,)]


def test_flatten_links_follows_callbacks_of_callbacks(tasks: SimpleNamespace) -> None:
    inner, outer, sig = tasks.tell.s(2), tasks.tell.s(1), tasks.add.s(1, 1)
    outer.link(inner)
    sig.link(outer)

    assert sig.flatten_links() == [sig, outer, inner]
    assert signature(json.loads(json.dumps(sig))).flatten_links()[2].args == [2]


# -- where it belongs


def test_a_signature_of_a_task_belongs_to_the_tasks_app(app: Celery, tasks: SimpleNamespace) -> None:
    assert tasks.add.s(1).app is app
    assert tasks.add.s(1).type.name == "proj.tasks.add"
    assert signature(tasks.add).app is app


def test_a_task_known_by_name_only_is_sent_all_the_same(app: Celery, sent: list[SimpleNamespace]) -> None:
    result = signature("elsewhere.task", args=(1,), app=app).apply_async((0,), countdown=None)

    assert [(call.task, call.args) for call in sent] == [("elsewhere.task", [0, 1])]
    assert sent[0].headers["id"] == result.id


def test_options_given_at_the_call_win(tasks: SimpleNamespace, sent: list[SimpleNamespace]) -> None:
    tasks.add.s(1, 1).set(task_id="a", shadow="s").apply_async(task_id="b")

    assert sent[0].headers["id"] == "b" and sent[0].headers["shadow"] == "s"


def test_the_tilde_sends_and_waits(eager: Celery, tasks: SimpleNamespace) -> None:
    assert ~tasks.add.s(2, 2) == 4


def test_election_asks_the_workers_to_agree(
    app: Celery, tasks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(app.control, "election", lambda *args, **kwargs: asked.append((args, kwargs)))

    result = tasks.add.s(2, 2).election()

    (args, kwargs) = asked[0]
    assert args[:2] == (result.id, "task") and args[2].id == result.id and args[2].args == (2, 2)
    assert "connection" in kwargs


# -- what is no signature


def test_a_header_takes_signatures_and_tasks_alone(tasks: SimpleNamespace) -> None:
    for header in ([5], (each for each in [5])):
        with pytest.raises(TypeError, match=r"chord\(\) takes signatures, but got 5.*task\.s\(\.\.\.\)"):
            chord(header, tasks.add.s())()


@pytest.mark.parametrize("build", [lambda bad: group([bad]), lambda bad: group(bad)])
def test_what_is_no_signature_is_refused_with_a_remedy(tasks: SimpleNamespace, build: Any) -> None:
    with pytest.raises(TypeError, match=r"takes signatures, but got .*proj\.tasks\.add\.s\(\.\.\.\)"):
        build(tasks.add)
    with pytest.raises(TypeError, match=r"takes signatures, but got 5.*task\.s\(\.\.\.\)"):
        build(5)


@pytest.mark.parametrize(
    "build",
    [
        lambda add, bad: add.s(1) | bad,
        lambda add, bad: chain(add.s(1), bad),
        lambda add, bad: chord([add.s(1, 1)], bad),
        lambda add, bad: chord([add.s(1, 1)])(bad),
        lambda add, bad: group(each for each in [bad])(),
        lambda add, bad: group(each for each in [add.s(1, 1), bad])(),
        lambda add, bad: add.s(1, 1).link(bad),
        lambda add, bad: add.s(1, 1).link_error(bad),
        lambda add, bad: group(add.s(1, 1)).link(bad),
        lambda add, bad: chord([add.s(1, 1)], add.s(1)).link_error(bad),
    ],
)
def test_whoever_takes_signatures_names_what_is_none(tasks: SimpleNamespace, build: Any) -> None:
    with pytest.raises(TypeError, match=r"takes signatures, but got 5.*task\.s\(\.\.\.\)"):
        build(tasks.add, 5)
    with pytest.raises(TypeError, match=r"takes signatures, but got <@task: .*proj\.tasks\.add\.s\(\.\.\.\)"):
        build(tasks.add, tasks.add)


@pytest.mark.parametrize("bad", [5, None, ["proj.tasks.add"], {"no": "task"}])
def test_a_signature_is_made_of_a_task_a_name_or_a_dictionary(bad: Any) -> None:
    with pytest.raises(TypeError, match=rf"^signature\(\) takes .*{re.escape(repr(bad))}"):
        signature(bad)


def test_the_pipe_leaves_types_that_know_it_to_themselves(tasks: SimpleNamespace) -> None:
    class Collector:
        def __ror__(self, left: Any) -> Any:
            return "taken", left

    assert tasks.add.s(1) | Collector() == ("taken", tasks.add.s(1))
    with pytest.raises(TypeError, match="takes signatures"):
        tasks.add.s(1) | {"no": "task"}
    assert (tasks.add.s(1, 1) | dict(tasks.add.s(2))).tasks[1] == tasks.add.s(2)


def test_the_name_to_route_by_is_handed_on(
    app: Celery, tasks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(app, "send_task", lambda *args, **kwargs: asked.append(kwargs.get("route_name")))
    tasks.add.s(1, 1).apply_async(route_name="as.this")
    tasks.add.s(1, 1).apply_async()

    assert asked == ["as.this", None]


def test_type_and_app_can_be_set(app: Celery, tasks: SimpleNamespace) -> None:
    sig = Signature("proj.tasks.add", type=tasks.add)
    assert sig.app is app
    sig = Signature("unknown")
    sig.app, sig.type = app, tasks.tell
    assert sig.app is app and sig.type is tasks.tell
    assert Signature("unknown", app=app).freeze().id
    assert repr(signature("no_module", args=(1,))) == "no_module(1)"


def test_old_names_of_methods_work(tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1, 1).set(link=[tasks.tell.s()])
    sig.stamp_links(None, stamp="a")

    assert sig._freeze("mine").id == "mine"
    assert sig.options["link"][0].options["stamp"] == "a" and "stamp" not in sig.options
    assert sig._stamp_headers({"b": 1}, a=1) == {"a": 1, "b": 1, "stamped_headers": ["a", "b"]}


def test_what_is_read_with_an_app_belongs_to_it_with_all_its_parts(app: Celery, tasks: SimpleNamespace) -> None:
    made = chain(tasks.add.s(1, 1), group(tasks.add.s(2), tasks.add.s(3)), tasks.xsum.s())
    read = maybe_signature(json.loads(json.dumps(made)), app=app)

    parts = [*read.tasks, *read.tasks[1].tasks, read.tasks[1].body]
    assert len(parts) == 5 and all(part.app is app for part in parts)


def test_parts_keep_their_own_app_when_the_whole_has_none(app: Celery, tasks: SimpleNamespace) -> None:
    made = chain([signature("unknown"), tasks.add.s(1)])

    assert made.app is app
    made.freeze()
    assert made.tasks[0].app is app and made.tasks[1].app is app
