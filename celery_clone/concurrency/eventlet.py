"""The pool of eventlet's green threads, for tasks that wait more than they compute.

Chosen with ``--pool=eventlet``; the standard library is patched before anything else is imported
(``celery_clone.maybe_patch_concurrency``).  Time limits and termination are raised inside a green thread the
next time it waits: one that never does runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import eventlet
from billiard.exceptions import SoftTimeLimitExceeded
from greenlet import GreenletExit

from celery_clone import signals

from .base import BasePool, HardLimit, apply_target

__all__ = ("TaskPool",)


class TaskPool(BasePool):
    """Runs calls in at most *limit* green threads of this thread."""

    signal_safe = False
    is_green = True
    task_join_will_block = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The green threads that run a call, by their number, which stands where other pools have a process id.
        self.threads: dict[int, Any] = {}

    def on_start(self) -> None:
        """Make the pool."""
        self._pool = eventlet.GreenPool(self.limit)
        signals.eventlet_pool_started.send(sender=self)

    def on_stop(self) -> None:
        """Wait for what runs."""
        signals.eventlet_pool_preshutdown.send(sender=self)
        if self._pool is not None:
            self._pool.waitall()
        signals.eventlet_pool_postshutdown.send(sender=self)

    def on_terminate(self) -> None:
        """End what runs."""
        for thread in [*self.threads.values()]:
            eventlet.spawn_after(0, thread.kill)

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
    ) -> None:
        """Have *target* called in a green thread; *timeout* and *soft_timeout* are seconds."""

        def run() -> None:
            thread = eventlet.getcurrent()
            number = id(thread)
            self.threads[number] = thread
            try:
                with limits(thread, soft_timeout, timeout, timeout_callback):
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
                del self.threads[number]

        signals.eventlet_pool_apply.send(sender=self, target=target, args=args, kwargs=kwargs)
        self._pool.spawn(run)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the green thread of number *pid*; there are no signals between them."""
        thread = self.threads.get(pid)
        if thread is not None:
            # From a thread of its own: the caller goes on.
            eventlet.spawn_after(0, thread.kill)

    def grow(self, n: int = 1) -> None:
        """Allow *n* more green threads."""
        self._resize(n)

    def shrink(self, n: int = 1) -> None:
        """Allow *n* fewer; those that run are not ended."""
        self._resize(-n)

    def _resize(self, change: int) -> None:
        self.limit = max(1, self.limit + change)
        self._pool.resize(self.limit)

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "max-concurrency": self.limit,
            "free-threads": self._pool.free(),
            "running-threads": self._pool.running(),
        }


@contextmanager
def limits(
    thread: Any,
    soft: float | None,
    hard: float | None,
    tell: Callable[[bool, float], Any] | None,
) -> Iterator[None]:
    """Within it *thread* gets ``SoftTimeLimitExceeded`` after *soft* seconds and is ended after *hard*."""

    def over(is_soft: bool, seconds: float) -> None:
        if tell is not None:
            tell(is_soft, seconds)
        thread.throw(SoftTimeLimitExceeded() if is_soft else HardLimit())

    asked = (True, soft), (False, hard)
    alarms = [eventlet.spawn_after(seconds, over, is_soft, seconds) for is_soft, seconds in asked if seconds]
    try:
        yield
    finally:
        for alarm in alarms:
            alarm.cancel()
