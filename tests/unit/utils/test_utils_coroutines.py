"""Coroutines run to their end, with errors raised in them where they wait."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from celery_clone.utils import coroutines
from celery_clone.utils.coroutines import Interruptible, close_loop, end_loop, outcome_beside, outcome_of, outcome_on

where = contextvars.ContextVar("where", default="nowhere")


async def loop_of():
    return asyncio.get_running_loop()


async def told(seen):
    try:
        await asyncio.Event().wait()
    except ValueError as exc:
        seen.append(str(exc))
        return "told"


async def fail():
    await asyncio.sleep(0)
    raise KeyError("no such thing")


def test_what_it_returns_or_raises_is_the_outcome():
    assert outcome_of(asyncio.sleep(0, "value")) == (True, "value")
    ok, error = outcome_of(fail())
    assert (ok, error.args) == (False, ("no such thing",))
    assert error.__traceback__.tb_frame.f_code.co_name == "fail", "what is shown begins with the code of the task"


def test_exits_do_not_end_the_loop_and_cancellation_from_within_is_an_error():
    async def leave():
        raise SystemExit(3)

    async def cancel():
        raise asyncio.CancelledError

    assert isinstance(outcome_of(leave())[1], SystemExit)
    ok, error = outcome_of(cancel())
    assert not ok and isinstance(error, RuntimeError) and isinstance(error.__cause__, asyncio.CancelledError)
    assert outcome_of(asyncio.sleep(0, 1)) == (True, 1)


def test_a_thread_keeps_its_loop_until_it_is_closed():
    first, again = outcome_of(loop_of())[1], outcome_of(loop_of())[1]
    assert first is again
    close_loop()
    close_loop()
    assert first.is_closed()
    other = outcome_of(loop_of())[1]
    assert other is not first
    found = []
    thread = threading.Thread(target=lambda: (found.append(outcome_of(loop_of())[1]), close_loop()))
    thread.start()
    thread.join()
    assert found[0] is not other


def test_within_a_running_loop_it_runs_beside_it_in_the_callers_context():
    async def caller():
        where.set("here")
        return outcome_of(look())

    async def look():
        return where.get(), asyncio.get_running_loop()

    async def both():
        return asyncio.get_running_loop(), await caller()

    outside, (ok, (seen, inside)) = asyncio.run(both())
    assert ok and seen == "here" and inside is not outside
    assert outcome_beside(look())[1][0] == "nowhere"


def test_an_error_is_raised_where_it_waits_and_what_it_makes_of_that_counts():
    seen = []

    async def main():
        interruptible = Interruptible(told(seen))
        task = interruptible.start(asyncio.get_running_loop())
        await asyncio.sleep(0)
        interruptible.throw(ValueError("enough"))
        await task
        if hasattr(task, "cancelling"):
            assert task.cancelling() == 0
        interruptible.throw(ValueError("too late"))
        return interruptible.outcome

    assert asyncio.run(main()) == (True, "told")
    assert seen == ["enough"]


def test_an_error_before_the_first_step_is_the_outcome():
    async def main():
        interruptible = Interruptible(told([]))
        task = interruptible.start(asyncio.get_running_loop())
        interruptible.throw(ValueError("enough"))
        await asyncio.wait([task])
        return interruptible.outcome

    ok, error = asyncio.run(main())
    assert not ok and isinstance(error, ValueError)


def test_a_loop_in_another_thread_runs_it_in_the_callers_context():
    async def look():
        return where.get(), threading.current_thread().name

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="looping")
    thread.start()
    try:
        where.set("with the caller")
        assert outcome_on(loop, look()) == (True, ("with the caller", "looping"))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        end_loop(loop)
        where.set("nowhere")


def test_what_is_left_on_a_loop_is_cancelled_when_it_ends():
    seen = []

    async def leave_something():
        async def wait():
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("cancelled")

        asyncio.ensure_future(wait())  # noqa: RUF006 the loop is to find it
        await asyncio.sleep(0)

    close_loop()
    assert outcome_of(leave_something()) == (True, None)
    assert seen == []
    close_loop()
    assert seen == ["cancelled"]


def test_somebody_else_may_be_given_all_coroutines():
    given = []

    def run(coroutine):
        given.append(coroutine)
        coroutine.close()
        return True, "by somebody else"

    coroutines.run_coroutines_by(run)
    try:
        assert outcome_of(fail()) == (True, "by somebody else")
    finally:
        coroutines.run_coroutines_by(None)
    assert len(given) == 1


def test_only_a_coroutine_that_waits_is_interrupted():
    assert not coroutines.interrupt(ValueError("nobody runs"))
    answers = []

    async def ask():
        answers.append(coroutines.interrupt(ValueError("while it runs")))
        asyncio.get_running_loop().call_later(0, lambda: answers.append(coroutines.interrupt(ValueError("enough"))))
        return await told(answers)

    assert outcome_of(ask()) == (True, "told")
    assert answers == [False, True, "enough"]


@pytest.fixture(autouse=True)
def closed():
    yield
    close_loop()
