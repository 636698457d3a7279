"""A bell that rings when a Redis queue changes, so that an idle worker neither polls nor pops.

Owned by ``transport.redis_source``.  It has a connection of its own on which the server tracks the
keys that were read (``CLIENT TRACKING``): reading the queues' keys arms the bell, a change of any of
them rings it once.  A server or proxy that cannot do this is polled.  It may not take messages.

A blocking pop would be simpler and loses what it popped when the worker dies before it wrote that
down anywhere; a bell carries nothing that could be lost.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from celery_clone.transport.redis_layout import pack
from celery_clone.transport.redis_replies import Replies
from celery_clone.transport.waits import readable

__all__ = ("POLL_S", "Bell")

POLL_S = 0.1
"""How often a server without tracking is asked, in seconds."""


class Bell:
    """Armed for a set of keys, or not.  Used by one thread.

    *connect* makes a connected redis-py connection that speaks RESP3.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._connection: Any = None
        self._readable: Callable[[float], Any] = bool
        self._replies: Any = None
        self._command = b""
        self._answers_due = 0
        self._hub: Any = None
        self._rung: Callable[[], None] | None = None
        self._poll_timer: Any = None
        self.armed = False
        """Nothing has changed since the keys were seen empty, unless the socket is readable."""
        self.polling = False
        """The server refused to track keys."""

    def open(self) -> None:
        """Connect, unless that was done.  Raises the connection errors of redis-py."""
        if self._connection is not None or self.polling:
            return
        try:
            connection = self._connect()
            try:
                connection.send_packed_command([pack("CLIENT", "TRACKING", "ON")], check_health=False)
                connection.read_response()
            except BaseException:
                connection.disconnect()
                raise
        except ResponseError:
            # An old server, a proxy, or an access list without these commands.
            self.polling = True
            self._poll_from_hub()
            return
        self._connection = connection
        self._replies = Replies(connection._sock)
        self._readable = readable(connection._sock)
        if self._hub is not None:
            self._hub.add_reader(self._fileno(), self._on_readable)

    def watch(self, hub: Any, rung: Callable[[], None]) -> None:
        """Call *rung* from *hub* when the bell rings."""
        self._hub, self._rung = hub, rung
        if self._connection is not None:
            hub.add_reader(self._fileno(), self._on_readable)
        self._poll_from_hub()

    def _poll_from_hub(self) -> None:
        """Without a bell, look often.  With one, an idle worker has nothing to wake up for."""
        if self.polling and self._hub is not None and self._poll_timer is None:
            self._poll_timer = self._hub.call_repeatedly(POLL_S, self._rung)

    def set_keys(self, keys: Iterable[str]) -> None:
        """The keys to look at from now on."""
        names = list(keys)
        self._command = pack("EXISTS", *names) if names else b""
        self.armed = False

    def arm(self) -> None:
        """Ask for a ring at the next change, or at once if a key exists already."""
        if self.armed or self.polling or not self._command:
            return
        self.open()
        if self._connection is not None:
            try:
                self._connection.send_packed_command([self._command], check_health=False)
            except (RedisError, OSError):
                # Left open it would connect by itself, and nothing would be tracked over the new connection.
                self.close()
                raise
            self._answers_due += 1
            self.armed = True

    def silent(self) -> bool:
        """Is the bell armed, and has it not rung?  Then there is nothing to take."""
        if self.armed and self._readable(0.0):
            self._listen()
        # Until the answer to arming is here, a message may have come before it.
        return self.armed and not self._answers_due

    def wait(self, timeout: float) -> None:
        """Return when the bell has rung, or after *timeout* seconds."""
        if self._connection is None:
            select.select((), (), (), min(timeout, POLL_S))
        elif self.armed and self._readable(max(0.0, timeout)):
            self._listen()

    def close(self) -> None:
        """Let go of the connection.  Legal twice."""
        connection, self._connection = self._connection, None
        timer, self._poll_timer = self._poll_timer, None
        self.armed, self._answers_due = False, 0
        if timer is not None:
            timer.cancel()
        if connection is not None:
            if self._hub is not None and connection._sock is not None:
                self._hub.remove(connection._sock.fileno())
            connection.disconnect()

    def _fileno(self) -> int:
        number: int = self._connection._sock.fileno()
        return number

    def _on_readable(self) -> None:
        was_armed = self.armed
        self._listen()
        if was_armed and not self.armed and self._rung is not None:
            self._rung()

    def _listen(self) -> None:
        """Read what the server said; anything but "no key exists" disarms."""
        try:
            values = self._replies.read()
        except (OSError, RedisConnectionError) as exc:
            self.close()
            raise RedisConnectionError(f"The connection that waits for messages broke: {exc}") from exc
        for value in values:
            if isinstance(value, RedisError):
                self.close()
                raise value
            if isinstance(value, int):
                self._answers_due -= 1
            if value != 0:
                self.armed = False
