"""Consumer step: the connection to the broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_clone.bootsteps import StartStopStep
from celery_clone.utils.log import get_logger

__all__ = ("Connection", "HubTraces")

logger = get_logger("celery.worker.consumer.connection")


class HubTraces:
    """What registering a connection has left on a hub: calls of each pass, and timers.

    Kombu takes back what it registered for reading, and nothing else: each reconnect would leave more behind.
    """

    def __init__(self, hub: Any, register: Callable[[], Any]) -> None:
        self._hub = hub
        self._ticks: set[Any] = set()
        self._timers: list[Any] = []
        ticks, timers = {*hub.on_tick}, {id(each) for each in waiting_entries(hub)}
        try:
            register()
        finally:
            self._ticks = hub.on_tick - ticks
            self._timers = [each for each in waiting_entries(hub) if id(each) not in timers]

    def remove(self) -> None:
        """Take it back.  Legal twice, but not while the hub runs through its calls."""
        self._hub.on_tick -= self._ticks
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()


def waiting_entries(hub: Any) -> list[Any]:
    """The entries that wait in the timer of *hub*."""
    return [row.entry for row in hub.timer._queue]


class Connection(StartStopStep):
    """Opens the connection that everything of the consumer uses, and closes it."""

    name = "celery.worker.consumer.connection.Connection"

    def __init__(self, c: Any, **kwargs: Any) -> None:
        c.connection = c.hub_traces = None
        super().__init__(c, **kwargs)

    def start(self, c: Any) -> None:
        c.connection = c.connect()
        logger.info("Connected to %s", c.connection.as_uri())

    def shutdown(self, c: Any) -> None:
        """Close the connection; legal when it was never opened."""
        self.close_connection(c)

    def stop(self, c: Any) -> None:
        """As :meth:`shutdown`."""
        self.close_connection(c)

    def close_connection(self, c: Any) -> None:
        """Close the connection, whatever state it is in."""
        timer, c.heartbeat_timer = getattr(c, "heartbeat_timer", None), None
        if timer is not None:
            timer.cancel()
        connection, c.connection = c.connection, None
        if connection is not None:
            c.ignoring_errors(connection.close)
        traces, c.hub_traces = c.hub_traces, None
        if traces is not None:
            traces.remove()

    def info(self, c: Any) -> dict[str, Any]:
        """What ``inspect stats`` shows of the broker, without the password."""
        if c.connection is None:
            return {"broker": "N/A"}
        params = c.connection.info()
        params.pop("password", None)
        return {"broker": params}
