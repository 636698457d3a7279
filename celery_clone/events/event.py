"""One event as a dict, and the exchange that events travel through.

Used by the dispatcher and the receiver, and by whoever makes events of their own.
"""

from __future__ import annotations

import time
from copy import copy
from typing import Any

from kombu import Exchange

__all__ = ("Event", "event_exchange", "get_exchange", "group_from")

EVENT_EXCHANGE_NAME = "celeryev"
event_exchange = Exchange(EVENT_EXCHANGE_NAME, type="topic")

FANOUT_DRIVERS = frozenset({"redis", "gcpubsub"})
"""Brokers on which a topic exchange would need a queue per reader: fan out instead."""


def Event(type: str, _fields: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:  # noqa: N802
    """An event of this *type*, with a ``timestamp`` in epoch seconds unless the fields have one."""
    event = {**_fields, **fields} if _fields else fields
    event.setdefault("timestamp", time.time())
    event["type"] = type
    return event


def group_from(type: str) -> str:
    """The group of an event type: ``task`` of ``task-sent``."""
    return type.split("-", 1)[0]


def get_exchange(conn: Any, name: str = EVENT_EXCHANGE_NAME) -> Exchange:
    """The event exchange as the broker of *conn* needs it."""
    exchange = copy(event_exchange)
    if conn.transport.driver_type in FANOUT_DRIVERS:
        exchange.type = "fanout"
    exchange.name = name
    return exchange
