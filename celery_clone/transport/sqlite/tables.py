"""The broker's tables in an SQLite file, and the steps its transactions are made of.

Used by ``broker`` alone, inside its transactions; the layout is told in
``docs/internals/sqlite-layout.md``.  Functions and values only: it begins and commits nothing.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from celery_clone.transport.sqlite.database import Tables

BROKER_TABLES = Tables(
    owner="broker",
    version=1,
    script="""
    CREATE TABLE celery_exchanges (
        name TEXT PRIMARY KEY, type TEXT NOT NULL, durable INTEGER NOT NULL, auto_delete INTEGER NOT NULL,
        arguments TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE celery_queues (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, private INTEGER NOT NULL,
        expires_s REAL, message_ttl_s REAL, max_length INTEGER, max_priority INTEGER NOT NULL,
        used_at REAL NOT NULL
    );
    CREATE TABLE celery_bindings (
        exchange TEXT NOT NULL, routing_key TEXT NOT NULL, queue INTEGER NOT NULL,
        PRIMARY KEY (exchange, routing_key, queue)
    ) WITHOUT ROWID;
    CREATE INDEX celery_bindings_by_queue ON celery_bindings (queue);
    CREATE TABLE celery_messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT, queue INTEGER NOT NULL, priority INTEGER NOT NULL,
        deliveries INTEGER NOT NULL, holder INTEGER, due_at REAL, expires_at REAL, origin TEXT, reason TEXT
    );
    CREATE INDEX celery_messages_ready ON celery_messages (queue, priority DESC, id)
        WHERE holder IS NULL AND due_at IS NULL;
    CREATE INDEX celery_messages_held ON celery_messages (holder) WHERE holder IS NOT NULL;
    CREATE INDEX celery_messages_due ON celery_messages (queue, due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX celery_messages_expiring ON celery_messages (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE celery_bodies (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE celery_sessions (
        id INTEGER PRIMARY KEY AUTOINCREMENT, bell TEXT, process TEXT NOT NULL, lease_s REAL NOT NULL,
        beats INTEGER NOT NULL, waiting INTEGER NOT NULL
    );
    CREATE TABLE celery_consumers (
        queue INTEGER NOT NULL, session INTEGER NOT NULL, PRIMARY KEY (queue, session)
    ) WITHOUT ROWID;
    CREATE INDEX celery_consumers_by_session ON celery_consumers (session)
    """,
)

HIGHEST_PRIORITY = 9
PRIVATE_QUEUE_TTL_S = 60.0
"""How long a private queue without a consumer stays, if its declaration does not say."""
IMPLICIT_QUEUE_TTL_S = 86400.0
"""How long a queue stays that was made by a message sent to it, and that nobody declares or reads."""
MOST_BELLS = 16
"""How many waiting consumers of one queue are rung at once."""
DEAD_SUFFIX = ".dead"

READY = "holder IS NULL AND due_at IS NULL"


class UnknownExchange(LookupError):
    """A message was sent to an exchange that nobody declared."""


class NoRoute(LookupError):
    """No queue is bound for this exchange and routing key."""


class Letter(NamedTuple):
    """One message text on its way to the queues of an exchange; *ttl_s* in seconds."""

    exchange: str
    routing_key: str
    body: bytes
    priority: int = 0
    ttl_s: float | None = None


class Claimed(NamedTuple):
    """One message handed out; *deliveries* counts the times it was handed out before."""

    id: int
    queue: str
    body: bytes
    deliveries: int
    origin: str | None
    reason: str | None


class Harvest(NamedTuple):
    """What a claim brought: messages, whether the session is marked as waiting now, the bells to ring.

    *next_due* is when a parked message of these queues is due (epoch seconds), if nothing else is ready.
    """

    messages: list[Claimed]
    waiting: bool
    bells: list[str]
    next_due: float | None


class Declared(NamedTuple):
    """What a declaration of a queue answers."""

    id: int
    ready: int
    consumers: int


class Other(NamedTuple):
    """Another session, as its row shows it."""

    id: int
    bell: str | None
    lease_s: float
    beats: int


class Outlook(NamedTuple):
    """What a consumer may expect: something ready now, or due at *next_due* (epoch seconds)."""

    ready: bool
    next_due: float | None


@dataclass(frozen=True, slots=True)
class QueueTraits:
    """How a queue was declared.  Times in seconds; a private queue goes with its last consumer."""

    private: bool = False
    expires_s: float | None = None
    message_ttl_s: float | None = None
    max_length: int | None = None
    max_priority: int = HIGHEST_PRIORITY


@dataclass(slots=True)
class Settlement:
    """What a holder gives back in one transaction: message ids by what becomes of them."""

    done: list[int] = field(default_factory=list)
    parked: list[tuple[int, float]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.done or self.parked)


class Target(NamedTuple):
    """One queue a message goes to."""

    id: int
    message_ttl_s: float | None
    max_length: int | None
    max_priority: int


def queue_id(db: sqlite3.Connection, name: str) -> int | None:
    """The number of a queue, ``None`` if there is none."""
    row = db.execute("SELECT id FROM celery_queues WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def standing(db: sqlite3.Connection, queue: int | None) -> Declared:
    """The queue's ready messages and consumers."""
    assert queue is not None
    ready_messages = f"SELECT count(*) FROM celery_messages WHERE queue = ? AND {READY}"
    (ready,) = db.execute(ready_messages, (queue,)).fetchone()
    (consumers,) = db.execute("SELECT count(*) FROM celery_consumers WHERE queue = ?", (queue,)).fetchone()
    return Declared(queue, ready, consumers)


def exchange_kind(db: sqlite3.Connection, name: str) -> str | None:
    """``direct``, ``topic`` or ``fanout``; ``None`` if nobody declared it."""
    row = db.execute("SELECT type FROM celery_exchanges WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def make_queue(db: sqlite3.Connection, name: str, ttl_s: float | None, now: float) -> Target:
    """The queue of this name, made with default traits if it is not there."""
    columns = "SELECT id, message_ttl_s, max_length, max_priority FROM celery_queues WHERE name = ?"
    row = db.execute(columns, (name,)).fetchone()
    if row is None:
        db.execute(
            "INSERT INTO celery_queues (name, private, expires_s, max_priority, used_at) VALUES (?, 0, ?, ?, ?)",
            (name, ttl_s, HIGHEST_PRIORITY, now),
        )
        row = db.execute(columns, (name,)).fetchone()
    return Target(*row)


def find_targets(db: sqlite3.Connection, exchange: str, routing_key: str, now: float) -> list[Target]:
    """The queues a message goes to."""
    if not exchange:
        return [make_queue(db, routing_key, IMPLICIT_QUEUE_TTL_S, now)]
    kind = exchange_kind(db, exchange)
    if kind is None:
        raise UnknownExchange(exchange)
    columns = (
        "SELECT id, message_ttl_s, max_length, max_priority, routing_key FROM celery_bindings"
        " JOIN celery_queues ON id = queue WHERE exchange = ?"
    )
    if kind == "direct":
        rows = db.execute(columns + " AND routing_key = ?", (exchange, routing_key)).fetchall()
    else:
        rows = db.execute(columns, (exchange,)).fetchall()
        if kind == "topic":
            rows = [row for row in rows if topic_matches(row[4], routing_key)]
    # A queue bound twice gets the message once.
    return list({row[0]: Target(*row[:4]) for row in rows}.values())


@lru_cache(maxsize=4096)
def topic_matches(pattern: str, routing_key: str) -> bool:
    """Does the binding *pattern* take this key?  ``*`` is one word, ``#`` any number of words, even none."""
    words = routing_key.split(".") if routing_key else []
    reached = {0}
    for part in pattern.split(".") if pattern else []:
        if part == "#":
            reached = set(range(min(reached), len(words) + 1)) if reached else reached
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in ("*", words[at])}
    return len(words) in reached


def earliest(now: float, *ttls_s: float | None) -> float | None:
    """When the shortest of these times to live ends."""
    known = [ttl_s for ttl_s in ttls_s if ttl_s is not None]
    return now + min(known) if known else None


def any_ready(db: sqlite3.Connection, queues: Iterable[int]) -> bool:
    """Is a message ready in one of these queues?"""
    query = f"SELECT 1 FROM celery_messages WHERE queue = ? AND {READY} LIMIT 1"
    return any(db.execute(query, (queue,)).fetchone() for queue in queues)


def first_due(db: sqlite3.Connection, queues: Iterable[int]) -> float | None:
    """When the first parked message of these queues is due."""
    query = "SELECT min(due_at) FROM celery_messages WHERE queue = ? AND due_at IS NOT NULL"
    known = (db.execute(query, (queue,)).fetchone()[0] for queue in queues)
    return min((due for due in known if due is not None), default=None)


def pick(db: sqlite3.Connection, queues: Sequence[int], limit: int, now: float) -> list[Claimed]:
    """Up to *limit* ready messages: an equal share of each queue first, then what is left over.

    Within a queue the highest priority comes first, then the oldest message.
    """
    query = (
        "SELECT celery_messages.id, celery_queues.name, body, deliveries, origin, reason FROM celery_messages"
        " JOIN celery_bodies ON celery_bodies.id = celery_messages.id"
        " JOIN celery_queues ON celery_queues.id = celery_messages.queue"
        f" WHERE queue = ? AND {READY} AND (expires_at IS NULL OR expires_at > ?)"
        " ORDER BY priority DESC, celery_messages.id LIMIT ? OFFSET ?"
    )
    share = -(-limit // max(1, len(queues)))
    found: list[Claimed] = []
    deeper: list[tuple[int, int]] = []
    for queue in queues:
        room = min(share, limit - len(found))
        rows = db.execute(query, (queue, now, room, 0)).fetchall()
        found.extend(Claimed(*row) for row in rows)
        if len(rows) == room:
            deeper.append((queue, room))
    for queue, skipped in deeper:
        room = limit - len(found)
        if room > 0:
            found.extend(Claimed(*row) for row in db.execute(query, (queue, now, room, skipped)))
    return found


def parked(db: sqlite3.Connection, names: Sequence[str], most: int) -> list[Claimed]:
    """Messages of these queues that wait for their time, the soonest first."""
    query = (
        "SELECT celery_messages.id, celery_queues.name, body, deliveries, origin, reason FROM celery_messages"
        " JOIN celery_bodies ON celery_bodies.id = celery_messages.id"
        " JOIN celery_queues ON celery_queues.id = celery_messages.queue"
        f" WHERE celery_queues.name IN ({', '.join('?' * len(names))}) AND due_at IS NOT NULL AND holder IS NULL"
        " ORDER BY due_at LIMIT ?"
    )
    return [Claimed(*row) for row in db.execute(query, (*names, most))]


def settle(db: sqlite3.Connection, session: int | None, settlement: Settlement) -> list[str]:
    """Delete what is done, park what the session still holds; the bells of those who must know of it."""
    delete_messages(db, settlement.done)
    if not settlement.parked:
        return []
    queues: dict[int, int] = {}
    for message, due in settlement.parked:
        # Waiting for its time is no delivery.
        parked = db.execute(
            "UPDATE celery_messages SET holder = NULL, due_at = ?, deliveries = deliveries - 1"
            " WHERE id = ? AND holder = ?",
            (due, message, session),
        )
        if parked.rowcount:
            (queue,) = db.execute("SELECT queue FROM celery_messages WHERE id = ?", (message,)).fetchone()
            queues[queue] = MOST_BELLS
    return waiting_bells(db, queues)


def release(db: sqlite3.Connection, session: int, ids: Iterable[int] | None) -> dict[int, int]:
    """Give back what the session holds; how many messages went to which queue."""
    held = "SELECT id, queue FROM celery_messages WHERE holder = ?"
    rows = db.execute(held, (session,)).fetchall()
    if ids is not None:
        chosen = set(ids)
        rows = [row for row in rows if row[0] in chosen]
    db.executemany("UPDATE celery_messages SET holder = NULL WHERE id = ?", [(row[0],) for row in rows])
    counts: dict[int, int] = {}
    for _, queue in rows:
        counts[queue] = counts.get(queue, 0) + 1
    return counts


def rewrite(db: sqlite3.Connection, session: int, texts: Mapping[int, bytes]) -> None:
    """Change the texts of messages that the session holds."""
    held = "SELECT 1 FROM celery_messages WHERE celery_messages.id = celery_bodies.id AND holder = ?"
    db.executemany(
        f"UPDATE celery_bodies SET body = ? WHERE id = ? AND EXISTS ({held})",
        [(text, number, session) for number, text in texts.items()],
    )


def delete_messages(db: sqlite3.Connection, ids: Iterable[int]) -> None:
    """Delete messages with their bodies."""
    rows = [(number,) for number in ids]
    if rows:
        db.executemany("DELETE FROM celery_messages WHERE id = ?", rows)
        db.executemany("DELETE FROM celery_bodies WHERE id = ?", rows)


def messages_of(db: sqlite3.Connection, queue: int, *, held: bool) -> list[int]:
    """The messages of a queue, with or without those held; by index, however many other queues hold."""
    states = [READY, "due_at IS NOT NULL", *(["holder IS NOT NULL"] if held else [])]
    ids: list[int] = []
    for state in states:
        query = f"SELECT id FROM celery_messages WHERE queue = ? AND {state}"
        ids.extend(row[0] for row in db.execute(query, (queue,)))
    return ids


def drop_overflow(db: sqlite3.Connection, queue: int, most: int) -> None:
    """Delete from the head of a queue that holds more than *most* ready messages."""
    over = standing(db, queue).ready - most
    if over > 0:
        rows = db.execute(
            f"SELECT id FROM celery_messages WHERE queue = ? AND {READY} ORDER BY priority DESC, id LIMIT ?",
            (queue, over),
        ).fetchall()
        delete_messages(db, [row[0] for row in rows])


def waiting_bells(db: sqlite3.Connection, arrivals: Mapping[int, int]) -> list[str]:
    """Whom to wake for so many messages in each queue: some of those who wait, by chance."""
    bells: set[str] = set()
    for queue, count in arrivals.items():
        rows = db.execute(
            "SELECT bell FROM celery_consumers JOIN celery_sessions ON id = session"
            " WHERE queue = ? AND waiting = 1 AND bell IS NOT NULL",
            (queue,),
        ).fetchall()
        if len(rows) > MOST_BELLS:
            rows = random.sample(rows, min(len(rows), max(MOST_BELLS, count)))
        bells.update(row[0] for row in rows)
    return list(bells)


def leave_queues(db: sqlite3.Connection, session: int, queues: Iterable[int], now: float) -> None:
    """Stop consuming; private queues nobody else consumes go."""
    for queue in queues:
        db.execute("DELETE FROM celery_consumers WHERE queue = ? AND session = ?", (queue, session))
        db.execute("UPDATE celery_queues SET used_at = ? WHERE id = ?", (now, queue))
        alone = db.execute(
            "SELECT 1 FROM celery_queues WHERE id = ? AND private"
            " AND NOT EXISTS (SELECT 1 FROM celery_consumers WHERE queue = celery_queues.id)",
            (queue,),
        ).fetchone()
        if alone:
            drop_queue(db, queue)


def drop_queue(db: sqlite3.Connection, queue: int) -> None:
    """Delete a queue with its messages, bindings and consumers."""
    rows = db.execute("SELECT exchange FROM celery_bindings WHERE queue = ?", (queue,)).fetchall()
    delete_messages(db, messages_of(db, queue, held=True))
    db.execute("DELETE FROM celery_bindings WHERE queue = ?", (queue,))
    db.execute("DELETE FROM celery_consumers WHERE queue = ?", (queue,))
    db.execute("DELETE FROM celery_queues WHERE id = ?", (queue,))
    drop_unused_exchanges(db, {row[0] for row in rows})


def drop_unused_exchanges(db: sqlite3.Connection, names: Iterable[str]) -> None:
    """Delete those of these exchanges that are to go with their last binding, and have none."""
    db.executemany(
        "DELETE FROM celery_exchanges WHERE name = ? AND auto_delete"
        " AND NOT EXISTS (SELECT 1 FROM celery_bindings WHERE exchange = celery_exchanges.name)",
        [(name,) for name in names],
    )
