"""Prefetch accounting: how many deliveries may be outstanding at once.

Owned by the consumer, outside any connection, so that a reconnect cannot corrupt it; read by
``worker.dispatch`` every turn.  Counts only: it may not talk to a broker.
"""

from __future__ import annotations

__all__ = ("Credit",)


class Credit:
    """The window of outstanding deliveries.

    *limit* is the number of deliveries that may be outstanding, ``0`` for no bound.  Deliveries that
    wait for their time do not count: :meth:`lend` widens the window for each, :meth:`repay` narrows it.
    While some wait, no more than *most* may be outstanding in all; ``None`` for no bound.
    """

    __slots__ = ("lent", "limit", "most", "outstanding")

    UNBOUNDED_BATCH = 256

    def __init__(self, limit: int, most: int | None = None) -> None:
        self.limit = limit
        self.most = most
        self.lent = 0
        self.outstanding = 0

    def lend(self, count: int = 1) -> None:
        """Widen the window for deliveries that are held for later."""
        self.lent += count

    def repay(self, count: int = 1) -> None:
        """Take back what :meth:`lend` gave."""
        self.lent = max(0, self.lent - count)

    def taken(self, count: int) -> None:
        """*count* deliveries arrived."""
        self.outstanding += count

    def settled(self, count: int = 1) -> None:
        """*count* deliveries were settled."""
        self.outstanding = max(0, self.outstanding - count)

    @property
    def available(self) -> int:
        """How many more deliveries may be taken now."""
        room = self.UNBOUNDED_BATCH if self.limit <= 0 else self.limit + self.lent - self.outstanding
        if self.most is not None and self.lent:
            room = min(room, self.most - self.outstanding)
        return max(0, room)

    @property
    def window(self) -> int:
        """How many deliveries may be outstanding now; 0 for no bound."""
        wide = self.limit + self.lent if self.limit > 0 else 0
        if self.most is not None and self.lent:
            return min(wide or self.most, self.most)
        return wide

    @property
    def is_bounded(self) -> bool:
        """Is there a bound for what may be outstanding now?"""
        return self.limit > 0 or (self.most is not None and self.lent > 0)
