"""Consumer step: the connection to the broker."""

from __future__ import annotations

from typing import Any

from celery_clone.bootsteps import StartStopStep
from celery_clone.utils.log import get_logger

__all__ = ("Connection",)

logger = get_logger("celery.worker.consumer.connection")


class Connection(StartStopStep):
    """Opens the connection that everything of the consumer uses, and closes it."""

    name = "celery.worker.consumer.connection.Connection"

    def __init__(self, c: Any, **kwargs: Any) -> None:
        c.connection = None
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

    def info(self, c: Any) -> dict[str, Any]:
        """What ``inspect stats`` shows of the broker, without the password."""
        if c.connection is None:
            return {"broker": "N/A"}
        params = c.connection.info()
        params.pop("password", None)
        return {"broker": params}
