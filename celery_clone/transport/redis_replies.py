"""What a Redis server says on one connection, read as it comes.

Used where replies and messages nobody asked for arrive on the same connection: by the bell of
``transport.redis_wakeup`` and by the waiting of ``backends.redis``.  Commands and their immediate
answers are redis-py's business.  It may not send anything.
"""

from __future__ import annotations

from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

__all__ = ("Notice", "Replies", "parse")

PIECE_BYTES = 65536


class Notice(list):  # type: ignore[type-arg]
    """A message that the server sent without being asked (RESP3): its kind and what it is about."""


class Replies:
    """The replies that arrive on a connected *socket*."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._buffer = bytearray()

    def read(self) -> list[Any]:
        """Read once from the socket, and return what is complete by now, perhaps nothing.

        Errors of the server are among the replies.  Raises OSError when the connection breaks, and
        redis-py's ConnectionError when the server has closed it.
        """
        data = self._socket.recv(PIECE_BYTES)
        while data and getattr(self._socket, "pending", int)():  # TLS holds what it decrypted already
            data += self._socket.recv(PIECE_BYTES)
        if not data:
            raise RedisConnectionError("Redis closed the connection.")
        waiting = self._buffer
        if waiting:
            waiting += data
        said: bytes | bytearray = waiting or data
        replies, start = [], 0
        while (parsed := parse(said, start)) is not None:
            value, start = parsed
            replies.append(value)
        if waiting:
            del waiting[:start]
        else:
            waiting += data[start:]
        return replies


def parse(data: bytes | bytearray, start: int) -> tuple[Any, int] | None:
    """One reply at *start* and where it ends, ``None`` when it is not complete."""
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, text, end = data[start : start + 1], data[start + 1 : line_end], line_end + 2
    if kind == b"$":
        size = int(text)
        if size < 0:
            return None, end
        stop = end + size
        return (bytes(data[end:stop]), stop + 2) if len(data) >= stop + 2 else None
    if kind == b":":
        return int(text), end
    if kind == b"-":
        return ResponseError(text.decode("utf-8", "replace")), end
    if kind == b"_":
        return None, end
    if kind in b"*>~":
        count = int(text)
        if count < 0:
            return None, end
        values: list[Any] = Notice() if kind == b">" else []
        for _ in range(count):
            parsed = parse(data, end)
            if parsed is None:
                return None
            value, end = parsed
            values.append(value)
        return values, end
    return bytes(text), end
