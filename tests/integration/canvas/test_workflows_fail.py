"""Workflows that fail, run by a worker: the error, an end for everybody who waits, each error callback once."""

from __future__ import annotations

import itertools

import pytest

from celery_clone.exceptions import ChordError, NotRegistered, TaskRevokedError, TimeLimitExceeded, WorkerLostError
from tests.integration.canvas.test_workflows_run import of_depth
from tests.support.wait import wait_until
from tests.support.workflow_model import Tree, errbacks, normal, tags_of
from tests.support.workflows import Sent, Shop

#: Workflows in which a task fails, and how often each error callback is called, by its tag.
FAILING: dict[str, dict[str, int]] = {
    # what real Celery 5.7 leaves waiting, or leaves untold
    "chain(chain(group(add.s(1, 1), fail.s()), add.s(1)), add.s(1)).on_error(E())": {"e": 1},
    "chord([chain(fail.s(), group(add.s(1), add.s(2))), add.s(1, 1)], echo.s()).on_error(E())": {"e": 1},
    "chord([chain(fail.s(), chord([add.s(1)], group(echo.s(), echo.s()))), add.s(1, 1)], echo.s()).on_error(E())": {
        "e": 1
    },
    "chord([chord([add.s(1, 1), fail.s()], total.s()).on_error(E('in')), add.s(1, 1)], echo.s()).on_error(E('out'))": {
        "in": 1,
        "out": 1,
    },
    "chord([chord([add.s(1, 1)], fail.s()).on_error(O('in')), add.s(1, 1)], echo.s()).on_error(O('out'))": {
        "in": 1,
        "out": 1,
    },
    "chord([chord([chord([fail.s()], total.s()).on_error(E('1'))], total.s()).on_error(E('2'))], echo.s()).on_error(E('3'))": {
        "1": 1,
        "2": 1,
        "3": 1,
    },
    "chain(add.s(1, 1), fail.s(), group(add.s(1), add.s(2)))": {},
    "chain(add.s(1, 1), fail.s(), group(chord([add.s(1)], group(total.s(), echo.s())), add.s(2)))": {},
    "group(chord([add.s(1, 1), fail.s()], total.s() | add.s(1)), add.s(1, 1))": {},
    "chain(add.s(1, 1), chord([add.s(1), fail.s()], group(total.s(), echo.s())), echo.s()).on_error(E())": {"e": 1},
    "chord([add.s(1), fail.s()], total.s()).on_error(E()).apply_async((1,))": {"e": 1},
    # bodies of all kinds
    "chord([add.s(1, 1), fail.s()], total.s() | add.s(1)).on_error(E())": {"e": 1},
    "chord([add.s(1, 1), fail.s()], total.s() | add.s(1) | group(add.s(1), add.s(2))).on_error(E())": {"e": 1},
    "chord([add.s(1, 1), fail.s()], group(total.s() | add.s(1), group(echo.s(), echo.s()))).on_error(E())": {"e": 3},
    "chord([add.s(1, 1), fail.s()], chord([total.s()], chord([echo.s()], echo.s()))).on_error(O())": {"o": 1},
    "chord([add.s(1, 1), fail.s()], chord([total.s()], echo.s() | add.s(1)).on_error(E('body'))).on_error(E())": {
        "body": 1,
        "e": 1,
    },
    "chord([add.s(1, 1)], chord([total.s(), fail.s()], echo.s())).on_error(E())": {"e": 1},
    "chord([add.s(1, 1), fail.s()], echo.s(BIG).on_error(E('body'))).on_error(O())": {"body": 1, "o": 1},
    "chord([add.s(1, 1), fail.s()], group(echo.s(BIG), echo.s())).on_error(E())": {"e": 2},
    "chord([chord([fail.s()], echo.s(BIG)), add.s(1, 1)], echo.s(BIG)).on_error(E())": {"e": 1},
    # several failures, and error callbacks that fail
    "chord([fail.s(), fail.s(), fail.s()], total.s()).on_error(O())": {"o": 1},
    "with_errback(group(fail.s(), add.s(1, 1), fail.s()), E())": {"e": 2},
    "chain(add.s(1, 1), fail.s()).on_error(BROKEN()).on_error(E()).on_error(O())": {"broken": 1, "e": 1, "o": 1},
    "chord([fail.s().on_error(E('member')), add.s(1, 1).on_error(E('other'))], total.s().on_error(BROKEN())).on_error(O())": {
        "member": 1,
        "broken": 1,
        "o": 1,
    },
    # in the place of a task
    "chain(replaced.s(by='chain(fail.s(), group(add.s(1), add.s(1)))'), total.s()).on_error(E())": {"e": 1},
    "chord([replaced.s(by='chain(fail.s(), add.s(1))'), add.s(2, 2)], echo.s()).on_error(E())": {"e": 1},
    "chord([chain(replaced.s(by='fail.s()'), add.s(1)), add.s(2, 2)], echo.s()).on_error(E())": {"e": 1},
    # mapped
    "chain(fail.map([1]), echo.s()).on_error(E())": {"e": 1},
}


def calls_of_errbacks(sent: Sent) -> dict[str, int]:
    counted: dict[str, int] = {}
    for _, tag, *_ in sent.notes("errback"):
        counted[tag] = counted.get(tag, 0) + 1
    return counted


def assert_called(sent: Sent, wanted: dict[str, int]) -> None:
    wait_until(lambda: calls_of_errbacks(sent) == wanted, 10, lambda: f"{wanted} of {sent.text}, not {sent.notes()}")


def test_the_error_reaches_the_caller_all_ends_and_each_error_callback_is_called_once(shop: Shop) -> None:
    sent = [shop.send(text) for text in FAILING]

    for each in sent:
        error = each.error()
        assert type(error) is (TypeError if "map" in each.text else ValueError), (each.text, error)
        each.wait_for_all()
        assert_called(each, FAILING[each.text])


@pytest.mark.parametrize(
    "text",
    [
        "replaced.s(by='chord([add.s(1, 1), fail.s()], total.s())')",
        "replaced.s(by='chord([add.s(1, 1), fail.s()], group(total.s(), echo.s()))')",
        "replaced.s(by='chain(add.s(1, 1), group(add.s(1), fail.s()))')",
        "chord([more.s(1, 'fail.si()'), add.s(1, 1)], total.s())",
    ],
)
def test_of_members_that_the_caller_does_not_know_the_chord_tells(shop: Shop, text: str) -> None:
    sent = shop.send(f"{text}.on_error(E())")

    with pytest.raises(ChordError, match=r"Dependency .* raised ValueError\('as told'\)"):
        sent.value()
    assert_called(sent, {"e": 1})


def failing_text(tree: Tree, bad: int) -> str:
    if tree[0] == "task":
        return f"call.s({tree[1]}, bad=True)" if tree[1] == bad else f"call.s({tree[1]})"
    inner = ", ".join(failing_text(each, bad) for each in tree[1])
    return f"chord([{inner}], {failing_text(tree[2], bad)})" if tree[0] == "chord" else f"{tree[0]}({inner})"


def test_whichever_task_of_a_workflow_of_depth_two_fails_all_ends_with_its_error(shop: Shop) -> None:
    sent: list[tuple[Sent, int, int]] = []
    for tree in of_depth(2, itertools.count(1)):
        for bad in tags_of(normal(tree)):
            text = f"with_errback({failing_text(tree, bad)}, E())"
            sent.append((shop.send(text, "x"), bad, errbacks(normal(tree), {bad})))

    assert len(sent) > 100
    for each, bad, times in sent:
        error = each.error()
        assert (type(error), error.args) == (ValueError, (bad,)), each.text
        each.wait_for_all()
        assert_called(each, {"e": times} if times else {})


def test_an_error_callback_gets_the_id_of_what_failed(shop: Shop) -> None:
    sent = shop.send("chord([add.s(1, 1), fail.s()], total.s() | add.s(1)).on_error(E()).on_error(O())")

    assert sorted(sent.wait_for("errback", 2)) == [
        ["errback", "e", sent.result.id, "ChordError"],
        ["errback", "o", sent.result.id, None],
    ]


#: What ends a task from without, and the error that tells of it.
ENDED: dict[str, type[BaseException]] = {
    "slow": TimeLimitExceeded,
    "dies": WorkerLostError,
    "revoked": TaskRevokedError,
    "expired": TaskRevokedError,
}


def member(how: str) -> str:
    """The text of a task that is ended from without."""
    if how == "revoked":
        return "add.si(1, 1).set(task_id='revoked-' + run)"
    return "add.si(1, 1).set(expires=0.001, countdown=0.1)" if how == "expired" else f"{how}.s()"


@pytest.mark.parametrize("how", ENDED)
def test_a_task_that_is_ended_from_without_ends_all_that_waits_for_it(shop: Shop, how: str) -> None:
    text = f"chord([chain({member(how)}, add.s(1), group(add.s(1), add.s(2))), add.s(1, 1)], echo.s()).on_error(E())"
    made = eval(text, dict(shop.module.names(how)))
    if how == "revoked":
        shop.app.control.broadcast("revoke", {"task_id": f"revoked-{how}"}, reply=True, timeout=5, limit=1)

    sent = Sent(text, how, made.apply_async(), shop.notes)

    assert type(sent.error()) is ENDED[how]
    sent.wait_for_all()
    assert_called(sent, {"e": 1})


def test_a_task_that_ignores_its_result_fails_the_rest_of_its_chain(shop: Shop) -> None:
    sent = shop.send("chain(quiet.s(bad=True), add.si(1, 1), group(add.s(1), add.s(2))).on_error(E())")

    with pytest.raises(ValueError, match="as told"):
        shop.app.AsyncResult(sent.result.results[0].id).get(timeout=10)
    assert_called(sent, {"e": 1})


def test_a_task_that_nobody_knows_ends_its_chord(shop: Shop) -> None:
    text = "chord([chain(signature('nowhere.nothing', app=app), add.s(1)), add.s(1, 1)], echo.s()).on_error(E())"
    sent = shop.send(text)

    assert type(sent.error()) is NotRegistered
    sent.wait_for_all()
    assert_called(sent, {"e": 1})
