"""Consumer step: the mailbox for remote commands.

Started by the consumer after the source of tasks; the commands are in ``worker.control``.
"""

from __future__ import annotations

from typing import Any

from celery_clone.bootsteps import StartStopStep
from celery_clone.worker import pidbox

__all__ = ("Control",)


class Control(StartStopStep):
    """Opens the mailbox and closes it; ``worker_enable_remote_control`` turns it off."""

    name = "celery.worker.consumer.control.Control"
    requires = ("celery_clone.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        self.is_green = c.pool is not None and c.pool.is_green
        # Without a hub nobody would read the mailbox while the loop waits for tasks, nor while a task runs in the loop.
        beside = self.is_green or c.hub is None or getattr(c.pool, "runs_here", False)
        self.box = (pidbox.gPidbox if beside else pidbox.Pidbox)(c)
        super().__init__(c, **kwargs)

    def include_if(self, c: Any) -> bool:
        """Is it wanted, and can this broker send one message to all?"""
        return bool(c.app.conf.worker_enable_remote_control and c.conninfo.supports_exchange_type("fanout"))

    def start(self, c: Any) -> None:
        self.box.start(c)

    def stop(self, c: Any) -> None:
        self.box.stop(c)

    def shutdown(self, c: Any) -> None:
        """As :meth:`stop`."""
        self.box.shutdown(c)
