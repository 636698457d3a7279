"""Revoked tasks as Redis and the embedded broker keep them, so that a revoke holds although no worker runs.

Written by ``app.control`` where a task is revoked and by ``worker.consumer`` where it hears of one, read by
``worker.consumer`` when it connects and now and then.  What is kept are ids, and stamps as pairs of name and
value; each is forgotten after a time.  Other brokers have no place for them: there, workers tell each other.
It may not decide what a revoked task means.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from celery_clone.utils.functional import maybe_list

__all__ = ("KEPT_S", "Revocations", "read", "remember")

KEPT_S = 7 * 24 * 3600.0
"""How long a revoke is kept."""

MOST = 50_000
"""How many are kept; the oldest go first."""

KEY = "celery.revoked"
"""Sorted set on Redis: id, or JSON ``[name, value]`` of a stamp, to the time until which it is kept."""

REMEMBER = f"""
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
for at = 3, #ARGV do
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[at])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -{MOST + 1})
return redis.call('ZCARD', KEYS[1])
"""

READ = "return redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], '+inf')"

TABLE = "CREATE TABLE IF NOT EXISTS celery_revoked (name TEXT PRIMARY KEY, kept_until REAL NOT NULL) WITHOUT ROWID"


class Revocations(NamedTuple):
    """What is revoked: ids, and a value or values of stamps by the stamps' names."""

    ids: frozenset[str] = frozenset()
    stamps: Mapping[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.ids or self.stamps)


def remember(connection: Any, found: Revocations, *, now: float, kept_s: float = KEPT_S) -> bool:
    """Keep *found* at the broker of a connected kombu *connection*; ``False``: it has no place for that.

    Raises the connection errors of the transport.
    """
    keep, _ = KEEPERS.get(connection.transport.driver_type, (None, None))
    if keep is None:
        return False
    names = packed(found)
    if names:
        keep(connection, names, now, now + kept_s)
    return True


def read(connection: Any, *, now: float | None = None) -> Revocations:
    """What the broker keeps; nothing where it keeps none.

    Raises the connection errors of the transport.
    """
    _, look = KEEPERS.get(connection.transport.driver_type, (None, None))
    return Revocations() if look is None else unpacked(look(connection, time.time() if now is None else now))


def packed(found: Revocations) -> list[str]:
    """Names to keep.  An id is itself; no id that anybody makes begins as a JSON list does."""
    stamps = [
        json.dumps([name, value], sort_keys=True, default=str)
        for name, values in found.stamps.items()
        for value in maybe_list(values) or ()
    ]
    return [*found.ids, *stamps]


def unpacked(names: Iterable[str]) -> Revocations:
    """The reverse of :func:`packed`; what cannot be read is passed over."""
    ids: set[str] = set()
    stamps: dict[str, list[Any]] = {}
    for each in names:
        if not each.startswith("["):
            ids.add(each)
            continue
        try:
            name, value = json.loads(each)
        except ValueError:
            continue
        stamps.setdefault(name, []).append(value)
    return Revocations(frozenset(ids), stamps)


def keep_on_redis(connection: Any, names: list[str], now: float, until: float) -> None:
    channel = connection.default_channel
    for at in range(0, len(names), 1000):
        part = names[at : at + 1000]
        channel.client.execute_command("EVAL", REMEMBER, 1, f"{channel.global_keyprefix}{KEY}", now, until, *part)


def read_on_redis(connection: Any, now: float) -> list[str]:
    channel = connection.default_channel
    names = channel.client.execute_command("EVAL", READ, 1, f"{channel.global_keyprefix}{KEY}", now)
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]


def keep_on_sqlite(connection: Any, names: list[str], now: float, until: float) -> None:
    def keep(db: sqlite3.Connection) -> None:
        db.execute(TABLE)
        db.execute("DELETE FROM celery_revoked WHERE kept_until <= ?", (now,))
        db.executemany("INSERT OR REPLACE INTO celery_revoked VALUES (?, ?)", [(name, until) for name in names])
        oldest_first = "SELECT name FROM celery_revoked ORDER BY kept_until DESC LIMIT -1 OFFSET ?"
        db.execute(f"DELETE FROM celery_revoked WHERE name IN ({oldest_first})", (MOST,))

    connection.transport.broker.database.write(keep)


def read_on_sqlite(connection: Any, now: float) -> list[str]:
    def look(db: sqlite3.Connection) -> list[str]:
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'celery_revoked'").fetchone() is None:
            return []
        return [row[0] for row in db.execute("SELECT name FROM celery_revoked WHERE kept_until > ?", (now,))]

    found: list[str] = connection.transport.broker.database.read(look)
    return found


KEEPERS: dict[str, tuple[Callable[..., None], Callable[..., list[str]]]] = {
    "redis": (keep_on_redis, read_on_redis),
    "sqlite": (keep_on_sqlite, read_on_sqlite),
}
"""Driver type of a transport to what keeps and what reads."""
