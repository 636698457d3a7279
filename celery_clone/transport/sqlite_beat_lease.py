"""Leases of beats and their books of runs, in the file of the embedded broker.

Opened by ``transport.open_lease_store``.  A run and its message are written in one transaction.
"""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING, Any

from celery_clone.transport.beat_lease import BOOK_S, Answer, DueRun, Verdict
from celery_clone.transport.sqlite_source import SqlitePublisher

if TYPE_CHECKING:
    from celery_clone.message.outgoing import TaskMessage
    from celery_clone.transport.protocols import Destination, SendOptions

__all__ = ("SqliteLeaseStore",)

TABLES = (
    "CREATE TABLE IF NOT EXISTS celery_beat_leases (name TEXT PRIMARY KEY, owner TEXT, expires_at REAL, span REAL)",
    "CREATE TABLE IF NOT EXISTS celery_beat_runs"
    " (book TEXT, entry TEXT, record TEXT, written_at REAL, PRIMARY KEY (book, entry))",
)
"""``expires_at`` and ``span`` are seconds of the monotonic clock, which all processes of a machine share."""

HELD = "SELECT owner FROM celery_beat_leases WHERE name = ? AND expires_at > ? AND expires_at <= ? + span"
"""After a restart of the machine its monotonic clock is far behind the time until which a lease was taken."""

WRITE = "INSERT OR REPLACE INTO celery_beat_runs VALUES (?, ?, ?, ?)"


class SqliteLeaseStore:
    """A :class:`~celery_clone.transport.beat_lease.LeaseStore` in an SQLite file."""

    def __init__(self, pool: Any) -> None:
        self.publisher = SqlitePublisher(pool)

    def take(self, lease: str, owner: str, expires_s: float, dead: str = "") -> str:
        """Take or renew a lease; returns who holds it now."""

        def take(db: sqlite3.Connection) -> str:
            make_tables(db)
            found = holder(db, lease)
            if found not in (None, owner, dead or owner):
                return str(found)
            row = (lease, owner, time.monotonic() + expires_s, expires_s)
            db.execute("INSERT OR REPLACE INTO celery_beat_leases VALUES (?, ?, ?, ?)", row)
            return owner

        return self.publisher.write(take)

    def let_go(self, lease: str, owner: str) -> None:
        """Give a lease up, if it is held."""

        def drop(db: sqlite3.Connection) -> None:
            make_tables(db)
            db.execute("DELETE FROM celery_beat_leases WHERE name = ? AND owner = ?", (lease, owner))

        self.publisher.write(drop)

    def runs(self, book: str) -> dict[str, str]:
        """The last record of each entry."""

        def read(db: sqlite3.Connection) -> dict[str, str]:
            make_tables(db)
            db.execute("DELETE FROM celery_beat_runs WHERE written_at < ?", (time.time() - BOOK_S,))
            return dict(db.execute("SELECT entry, record FROM celery_beat_runs WHERE book = ?", (book,)))

        return self.publisher.write(read)

    def note(self, book: str, records: dict[str, str], outdated: list[str]) -> None:
        """Write down records of entries that have none, and forget what is outdated."""
        now = time.time()

        def write(db: sqlite3.Connection) -> None:
            make_tables(db)
            db.executemany(
                "INSERT OR IGNORE INTO celery_beat_runs VALUES (?, ?, ?, ?)",
                [(book, entry, record, now) for entry, record in records.items()],
            )
            db.executemany(
                "DELETE FROM celery_beat_runs WHERE book = ? AND entry = ?", [(book, entry) for entry in outdated]
            )

        self.publisher.write(write)

    def claim(self, run: DueRun) -> Answer:
        """Write a run down, without sending anything."""
        return self.publisher.write(lambda db: written(db, run))

    def publish(self, message: TaskMessage, to: Destination, how: SendOptions, run: DueRun) -> Answer | None:
        """Write a run down and send its message, in one step; ``None``: this message cannot be sent so."""
        if not self.publisher.is_plain(message, how):
            return None
        answer = Answer(Verdict.LOST)

        def condition(db: sqlite3.Connection) -> bool:
            nonlocal answer
            answer = written(db, run)
            return answer.verdict is Verdict.SENT

        self.publisher.publish_if(condition, message, to, how)
        return answer

    def close(self) -> None:
        """Let go of the file.  Legal twice."""
        self.publisher.close()


def make_tables(db: sqlite3.Connection) -> None:
    """Make what is not there: the file may be another than a moment ago."""
    for statement in TABLES:
        db.execute(statement)


def holder(db: sqlite3.Connection, lease: str) -> str | None:
    """Who holds a lease now."""
    now = time.monotonic()
    row = db.execute(HELD, (lease, now, now)).fetchone()
    return None if row is None else str(row[0])


def written(db: sqlite3.Connection, run: DueRun) -> Answer:
    """Write a run down, if the lease is still the sender's and nobody else ran the entry since."""
    make_tables(db)
    if holder(db, run.lease) != run.owner:
        return Answer(Verdict.LOST)
    row = db.execute(
        "SELECT record FROM celery_beat_runs WHERE book = ? AND entry = ?", (run.book, run.entry)
    ).fetchone()
    if row is not None:
        if row[0] == run.record:
            return Answer(Verdict.AGAIN)
        at, _, owner = row[0].split(" ", 2)
        if owner != run.owner and float(at) > run.known_at:
            return Answer(Verdict.ELSEWHERE, row[0])
    db.execute(WRITE, (run.book, run.entry, run.record, time.time()))
    return Answer(Verdict.SENT)
