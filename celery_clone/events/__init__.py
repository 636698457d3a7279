"""Monitoring events: what workers and clients tell of tasks and of themselves.

Used through ``app.events``; monitors import the names from here.
"""

from __future__ import annotations

from .dispatcher import EventDispatcher
from .event import Event, event_exchange, get_exchange, group_from
from .receiver import EventReceiver

__all__ = ("Event", "EventDispatcher", "EventReceiver", "event_exchange", "get_exchange", "group_from")
