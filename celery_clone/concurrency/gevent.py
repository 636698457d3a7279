"""The pool of gevent's greenlets, for tasks that wait more than they compute.

Chosen with ``--pool=gevent``; the standard library is patched before anything else is imported
(``celery_clone.maybe_patch_concurrency``).  Time limits and termination are raised inside a greenlet the
next time it waits: one that never does runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gevent
from billiard.exceptions import SoftTimeLimitExceeded
from gevent import Greenlet, GreenletExit
from gevent.pool import Pool

from .base import BasePool, HardLimit, apply_target

__all__ = ("TaskPool",)


class TaskPool(BasePool):
    """Runs calls in at most *limit* greenlets of this thread."""

    signal_safe = False
    is_green = True
    task_join_will_block = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The greenlets that run a call, by their number, which stands where other pools have a process id.
        self.greenlets: dict[int, Greenlet] = {}

    def on_start(self) -> None:
        """Make the pool."""
        self._pool = Pool(self.limit)

    def on_stop(self) -> None:
        """Wait for what runs."""
        if self._pool is not None:
            self._pool.join()

    def on_terminate(self) -> None:
        """End what runs."""
        if self._pool is not None:
            self._pool.kill(block=False)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        timeout: float | None = None,
        timeout_callback: Callable[[bool, float], Any] | None = None,
        soft_timeout: float | None = None,
        error_callback: Callable[[Any], Any] | None = None,
        **_: Any,
    ) -> Greenlet:
        """Have *target* called in a greenlet; *timeout* and *soft_timeout* are seconds."""

        def run() -> None:
            greenlet = gevent.getcurrent()
            number = id(greenlet)
            self.greenlets[number] = greenlet
            try:
                with limits(greenlet, soft_timeout, timeout, timeout_callback):
                    apply_target(
                        target,
                        args or (),
                        kwargs,
                        callback,
                        accept_callback,
                        pid=number,
                        propagate=(GreenletExit, HardLimit),
                    )
            except (GreenletExit, HardLimit) as exc:
                if error_callback is not None:
                    error_callback(exc)
            finally:
                del self.greenlets[number]

        return self._pool.spawn(run)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the greenlet of number *pid*; there are no signals between greenlets."""
        greenlet = self.greenlets.get(pid)
        if greenlet is not None:
            greenlet.kill(block=False)

    def grow(self, n: int = 1) -> None:
        """Allow *n* more greenlets."""
        self._resize(n)

    def shrink(self, n: int = 1) -> None:
        """Allow *n* fewer; those that run are not ended."""
        self._resize(-n)

    def _resize(self, change: int) -> None:
        change = max(change, 1 - self.limit)
        self.limit += change
        self._pool.size += change
        self._pool._semaphore.counter += change

    @property
    def num_processes(self) -> int:
        """How many greenlets there may be."""
        return int(self.limit)

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "greenlets": len(self.greenlets)}


@contextmanager
def limits(
    greenlet: Greenlet,
    soft: float | None,
    hard: float | None,
    tell: Callable[[bool, float], Any] | None,
) -> Iterator[None]:
    """Within it *greenlet* gets ``SoftTimeLimitExceeded`` after *soft* seconds and is ended after *hard*."""

    def over(is_soft: bool, seconds: float) -> None:
        if tell is not None:
            tell(is_soft, seconds)
        greenlet.kill(SoftTimeLimitExceeded() if is_soft else HardLimit(), block=False)

    asked = (True, soft), (False, hard)
    alarms = [gevent.spawn_later(seconds, over, is_soft, seconds) for is_soft, seconds in asked if seconds]
    try:
        yield
    finally:
        for alarm in alarms:
            alarm.kill(block=False)
