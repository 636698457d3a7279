"""Queues in one SQLite file: what a message broker does, as transactions.

Used by the kombu transport of this package and by ``transport.sqlite_source``.  Owns the broker's
tables and decides what a queue, a claim, a lease and a due time mean.  It holds no socket and no
timer, does not read message texts, and knows nothing of kombu's classes: who calls it rings the bells
it names, after the commit.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from celery_clone.transport.sqlite import tables
from celery_clone.transport.sqlite.database import Database
from celery_clone.transport.sqlite.tables import (
    DEAD_SUFFIX,
    PRIVATE_QUEUE_TTL_S,
    READY,
    Claimed,
    Declared,
    Harvest,
    Letter,
    NoRoute,
    Other,
    Outlook,
    QueueTraits,
    Settlement,
    Target,
    UnknownExchange,
)

__all__ = ("EmbeddedBroker",)


class EmbeddedBroker:
    """All that is done to the broker's tables.  Each public method is one transaction.

    Those who changed something others wait for return the bells to ring.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    # -- topology

    def declare_exchange(
        self, name: str, kind: str, *, durable: bool, auto_delete: bool, arguments: Mapping[str, Any]
    ) -> bool:
        """Make the exchange if it is not there.  ``False``: it is there, and different."""
        wanted = (kind, int(durable), int(auto_delete), json.dumps(arguments, sort_keys=True, default=str))
        columns = "SELECT type, durable, auto_delete, arguments FROM celery_exchanges WHERE name = ?"
        found = self.database.read(lambda db: db.execute(columns, (name,)).fetchone())
        if found is None:

            def make(db: sqlite3.Connection) -> tuple[Any, ...]:
                db.execute("INSERT OR IGNORE INTO celery_exchanges VALUES (?, ?, ?, ?, ?)", (name, *wanted))
                made: tuple[Any, ...] = db.execute(columns, (name,)).fetchone()
                return made

            found = self.database.write(make)
        return tuple(found) == wanted

    def has_exchange(self, name: str) -> bool:
        """Was this exchange declared?"""
        return self.database.read(lambda db: tables.exchange_kind(db, name)) is not None

    def delete_exchange(self, name: str, *, if_unused: bool) -> None:
        """Delete an exchange and its bindings, not its queues."""

        def delete(db: sqlite3.Connection) -> None:
            used = db.execute("SELECT 1 FROM celery_bindings WHERE exchange = ?", (name,)).fetchone()
            if not (if_unused and used):
                db.execute("DELETE FROM celery_bindings WHERE exchange = ?", (name,))
                db.execute("DELETE FROM celery_exchanges WHERE name = ?", (name,))

        self.database.write(delete)

    def declare_queue(self, name: str, traits: QueueTraits, now: float) -> Declared:
        """Make the queue, or give it these traits, and say how it stands."""
        ttl_s = traits.expires_s
        if ttl_s is None and traits.private:
            ttl_s = PRIVATE_QUEUE_TTL_S
        values = (int(traits.private), ttl_s, traits.message_ttl_s, traits.max_length, traits.max_priority)

        def declare(db: sqlite3.Connection) -> Declared:
            db.execute(
                "INSERT INTO celery_queues"
                " (name, private, expires_s, message_ttl_s, max_length, max_priority, used_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET private = excluded.private,"
                " expires_s = excluded.expires_s, message_ttl_s = excluded.message_ttl_s,"
                " max_length = excluded.max_length, max_priority = excluded.max_priority,"
                " used_at = excluded.used_at",
                (name, *values, now),
            )
            return tables.standing(db, tables.queue_id(db, name))

        return self.database.write(declare)

    def find_queue(self, name: str) -> Declared | None:
        """How the queue stands, ``None`` if there is none."""

        def find(db: sqlite3.Connection) -> Declared | None:
            found = tables.queue_id(db, name)
            return None if found is None else tables.standing(db, found)

        return self.database.read(find)

    def numbers(self, names: Iterable[str], now: float) -> dict[str, int]:
        """The numbers of these queues, which are made if need be."""
        wanted = list(names)

        def find(db: sqlite3.Connection) -> dict[str, int | None]:
            return {name: tables.queue_id(db, name) for name in wanted}

        def make(db: sqlite3.Connection) -> dict[str, int]:
            return {name: tables.make_queue(db, name, None, now).id for name in wanted}

        found = self.database.read(find)
        known = {name: number for name, number in found.items() if number is not None}
        return known if len(known) == len(found) else self.database.write(make)

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Let messages of *exchange* that match *routing_key* go to *queue*.

        Raises:
            UnknownExchange: nobody declared the exchange.
        """

        def bind(db: sqlite3.Connection) -> None:
            if tables.exchange_kind(db, exchange) is None:
                raise UnknownExchange(exchange)
            db.execute(
                "INSERT OR IGNORE INTO celery_bindings SELECT ?, ?, id FROM celery_queues WHERE name = ?",
                (exchange, routing_key, queue),
            )

        known = self.database.read(
            lambda db: db.execute(
                "SELECT 1 FROM celery_bindings JOIN celery_queues ON id = queue"
                " WHERE exchange = ? AND routing_key = ? AND name = ?",
                (exchange, routing_key, queue),
            ).fetchone()
        )
        if known is None:
            self.database.write(bind)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Undo :meth:`bind`."""

        def unbind(db: sqlite3.Connection) -> None:
            db.execute(
                "DELETE FROM celery_bindings WHERE exchange = ? AND routing_key = ?"
                " AND queue = (SELECT id FROM celery_queues WHERE name = ?)",
                (exchange, routing_key, queue),
            )
            tables.drop_unused_exchanges(db, [exchange])

        self.database.write(unbind)

    def bindings(self) -> list[tuple[str, str, str]]:
        """All bindings as (queue, exchange, routing key)."""
        return self.database.read(
            lambda db: db.execute(
                "SELECT name, exchange, routing_key FROM celery_bindings JOIN celery_queues ON id = queue"
            ).fetchall()
        )

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete a queue, its bindings and messages; how many of these were ready."""

        def delete(db: sqlite3.Connection) -> int:
            found = tables.queue_id(db, name)
            if found is None:
                return 0
            stands = tables.standing(db, found)
            if (if_unused and stands.consumers) or (if_empty and stands.ready):
                return 0
            tables.drop_queue(db, found)
            return stands.ready

        return self.database.write(delete)

    def purge(self, name: str) -> int:
        """Delete the messages of a queue that nobody holds, parked ones too; how many there were."""

        def purge(db: sqlite3.Connection) -> int:
            found = tables.queue_id(db, name)
            ids = [] if found is None else tables.messages_of(db, found, held=False)
            tables.delete_messages(db, ids)
            return len(ids)

        return self.database.write(purge)

    # -- messages

    def publish(
        self,
        batch: Sequence[Letter],
        now: float,
        *,
        unroutable_queue: str | None = None,
        mandatory: bool = False,
        patience_s: float | None = None,
        condition: Callable[[sqlite3.Connection], bool] | None = None,
    ) -> list[str]:
        """Store each message in every queue its exchange and routing key lead to: all of them, or none.

        A message for the nameless exchange makes its queue if need be.  Messages that lead nowhere go to
        *unroutable_queue*; without one they are dropped, as AMQP does, or refused when *mandatory*.
        *patience_s* bounds the wait for the write lock, if it is shorter than the database's own.
        *condition* is asked first, in the same transaction, and may keep the batch from being stored.

        Raises:
            UnknownExchange: nobody declared the exchange of one.
            NoRoute: one leads nowhere, and must not.
        """

        def publish(db: sqlite3.Connection) -> list[str]:
            if condition is not None and not condition(db):
                return []
            routes: dict[tuple[str, str], list[Target]] = {}
            messages: list[tuple[Any, ...]] = []
            bodies: list[tuple[int, bytes]] = []
            arrivals: dict[int, int] = {}
            limits: dict[int, int] = {}
            row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'celery_messages'").fetchone()
            number = 0 if row is None else row[0]
            for message in batch:
                way = (message.exchange, message.routing_key)
                targets = routes.get(way)
                if targets is None:
                    targets = routes[way] = tables.find_targets(db, *way, now)
                    if not targets and unroutable_queue is not None:
                        targets = routes[way] = tables.find_targets(db, "", unroutable_queue, now)
                if not targets and mandatory:
                    raise NoRoute(*way)
                for target in targets:
                    number += 1
                    priority = max(0, min(message.priority, target.max_priority))
                    expires_at = tables.earliest(now, message.ttl_s, target.message_ttl_s)
                    messages.append((number, target.id, priority, expires_at))
                    bodies.append((number, message.body))
                    arrivals[target.id] = arrivals.get(target.id, 0) + 1
                    if target.max_length is not None:
                        limits[target.id] = target.max_length
            db.executemany(
                "INSERT INTO celery_messages (id, queue, priority, expires_at, deliveries) VALUES (?, ?, ?, ?, 0)",
                messages,
            )
            db.executemany("INSERT INTO celery_bodies VALUES (?, ?)", bodies)
            for queue, most in limits.items():
                tables.drop_overflow(db, queue, most)
            return tables.waiting_bells(db, arrivals)

        return self.database.write(publish, patience_s)

    def outlook(self, queues: Collection[int], now: float) -> Outlook:
        """Is something ready in these queues, and if not, when will something be?"""

        def look(db: sqlite3.Connection) -> Outlook:
            if tables.any_ready(db, queues):
                return Outlook(True, None)
            next_due = tables.first_due(db, queues)
            return Outlook(next_due is not None and next_due <= now, next_due)

        return self.database.read(look)

    def claim(
        self,
        session: int | None,
        queues: Sequence[int],
        limit: int,
        now: float,
        *,
        settlement: Settlement | None = None,
        was_waiting: bool = False,
        forget: bool = False,
    ) -> Harvest:
        """Settle what is given back, then hand out up to *limit* messages, fairly over the queues.

        The messages are held by the *session*, or gone when *forget* (nobody will acknowledge them).
        The session is marked as waiting, unless messages remain that it had no room for.
        """

        def claim(db: sqlite3.Connection) -> Harvest:
            bells = [] if settlement is None else tables.settle(db, session, settlement)
            for queue in queues:
                db.execute("UPDATE celery_messages SET due_at = NULL WHERE queue = ? AND due_at <= ?", (queue, now))
            found = tables.pick(db, queues, limit, now) if limit > 0 else []
            if forget:
                tables.delete_messages(db, [message.id for message in found])
            else:
                db.executemany(
                    "UPDATE celery_messages SET holder = ?, deliveries = deliveries + 1 WHERE id = ?",
                    [(session, message.id) for message in found],
                )
            waiting = len(found) < limit or not tables.any_ready(db, queues)
            if waiting != was_waiting:
                db.execute("UPDATE celery_sessions SET waiting = ? WHERE id = ?", (int(waiting), session))
            next_due = tables.first_due(db, queues) if len(found) < limit else None
            return Harvest(found, waiting, bells, next_due)

        return self.database.write(claim)

    def parked(self, names: Sequence[str], most: int) -> list[Claimed]:
        """What waits for its time in these queues, the soonest first.  It is handed out to nobody."""
        return self.database.read(lambda db: tables.parked(db, names, most))

    def unpark(self) -> None:
        """Have everything that waits for its time stand in its queue now."""
        self.database.write(lambda db: db.execute("UPDATE celery_messages SET due_at = NULL WHERE holder IS NULL"))

    def settle(self, session: int | None, settlement: Settlement) -> list[str]:
        """Delete what is done and park what is not due yet."""
        return self.database.write(lambda db: tables.settle(db, session, settlement))

    def rewrite(self, session: int, texts: Mapping[int, bytes]) -> None:
        """Give messages that the session holds another text."""
        self.database.write(lambda db: tables.rewrite(db, session, texts))

    def release(
        self, session: int, ids: Iterable[int] | None = None, texts: Mapping[int, bytes] | None = None
    ) -> list[str]:
        """Give held messages back to their queues, at their old place; all of them without *ids*.

        Those in *texts* with another text.
        """

        def give_back(db: sqlite3.Connection) -> list[str]:
            tables.rewrite(db, session, texts or {})
            return tables.waiting_bells(db, tables.release(db, session, ids))

        return self.database.write(give_back)

    def holds(self, session: int) -> bool:
        """Does the session hold any message?"""
        query = "SELECT 1 FROM celery_messages WHERE holder = ? LIMIT 1"
        return self.database.read(lambda db: db.execute(query, (session,)).fetchone()) is not None

    def bury(self, session: int, message: int, reason: str, now: float) -> None:
        """Move a held message to ``<queue>.dead`` and note why."""

        def bury(db: sqlite3.Connection) -> None:
            row = db.execute(
                "SELECT name FROM celery_queues JOIN celery_messages"
                " ON celery_messages.queue = celery_queues.id WHERE celery_messages.id = ? AND holder = ?",
                (message, session),
            ).fetchone()
            if row is None:
                return
            (origin,) = row
            name = origin if origin.endswith(DEAD_SUFFIX) else origin + DEAD_SUFFIX
            target = tables.make_queue(db, name, None, now)
            db.execute(
                "UPDATE celery_messages SET queue = ?, holder = NULL, expires_at = NULL,"
                " origin = ?, reason = ? WHERE id = ?",
                (target.id, origin, reason, message),
            )

        self.database.write(bury)

    # -- sessions

    def enter(self, bell: str | None, process: str, lease_s: float, queues: Iterable[int]) -> int:
        """Add a session that consumes from *queues*; its id."""

        def enter(db: sqlite3.Connection) -> int:
            made = db.execute(
                "INSERT INTO celery_sessions (bell, process, lease_s, beats, waiting) VALUES (?, ?, ?, 0, 0)",
                (bell, process, lease_s),
            )
            number = made.lastrowid
            assert number is not None
            rows = [(queue, number) for queue in queues]
            db.executemany("INSERT INTO celery_consumers VALUES (?, ?)", rows)
            return number

        return self.database.write(enter)

    def consume(self, session: int, queues: Iterable[int], now: float) -> None:
        """Let the session consume from exactly these queues; private ones it leaves alone go."""

        def consume(db: sqlite3.Connection) -> None:
            wanted = set(queues)
            rows = db.execute("SELECT queue FROM celery_consumers WHERE session = ?", (session,))
            present = {row[0] for row in rows}
            new = [(queue, session) for queue in wanted - present]
            db.executemany("INSERT INTO celery_consumers VALUES (?, ?)", new)
            tables.leave_queues(db, session, present - wanted, now)

        self.database.write(consume)

    def beat(self, session: int, bell: str | None) -> int | None:
        """Renew the lease; how many queues the session consumes from.

        ``None``: the others gave the session up, and what it held is theirs.
        """

        def beat(db: sqlite3.Connection) -> int | None:
            renewed = "UPDATE celery_sessions SET beats = beats + 1, bell = ? WHERE id = ?"
            done = db.execute(renewed, (bell, session))
            query = "SELECT count(*) FROM celery_consumers WHERE session = ?"
            (consumed,) = db.execute(query, (session,)).fetchone()
            return int(consumed) if done.rowcount else None

        return self.database.write(beat)

    def others(self, session: int | None) -> list[Other]:
        """All sessions but this one."""
        query = "SELECT id, bell, lease_s, beats FROM celery_sessions WHERE id IS NOT ?"
        rows = self.database.read(lambda db: db.execute(query, (session,)).fetchall())
        return [Other(*row) for row in rows]

    def leave(self, sessions: Sequence[Other | int], now: float) -> list[str]:
        """End sessions: what they hold goes back, private queues only they consumed go with them.

        A session given as :class:`Other` is left alone if it has shown life since.
        """

        def leave(db: sqlite3.Connection) -> list[str]:
            back: dict[int, int] = {}
            for session in sessions:
                if isinstance(session, int):
                    number = session
                    db.execute("DELETE FROM celery_sessions WHERE id = ?", (number,))
                else:
                    number = session.id
                    still_silent = "DELETE FROM celery_sessions WHERE id = ? AND beats = ?"
                    if not db.execute(still_silent, (number, session.beats)).rowcount:
                        continue
                for queue, count in tables.release(db, number, None).items():
                    back[queue] = back.get(queue, 0) + count
                rows = db.execute("SELECT queue FROM celery_consumers WHERE session = ?", (number,))
                tables.leave_queues(db, number, {row[0] for row in rows}, now)
            return tables.waiting_bells(db, back)

        return self.database.write(leave)

    def tidy(self, now: float) -> None:
        """Delete messages past their time to live, and queues nobody used for as long as they may stay."""
        outdated = f"SELECT id FROM celery_messages WHERE expires_at <= ? AND {READY}"
        unused = (
            "SELECT id FROM celery_queues WHERE expires_s IS NOT NULL AND used_at + expires_s <= ?"
            " AND NOT EXISTS (SELECT 1 FROM celery_consumers WHERE queue = celery_queues.id)"
            " AND NOT EXISTS"
            " (SELECT 1 FROM celery_messages WHERE holder IS NOT NULL AND queue = celery_queues.id)"
        )

        def find(db: sqlite3.Connection) -> tuple[list[int], list[int]]:
            messages = db.execute(outdated, (now,)).fetchall()
            queues = db.execute(unused, (now,)).fetchall()
            return [row[0] for row in messages], [row[0] for row in queues]

        def delete(db: sqlite3.Connection) -> None:
            messages, queues = find(db)
            tables.delete_messages(db, messages)
            for queue in queues:
                tables.drop_queue(db, queue)

        if any(self.database.read(find)):
            self.database.write(delete)
