"""AMQP heartbeats from a thread, for pools that run tasks in the loop's own thread.

Owned by ``transport.amqp_source``.  While the solo pool runs a task the loop sends nothing, and RabbitMQ closes
a connection from which it has heard nothing for two intervals: the task would be given to another worker and run
twice.  The thread sends heartbeats and nothing else, and reads nothing.
"""

from __future__ import annotations

import ssl
import threading
from typing import Any

from celery_clone.utils.log import get_logger

__all__ = ("Heartbeats",)

logger = get_logger(__name__)

FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"
PER_INTERVAL = 3
"""The broker hears at least once in each interval, however late the thread gets the processor."""


class Heartbeats:
    """Tells the broker of *connection*, py-amqp's, that the worker is there, from creation until :meth:`stop`."""

    def __init__(self, connection: Any) -> None:
        self._lock = threading.Lock()
        self._unlocked: list[tuple[Any, str, Any]] = []
        transport = connection.transport
        if isinstance(transport.sock, ssl.SSLSocket):
            # One thread at a time may use a TLS session, whether it reads or writes.
            self._guard(transport, "_quick_recv")
            self._guard(transport.sock, "write")
        else:
            self._guard(transport, "_write")
        # Each call of this writes a frame, or a run of whole frames.
        self._write = transport._write
        self._period_s = float(connection.heartbeat) / PER_INTERVAL
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celery-amqp-heartbeats", daemon=True)
        self._thread.start()

    def _guard(self, owner: Any, name: str) -> None:
        """Let one thread at a time into this method of *owner*."""
        method, lock = getattr(owner, name), self._lock

        def guarded(*args: Any) -> Any:
            with lock:
                return method(*args)

        setattr(owner, name, guarded)
        self._unlocked.append((owner, name, method))

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            try:
                self._write(FRAME)
            except (OSError, AttributeError) as exc:
                # py-amqp forgets a socket that it closed. The loop finds out by itself, once it reads or writes.
                logger.debug("No heartbeat can be sent any more: %r", exc)
                return

    def stop(self) -> None:
        """Send no more; what uses the connection afterwards has it for itself.  Legal twice."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(self._period_s)
        for owner, name, method in self._unlocked:
            setattr(owner, name, method)
