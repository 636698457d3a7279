"""What will not run: which calls are in it, where it ends, who is told, and that nobody is told twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_clone import Celery, states
from celery_clone.backends import unrun
from celery_clone.backends.cache import CacheBackend
from celery_clone.canvas import Signature, chain, chord, group
from celery_clone.exceptions import ChordError, TaskRevokedError
from celery_clone.execution.context import Context


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("unrun", broker="memory://", backend="cache+memory://", set_as_current=False)
    for name in "abcdefg":
        app.task(name=name, shared=False)(lambda *args: None)
    yield app
    app.close()


def names_of(app: Celery) -> dict[str, Any]:
    signatures = {name: app.signature(name, app=app) for name in "abcdefg"}
    return {**signatures, "chain": chain, "chord": chord, "group": group}


@pytest.mark.parametrize(
    ("text", "calls", "ends", "failing"),
    [
        ("a", "a", "a", ["a"]),
        ("group([a, b])", "ab", "ab", ["a", "b"]),
        ("group([a, group([b, c])])", "abc", "abc", ["a", "b", "c"]),
        ("chain([a, b, c], app=None)", "abc", "c", ["celery.chain"]),
        ("chain([a, group([b, c])], app=None)", "abc", "bc", ["celery.chain"]),
        ("chord([a, b], c)", "ABc", "c", ["c"]),
        ("chord([a, b], group([c, d]))", "ABcd", "cd", ["c", "d"]),
        ("chord([a, b], chain([c, d], app=None))", "ABcd", "d", ["celery.chain"]),
        ("chord([a], chord([b], chord([c], d)))", "ABCd", "d", ["d"]),
        ("chord([chain([a, chord([b], c)], app=None), d], e)", "ABCDe", "e", ["e"]),
        ("group([chord([a], group([b, c])), chain([d, e], app=None)])", "Abcde", "bce", ["b", "c", "celery.chain"]),
    ],
)
def test_the_parts_of_a_signature(app: Celery, text: str, calls: str, ends: str, failing: list[str]) -> None:
    sig = eval(text, names_of(app))

    # Members of headers in capitals.
    assert "".join(c["task"].upper() if header else c["task"] for c, header in unrun.calls_in(sig)) == calls
    assert "".join(call.task for call, _ in unrun.ends_of(sig)) == ends
    assert [part.sig.task for part in unrun.failing_in(sig)] == failing


def test_error_callbacks_are_those_of_what_it_would_have_begun_with(app: Celery) -> None:
    names = names_of(app)
    for name in "abcd":
        names[name].link_error(app.signature(f"errback of {name}"))
    sig = eval("chord([a], chain([chord([b], c), d], app=None))", names)

    (part,) = unrun.failing_in(sig)

    assert [errback["task"] for errback in part.errbacks] == ["errback of c"]


def state_of(app: Celery, sig: Signature) -> list[str]:
    return [app.backend.get_state(call["options"]["task_id"]) for call, _ in unrun.calls_in(sig)]


@pytest.mark.parametrize(
    "text",
    [
        "chord([a, b], c)",
        "chord([a, b], group([c, d]))",
        "chord([a, b], chain([c, d], app=None))",
        "chord([a], chord([b], chord([c], d)))",
        "group([chord([a], group([b, c])), d])",
    ],
)
def test_every_call_of_what_follows_a_failure_fails(app: Celery, text: str) -> None:
    follower = eval(text, names_of(app))
    follower.freeze()

    app.backend.mark_as_failure("first", KeyError("k"), request=Context(id="first", chain=[follower]))

    assert set(state_of(app, follower)) == {states.FAILURE}


@pytest.mark.parametrize("text", ["a", "group([a, b])", "chain([a, b], app=None)", "chord([a, b], group([c, d]))"])
def test_every_call_of_a_body_fails_with_its_header(app: Celery, text: str) -> None:
    body = eval(text, names_of(app))
    body.freeze()
    error = ChordError("the header failed")
    error.__cause__ = KeyError("k")

    app.backend.chord_error_from_stack(body, error)

    assert set(state_of(app, body)) == {states.FAILURE}


def test_what_ends_in_a_group_gets_the_error_itself_and_all_else_that_of_the_chord(app: Celery) -> None:
    names = names_of(app)
    bodies = [names["a"], group([names["b"], names["c"]])]
    for body in bodies:
        body.freeze()
        error = ChordError("the header failed")
        error.__cause__ = KeyError("k")
        app.backend.chord_error_from_stack(body, error)

    found = [type(app.backend.get_result(call.id)) for body in bodies for call, _ in unrun.calls_in(body)]

    assert found == [ChordError, KeyError, KeyError]


def test_what_would_have_followed_a_revoked_task_is_revoked(app: Celery) -> None:
    follower = app.signature("a", app=app)
    follower.freeze("a")

    app.backend.mark_as_revoked("first", "revoked", request=Context(id="first", chain=[follower]))

    assert app.backend.get_state("a") == states.REVOKED
    with pytest.raises(TaskRevokedError):
        app.AsyncResult("a").get(timeout=1)


@pytest.mark.parametrize(("ignored", "state"), [(False, states.FAILURE), (True, states.PENDING)])
def test_what_follows_a_task_whose_result_is_ignored_is_stored_if_it_is_not_ignored_itself(
    app: Celery, ignored: bool, state: str
) -> None:
    follower = app.signature("a", app=app).set(ignore_result=ignored)
    follower.freeze()

    request = Context(id="first", chain=[follower])
    app.backend.mark_as_failure("first", KeyError("k"), request=request, store_result=False)

    assert app.backend.get_state(follower.id) == state


class Told(CacheBackend):
    """A store that remembers which ends chords are told of, and calls ``look`` then."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.told: list[Any] = []
        self.look: Callable[[Any, str], Any] = lambda request, state: (request.id, state)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        self.told.append(self.look(request, state))


@pytest.fixture
def store(app: Celery) -> Told:
    """The store of the app."""
    app._backend = Told(app=app, url="memory://")
    return app._backend


def test_a_chord_further_out_is_told_of_each_end_once_and_of_no_header(app: Celery, store: Told) -> None:
    names = names_of(app)
    outer = names["g"]
    outer.freeze("outer")
    follower = chord([names["a"], names["b"]], group([names["c"], names["d"]]))
    follower.freeze(group_id="outer-group", chord=outer, group_index=0)
    ends = [call.id for call, _ in unrun.ends_of(follower)]

    app.backend.mark_as_failure("first", KeyError("k"), request=Context(id="first", chain=[follower]))
    # The message comes again.
    app.backend.mark_as_failure("first", KeyError("k"), request=Context(id="first", chain=[follower]))

    assert store.told == [(end, states.FAILURE) for end in ends]


def test_steps_fail_before_a_chord_further_out_is_told(app: Celery, store: Told) -> None:
    names = names_of(app)
    outer = names["g"]
    outer.freeze("outer")
    whole = chain([names["a"], names["b"], names["c"]], app=app)
    whole.freeze(group_id="outer-group", chord=outer, group_index=0)
    store.look = lambda request, state: state_of(app, whole)
    first, *rest = whole.tasks

    # A message carries the rest with the next step at the end.
    store.mark_as_failure(first.id, KeyError("k"), request=Context(id=first.id, chain=rest[::-1]))

    assert store.told == [[states.FAILURE] * 3]
