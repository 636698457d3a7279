"""Workflows of any shape give what a model of a few lines says, applied here or run from a queue."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_clone import Celery
from celery_clone.canvas import chain, chord, group, signature
from celery_clone.result import GroupResult
from tests.support.workflow_model import Failed, Tree, called, does_something, errbacks, normal, run, tags_of

trees = st.recursive(
    st.integers(0, 99).map(lambda tag: ("task", tag)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda tasks: ("chain", tasks)),
        st.lists(inner, max_size=3).map(lambda tasks: ("group", tasks)),
        st.tuples(st.just("chord"), st.lists(inner, max_size=3), inner.filter(does_something)),
    ),
    max_leaves=12,
).filter(lambda tree: does_something(tree) and bool(list(tags_of(normal(tree)))))
"""Workflows with a task in them: of nothing nobody can tell the app."""


@pytest.fixture(scope="module")
def eager_app() -> Iterator[Celery]:
    # Current, since workflows of nothing but empty groups know no app.
    app = Celery("model", broker="memory://", backend="cache+memory://")
    app.conf.task_always_eager = True
    app.task(name="call", shared=False)(called)
    yield app
    app.close()


def build(app: Celery, tree: Tree) -> Any:
    if tree[0] == "task":
        return signature("call", args=(tree[1],), app=app)
    parts = [build(app, each) for each in tree[1]]
    if tree[0] == "chord":
        return chord(parts, build(app, tree[2]))
    return chain(parts) if tree[0] == "chain" else group(parts)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees)
def test_any_workflow_gives_what_the_model_says(eager_app: Celery, tree: Tree) -> None:
    assert build(eager_app, tree).apply(("x",)).get() == run(normal(tree), "x")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees)
def test_freezing_any_workflow_twice_changes_nothing(eager_app: Celery, tree: Tree) -> None:
    made = build(eager_app, tree)

    assert made.freeze().as_tuple() == made.freeze().as_tuple()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees)
def test_any_workflow_is_the_same_after_it_was_frozen(eager_app: Celery, tree: Tree) -> None:
    made = build(eager_app, tree)
    made.freeze()

    assert made.apply(("x",)).get() == run(normal(tree), "x")


class Calls:
    """What was run: ``tags`` of tasks, and the ids that error callbacks were called for; ``bad`` tags fail."""

    def __init__(self) -> None:
        self.tags: list[int] = []
        self.failed: list[str] = []
        self.bad: set[int] = set()

    def forget(self, *bad: int) -> None:
        self.tags, self.failed, self.bad = [], [], set(bad)


@pytest.fixture(scope="module")
def calls(queued_app: Celery) -> Calls:
    """The calls that were run, from the queue."""
    calls = Calls()

    def call(value: Any, tag: int) -> str:
        calls.tags.append(tag)
        if tag in calls.bad:
            raise Failed(tag)
        return called(value, tag)

    def errback(request: Any, exc: Any, traceback: Any) -> None:
        calls.failed.append(request.id)

    queued_app.task(name="call", shared=False)(call)
    queued_app.task(name="errback", shared=False)(errback)
    return calls


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees, seed=st.integers(0, 1000))
def test_run_from_a_queue_in_any_order_it_gives_the_same_and_runs_each_task_once(
    queued_app: Celery, run_queue: Any, calls: Calls, tree: Tree, seed: int
) -> None:
    calls.forget()
    result = build(queued_app, tree).apply_async(("x",))
    run_queue(Random(seed).randrange)

    tree = normal(tree)
    value = run(tree, "x")
    if tree[0] == "group" and len(value) == 1 and isinstance(value[0], list):
        # A group of one chain that ends in a group gives the result of that group.
        value = value[0]
    assert result.get(timeout=0.1) == value
    assert sorted(calls.tags) == sorted(tags_of(tree))


def unfinished(result: Any) -> list[str]:
    """The ids of the calls that lead to a result, and have not ended."""
    found, seen, waiting = [], set(), [result]
    while waiting:
        result = waiting.pop()
        if result is None or result.id in seen:
            continue
        seen.add(result.id)
        if isinstance(result, GroupResult):
            waiting += result.results
        elif not result.ready():
            found.append(result.id)
        waiting.append(result.parent)
    return found


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees, data=st.data())
def test_whatever_fails_everything_ends_with_that_error_and_each_error_callback_is_called_once(
    queued_app: Celery, run_queue: Any, calls: Calls, tree: Tree, data: st.DataObject
) -> None:
    run_queue()  # what an example that failed has left
    made, tree = build(queued_app, tree), normal(tree)
    calls.forget(data.draw(st.sampled_from(sorted(set(tags_of(tree)))), "the tag that fails"))
    made.link_error(signature("errback", app=queued_app))
    result = made.apply_async(("x",))
    run_queue(Random(data.draw(st.integers(0, 1000), "order")).randrange)

    ran: list[int] = []

    def call(value: Any, tag: int) -> str:
        ran.append(tag)
        if tag in calls.bad:
            raise Failed(tag)
        return called(value, tag)

    with pytest.raises(Failed):
        run(tree, "x", call)
    with pytest.raises(Failed):
        result.get(timeout=0.1)
    assert unfinished(result) == []
    assert sorted(calls.tags) == sorted(ran)
    assert len(calls.failed) == errbacks(tree, calls.bad)
