"""Parked messages put back into their queues before they are due, for who wants to move them.

Used by ``contrib.migrate``.  Workers that consume the queues park them again.  It may not take messages.
"""

from __future__ import annotations

from typing import Any

from celery_clone.transport.redis_layout import PROMOTE, Layout

__all__ = ("unpark",)

BATCH = 1000


def unpark(connection: Any) -> bool:
    """Put all parked messages at the broker of *connection* into their queues; ``False`` if it cannot be told to.

    Raises the connection errors of the transport.
    """
    driver_type = connection.transport.driver_type
    if driver_type == "sqlite":
        connection.transport.broker.unpark()
        return True
    if driver_type != "redis":
        return False
    channel = connection.default_channel
    layout = Layout.of_channel(channel)
    keys = layout.unacked, layout.unacked_index, layout.leases, layout.schedule
    with channel.conn_or_acquire() as client:
        while client.eval(PROMOTE.text, len(keys), *keys, BATCH, "all") in (b"0", "0"):
            pass  # there are more
    return True
