"""Consumer step: the heartbeat events."""

from __future__ import annotations

from typing import Any

from celery_clone.bootsteps import StartStopStep
from celery_clone.worker.heartbeat import Heart as Beating

__all__ = ("Heart",)


class Heart(StartStopStep):
    """Has the worker tell every few seconds that it is there; ``--without-heartbeat`` turns it off."""

    name = "celery.worker.consumer.heart.Heart"
    requires = ("celery_clone.worker.consumer.events:Events",)

    def __init__(
        self, c: Any, without_heartbeat: bool = False, heartbeat_interval: float | None = None, **kwargs: Any
    ) -> None:
        self.enabled = not without_heartbeat
        self.heartbeat_interval = heartbeat_interval
        c.heart = None
        super().__init__(c, **kwargs)

    def start(self, c: Any) -> None:
        c.heart = Beating(c.timer, c.event_dispatcher, self.heartbeat_interval)
        c.heart.start()

    def stop(self, c: Any) -> None:
        """Say goodbye; legal early and twice."""
        heart, c.heart = c.heart, None
        if heart is not None:
            c.ignoring_errors(heart.stop)

    shutdown = stop
