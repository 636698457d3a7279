"""Jobs on their way: handed to the pool, waiting or in the feed, not yet reported.

Owned by ``procpool.parent``.  It owns the feed and knows which jobs are unreported and which of them wait in
this process; it knows no child.  It never waits.
"""

from __future__ import annotations

import enum
import socket
import time
from collections import deque
from collections.abc import Iterable

from celery_clone.message.frames import Job, Unfit
from celery_clone.utils.log import get_logger

from .jobs import Feed, Kind, Packet
from .limits import Limits

__all__ = ("Desk", "Order", "Passage")

logger = get_logger("celery.pool")


class Passage(enum.Enum):
    """How :meth:`Desk.pump` ended."""

    CLEAR = "everything was passed on"
    FULL = "the feed has no room"
    SHORT = "the system refused for lack of something"


class Order:
    """A job handed to the pool and not yet reported."""

    __slots__ = ("deaths", "job", "limits", "since")

    def __init__(self, job: Job, limits: Limits) -> None:
        self.job, self.limits = job, limits
        self.since = time.monotonic()
        self.deaths = 0
        """Children that died with it before its run had begun."""


class Desk:
    """The orders of one pool and the feed through which they leave."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.orders: dict[int, Order] = {}
        self.refused: list[Unfit] = []
        """Reports of jobs that could not be put into a packet; the parent takes them from here."""
        self._waiting: deque[int | Kind] = deque()
        self._packet: Packet | None = None
        self._complaint = ""
        self._finished = False

    @property
    def waits(self) -> bool:
        """Is there something that :meth:`pump` would pass on?"""
        return bool(self._waiting)

    def add(self, job: Job, limits: Limits) -> None:
        """A new job, behind all others."""
        self.orders[job.seq] = Order(job, limits)
        self._waiting.append(job.seq)

    def add_leaves(self, count: int) -> None:
        """Have *count* children leave when they are idle and no job waits."""
        self._waiting.extend([Kind.LEAVE] * count)

    def put_back(self, seq: int) -> None:
        """A job that a child took and did not begin: it is the next one."""
        if self._finished:
            self.orders.pop(seq, None)
        elif seq in self.orders:
            self.orders[seq].deaths += 1
            self._drop_packet()
            self._waiting.appendleft(seq)

    def pump(self) -> Passage:
        """Pass on what waits, as far as there is room."""
        try:
            while self._waiting:
                packet = self._packet or self._pack(self._waiting[0])
                if packet is None:
                    self._waiting.popleft()
                elif self.feed.put(packet):
                    self._waiting.popleft()
                    self._drop_packet()
                else:
                    return Passage.FULL
        except OSError as exc:
            if self._complaint != str(exc):
                self._complaint = str(exc)
                logger.warning("Jobs wait because the system refuses to pass them on: %s", exc)
            return Passage.SHORT
        self._complaint = ""
        return Passage.CLEAR

    def _pack(self, item: int | Kind) -> Packet | None:
        """The packet of what is first in line; ``None`` when there is nothing to send for it."""
        if isinstance(item, Kind):
            self._packet = Packet.order(item)
            return self._packet
        order = self.orders.get(item)
        if order is None:
            return None
        try:
            self._packet = Packet.of(order.job)
        except OSError:
            raise
        except Exception as exc:  # noqa: BLE001 whatever a value of the message raises when it is pickled
            del self.orders[item]
            detail = f"Task {order.job.task!r} cannot be handed to a pool process: {exc!r}"
            self.refused.append(Unfit(item, "unsendable", detail))
        return self._packet

    def _drop_packet(self) -> None:
        if self._packet is not None:
            self._packet.close()
            self._packet = None

    def take_back(self) -> None:
        """Bring what no child has taken to the front of what waits."""
        self._drop_packet()
        self._waiting.extendleft(reversed(self.feed.take_back()))

    def recall(self) -> list[int]:
        """Take back and forget the jobs that no child has taken.  Calls (numbers below zero) stay."""
        self.take_back()
        kept = deque(item for item in self._waiting if isinstance(item, Kind) or item < 0)
        recalled = [item for item in self._waiting if not isinstance(item, Kind) and item >= 0]
        self._waiting = kept
        return [seq for seq in recalled if self.orders.pop(seq, None) is not None]

    def abandon(self) -> None:
        """Forget everything that no child has taken."""
        self.take_back()
        for item in self._waiting:
            if not isinstance(item, Kind):
                self.orders.pop(item, None)
        self._waiting.clear()

    def missing(self, seen: Iterable[int]) -> set[int]:
        """The jobs that neither wait, nor are in the feed, nor are *seen* with a child.  Takes back."""
        self.take_back()
        known: set[int | Kind] = {*self._waiting, *self.feed.given(), *seen}
        return {seq for seq in self.orders if seq not in known}

    def finish(self) -> None:
        """Nothing will be passed on any more: idle children leave."""
        self.abandon()
        self._finished = True
        self.feed.finish()

    def parent_ends(self) -> list[socket.socket | Packet]:
        """What a child must close."""
        ends: list[socket.socket | Packet] = list(self.feed.parent_ends())
        if self._packet is not None:
            ends.append(self._packet)
        return ends

    def close(self) -> None:
        """Give back the sockets.  Legal twice."""
        self._finished = True
        self._drop_packet()
        self._waiting.clear()
        self.feed.close()
