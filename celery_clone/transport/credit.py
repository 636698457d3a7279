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
    """

    __slots__ = ("limit", "lent", "outstanding")

    UNBOUNDED_BATCH = 256

    def __init__(self, limit: int) -> None:
        self.limit = limit
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
        if self.limit <= 0:
            return self.UNBOUNDED_BATCH
        return max(0, self.limit + self.lent - self.outstanding)
