"""Which results are read together with the one that is waited for."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from celery_clone.backends.ahead import MOST, MOST_BYTES, REMEMBERED, ReadAhead


class Result:
    """As much of a result as matters here."""

    _cache: Any = None

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.fixture
def ahead() -> ReadAhead:
    return ReadAhead()


def sent(ahead: ReadAhead, count: int) -> list[Result]:
    results = [Result(number) for number in range(count)]
    for result in results:
        ahead.sent(result)
    return results


def read_all(ahead: ReadAhead, results: list[Result]) -> list[int]:
    """Ask for each in turn; how many were read with each question that had to be asked."""
    together = []
    for result in results:
        if result._cache is None:
            found = ahead.after(result)
            for other in (result, *found):
                other._cache = {}
            together.append(1 + len(found))
    return together


def test_whoever_reads_in_order_asks_for_more_and_more_at_once(ahead: ReadAhead) -> None:
    together = read_all(ahead, sent(ahead, 1000))

    assert together[:8] == [2, 3, 5, 9, 17, 33, 65, 65]
    assert sum(together) == 1000
    assert max(together) == 1 + MOST


def test_whoever_sends_and_reads_by_turns_reads_nothing_ahead(ahead: ReadAhead) -> None:
    for _ in range(20):
        assert read_all(ahead, sent(ahead, 1)) == [1]


def test_what_was_sent_before_is_not_read_again(ahead: ReadAhead) -> None:
    results = sent(ahead, 10)

    assert ahead.after(results[4]) == [results[5]]
    assert ahead.after(results[1]) == ()


def test_an_order_that_is_lost_is_found_again(ahead: ReadAhead) -> None:
    results = sent(ahead, 400)
    read_all(ahead, results[:100])

    assert ahead.after(results[399]) == ()
    assert read_all(ahead, results[150:160])[:2] == [2, 3]


def test_results_that_nobody_holds_or_that_are_known_are_left_out(ahead: ReadAhead) -> None:
    results = sent(ahead, 8)
    for result in results[:2]:
        ahead.after(result)
    results[3]._cache = {}
    del results[4]
    gc.collect()

    assert [result.number for result in ahead.after(results[2])] == [5, 6]


def test_large_results_are_not_read_on_suspicion(ahead: ReadAhead) -> None:
    results = sent(ahead, 200)
    read_all(ahead, results[:20])
    ahead.arrived(MOST_BYTES + 1)
    assert ahead.after(results[60]) == []

    ahead.arrived(MOST_BYTES // 4)
    assert len(ahead.after(results[61])) <= 4


def test_it_remembers_no_more_than_it_must(ahead: ReadAhead) -> None:
    sent(ahead, REMEMBERED * 2)

    assert len(ahead._sent) == REMEMBERED
