"""The pool of threads, for tasks that wait more than they compute.

Chosen with ``--pool=threads``.  Threads cannot be stopped from outside: there are no time limits, and a task
cannot be terminated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from .base import BasePool, apply_target

__all__ = ("TaskPool",)


class ApplyResult:
    """The call that :meth:`TaskPool.apply_async` made."""

    def __init__(self, future: Future[Any]) -> None:
        self.f = future
        self.get = self.f.result

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended, *timeout* seconds at most."""
        wait([self.f], timeout)


class TaskPool(BasePool):
    """Runs calls in *limit* threads."""

    limit: int
    body_can_be_buffer = True
    has_time_limits = False
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.executor = ThreadPoolExecutor(max_workers=self.limit)

    def on_stop(self) -> None:
        """Wait for what runs; what waits is forgotten."""
        self.executor.shutdown(cancel_futures=True)
        super().on_stop()

    def on_terminate(self) -> None:
        """Forget what waits; what runs ends with the process."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> ApplyResult:
        """Have *target* called in a thread."""
        arguments = (target, args or (), kwargs, callback, accept_callback)
        return ApplyResult(self.executor.submit(apply_target, *arguments))

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "max-concurrency": self.limit,
            "threads": len(self.executor._threads),
        }
