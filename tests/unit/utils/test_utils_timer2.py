"""The timer with a thread of its own."""

from __future__ import annotations

import threading

import pytest

from celery_clone.utils.timer2 import Entry, Schedule, Timer, to_timestamp

PATIENCE_S = 10


@pytest.fixture
def timer():
    timer = Timer(max_interval=PATIENCE_S)
    yield timer
    timer.stop()


def test_a_function_is_called_in_time(timer):
    called = threading.Event()
    timer.call_after(0.001, called.set)
    assert called.wait(PATIENCE_S)


def test_a_later_entry_that_is_due_earlier_does_not_wait(timer):
    called = threading.Event()
    timer.call_after(PATIENCE_S * 100, threading.Event().set)
    timer.call_after(0.001, called.set)
    assert called.wait(PATIENCE_S / 2)


def test_a_function_is_called_again_and_again(timer):
    calls = threading.Semaphore(0)
    timer.call_repeatedly(0.001, calls.release)
    assert all(calls.acquire(timeout=PATIENCE_S) for _ in range(3))


def test_a_cancelled_entry_is_not_called(timer):
    called, after = [], threading.Event()
    entry = timer.call_after(0.05, called.append, (1,))
    timer.cancel(entry)
    timer.call_after(0.06, after.set)
    assert after.wait(PATIENCE_S)
    assert not called


def test_entries_can_be_made_by_hand(timer):
    called = threading.Event()
    timer.enter(Entry(called.set), to_timestamp(0) or 0.0)
    assert called.wait(PATIENCE_S)
    again = threading.Event()
    timer.enter_after(0.001, Entry(again.set))
    assert again.wait(PATIENCE_S)


def test_a_function_that_fails_does_not_end_the_timer():
    errors, called = [], threading.Event()

    def fail():
        raise KeyError("x")

    timer = Timer(on_error=errors.append)
    try:
        timer.call_after(0, fail)
        timer.call_after(0.001, called.set)
        assert called.wait(PATIENCE_S)
        assert isinstance(errors[0], KeyError)
    finally:
        timer.stop()


def test_the_start_and_the_sleeps_are_told():
    started, ticked = threading.Event(), threading.Event()
    timer = Timer(on_start=lambda _: started.set(), on_tick=lambda _: ticked.set())
    try:
        timer.ensure_started()
        timer.ensure_started()
        assert started.wait(PATIENCE_S)
        assert ticked.wait(PATIENCE_S)
    finally:
        timer.stop()


def test_stop_is_legal_early_and_twice():
    timer = Timer()
    timer.stop()
    timer.stop()
    started = Timer()
    started.ensure_started()
    started.stop()
    started.stop()
    assert not started.is_alive()
    assert not started.running


def test_a_timer_can_be_stopped_by_what_it_calls():
    timer = Timer()
    timer.call_after(0, timer.stop)
    timer.join(PATIENCE_S)
    assert not timer.is_alive()


def test_the_thread_can_be_ended_by_an_entry():
    timer = Timer()
    timer.exit_after(0)
    timer.join(PATIENCE_S)
    assert not timer.is_alive()


def test_what_is_scheduled_can_be_seen_and_cleared():
    schedule = Schedule(max_interval=1)
    timer = Timer(schedule)
    assert timer
    assert timer.empty()
    schedule.call_after(100, print)
    assert len(timer) == 1
    assert len(timer.queue) == 1
    timer.clear()
    assert timer.empty()
