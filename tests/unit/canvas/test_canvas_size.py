"""What workflows send stays within a constant times their calls and arguments; large bodies travel once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from celery_clone import Celery
from celery_clone.backends import stand_ins
from celery_clone.canvas import chain, chord, group

LIMIT = 8192
"""The largest body that travels, in bytes, unless a setting says otherwise."""
A_CALL = 700
"""More than one call takes without what waits for it, in bytes."""
BIG = "b" * 100_000


@pytest.fixture(scope="module")
def step(queued_app: Celery) -> Any:
    @queued_app.task(shared=False, name="step")
    def step(*values: Any) -> int:
        return 1

    return step


@pytest.fixture
def embedding(queued_app: Celery) -> Iterator[None]:
    """Bodies of any size travel."""
    queued_app.conf.result_chord_embed_limit = None
    yield
    queued_app.conf.result_chord_embed_limit = LIMIT


def in_header(step: Any, depth: int) -> Any:
    return chord([in_header(step, depth - 1), *(step.s() for _ in range(9))], step.s()) if depth else step.s()


def in_body(step: Any, depth: int) -> Any:
    return chord([step.s() for _ in range(10)], in_body(step, depth - 1)) if depth else step.s()


def everywhere(step: Any, depth: int) -> Any:
    return chord([everywhere(step, depth - 1) for _ in range(2)], everywhere(step, depth - 1)) if depth else step.s()


@pytest.mark.parametrize(
    ("shape", "calls"),
    [
        *((lambda step, k=k: chain([chord([step.s()] * 10, step.s()) for _ in range(k)]), 11 * k) for k in (2, 6, 12)),
        *((lambda step, d=d: in_header(step, d), 10 * d + 1) for d in (2, 4, 6)),
        *((lambda step, d=d: in_body(step, d), 10 * d + 1) for d in (2, 4, 6)),
        *((lambda step, d=d: everywhere(step, d), 3**d) for d in (2, 4, 5)),
    ],
    ids=[
        *(f"{k} chords in a row" for k in (2, 6, 12)),
        *(f"{d} chords, each in the header of the next" for d in (2, 4, 6)),
        *(f"{d} chords, each the body of the next" for d in (2, 4, 6)),
        *(f"{d} levels of chords of chords" for d in (2, 4, 5)),
    ],
)
def test_chords_in_chords_send_no_more_than_a_constant_for_each_call(
    run_queue: Any, step: Any, shape: Any, calls: int
) -> None:
    result = shape(step).apply_async()
    ran = run_queue()

    assert result.get(timeout=0.1) == 1
    assert len(ran) == calls
    assert run_queue.bytes < calls * (LIMIT + A_CALL) / 2


def test_a_large_body_travels_once_for_a_header_of_three_hundred(run_queue: Any, step: Any) -> None:
    result = chord([step.s() for _ in range(300)], step.s(BIG)).apply_async()
    ran = run_queue()

    assert result.get(timeout=0.1) == 1
    assert len(ran) == 301
    assert run_queue.bytes < len(BIG) + 301 * A_CALL


def test_a_large_body_travels_once_for_members_that_are_sent_later(run_queue: Any, step: Any) -> None:
    members = group(step.s() for _ in range(300))
    result = chord([chain(step.s(), members), step.s()], step.s(BIG)).apply_async()
    run_queue()

    assert result.get(timeout=0.1) == 1
    # The members travel twice: in the message of the step before them, and by themselves.
    assert run_queue.bytes < len(BIG) + 2 * 303 * 2 * A_CALL


def test_what_follows_a_chord_counts_as_its_body(run_queue: Any, step: Any) -> None:
    result = chain(chord([step.s() for _ in range(100)], step.s()), step.s(BIG)).apply_async()
    run_queue()

    assert result.get(timeout=0.1) == 1
    # Once with the body, which passes it on, and once for itself.
    assert run_queue.bytes < 2 * len(BIG) + 102 * A_CALL


@pytest.mark.usefixtures("embedding")
def test_bodies_travel_with_each_member_if_a_setting_says_so(run_queue: Any, step: Any) -> None:
    result = chord([step.s() for _ in range(3)], step.s(BIG)).apply_async()
    ran = run_queue()

    assert result.get(timeout=0.1) == 1
    assert stand_ins.TASK not in ran
    assert run_queue.bytes > 4 * len(BIG)


def test_a_small_body_travels_as_it_does_in_celery(run_queue: Any, step: Any, sent: list[Any]) -> None:
    chord([step.s(), step.s()], step.s("small")).apply_async()
    run_queue()

    assert [call.embed["chord"]["task"] for call in sent[:2]] == ["step", "step"]


def test_a_chain_of_five_thousand_steps_is_built_and_sent_without_recursion(
    queued_app: Celery, run_queue: Any, step: Any
) -> None:
    @queued_app.task(shared=False, name="stop")
    def stop() -> None:
        raise ValueError("enough")

    result = chain(stop.si() if at == 2 else step.si() for at in range(5000)).apply_async()

    assert run_queue() == ["step", "step", "stop"]
    with pytest.raises(ValueError, match="enough"):
        result.get(timeout=0.1)


def test_chords_in_chords_take_a_time_that_does_not_double_with_each_level(step: Any) -> None:
    def seconds(depth: int) -> float:
        made = everywhere(step, depth)
        begun = time.process_time()
        made.freeze()
        made.clone().freeze()
        return time.process_time() - begun

    seconds(2)
    assert seconds(6) < 1.0  # 729 calls; it took minutes when each copy copied what waits for it
