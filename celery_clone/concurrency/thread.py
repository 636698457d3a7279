"""The pool of threads, for tasks that wait more than they compute.

Chosen with ``--pool=threads``.  Threads cannot be ended from outside: there is no hard time limit, and a task cannot
be terminated.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, ClassVar

from celery_clone.message.frames import Lost, Report
from celery_clone.utils.log import get_logger

from .adapter import FINAL, _bound
from .alarms import AlarmedPool
from .base import apply_target
from .crew import Crew

__all__ = ("TaskPool",)

logger = get_logger("celery.pool")


class ApplyResult:
    """The call that :meth:`TaskPool.apply_async` made."""

    def __init__(self, future: Future[Any]) -> None:
        self.f = future
        self.get = self.f.result

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended, *timeout* seconds at most."""
        wait([self.f], timeout)


class TaskPool(AlarmedPool):
    """Runs calls in *limit* threads."""

    limit: int
    body_can_be_buffer = True
    has_hard_limits = False
    settles = True
    signal_safe = False
    cannot: ClassVar[dict[str, str]] = {
        "time_limit": "a thread cannot be ended, so tasks run on after their hard limit; soft limits hold",
        "max_memory_per_child": "threads share the memory of the worker",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit = max(1, self.limit or 1)
        self.executor = Crew(self.limit, "ThreadPoolExecutor-0", self.options.get("maxtasksperchild"))
        self._unsettled: list[Report] = []
        self._settling = False
        self._settle_lock = threading.Lock()

    def on_stop(self) -> None:
        """Wait for what runs; what waits is forgotten."""
        self.executor.shutdown(cancel_futures=True)
        self._alarms.stop()
        super().on_stop()

    def on_terminate(self) -> None:
        """Forget what waits; what runs ends with the process."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        self._alarms.stop()

    # -- ends

    def _on_returned(self, seq: int, value: Any) -> None:
        if isinstance(value, FINAL):
            self.settle(value)
        else:
            super()._on_returned(seq, value)

    def settle(self, report: Report) -> None:
        """A job has ended: store its result, together with those that end meanwhile, and tell of it."""
        if not self._bound_runner.unsent:
            self._job_ended(report)
            return
        with self._settle_lock:
            self._unsettled.append(report)
            if self._settling:
                return
            self._settling = True
        self._begin_settling()

    def _begin_settling(self) -> None:
        self._settle_all()

    def _settle_all(self) -> None:
        while True:
            with self._settle_lock:
                reports, self._unsettled = self._unsettled, []
                if not reports:
                    self._settling = False
                    return
            try:
                _bound[self._jobs_number].flush()
            except Exception:
                logger.exception("The results of %d tasks could not be stored", len(reports))
                reports = [Lost(report.seq, os.getpid(), None) for report in reports]
            for report in reports:
                self._job_ended(report)

    @property
    def _bound_runner(self) -> Any:
        return _bound[self._jobs_number].runner

    # -- size

    def grow(self, n: int = 1) -> None:
        """Allow *n* more threads."""
        self.limit += n
        self.executor.size = max(self.executor.size, self.limit)
        self._hand_over()

    def shrink(self, n: int = 1) -> None:
        """Use *n* fewer threads; those that run a task are not ended."""
        self.limit = max(1, self.limit - n)

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
            "max-tasks-per-child": self.options.get("maxtasksperchild") or "N/A",
            "threads": len(self.executor.threads),
        }
