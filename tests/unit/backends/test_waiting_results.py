"""Who waits for what, who reads for all, and results that wait to be stored."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest

from celery_clone.backends.asynchronous import Drainer, PendingResults
from celery_clone.backends.polling import naps
from celery_clone.backends.writer import MOST, Deferred, ResultWriter


class Result:
    """As much of a result as waiting needs."""

    def __init__(self, id: str) -> None:
        self.id = id


class Ready:
    """Ready when it is told so."""

    def __init__(self) -> None:
        self.ready = False


# --- who waits -----------------------------------------------------------------------


def test_the_first_to_wait_for_a_task_is_known_and_so_is_the_last() -> None:
    pending = PendingResults()
    first, second = Result("t"), Result("t")

    assert pending.add(first)
    assert not pending.add(second)
    assert not pending.remove(first)
    assert "t" in pending
    assert pending.remove(second)
    assert "t" not in pending


def test_a_result_waits_once_however_often_it_is_added() -> None:
    pending = PendingResults()
    result = Result("t")
    pending.add(result)
    pending.add(result)

    assert pending.remove(result)


def test_an_end_goes_to_all_who_wait_for_it_and_to_nobody_twice() -> None:
    pending = PendingResults()
    first, second = Result("t"), Result("t")
    bucket: deque[Any] = deque()
    pending.add(first)
    pending.add(second, bucket=bucket)
    pending.add(Result("other"))

    assert pending.take("t") == [(first, None), (second, bucket)]
    assert pending.take("t") == []
    assert pending.ids() == ["other"]


def test_who_waits_weakly_is_not_kept_alive() -> None:
    pending = PendingResults()
    result = Result("t")
    pending.add(result, weak=True)

    del result
    gc.collect()

    assert pending.sweep() == ["t"]
    assert pending.sweep() == []
    assert len(pending) == 0


def test_a_task_that_another_still_waits_for_is_not_swept() -> None:
    pending = PendingResults()
    weak, strong = Result("t"), Result("t")
    pending.add(weak, weak=True)
    pending.add(strong)

    del weak
    gc.collect()

    assert pending.sweep() == []
    assert pending.take("t") == [(strong, None)]


# --- who reads --------------------------------------------------------------------------


def test_one_thread_reads_at_a_time_and_all_are_woken() -> None:
    drainer = Drainer(None)
    waits = [Ready() for _ in range(8)]
    reading = threading.Semaphore(1)
    order = iter(waits)

    def read(timeout: float | None = None) -> None:
        assert reading.acquire(blocking=False), "two threads read at once"
        try:
            next(order).ready = True
        finally:
            reading.release()

    threads = [
        threading.Thread(target=lambda wait=wait: list(drainer.drain_events_until(wait, timeout=20, wait=read)))
        for wait in waits
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert all(wait.ready for wait in waits)
    assert not any(thread.is_alive() for thread in threads)
    assert drainer._reader is None


def test_a_wait_that_is_over_hands_the_reading_on() -> None:
    drainer = Drainer(None)
    first, second = Ready(), Ready()
    entered, go = threading.Event(), threading.Event()

    def read_first(timeout: float | None = None) -> None:
        entered.set()
        go.wait(20)
        first.ready = True

    def read_second(timeout: float | None = None) -> None:
        second.ready = True

    one = threading.Thread(target=lambda: list(drainer.drain_events_until(first, wait=read_first)))
    one.start()
    entered.wait(20)
    other = threading.Thread(target=lambda: list(drainer.drain_events_until(second, wait=read_second)))
    other.start()
    go.set()

    one.join(20)
    other.join(20)
    assert second.ready


def test_a_reader_that_is_interrupted_hands_the_reading_on() -> None:
    drainer = Drainer(None)

    def interrupted(timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(drainer.drain_events_until(Ready(), wait=interrupted))

    assert drainer._reader is None


def test_what_is_read_may_cause_another_wait_in_the_same_thread() -> None:
    drainer = Drainer(None)
    outer, inner = Ready(), Ready()

    def read_inner(timeout: float | None = None) -> None:
        inner.ready = True

    def read(timeout: float | None = None) -> None:
        list(drainer.drain_events_until(inner, wait=read_inner))
        outer.ready = True

    list(drainer.drain_events_until(outer, wait=read))

    assert inner.ready


def test_a_wait_ends_when_its_time_is_over_and_looks_around_meanwhile() -> None:
    drainer = Drainer(None)
    calls: list[int] = []

    def nothing(timeout: float | None = None) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        list(drainer.drain_events_until(Ready(), timeout=0.01, on_interval=lambda: calls.append(1), wait=nothing))

    assert calls


def test_a_connection_that_breaks_is_not_the_end_of_a_wait(caplog: pytest.LogCaptureFixture) -> None:
    drainer = Drainer(None)
    wait = Ready()
    attempts = itertools.count()

    def broken_once(timeout: float | None = None) -> None:
        if next(attempts) == 0:
            raise ConnectionResetError
        wait.ready = True

    list(drainer.drain_events_until(wait, interval=0.001, wait=broken_once))

    assert "the connection broke" in caplog.text


# --- how often a store is asked ------------------------------------------------------------


def test_a_store_is_asked_soon_at_first_and_then_as_often_as_was_wanted() -> None:
    first = list(itertools.islice(naps(0.5), 15))

    assert first[0] < 0.01
    assert first == sorted(first)
    assert first[-1] == 0.5


def test_a_store_is_not_asked_less_often_than_was_wanted() -> None:
    assert list(itertools.islice(naps(0.001), 2)) == [0.001, 0.001]


# --- results that wait to be stored -----------------------------------------------------------


class Store:
    """Takes batches, or refuses them."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.error: Exception | None = None

    def send(self, batch: Sequence[Deferred]) -> None:
        if self.error is not None:
            raise self.error
        self.stored += [item.task_id for item in batch]


def deferred(task_id: str, size: int = 10) -> Deferred:
    return Deferred(task_id, "SUCCESS", size, None)


def test_what_waits_is_stored_together_in_order() -> None:
    store = Store()
    writer = ResultWriter(store.send)
    for task_id in "abc":
        writer.add(deferred(task_id))
    assert store.stored == []
    assert writer.pending == 3
    assert writer.holds("b")

    writer.flush()

    assert store.stored == ["a", "b", "c"]
    assert not writer.pending
    assert not writer.holds("b")


def test_nothing_is_sent_when_nothing_waits() -> None:
    store = Store()
    store.error = AssertionError("sent")

    ResultWriter(store.send).flush()


def test_what_is_added_while_results_are_stored_is_stored_too() -> None:
    stored: list[str] = []

    def send(batch: list[Deferred]) -> None:
        stored.extend(item.task_id for item in batch)
        if stored == ["a", "b"]:
            writer.add(deferred("c"))  # as the end of a chord does, for what will not run

    writer = ResultWriter(send)
    writer.add(deferred("a"))
    writer.add(deferred("b"))
    writer.flush()

    assert stored == ["a", "b", "c"]
    assert not writer.pending


def test_a_failed_flush_loses_nothing_and_keeps_the_order() -> None:
    store = Store()
    writer = ResultWriter(store.send)
    writer.add(deferred("a"))
    store.error = ConnectionError("away")

    with pytest.raises(ConnectionError):
        writer.flush()
    writer.add(deferred("b"))
    assert writer.pending == 2
    store.error = None
    writer.flush()

    assert store.stored == ["a", "b"]


def test_each_result_that_could_not_be_stored_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    writer = ResultWriter(store.send)
    writer.add(deferred("a"))
    writer.add(deferred("b"))
    store.error = ConnectionError("away")

    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            with pytest.raises(ConnectionError):
                writer.flush()

    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["a", "b"]


def test_so_many_that_they_would_grow_without_bound_are_stored_at_once() -> None:
    store = Store()
    writer = ResultWriter(store.send)

    for at in range(MOST + 1):
        writer.add(deferred(str(at)))

    assert len(store.stored) == MOST + 1


def test_large_ones_are_stored_at_once() -> None:
    store = Store()
    writer = ResultWriter(store.send)

    writer.add(deferred("large", size=2 << 20))

    assert store.stored == ["large"]


def test_results_added_while_others_are_sent_wait_for_the_next_time() -> None:
    stored: list[list[str]] = []
    entered, go = threading.Event(), threading.Event()

    def send(batch: Sequence[Deferred]) -> None:
        entered.set()
        go.wait(20)
        stored.append([item.task_id for item in batch])

    writer = ResultWriter(send)
    writer.add(deferred("a"))
    guard = threading.Thread(target=writer.flush)
    guard.start()
    entered.wait(20)

    writer.add(deferred("b"))
    assert writer.pending == 2
    go.set()
    guard.join(20)
    writer.flush()

    assert stored == [["a"], ["b"]]


def test_two_that_flush_at_once_store_each_result_once() -> None:
    store = Store()
    writer = ResultWriter(store.send)
    for at in range(100):
        writer.add(deferred(str(at)))
    threads = [threading.Thread(target=writer.flush) for _ in range(4)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert sorted(store.stored, key=int) == [str(at) for at in range(100)]
