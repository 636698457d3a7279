"""The pool of gevent's greenlets, for tasks that wait more than they compute.

Chosen with ``--pool=gevent``; the standard library is patched before anything else is imported
(``celery_clone.maybe_patch_concurrency``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent import Greenlet
from gevent.pool import Pool

from .green import GreenPool

__all__ = ("TaskPool",)


class TaskPool(GreenPool):
    """Runs calls in at most *limit* greenlets of this thread."""

    def on_start(self) -> None:
        """Make the pool."""
        self._pool = Pool(self.limit)

    def on_stop(self) -> None:
        """Wait for what runs."""
        if self._pool is not None:
            self._pool.join()

    def current(self) -> Any:
        """The greenlet that runs now."""
        return gevent.getcurrent()

    def spawn(self, function: Callable[[], None]) -> Greenlet:
        """Have *function* called in a greenlet of the pool."""
        return self._pool.spawn(function)

    def apart(self, function: Callable[[], Any]) -> Any:
        """Have *function* called in a greenlet that is not of the pool."""
        return gevent.spawn(function)

    def spawn_outside(self, function: Callable[[], None]) -> Greenlet:
        """Have *function* called in a greenlet that takes no place in the pool."""
        return gevent.spawn(function)

    def throw(self, thread: Any, error: BaseException) -> None:
        """Raise *error* in a greenlet, without waiting for what it makes of that."""
        thread.kill(error, block=False)

    def alarm(self, seconds: float, function: Callable[[], None]) -> Callable[[], Any]:
        """Have *function* called in *seconds*; what takes that back."""
        timer = gevent.spawn_later(seconds, function)
        return lambda: timer.kill(block=False)

    def _resize(self, change: int) -> None:
        change = max(change, 1 - self.limit)
        self.limit += change
        self._pool.size += change
        self._pool._semaphore.counter += change

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "greenlets": len(self.running)}
