"""The embedded broker: queues in one SQLite file, shared by the processes of one machine.

Loaded by kombu for ``sqlite://`` URLs once :func:`register` was called, which ``celery_clone.transport``
does when it is imported.  ``database`` holds the file, ``broker`` the queues, ``doorbell`` the wake-up
calls, ``session`` a consumer's lease, ``connection`` and ``channel`` the kombu transport.
"""

from __future__ import annotations

import kombu.transport

from celery_clone.transport.sqlite.channel import Channel
from celery_clone.transport.sqlite.connection import Transport

__all__ = ("Channel", "Transport", "register")

ADDRESS = "celery_clone.transport.sqlite:Transport"

# Tables of transports, kombu's and ours, know the class by this address.
Transport.__module__ = __name__


def register() -> None:
    """Let kombu open ``sqlite://`` URLs with :class:`Transport`, whatever it had under that name."""
    kombu.transport.TRANSPORT_ALIASES["sqlite"] = ADDRESS
    kombu.transport._transport_cache.pop("sqlite", None)
