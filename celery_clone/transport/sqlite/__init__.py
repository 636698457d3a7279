"""The embedded broker: queues in one SQLite file, shared by the processes of one machine.

Loaded by kombu for ``sqlite://`` URLs, which ``celery_clone.transport`` registers when it is imported.
``database`` holds the file, ``tables`` and ``broker`` the queues, ``doorbell`` the wake-up calls,
``session`` a consumer's lease, ``connection`` and ``channel`` the kombu transport.
"""

from __future__ import annotations

from celery_clone.transport.sqlite.channel import Channel
from celery_clone.transport.sqlite.connection import Transport

__all__ = ("Channel", "Transport")

# Tables of transports, kombu's and ours, know the class by this address.
Transport.__module__ = __name__
