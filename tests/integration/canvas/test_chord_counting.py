"""A chord counts each member once and sends its body once, whatever is delivered again and whoever dies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from celery_clone import signals, states
from celery_clone.canvas import Signature
from celery_clone.result import AsyncResult
from tests.support.wait import wait_until
from tests.support.workflows import Sent, Shop


class Members:
    """The members of a chord that was sent, so that they can be delivered again."""

    def __init__(self, shop: Shop, text: str) -> None:
        self._bodies: list[Any] = []
        signals.before_task_publish.connect(self._remember)
        try:
            self.sent: Sent = shop.send(text)
        finally:
            signals.before_task_publish.disconnect(self._remember)
        self._shop = shop
        self.results: list[AsyncResult] = self.sent.result.parent.results

    def _remember(self, body: Any, **_: Any) -> None:
        self._bodies.append(body[2]["chord"])

    def again(self, place: int, text: str) -> None:
        """Deliver a member again: its second run is that of *text*."""
        run: Signature = eval(text, dict(self._shop.module.names(self.sent.run)))
        run.apply_async(
            task_id=self.results[place].id,
            group_id=self.sent.result.parent.id,
            group_index=place,
            chord=self._bodies[place],
        )

    def let_go(self) -> None:
        """Let ``hold`` end."""
        (self._shop.notes / f"{self.sent.run}.go").touch()


@pytest.fixture
def barrier(shop: Shop) -> Iterator[Any]:
    """Wait until all that was sent before has been run."""

    def wait() -> None:
        for _ in range(2):
            shop.send("group(add.s(1, 1), add.s(1, 1))").value()

    return wait


def test_members_that_are_delivered_again_change_nothing(shop: Shop, barrier: Any) -> None:
    members = Members(shop, "chord([add.s(1, 1), add.s(2, 2), hold.s()], echo.s())")
    wait_until(lambda: all(result.ready() for result in members.results[:2]), 10, "the first two members")

    members.again(1, "add.s(50, 50)")
    members.again(0, "fail.s()")
    members.sent.wait_for("fail", 1)
    members.sent.wait_for("add", 3)
    members.let_go()

    assert members.sent.value() == [2, 4, "held"]
    assert members.results[0].state == states.SUCCESS
    # And when it is over.
    members.again(1, "add.s(60, 60)")
    members.sent.wait_for("add", 4)
    barrier()
    assert members.sent.notes("echo") == [["echo", [2, 4, "held"]]]


def test_a_member_that_failed_and_succeeds_when_it_is_delivered_again_has_failed(shop: Shop, barrier: Any) -> None:
    members = Members(shop, "chord([add.s(1, 1), fail.s(), hold.s()], echo.s()).on_error(E())")
    wait_until(lambda: all(result.ready() for result in members.results[:2]), 10, "the first two members")

    members.again(1, "add.s(50, 50)")
    members.sent.wait_for("add", 2)
    members.let_go()
    members.sent.wait_for("errback", 1)
    members.again(1, "add.s(60, 60)")
    members.sent.wait_for("add", 3)
    barrier()

    assert members.sent.result.state == states.FAILURE
    assert len(members.sent.notes("errback")) == 1
    assert members.sent.notes("echo") == []


def test_the_last_member_is_delivered_again_at_once(shop: Shop, barrier: Any) -> None:
    members = Members(shop, "chord([add.s(1, 1), hold.s()], echo.s())")
    wait_until(members.results[0].ready, 10, "the first member")

    # Both processes have it now, and end it together.
    members.again(1, "hold.s()")
    members.let_go()

    assert members.sent.value() == [2, "held"]
    barrier()
    assert len(members.sent.notes("echo")) == 1


def test_a_member_whose_process_dies_is_run_again_and_counted_once(shop: Shop, barrier: Any) -> None:
    sent = shop.send("chord([dies_once.s(1), add.s(1, 1), dies_once.s(2)], echo.s())")

    assert sent.value() == [1, 2, 2]
    barrier()
    assert len(sent.notes("echo")) == 1


@pytest.mark.parametrize("body", ["echo.s()", "echo.si(BIG)"])
def test_a_chord_leaves_nothing_that_stays(shop: Shop, barrier: Any, body: str) -> None:
    sent = shop.send(f"chord([add.s(1, 1), group(add.s(1, 1), add.s(1, 1))], {body})")
    sent.value()
    barrier()

    backend, group_id = shop.app.backend, sent.result.parent.id
    if hasattr(backend, "client"):
        left = backend.client.keys(f"celery-taskset-meta-{group_id}*")
        # That it is over, and a large body, for whoever finishes the work of a worker that died.
        assert {key.decode()[-2:] for key in left} <= {".c", ".b"}
        assert all(0 < backend.client.ttl(key) <= 7200 for key in left)
    else:
        assert backend.store.chord_parts(group_id) == []
