"""The consumer and its steps.

Used by ``worker.components`` and by whoever adds steps.  Names are loaded when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = (
    "Agent",
    "Connection",
    "Consumer",
    "Control",
    "Events",
    "Gossip",
    "Heart",
    "Mingle",
    "Tasks",
)

_HOME = {
    "Agent": "agent",
    "Connection": "connection",
    "Consumer": "consumer",
    "Control": "control",
    "Events": "events",
    "Gossip": "gossip",
    "Heart": "heart",
    "Mingle": "mingle",
    "Tasks": "tasks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The submodule "consumer" and the class "Consumer" differ in case only; so do the others.
    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return found
