"""The transactions on stored results, at times the test gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_clone.backends.sqlite.store import RESULT_TABLES, Finished, Part, ResultStore, Stored
from celery_clone.transport.sqlite.database import Database

NOW = 1_000_000.0
NOBODY = 2**22 + 1  # above the highest number a process may have on Linux


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResultStore]:
    store = ResultStore(Database(str(tmp_path / "results.db"), RESULT_TABLES))
    yield store
    store.database.close()


def value(key: str, text: str, status: str | None = None, lifetime_s: float | None = None) -> Stored:
    return Stored(key, text.encode(), status, lifetime_s)


def put(store: ResultStore, *results: Stored, now: float = NOW) -> list[str]:
    return store.put(results, [], now)[0]


def end(store: ResultStore, task_id: str, place: float = 0.0, **how: Any) -> list[Finished]:
    """A member of the chord ``c`` has ended."""
    part = Part(
        how.get("group_id", "c"),
        task_id,
        place,
        f"part of {task_id}".encode(),
        how.get("size"),
        lambda: b"body",
        how.get("lifetime_s"),
    )
    return store.put([], [part], NOW)[1]


def size(store: ResultStore, size: int) -> None:
    store.prepare_chord("c", {"size": size}, None, NOW)


def test_values_are_read_in_the_order_asked_for(store: ResultStore) -> None:
    put(store, value("a", "1"), value("b", "2"))

    assert store.get(["b", "missing", "a"], NOW) == [b"2", None, b"1"]


def test_a_value_past_its_time_is_not_there(store: ResultStore) -> None:
    put(store, value("a", "1", lifetime_s=10))

    assert store.get(["a"], NOW + 9) == [b"1"]
    assert store.get(["a"], NOW + 10) == [None]


def test_a_success_is_final(store: ResultStore) -> None:
    put(store, value("a", "first", "SUCCESS"))
    put(store, value("a", "second", "FAILURE"))
    put(store, value("a", "third", "SUCCESS"))

    assert store.get(["a"], NOW) == [b"first"]


def test_a_failure_is_not(store: ResultStore) -> None:
    put(store, value("a", "first", "FAILURE"))
    put(store, value("a", "second", "SUCCESS"))

    assert store.get(["a"], NOW) == [b"second"]


def test_of_one_batch_the_last_state_stands(store: ResultStore) -> None:
    put(store, value("a", "began", "STARTED"), value("a", "done", "SUCCESS"))

    assert store.get(["a"], NOW) == [b"done"]


def test_lifetimes_can_be_changed(store: ResultStore) -> None:
    put(store, value("a", "1", lifetime_s=10))
    store.expire("a", NOW + 100)
    assert store.get(["a"], NOW + 50) == [b"1"]

    store.expire("a", None)
    assert store.get(["a"], NOW + 1e9) == [b"1"]


def test_counters_count(store: ResultStore) -> None:
    assert [store.add_one("n"), store.add_one("n"), store.add_one("m")] == [1, 2, 1]


def test_expired_values_and_chords_are_deleted_a_few_at_a_time(store: ResultStore) -> None:
    put(store, *(value(f"k{number}", "x", lifetime_s=10) for number in range(5)), value("kept", "x"))
    end(store, "t1", size=2, lifetime_s=10)

    assert store.tidy(NOW + 11, 3) == 3
    assert store.tidy(NOW + 11, 3) == 2
    assert store.chord_parts("c") == []
    assert store.get(["kept"], NOW) == [b"x"]


class TestWatches:
    def test_who_watches_is_rung_and_finds_news(self, store: ResultStore) -> None:
        store.watch(["a", "b"], "bell", [])

        assert put(store, value("a", "1"), value("other", "2")) == ["bell"]
        assert store.news("bell") == {"a": 1}

    def test_each_state_is_news(self, store: ResultStore) -> None:
        store.watch(["a"], "bell", [])
        put(store, value("a", "1", "STARTED"))
        put(store, value("a", "2", "SUCCESS"))

        assert store.news("bell") == {"a": 2}

    def test_a_value_that_was_there_before_is_news(self, store: ResultStore) -> None:
        put(store, value("a", "1"))

        store.watch(["a", "b"], "bell", [])

        assert store.news("bell") == {"a": 1}

    def test_everybody_who_watches_is_rung_once(self, store: ResultStore) -> None:
        store.watch(["a", "b"], "one", [])
        store.watch(["a"], "two", [])

        assert sorted(put(store, value("a", "1"), value("b", "2"))) == ["one", "two"]

    def test_watches_end_one_by_one_or_with_their_bell(self, store: ResultStore) -> None:
        store.watch(["a", "b"], "bell", [])
        store.watch([], "bell", ["a"])
        assert put(store, value("a", "1")) == []

        store.forget_bells(["bell"])
        assert put(store, value("b", "1")) == []
        assert store.bells() == []


class TestChords:
    def test_the_last_member_finishes_it_once(self, store: ResultStore) -> None:
        size(store, 3)

        assert end(store, "t1") == []
        assert end(store, "t2") == []
        assert end(store, "t3") == [Finished("c", b"body", False)]
        assert end(store, "t3") == []

    def test_a_member_that_ends_twice_counts_once_and_its_first_end_stands(self, store: ResultStore) -> None:
        size(store, 2)
        end(store, "t1")
        part = Part("c", "t1", 0.0, b"second end", None, lambda: b"body", None)

        assert store.put([], [part], NOW)[1] == []
        assert len(end(store, "t2")) == 1
        assert store.chord_parts("c") == [b"part of t1", b"part of t2"]

    def test_parts_are_in_the_order_of_the_header(self, store: ResultStore) -> None:
        size(store, 3)
        end(store, "t2", 1)
        end(store, "t10", 9)
        end(store, "t1", 0)

        assert store.chord_parts("c") == [b"part of t1", b"part of t2", b"part of t10"]

    def test_the_size_may_come_with_the_members(self, store: ResultStore) -> None:
        assert end(store, "t1", size=2) == []
        assert len(end(store, "t2", size=2)) == 1

    def test_while_the_size_is_unknown_nothing_is_finished(self, store: ResultStore) -> None:
        assert end(store, "t1") == []
        size(store, 2)
        assert len(end(store, "t2")) == 1

    def test_members_may_be_added(self, store: ResultStore) -> None:
        size(store, 1)
        store.prepare_chord("c", {"extra": 1}, None, NOW)

        assert end(store, "t1") == []
        assert len(end(store, "t2")) == 1

    def test_a_structured_chord_says_so(self, store: ResultStore) -> None:
        store.prepare_chord("c", {"structured": 1}, None, NOW)
        size(store, 1)

        assert end(store, "t1") == [Finished("c", b"body", True)]

    def test_after_the_body_was_sent_late_ends_do_nothing(self, store: ResultStore) -> None:
        size(store, 1)
        end(store, "t1")

        store.chord_was_sent("c")

        assert end(store, "t1") == []
        assert store.chord_parts("c") == []
        assert store.orphaned_chords() == []

    def test_a_whole_header_may_end_in_one_batch(self, store: ResultStore) -> None:
        size(store, 2)
        parts = [Part("c", name, 0.0, b"x", None, lambda: b"body", None) for name in ("t1", "t2")]

        assert store.put([], parts, NOW)[1] == [Finished("c", b"body", False)]

    def test_what_a_dead_sender_left_is_sent_by_the_next_member_to_return(self, store: ResultStore) -> None:
        size(store, 1)
        end(store, "t1")
        store.database.write(lambda db: db.execute("UPDATE celery_chords SET sender = ?", (NOBODY,)))

        assert len(end(store, "t1")) == 1

    def test_what_a_dead_sender_left_can_be_taken_over(self, store: ResultStore) -> None:
        size(store, 1)
        end(store, "t1")
        assert store.orphaned_chords() == []  # its sender, this process, lives
        store.database.write(lambda db: db.execute("UPDATE celery_chords SET sender = ?", (NOBODY,)))

        assert store.orphaned_chords() == [Finished("c", b"body", False)]
        assert store.orphaned_chords() == []
        senders = store.database.read(lambda db: db.execute("SELECT sender FROM celery_chords").fetchall())
        assert senders == [(os.getpid(),)]
