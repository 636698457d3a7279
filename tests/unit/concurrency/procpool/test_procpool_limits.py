"""When the time of a job is over."""

from __future__ import annotations

from celery_clone.concurrency.procpool.limits import Clock, Due, Timetable, resident_kilobytes, resolve


def test_a_job_without_limits_has_the_pools():
    assert resolve(None, (1.0, 2.0)) == (1.0, 2.0)
    assert resolve((None, None), (1.0, 2.0)) == (1.0, 2.0)
    assert resolve((5.0, None), (1.0, 2.0)) == (5.0, 2.0)
    assert resolve((None, 0), (None, 0)) == (None, None)


def test_each_limit_is_due_once_the_soft_one_first():
    clock = Clock()
    assert clock.next_at() is None
    clock.start(7, 100.0, (1.0, 3.0))
    assert clock.next_at() == 101.0
    assert clock.due(100.9) is None
    assert clock.due(101.0) == Due(7, True, 1.0)
    assert clock.due(102.0) is None
    assert clock.next_at() == 103.0
    assert clock.due(103.5) == Due(7, False, 3.0)
    assert clock.next_at() is None
    assert clock.due(200.0) is None


def test_a_hard_limit_makes_the_soft_one_moot():
    clock = Clock()
    clock.start(7, 0.0, (1.0, 2.0))
    assert clock.due(5.0) == Due(7, False, 2.0)
    assert clock.due(6.0) is None


def test_the_end_of_another_job_does_not_stop_the_clock():
    clock = Clock()
    clock.start(7, 0.0, (None, 2.0))
    clock.stop(6)
    assert clock.next_at() == 2.0
    clock.stop(7)
    assert clock.next_at() is None
    assert clock.seq is None


def test_a_timetable_gives_what_is_due_in_order():
    called: list[int] = []
    table = Timetable()
    table.add(2.0, lambda: called.append(2))
    table.add(1.0, lambda: called.append(1))
    table.add(1.0, lambda: called.append(11))
    table.add(9.0, lambda: called.append(9))
    assert table.next_at() == 1.0
    for callback in table.pop_due(2.0):
        callback()
    assert called == [1, 11, 2]
    assert table.next_at() == 9.0
    table.clear()
    assert table.next_at() is None


def test_this_process_has_a_size():
    assert 1_000 < resident_kilobytes() < 10_000_000
