"""Consumer step: sends monitoring events."""

from __future__ import annotations

from typing import Any

from celery_clone.bootsteps import StartStopStep

__all__ = ("Events",)

REPLY_S = 2.0
"""How long an event may wait for the broker: the worker's loop stands still meanwhile, and events are kept."""


class Events(StartStopStep):
    """Makes the event dispatcher: all events with ``-E``, else only those about the worker itself."""

    name = "celery.worker.consumer.events.Events"
    requires = ("celery_clone.worker.consumer.connection:Connection",)

    def __init__(
        self,
        c: Any,
        task_events: bool = True,
        without_heartbeat: bool = False,
        without_gossip: bool = False,
        **kwargs: Any,
    ) -> None:
        self.groups = None if task_events else ["worker"]
        self.send_events = bool(task_events or not without_gossip or not without_heartbeat)
        self.enabled = self.send_events
        c.event_dispatcher = None
        super().__init__(c, **kwargs)

    def start(self, c: Any) -> None:
        before = self._close(c)
        dispatcher = c.event_dispatcher = c.app.events.Dispatcher(
            c.connection_for_write(reply_s=REPLY_S),
            hostname=c.hostname,
            enabled=self.send_events,
            groups=self.groups,
            # With a hub, what was gathered leaves at the end of the pass.
            buffer_group=["task"] if c.hub is not None else None,
            on_send_buffered=c.on_send_event_buffered if c.hub is not None else None,
        )
        if before is not None:
            dispatcher.extend_buffer(before)
            dispatcher.flush()

    def stop(self, c: Any) -> None:
        """Send what was gathered; the dispatcher stays, so that a new one can take over what it could not send."""
        dispatcher = c.event_dispatcher
        # Each event that could not be sent waits for the broker, if it is there and does not answer.
        if dispatcher is not None and not dispatcher.unsent:
            c.ignoring_errors(dispatcher.flush)

    def shutdown(self, c: Any) -> None:
        """Let go of the dispatcher and its connection."""
        self.stop(c)
        self._close(c)

    def _close(self, c: Any) -> Any:
        dispatcher, c.event_dispatcher = c.event_dispatcher, None
        if dispatcher is not None:
            if dispatcher.connection is not None:
                c.ignoring_errors(dispatcher.connection.close)
            c.ignoring_errors(dispatcher.close)
        return dispatcher
