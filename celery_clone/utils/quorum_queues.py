"""Whether a worker's queues include quorum queues, which need another prefetch and other delays.

Used by ``worker.consumer`` and ``app.amqp``.  Reads declarations; asks no broker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_clone.app.base import Celery

__all__ = ("detect_quorum_queues",)


def detect_quorum_queues(app: Celery, driver_type: str) -> tuple[bool, str]:
    """Return whether a declared queue is a quorum queue, and the name of the first one (or ``""``).

    *driver_type* is that of the broker's transport: only ``"amqp"`` has such queues.
    """
    if driver_type == "amqp":
        for name, queue in app.amqp.queues.items():
            if (queue.queue_arguments or {}).get("x-queue-type") == "quorum":
                return True, name
    return False, ""
