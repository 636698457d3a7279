"""Workflows of any shape give what a model of a few lines says, applied here or run from a queue.

The model knows trees of tuples only: what a chain, a group and a chord mean, and that a group of one in
a chain is that one.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_clone import Celery
from celery_clone.canvas import chain, chord, group, signature

Tree = Any


def steps(tasks: list[Tree]) -> list[Tree]:
    """The steps of a chain: chains opened, groups of none left out, groups of one unrolled."""
    opened: list[Tree] = []
    for tree in tasks:
        opened += steps(tree[1]) if tree[0] == "chain" else [tree]
    opened = [tree for tree in opened if tree[0] != "group" or any(members(tree[1]))]
    found: list[Tree] = []
    for tree in opened:
        after_a_leading_group = len(found) == 1 and found[0][0] == "group"
        only = list(members(tree[1])) if tree[0] == "group" else []
        if len(only) == 1 and not after_a_leading_group:
            found += steps(only)
        else:
            found.append(tree)
    return found


def normal(tree: Tree) -> Tree:
    """The tree as the constructors take it: a chain of one group is that group."""
    if tree[0] == "task":
        return tree
    if tree[0] == "chord":
        return ("chord", [normal(each) for each in tree[1]], normal(tree[2]))
    inner = [normal(each) for each in tree[1]]
    if tree[0] == "chain":
        laid_out = steps(inner)
        if len(laid_out) == 1 and laid_out[0][0] == "group":
            return laid_out[0]
    return (tree[0], inner)


def members(trees: list[Tree]) -> Iterator[Tree]:
    for tree in trees:
        if tree[0] == "group":
            yield from members(tree[1])
        elif tree[0] != "chain" or steps(tree[1]):
            yield tree


def expected(tree: Tree, value: Any) -> Any:
    if tree[0] == "task":
        return called(value, tree[1])
    if tree[0] == "group":
        return [expected(member, value) for member in members(tree[1])]
    if tree[0] == "chord":
        return expected(tree[2], [expected(member, value) for member in members(tree[1])])
    for step in steps(tree[1]):
        value = expected(step, value)
    return value


def called(value: Any, tag: int) -> str:
    shown = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return f"{tag}({shown})"


def does_something(tree: Tree) -> bool:
    return tree[0] != "chain" or bool(steps(tree[1]))


trees = st.recursive(
    st.integers(0, 99).map(lambda tag: ("task", tag)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda tasks: ("chain", tasks)),
        st.lists(inner, max_size=3).map(lambda tasks: ("group", tasks)),
        st.tuples(st.just("chord"), st.lists(inner, max_size=3), inner.filter(does_something)),
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def eager_app() -> Iterator[Celery]:
    app = Celery("model", broker="memory://", backend="cache+memory://", set_as_current=False)
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
@given(tree=trees.filter(does_something))
def test_any_workflow_gives_what_the_model_says(eager_app: Celery, tree: Tree) -> None:
    assert build(eager_app, tree).apply(("x",)).get() == expected(normal(tree), "x")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees.filter(does_something))
def test_freezing_any_workflow_twice_changes_nothing(eager_app: Celery, tree: Tree) -> None:
    made = build(eager_app, tree)

    assert made.freeze().as_tuple() == made.freeze().as_tuple()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees.filter(does_something))
def test_any_workflow_is_the_same_after_it_was_frozen(eager_app: Celery, tree: Tree) -> None:
    made = build(eager_app, tree)
    made.freeze()

    assert made.apply(("x",)).get() == expected(normal(tree), "x")


@pytest.fixture(scope="module")
def calls(queued_app: Celery) -> list[int]:
    """The tags of the calls that were run, from the queue."""
    tags: list[int] = []

    def call(value: Any, tag: int) -> str:
        tags.append(tag)
        if tag < 0:
            raise ValueError(tag)
        return called(value, tag)

    queued_app.task(name="call", shared=False)(call)
    return tags


def tags_of(tree: Tree) -> Iterator[int]:
    if tree[0] == "task":
        yield tree[1]
        return
    parts = list(members(tree[1])) if tree[0] != "chain" else steps(tree[1])
    for part in (*parts, *tree[2:]):
        yield from tags_of(part)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees.filter(does_something), seed=st.integers(0, 1000))
def test_run_from_a_queue_in_any_order_it_gives_the_same_and_runs_each_task_once(
    queued_app: Celery, run_queue: Any, calls: list[int], tree: Tree, seed: int
) -> None:
    calls.clear()
    result = build(queued_app, tree).apply_async(("x",))
    run_queue(Random(seed).randrange)

    tree = normal(tree)
    value = expected(tree, "x")
    if tree[0] == "group" and len(value) == 1 and isinstance(value[0], list):
        # A group of one chain that ends in a group gives the result of that group.
        value = value[0]
    assert result.get(timeout=0.1) == value
    assert sorted(calls) == sorted(tags_of(tree))
