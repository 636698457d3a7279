"""The pool that is none: each task runs in the worker's own process and thread.

Chosen with ``--pool=solo``.  While a task runs the worker takes no messages and obeys no commands; it answers
questions, and keeps what it holds.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from celery_clone import signals
from celery_clone.message.frames import Job

from .alarms import AlarmClock, ThreadAlarms
from .base import BasePool, apply_target

__all__ = ("TaskPool",)


class TaskPool(BasePool):
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
        self._alarms = ThreadAlarms()
        self._soft: dict[int, float] = {}
        _, hostname = self.options.get("initargs") or (None, None)
        signals.worker_process_init.send(sender=hostname)

    def _start_job(self, job: Job, soft: float | None, hard: float | None) -> None:
        if soft:
            self._soft[job.seq] = soft
        super()._start_job(job, soft, hard)

    def _on_begun(self, job: Job) -> None:
        super()._on_begun(job)
        soft = self._soft.get(job.seq)
        if soft and self._clock.works_here():
            self._clock.arm(soft, lambda: self._on_overtime(job.seq, True, soft))
        elif soft:
            # A worker that was embedded in a thread.
            self._alarms.arm(job.seq, soft, lambda: self._on_overtime(job.seq, True, soft))

    def _on_end(self, job: Job) -> None:
        if self._soft.pop(job.seq, None):
            self._clock.disarm()
            self._alarms.disarm(job.seq)

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
