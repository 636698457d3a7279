"""Which beat may send for a schedule, and when its entries ran: the shapes of what the broker keeps of that.

Implemented by ``transport.redis_beat_lease`` and ``transport.sqlite_beat_lease``, used by ``beat.lease``.  Holds
types only and may not import a client library.  Why there is a lease: ``docs/internals/decisions``.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from celery_clone.message.outgoing import TaskMessage
    from celery_clone.transport.protocols import Destination, SendOptions

__all__ = ("BOOK_S", "Answer", "DueRun", "LeaseStore", "Verdict")

BOOK_S = 400 * 24 * 3600
"""How long it is remembered when an entry ran, in seconds: longer than what runs once a year sleeps."""


class Verdict(Enum):
    """What became of a run that was to be sent."""

    SENT = "sent"
    """It was written down and, where the store is the broker, sent with it."""

    AGAIN = "again"
    """This very run was written down before; what came of sending it was not heard."""

    ELSEWHERE = "elsewhere"
    """Another beat ran the entry since; nothing was sent."""

    LOST = "lost"
    """The lease is another's, or nobody's; nothing was sent."""


class Answer(NamedTuple):
    """A verdict, and for ``ELSEWHERE`` the record of the run that another beat had sent."""

    verdict: Verdict
    record: str = ""


class DueRun(NamedTuple):
    """One run of one entry, about to be sent.

    Arguments:
        lease: name of the lease.
        owner: who holds it, as far as the sender knows.
        book: name under which runs are written down.
        entry: what tells the entry from others in the book.
        known_at: epoch time of the last run that the sender knows of.
        record: what is written down: epoch time of this run, how many there were, and the owner.
    """

    lease: str
    owner: str
    book: str
    entry: str
    known_at: float
    record: str


class LeaseStore(Protocol):
    """Where leases and books of runs are kept.  All methods raise ``OperationalError`` if it cannot be reached."""

    def take(self, lease: str, owner: str, expires_s: float, dead: str = "") -> str:
        """Take or renew a lease; returns who holds it now.  The holder *dead* is known to be gone."""

    def let_go(self, lease: str, owner: str) -> None:
        """Give a lease up, if it is held."""

    def runs(self, book: str) -> dict[str, str]:
        """The last record of each entry."""

    def note(self, book: str, records: dict[str, str], outdated: list[str]) -> None:
        """Write down records of entries that have none, and forget what is outdated."""

    def claim(self, run: DueRun) -> Answer:
        """Write a run down, without sending anything."""

    def publish(self, message: TaskMessage, to: Destination, how: SendOptions, run: DueRun) -> Answer | None:
        """Write a run down and send its message, in one step; ``None``: this message cannot be sent so.

        Legal to repeat: the same run is sent once.
        """

    def close(self) -> None:
        """Let go of connections.  Legal twice."""
