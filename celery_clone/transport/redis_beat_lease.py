"""Leases of beats and their books of runs, on Redis: a string and a hash for each schedule.

Opened by ``transport.open_lease_store``.  A run and its message are written by one script, so nothing can come
between them: no crash, no other beat, and no lost answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery_clone.transport.beat_lease import BOOK_S, Answer, DueRun, Verdict
from celery_clone.transport.protocols import SendOptions
from celery_clone.transport.redis_layout import pack, script
from celery_clone.transport.redis_publisher import RedisPublisher, Session

if TYPE_CHECKING:
    from celery_clone.message.outgoing import TaskMessage
    from celery_clone.transport.protocols import Destination

__all__ = ("RedisLeaseStore",)

TAKE, SEND = script("beat_take.lua"), script("beat_send.lua")

ASK = SendOptions(deadline_s=5.0, retry=False)
"""A lease is asked for again and again anyway."""

DROP = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RedisLeaseStore:
    """A :class:`~celery_clone.transport.beat_lease.LeaseStore` on Redis."""

    def __init__(self, pool: Any) -> None:
        self.publisher = RedisPublisher(pool)

    def take(self, lease: str, owner: str, expires_s: float, dead: str = "") -> str:
        """Take or renew a lease; returns who holds it now."""
        milliseconds = max(1, round(expires_s * 1000))
        answer = self._ask(
            lambda session: pack("EVAL", TAKE.text, 1, key(session, lease), owner, milliseconds, dead or owner)
        )
        return text(answer)

    def let_go(self, lease: str, owner: str) -> None:
        """Give a lease up, if it is held."""
        self._ask(lambda session: pack("EVAL", DROP, 1, key(session, lease), owner))

    def runs(self, book: str) -> dict[str, str]:
        """The last record of each entry."""
        answer = self._ask(lambda session: pack("HGETALL", key(session, book)))
        # A list in the old protocol, a mapping in the new one.
        pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
        return {text(entry): text(record) for entry, record in pairs}

    def note(self, book: str, records: dict[str, str], outdated: list[str]) -> None:
        """Write down records of entries that have none, and forget what is outdated."""
        for entry, record in records.items():
            self._ask(lambda session, of=entry, is_=record: pack("HSETNX", key(session, book), of, is_))
        if records:
            self._ask(lambda session: pack("EXPIRE", key(session, book), BOOK_S))
        if outdated:
            self._ask(lambda session: pack("HDEL", key(session, book), *outdated))

    def claim(self, run: DueRun) -> Answer:
        """Write a run down, without sending anything."""
        return verdict(self._ask(lambda session: command(session, run, [])))

    def publish(self, message: TaskMessage, to: Destination, how: SendOptions, run: DueRun) -> Answer | None:
        """Write a run down and send its message, in one step; ``None``: this message cannot be sent so."""
        if not self.publisher.is_plain(message, to, how):
            return None
        return verdict(
            self.publisher.publish_by(lambda session, pushes: command(session, run, pushes), message, to, how)
        )

    def close(self) -> None:
        """Let go of connections.  Legal twice."""
        self.publisher.close()

    def _ask(self, make: Any) -> Any:
        return self.publisher.call(make, ASK)


def key(session: Session, name: str) -> str:
    """The key of that name, with the broker's prefix."""
    return session.layout.prefix + name


def command(session: Session, run: DueRun, pushes: Sequence[tuple[str, bytes]]) -> bytes:
    """The call of the script that writes a run down and makes the *pushes*, lists with their texts."""
    keys = [key(session, run.lease), key(session, run.book), *(name for name, _ in pushes)]
    texts = [pushed for _, pushed in pushes]
    known_at = f"{run.known_at:.6f}"
    return pack("EVAL", SEND.text, len(keys), *keys, run.owner, run.entry, known_at, run.record, BOOK_S, *texts)


def verdict(answer: Any) -> Answer:
    """What the script said."""
    word, _, record = text(answer).partition(" ")
    return Answer(Verdict(word), record)


def text(answer: Any) -> str:
    """An answer of Redis, decoded or not, as text."""
    return answer.decode("utf-8") if isinstance(answer, bytes) else str(answer)
