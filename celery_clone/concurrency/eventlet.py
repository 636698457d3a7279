"""The pool of eventlet's green threads, for tasks that wait more than they compute.

Chosen with ``--pool=eventlet``; the standard library is patched before anything else is imported
(``celery_clone.maybe_patch_concurrency``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import eventlet

from celery_clone import signals

from .green import GreenPool

__all__ = ("TaskPool",)


class TaskPool(GreenPool):
    """Runs calls in at most *limit* green threads of this thread."""

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

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Say so, and have *target* called in a green thread."""
        signals.eventlet_pool_apply.send(sender=self, target=target, args=args, kwargs=kwargs)
        return super().on_apply(target, args, kwargs, callback, accept_callback, *more, **options)

    def current(self) -> Any:
        """The green thread that runs now."""
        return eventlet.getcurrent()

    def spawn(self, function: Callable[[], None]) -> Any:
        """Have *function* called in a thread of the pool."""
        return self._pool.spawn(function)

    def apart(self, function: Callable[[], Any]) -> Any:
        """Have *function* called in a green thread that is not of the pool."""
        return eventlet.spawn(function)

    def spawn_outside(self, function: Callable[[], None]) -> Any:
        """Have *function* called in a green thread that takes no place in the pool."""
        return eventlet.spawn(function)

    def throw(self, thread: Any, error: BaseException) -> None:
        """Raise *error* in a green thread, from a thread of its own: the caller goes on."""
        eventlet.spawn_after(0, thread.throw, error)

    def alarm(self, seconds: float, function: Callable[[], None]) -> Callable[[], Any]:
        """Have *function* called in *seconds*; what takes that back."""
        return eventlet.spawn_after(seconds, function).cancel  # type: ignore[no-any-return]

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
