"""Rate limits: one token bucket per task type, with the tasks that wait for a token.

Owned by the consumer, asked by ``worker.dispatch``.  Time is an argument; it may not sleep.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.time import rate

__all__ = ("RateBucket",)


class RateBucket:
    """Lets *per_second* tasks a second through, and up to *capacity* at once after a rest."""

    __slots__ = ("_refilled_at", "_tokens", "capacity", "per_second", "waiting")

    def __init__(self, per_second: float, capacity: float = 1.0) -> None:
        self.per_second = per_second
        self.capacity = capacity
        self.waiting: deque[Any] = deque()
        self._tokens = capacity
        self._refilled_at: float | None = None

    @classmethod
    def of(cls, limit: Any, task: str = "") -> RateBucket | None:
        """The bucket for a rate such as ``"10/m"``; ``None`` when there is no limit.

        Raises:
            ImproperlyConfigured: it cannot be read; the error names it and the *task*.
        """
        try:
            per_second = rate(limit)
            if per_second < 0:
                raise ValueError("less than nothing")
        except (KeyError, ValueError, TypeError):
            of_task = f" of task {task}" if task else ""
            raise ImproperlyConfigured(
                f"The rate limit {limit!r}{of_task} cannot be read. Write a number of tasks for each second (10), "
                "minute ('10/m') or hour ('10/h'), or None for no limit."
            ) from None
        return cls(per_second) if per_second else None

    def _refill(self, now: float) -> None:
        if self._refilled_at is not None:
            self._tokens = min(self.capacity, self._tokens + self.per_second * (now - self._refilled_at))
        self._refilled_at = now

    def take(self, now: float) -> bool:
        """Take a token, if there is one.  *now* is a monotonic time in seconds."""
        self._refill(now)
        # Sums of fractions fall a little short of the whole number they stand for.
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens = max(0.0, self._tokens - 1.0)
        return True

    def wait(self, now: float) -> float:
        """Seconds until the next token is there."""
        self._refill(now)
        return max(0.0, (1.0 - self._tokens) / self.per_second)
