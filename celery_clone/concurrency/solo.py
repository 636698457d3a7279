"""The pool that is none: each task runs in the worker's own process and thread.

Chosen with ``--pool=solo``.  While a task runs the worker does nothing else: no heartbeats, no commands.
"""

from __future__ import annotations

import os
from typing import Any

from celery_clone import signals

from .base import BasePool, apply_target

__all__ = ("TaskPool",)


class TaskPool(BasePool):
    """Runs calls at once, where they are made."""

    body_can_be_buffer = True
    runs_here = True
    has_time_limits = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_apply = apply_target  # type: ignore[method-assign]
        self.limit = 1
        _, hostname = self.options.get("initargs") or (None, None)
        signals.worker_process_init.send(sender=hostname)

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "max-concurrency": 1,
            "processes": [os.getpid()],
            "max-tasks-per-child": None,
            "put-guarded-by-semaphore": True,
            "timeouts": (),
        }
