"""What a worker on Redis holds, and the thread that keeps it where no loop does.

Owned by ``transport.redis_source``.  It may not take or settle messages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from celery_clone.transport.waits import REPLY_TIMEOUT_S
from celery_clone.utils.ids import uuid
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from celery_clone.message.delivery import Delivery

__all__ = ("LEASE_S", "Held", "Keeper")

logger = get_logger(__name__)

LEASE_S = 10.0
"""Default of the transport option ``lease``: seconds for which a claim is safe without renewal."""


class Held:
    """What a worker owes an answer for.  Outlives the connection it was taken over.

    ``worker`` is its name in Redis.  ``tags`` maps the tag of each delivery to the list it came from and the delivery;
    ``outbox`` holds packed commands (each legal to send twice), ``parking`` a tag, a due time and a list for each
    message to be parked, and ``acks`` tags, all of which the server has not confirmed yet.
    """

    __slots__ = ("acks", "outbox", "parking", "tags", "worker")

    def __init__(self) -> None:
        self.worker = uuid()
        self.tags: dict[str, tuple[str, Delivery]] = {}
        self.acks: list[str] = []
        self.outbox: list[bytes] = []
        self.parking: list[tuple[str, float, str]] = []


class Keeper:
    """Renews leases from a thread, for pools that run tasks in the loop's own thread.

    Started with the source, stopped with it.  Has a connection of its own and sends nothing but renewals:
    *renew* does that, given the connection (``None`` at first), and returns the connection.
    """

    def __init__(self, period_s: float, renew: Callable[[Any], Any]) -> None:
        self._period_s = period_s
        self._renew = renew
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celery-redis-leases", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        client: Any = None
        while not self._stop.wait(self._period_s):
            try:
                client = self._renew(client)
            except (RedisError, OSError) as exc:
                logger.warning("Could not renew the leases; trying again: %r", exc)
                client = None
        if client is not None:
            client.disconnect()

    def stop(self) -> None:
        """End the thread; it is waited for, so that nothing uses the source afterwards."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(REPLY_TIMEOUT_S)
