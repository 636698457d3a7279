"""The pool that is none: each task runs in the worker's own process and thread.

Chosen with ``--pool=solo``.  While a task runs the worker takes no messages and obeys no commands; it answers
questions, and keeps what it holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

from celery_clone import signals

from .alarms import AlarmClock, AlarmedPool
from .base import apply_target

__all__ = ("TaskPool",)


class TaskPool(AlarmedPool):
    """Runs calls at once, where they are made."""

    body_can_be_buffer = True
    runs_here = True
    has_hard_limits = False
    cannot: ClassVar[dict[str, str]] = {
        "time_limit": "the task runs in the worker itself, which cannot end it; soft limits hold",
        "max_tasks_per_child": "there is no process to replace",
        "max_memory_per_child": "there is no process to replace",
        "autoscale": "it runs one task at a time",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_apply = apply_target  # type: ignore[method-assign]
        self.limit = 1
        self._clock = AlarmClock()
        _, hostname = self.options.get("initargs") or (None, None)
        signals.worker_process_init.send(sender=hostname)

    def _arm(self, seq: int, seconds: float, tell: Callable[[], None]) -> None:
        if self._clock.works_here():
            self._clock.arm(seconds, tell)
        else:
            super()._arm(seq, seconds, tell)  # a worker that was embedded in a thread

    def _disarm(self, seq: int) -> None:
        self._clock.disarm()
        super()._disarm(seq)

    def unbind(self) -> None:
        """End the alarms, too."""
        super().unbind()
        self._alarms.stop()

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "max-concurrency": 1,
            "processes": [os.getpid()],
            "max-tasks-per-child": None,
            "put-guarded-by-semaphore": True,
            "timeouts": (),
        }
