"""What is the same for every message of one task, looked up once.

Made and kept by ``worker.dispatch``, read by ``worker.announce``.  Values and what they learn from
the runs; it may not talk to anybody.
"""

from __future__ import annotations

from typing import Any

from celery_clone.execution.acks import AckRule, Settle, settle_on_begin

from .limits import RateBucket

__all__ = ("SHORT_S", "TaskPlan")

SHORT_S = 0.005
"""A task whose runs take less on average is short: its results may wait, and more of it is fetched."""

SAMPLES = 4
"""Runs that must have been seen before a task is called short."""


class TaskPlan:
    """What is the same for every message of one task, looked up once."""

    __slots__ = (
        "ack",
        "bucket",
        "early",
        "handler",
        "mean_s",
        "name",
        "samples",
        "short",
        "soft_hard",
        "task",
    )

    def __init__(self, name: str, task: Any, handler: Any, bucket: RateBucket | None) -> None:
        self.name = name
        self.task = task
        #: The legacy message handler of a task with its own Strategy or Request; ``None`` for the fast path.
        self.handler = handler
        self.bucket = bucket
        self.ack = AckRule.of(task)
        self.early = settle_on_begin(self.ack) is Settle.ACK
        self.soft_hard: tuple[float | None, float | None] = (task.soft_time_limit, task.time_limit)
        self.mean_s = 1.0
        self.samples = 0
        self.short = False

    def ran(self, seconds: float) -> None:
        """Learn from one run.  One long run ends the trust in short ones at once."""
        self.samples += 1
        if self.samples == 1:
            self.mean_s = seconds
        else:
            self.mean_s += (seconds - self.mean_s) * (0.2 if seconds < SHORT_S else 0.6)
        self.short = self.samples >= SAMPLES and self.mean_s < SHORT_S
