"""Tables of results in an SQLite file, and the transactions on them.

Used by the backend and its consumer of results.  The file, its lock and its errors are
``transport.sqlite.database``'s.  It rings nobody and sends nothing: it says whom to ring and which
chords are to be finished, after the commit.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from celery_clone.transport.sqlite.database import Database, Tables

__all__ = ("RESULT_TABLES", "Finished", "Part", "ResultStore", "Stored")

RESULT_TABLES = Tables(
    owner="results",
    version=1,
    script="""
    CREATE TABLE celery_results (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value BLOB NOT NULL, status TEXT, expires_at REAL
    );
    CREATE INDEX celery_results_expiring ON celery_results (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE celery_watches (
        key TEXT NOT NULL, bell TEXT NOT NULL, news INTEGER NOT NULL, PRIMARY KEY (key, bell)
    ) WITHOUT ROWID;
    CREATE INDEX celery_watches_with_news ON celery_watches (bell) WHERE news > 0;
    CREATE TABLE celery_chords (
        group_id TEXT PRIMARY KEY, size INTEGER, extra INTEGER NOT NULL, ends INTEGER NOT NULL,
        structured INTEGER NOT NULL, sent INTEGER NOT NULL, sender INTEGER, body BLOB, expires_at REAL
    ) WITHOUT ROWID;
    CREATE INDEX celery_chords_being_sent ON celery_chords (sender) WHERE sender IS NOT NULL AND sent = 0;
    CREATE TABLE celery_chord_parts (
        group_id TEXT NOT NULL, task_id TEXT NOT NULL, place REAL NOT NULL, value BLOB NOT NULL,
        PRIMARY KEY (group_id, task_id)
    ) WITHOUT ROWID
    """,
)


class Stored(NamedTuple):
    """One value to store; *lifetime_s* in seconds, ``None`` for ever."""

    key: str
    value: bytes
    status: str | None
    lifetime_s: float | None


class Part(NamedTuple):
    """The end of one member of a chord; *size* is what the member itself knows of the chord's size.

    *body* makes the encoded body, which only the last member is asked for.
    """

    group_id: str
    task_id: str
    place: float
    value: bytes
    size: int | None
    body: Callable[[], bytes]
    lifetime_s: float | None


class Finished(NamedTuple):
    """A chord all of whose members have ended."""

    group_id: str
    body: bytes
    structured: bool


class ResultStore:
    """All that is done to the tables of results.  Each public method is one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def get(self, keys: Iterable[str], now: float) -> list[bytes | None]:
        """The values of keys, ``None`` for those that are not there."""
        query = "SELECT value FROM celery_results WHERE key = ? AND (expires_at IS NULL OR expires_at > ?)"

        def get(db: sqlite3.Connection) -> list[bytes | None]:
            rows = (db.execute(query, (key, now)).fetchone() for key in keys)
            return [None if row is None else row[0] for row in rows]

        return self.database.read(get)

    def put(self, results: Sequence[Stored], parts: Sequence[Part], now: float) -> tuple[list[str], list[Finished]]:
        """Store values, and count the ends of chord members; the bells to ring, and the chords to finish.

        What stays is said by :func:`celery_clone.backends.backend.stays`.  A second end of a member does not
        count: the first one stands.
        """
        upsert = (
            "INSERT INTO celery_results (key, value, status, expires_at) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value, status = excluded.status,"
            " expires_at = excluded.expires_at WHERE celery_results.status IS NOT 'SUCCESS'"
            " AND (excluded.status IS NOT 'RETRY' OR coalesce(celery_results.status, '') NOT IN ('FAILURE', 'REVOKED'))"
        )
        rows = [
            (key, value, status, None if lifetime_s is None else now + lifetime_s)
            for key, value, status, lifetime_s in results
        ]

        def put(db: sqlite3.Connection) -> tuple[list[str], list[Finished]]:
            db.executemany(upsert, rows)
            bells = tell_watchers(db, [result.key for result in results])
            ended = [count_end(db, part, now) for part in parts]
            return bells, [chord for chord in ended if chord is not None]

        return self.database.write(put)

    def delete(self, key: str) -> None:
        """Remove a value."""
        self.database.write(lambda db: db.execute("DELETE FROM celery_results WHERE key = ?", (key,)))

    def expire(self, key: str, expires_at: float | None) -> None:
        """Have a value vanish then."""
        update = "UPDATE celery_results SET expires_at = ? WHERE key = ?"
        self.database.write(lambda db: db.execute(update, (expires_at, key)))

    def add_one(self, key: str) -> int:
        """Count up; the new value."""

        def add(db: sqlite3.Connection) -> int:
            row = db.execute("SELECT value FROM celery_results WHERE key = ?", (key,)).fetchone()
            count = 1 if row is None else int(row[0]) + 1
            db.execute(
                "INSERT INTO celery_results (key, value) VALUES (?, ?)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, str(count).encode()),
            )
            return count

        return self.database.write(add)

    # -- those who wait

    def watch(self, keys: Iterable[str], bell: str, over: Iterable[str]) -> None:
        """Have *bell* rung when one of these values is stored; values that are there count as news.

        Watches that are *over* end in the same transaction.
        """
        insert = (
            "INSERT INTO celery_watches"
            " SELECT :key, :bell, EXISTS (SELECT 1 FROM celery_results WHERE key = :key)"
            " WHERE true ON CONFLICT (key, bell) DO NOTHING"
        )

        def watch(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM celery_watches WHERE key = ? AND bell = ?", [(key, bell) for key in over])
            db.executemany(insert, [{"key": key, "bell": bell} for key in keys])

        self.database.write(watch)

    def news(self, bell: str) -> dict[str, int]:
        """Which watched values were stored, and how often."""
        query = "SELECT key, news FROM celery_watches WHERE bell = ? AND news > 0"
        return dict(self.database.read(lambda db: db.execute(query, (bell,)).fetchall()))

    def forget_bells(self, bells: Iterable[str]) -> None:
        """End all watches of these bells."""
        rows = [(bell,) for bell in bells]
        self.database.write(lambda db: db.executemany("DELETE FROM celery_watches WHERE bell = ?", rows))

    def bells(self) -> list[str]:
        """All bells that watch something."""
        rows = self.database.read(lambda db: db.execute("SELECT DISTINCT bell FROM celery_watches").fetchall())
        return [row[0] for row in rows]

    # -- chords

    def prepare_chord(self, group_id: str, changes: Mapping[str, int], lifetime_s: float | None, now: float) -> None:
        """Note something of a chord: ``size``, or that it is ``structured``; ``extra`` is added."""

        def prepare(db: sqlite3.Connection) -> None:
            make_chord(db, group_id, lifetime_s, now)
            for column, value in changes.items():
                term = "extra + ?" if column == "extra" else "?"
                db.execute(f"UPDATE celery_chords SET {column} = {term} WHERE group_id = ?", (value, group_id))

        self.database.write(prepare)

    def chord_parts(self, group_id: str) -> list[bytes]:
        """What the members left, in the order of the header."""
        query = "SELECT value FROM celery_chord_parts WHERE group_id = ? ORDER BY place, task_id"
        rows = self.database.read(lambda db: db.execute(query, (group_id,)).fetchall())
        return [row[0] for row in rows]

    def chord_was_sent(self, group_id: str) -> None:
        """The body is on its way; from now on ends of members do not count."""

        def sent(db: sqlite3.Connection) -> None:
            db.execute("UPDATE celery_chords SET sent = 1, body = NULL WHERE group_id = ?", (group_id,))
            db.execute("DELETE FROM celery_chord_parts WHERE group_id = ?", (group_id,))

        self.database.write(sent)

    def orphaned_chords(self) -> list[Finished]:
        """Chords whose sender died before it had sent them; they are ours now."""
        query = "SELECT group_id, body, structured, sender FROM celery_chords WHERE sender IS NOT NULL AND sent = 0"

        def take_over(db: sqlite3.Connection) -> list[Finished]:
            orphans = [Finished(*row[:3]) for row in db.execute(query).fetchall() if not is_running(row[3])]
            mine = [(os.getpid(), orphan.group_id) for orphan in orphans]
            db.executemany("UPDATE celery_chords SET sender = ? WHERE group_id = ?", mine)
            return orphans

        if self.database.read(lambda db: db.execute(query).fetchone()) is None:
            return []
        return self.database.write(take_over)

    # -- housekeeping

    def tidy(self, now: float, most: int) -> int:
        """Delete up to *most* expired values, and expired chords; how many values went."""

        def tidy(db: sqlite3.Connection) -> int:
            expired = "SELECT id FROM celery_results WHERE expires_at <= ? LIMIT ?"
            gone = db.execute(f"DELETE FROM celery_results WHERE id IN ({expired})", (now, most)).rowcount
            chords = db.execute("SELECT group_id FROM celery_chords WHERE expires_at <= ?", (now,)).fetchall()
            db.executemany("DELETE FROM celery_chords WHERE group_id = ?", chords)
            db.executemany("DELETE FROM celery_chord_parts WHERE group_id = ?", chords)
            return int(gone)

        return self.database.write(tidy)


# What follows is done inside a transaction of the methods above.


def tell_watchers(db: sqlite3.Connection, keys: Iterable[str]) -> list[str]:
    """Note news for those who watch these values; their bells."""
    if db.execute("SELECT 1 FROM celery_watches LIMIT 1").fetchone() is None:
        return []
    bells: set[str] = set()
    for key in keys:
        rows = db.execute("SELECT bell FROM celery_watches WHERE key = ?", (key,)).fetchall()
        if rows:
            db.execute("UPDATE celery_watches SET news = news + 1 WHERE key = ?", (key,))
            bells.update(row[0] for row in rows)
    return list(bells)


def make_chord(db: sqlite3.Connection, group_id: str, lifetime_s: float | None, now: float) -> None:
    """The row of a chord, made if it is not there; its time begins anew."""
    db.execute(
        "INSERT INTO celery_chords (group_id, extra, ends, structured, sent, expires_at) VALUES (?, 0, 0, 0, 0, ?)"
        " ON CONFLICT (group_id) DO UPDATE SET expires_at = excluded.expires_at",
        (group_id, None if lifetime_s is None else now + lifetime_s),
    )


def count_end(db: sqlite3.Connection, part: Part, now: float) -> Finished | None:
    """Note the end of one member; the chord, if that was the last and nobody sends its body yet."""
    group_id = part.group_id
    make_chord(db, group_id, part.lifetime_s, now)
    query = "SELECT size, extra, ends, structured, sent, sender FROM celery_chords WHERE group_id = ?"
    size, extra, ends, structured, sent, sender = db.execute(query, (group_id,)).fetchone()
    if sent:
        return None
    insert = "INSERT OR IGNORE INTO celery_chord_parts VALUES (?, ?, ?, ?)"
    ends += db.execute(insert, (group_id, part.task_id, part.place, part.value)).rowcount
    db.execute("UPDATE celery_chords SET ends = ? WHERE group_id = ?", (ends, group_id))
    size = part.size if size is None else size
    if size is None or ends < size + extra or (sender is not None and is_running(sender)):
        return None
    body = part.body()
    claim = "UPDATE celery_chords SET sender = ?, body = ? WHERE group_id = ?"
    db.execute(claim, (os.getpid(), body, group_id))
    return Finished(group_id, body, bool(structured))


def is_running(pid: int) -> bool:
    """Does a process of this number exist?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
