"""Workflows run by a worker, on each broker that keeps results: values, order, replacing, stamps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from tests.support.workflow_model import Tree, normal, run
from tests.support.workflows import Shop

#: Workflows in each other, and what they give.
SHAPES: dict[str, Any] = {
    # groups in groups, in order
    "group(add.s(1, 1), add.s(2, 2))": [2, 4],
    "group(group(add.s(1, 1), add.s(2, 2)), add.s(3, 3))": [2, 4, 6],
    "chain(add.s(1, 1), group(group(add.s(0), add.s(2)), add.s(1)))": [2, 4, 3],
    "chain(add.s(1, 1), group(add.s(1), group(add.s(2), add.s(3))), echo.s())": [3, 4, 5],
    "group(chain(add.s(1, 1), group(add.s(2), add.s(3))), add.s(3, 3))": [[4, 5], 6],
    # groups that something follows
    "chain(group(add.s(1, 1), add.s(2, 2)), total.s())": 6,
    "chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s(), add.s(1), group(add.s(1), add.s(2)), total.s())": 19,
    "chain(group(add.s(1, 1), add.s(2, 2)), group(total.s(), echo.s()), echo.s())": [6, [2, 4]],
    "chain(add.s(1, 1), group(chain(add.s(1), add.s(2)), chain(add.s(3), group(add.s(4), add.s(5)))), echo.s())": [
        5,
        [9, 10],
    ],
    # nothing, and one
    "group([])": [],
    "chain(add.s(1, 1), group([]), add.s(1))": 3,
    "chain(add.s(1, 1), group(add.s(1)), add.s(1))": 4,
    "chain(group(group(add.s(1, 1))), echo.s())": 2,
    "chord([], echo.s())": [],
    "chord([group([]), add.s(1, 1), chain()], echo.s())": [2],
    "chord([chord([add.s(1, 1)], group([])), add.s(1, 1)], echo.s())": [[], 2],
    "chord([add.s(1, 1)], group([]))": [],
    # generators
    "group(add.s(i, i) for i in range(3))": [0, 2, 4],
    "chain(add.s(1, 1), group(add.s(i) for i in range(3)), total.s())": 9,
    "group(unhurried(5))": [0, 1, 2, 3, 4],
    "chord(unhurried(5), total.s())": 10,
    "group(chord((add.s(i, j) for i in range(2)), total.s()) for j in range(2))": [1, 3],
    # chords
    "chord([add.s(1, 1), add.s(2, 2)], total.s() | add.s(1) | group(add.s(1), add.s(2)))": [8, 9],
    "chord([add.s(1, 1), add.s(2, 2)], group(total.s(), group(echo.s(), total.s())))": [6, [2, 4], 6],
    "chord([add.s(1, 1), add.s(2, 2)], chord([total.s(), total.s()], chord([total.s(), total.s()], echo.s())))": [
        12,
        12,
    ],
    "chord([chord([add.s(1, 1), add.s(2, 2)], total.s() | add.s(1)), add.s(5, 5)], echo.s())": [7, 10],
    "chord([chord([add.s(1, 1), add.s(2, 2)], group(total.s(), echo.s())), add.s(5, 5)], echo.s())": [
        [6, [2, 4]],
        10,
    ],
    "chord([chain(add.s(1, 1), chord([add.s(2), add.s(3)], total.s()), add.s(1)), add.s(5, 5)], echo.s())": [10, 10],
    "chain(*[chord([add.s(1), add.s(2)], total.s()) for _ in range(4)]).clone((1,))": 61,
    "chain(add.s(1, 1), chord([add.s(1), add.s(2)], group(total.s(), echo.s())), group(echo.s(), echo.s()))": [
        [7, [3, 4]],
        [7, [3, 4]],
    ],
    "chain(chord([add.s(1, 1), add.s(2, 2)], chord([total.s(), total.s()], total.s() | group(add.s(1), add.s(2)))), echo.s())": [
        13,
        14,
    ],
    "group(chord([add.s(1, 1), add.s(2, 2)], total.s() | add.s(1)))": [7],
    # arguments for a composite
    "chord([add.s(1), add.s(2)], total.s()).apply_async((10,))": 23,
    "chain(chord([add.s(1), add.s(2)], total.s()), add.s(1)).apply_async((10,))": 24,
    "chain(chain(add.s(1), add.s(2)), add.s(3)).apply_async((10,))": 16,
    "group(add.s(1), chord([add.s(2), add.s(3)], total.s())).apply_async((10,))": [11, 25],
    # read from JSON
    "reread(chord([chord([add.s(1, 1), add.s(2, 2)], total.s() | add.s(1)), group(add.s(5, 5))], echo.s()))": [7, 10],
    # maps
    "chain(add.si(1, 0), echo.map([1, 2]), total.s())": 3,
    "chord([add.chunks([(1, 1), (2, 2), (3, 3)], 2), add.starmap([(1, 1)])], echo.s())": [[2, 4], [6], [2]],
    "add.chunks([(1, 1), (2, 2), (3, 3)], 2) | echo.s()": [[2, 4], [6]],
    # bodies too large to travel
    "chord([add.s(1, 1), add.s(2, 2)], chain(echo.s(BIG), echo.si(3)))": 3,
    "chord([chord([add.s(1, 1), add.s(2, 2)], echo.si(4, BIG) | echo.si(4)), add.s(1, 1)], echo.s(BIG) | echo.si(5))": 5,
    "chain(chord([add.s(1, 1)], total.s()), echo.si(BIG), chord([echo.si(1), echo.si(2)], echo.s()))": [1, 2],
    # in the place of a task
    "replaced.s(by='add.s(1, 1)')": 2,
    "replaced.s(by='group([])')": [],
    "replaced.s(by='group(add.s(1, 1))')": [2],
    "replaced.s(by='chain(add.s(1, 1), group(add.s(2), add.s(3)))')": [4, 5],
    "replaced.s(by='chord([add.s(1, 1), add.s(2, 2)], group(total.s(), echo.s()))')": [6, [2, 4]],
    "replaced.s(by='chord([add.s(1, 1), add.s(2, 2)], total.s() | group(add.s(1), add.s(2)))')": [7, 8],
    "replaced.s(by='add.chunks([(1, 1), (2, 2), (3, 3)], 2)')": [[2, 4], [6]],
    "replaced.s(by='chain(replaced.s(by=\"add.s(1, 1)\"), add.s(1))')": 3,
    "chain(add.s(1, 1), replaced.s(by='group(add.s(value, 1), add.s(value, 2))'), total.s(), add.s(1))": 8,
    "chord([chain(add.s(1, 1), replaced.s(by='chain(add.s(value, 1), add.s(1))'), add.s(7)), add.s(2, 2)], echo.s())": [
        11,
        4,
    ],
    "chord([replaced.s(by='group(add.s(1, 1), add.s(1, 2))'), add.s(2, 2)], echo.s())": [[2, 3], 4],
    "chord([add.s(1, 1), add.s(2, 2)], replaced.s(by='chord([total.s(value), echo.s(value)], echo.s())') | echo.s())": [
        6,
        [2, 4],
    ],
    # added to a chord that runs
    "chord([more.s(1, 'add.si(100)'), more.s(2, 'chain(add.si(50), add.s(1))', lazy=True), add.s(1, 1)], total.s())": 156,
    # tried again
    "chord([again.s(tag='a'), chain(again.s(tag='b'), again.s(tag='c'))], echo.s())": ["a", "c"],
}


def of_depth(depth: int, tags: Iterator[int]) -> Iterator[Tree]:
    """Workflows of a few parts in each other."""

    def task() -> Tree:
        return ("task", next(tags))

    yield task()
    if not depth:
        return
    for inner in of_depth(depth - 1, tags):
        yield ("chain", [inner, task()])
        yield ("chain", [task(), inner])
        yield ("chain", [task(), inner, task()])
        yield ("group", [inner, task()])
        yield ("chord", [inner, task()], task())
        yield ("chord", [task(), task()], inner)


def text_of(tree: Tree) -> str:
    if tree[0] == "task":
        return f"call.s({tree[1]})"
    inner = ", ".join(map(text_of, tree[1]))
    return f"chord([{inner}], {text_of(tree[2])})" if tree[0] == "chord" else f"{tree[0]}({inner})"


def test_workflows_in_each_other_give_what_they_say(shop: Shop) -> None:
    sent = [shop.send(text) for text in SHAPES]

    assert {each.text: each.value() for each in sent} == SHAPES


def test_workflows_of_depth_three_give_what_the_model_says(shop: Shop) -> None:
    trees = {text_of(tree): tree for tree in of_depth(3, itertools.count(1))}
    sent = [shop.send(text, "x") for text in trees if not text.startswith("call")]

    assert len(sent) > 150
    assert {each.text: each.value() for each in sent} == {
        each.text: run(normal(trees[each.text]), "x") for each in sent
    }


#: Stamped workflows, and the stamps of each call: of all, or by its tag.
STAMPED: dict[str, Any] = {
    "stamped(stamps.s(tag='1'), a=1)": {"a": 1},
    "stamped(chain(stamps.s(tag='1'), group(stamps.s(tag='2'), stamps.s(tag='3')), stamps.s(tag='4')), a=1)": {"a": 1},
    "stamped(chord([stamps.s(tag='1'), chain(stamps.s(tag='2'), stamps.s(tag='3'))], stamps.s(tag='4')), a=1)": {
        "a": 1
    },
    "stamped(again.s(tag='1'), a=1)": {"a": 1},
    "stamped(chord([again.s(tag='1'), chain(again.s(tag='2'), stamps.s(tag='3'))], again.s(tag='4')), a=1)": {"a": 1},
    "stamped(replaced.s(by=\"stamps.s(tag='1')\"), a=1)": {"a": 1},
    "stamped(replaced.s(by=\"chain(stamps.s(tag='1'), group(stamps.s(tag='2'), stamps.s(tag='3')))\"), a=1)": {"a": 1},
    "stamped(chord([replaced.s(by=\"chord([stamps.s(tag='1')], stamps.s(tag='2'))\")], stamps.s(tag='3')), a=1)": {
        "a": 1
    },
    "stamped(replaced.s(by=\"stamped(stamps.s(tag='1'), b=2)\"), a=1)": {"a": 1, "b": 2},
    "stamped(replaced.s(by=\"stamped(stamps.s(tag='1'), a=2)\"), a=1)": {"a": 2},
    "stamped(stamps.s(tag='1').set(link=[stamps.s(tag='2')]), Visitor())": {
        "1": {"call": 1},
        "2": {"call": 1, "callback": 1},
    },
    "stamped(chain(stamps.s(tag='1'), group(stamps.s(tag='2'), stamps.s(tag='3')), stamps.s(tag='4')), Visitor())": {
        "1": {"call": 1, "in_chain": 1},
        "2": {"call": 1, "in_chain": 1, "in_group": 1},
        "3": {"call": 1, "in_chain": 1, "in_group": 1},
        "4": {"call": 1, "in_chain": 1, "in_group": 1, "body": 1},
    },
    "stamped(chord([chord([stamps.s(tag='1')], stamps.s(tag='2'))], stamps.s(tag='3')), Visitor())": {
        "1": {"call": 1, "in_group": 1},
        "2": {"call": 1, "in_group": 1, "body": 1},
        "3": {"call": 1, "in_group": 1, "body": 1},
    },
}


def test_stamps_reach_every_call_through_links_chords_retries_and_replacements(shop: Shop) -> None:
    sent = [shop.send(text) for text in STAMPED]

    for each in sent:
        wanted, tags = STAMPED[each.text], {tag for tag in "1234" if f"tag='{tag}'" in each.text}
        each.value()
        notes = each.wait_for("stamps", len(tags) + each.text.count("again"))
        assert {tag for _, tag, _ in notes} == tags, each.text
        for _, tag, found in notes:
            assert found == wanted.get(tag, wanted), (each.text, tag)


def test_a_callback_of_a_chain_that_ends_in_a_group_gets_the_value_of_each_member(shop: Shop) -> None:
    sent = shop.send("chain(add.s(1, 1), group(add.s(1), add.s(2))).apply_async(link=echo.s('linked'))")

    assert sorted(sent.wait_for("echo", 2)) == [["echo", 3, "linked"], ["echo", 4, "linked"]]


def test_a_chain_of_five_thousand_steps_is_sent(shop: Shop) -> None:
    sent = shop.send("chain(fail.si() if at == 3 else add.si(at, 0) for at in range(5000))")

    assert type(sent.error()) is ValueError
    assert len(sent.notes("add")) == 3
