"""How long a worker waits for the answer of a broker that is there and does not answer.

Used by ``worker.consumer`` on the connections it opens, and by ``app.control`` and ``backends.rpc`` when a time
limit ends a wait; sources and publishers wait with :func:`readable`.
Left alone, the clients of AMQP and Redis wait for ever, and a worker that waits hears neither a signal nor
its heartbeats.  It may not send anything.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = (
    "CLOSING_TIMEOUT_S",
    "REPLY_TIMEOUT_S",
    "bound_waits",
    "closed_if_interrupted",
    "expect_nothing",
    "prepare_waits",
    "readable",
)

REPLY_TIMEOUT_S = 15.0
"""How long a broker may take to answer before the connection counts as broken."""

REDIS_REPLY_TIMEOUT_S = 5.0
"""The same for Redis, which does nothing that takes longer, and whose deliveries outlive a connection."""

CLOSING_TIMEOUT_S = 2.0
"""The same for a worker that ends."""

OTHERS_ARE_BACK_S = 6.0
"""Others that lost the broker, too, have tried again in this time: see ``BACKOFF_MAX_S`` of the consumer."""

IN_VAIN_S = 0.05
"""The same when the broker has let this connection wait in vain before."""


def prepare_waits(connection: Any, seconds: float = REPLY_TIMEOUT_S) -> None:
    """Bound the waits of a :class:`kombu.Connection` that is not connected yet, but for bounds the user set."""
    options, driver_type = connection.transport_options, connection.transport.driver_type
    wanted: dict[str, float] = {}
    if driver_type == "redis":
        seconds = min(seconds, REDIS_REPLY_TIMEOUT_S)
        wanted = {"socket_timeout": seconds, "socket_connect_timeout": connection.connect_timeout or seconds}
    elif driver_type == "amqp":
        # Of the kernel; they hold over a reconnect as well.
        wanted = {"read_timeout": seconds, "write_timeout": seconds}
    connection.transport_options = {**options, **{name: options.get(name) or wanted[name] for name in wanted}}


def bound_waits(connection: Any, seconds: float = REPLY_TIMEOUT_S) -> None:
    """Let no wait over a connected *connection* last longer, from now on."""
    if not connection.connected:
        return
    driver_type = connection.transport.driver_type
    if driver_type == "amqp":
        # Not its property: that would connect anew a connection that was closed.
        transport = getattr(connection.connection, "_transport", None)
        if transport is not None and transport.sock is not None:
            transport.sock.settimeout(min(seconds, connection.transport_options.get("read_timeout") or seconds))
    elif driver_type == "redis":
        for pool in redis_pools(connection):
            if (pool.connection_kwargs.get("socket_timeout") or math.inf) <= seconds:
                continue
            pool.connection_kwargs["socket_timeout"] = seconds
            for each in (*pool._available_connections, *pool._in_use_connections):
                each.socket_timeout = seconds
            # Their parsers know the old bound; they connect again when they are needed.
            for each in pool._available_connections:
                each.disconnect()


def redis_pools(connection: Any) -> list[Any]:
    """The pools that the channels of *connection* have made so far."""
    pools = [
        getattr(channel, name, None) for channel in connection.connection.channels for name in ("_pool", "_async_pool")
    ]
    return [pool for pool in pools if pool is not None]


def expect_nothing(connection: Any) -> None:
    """The broker did not answer: what is still asked of it while *connection* is closed is asked in vain."""
    if connection.connected and connection.transport.driver_type == "amqp":
        connection.collect()
    else:
        bound_waits(connection, IN_VAIN_S)


@contextmanager
def closed_if_interrupted(connection: Any) -> Iterator[None]:
    """Let a *connection* go, without a word to the broker, whose use an exception ends that is none of its own.

    A time limit or another process signal may raise between two bytes of an answer. What is read after that means
    nothing, so nothing may be asked any more: neither to cancel a consumer nor to close in good order. The next use
    connects again.
    """
    try:
        yield
    except BaseException as exc:
        expected = (OSError, *connection.connection_errors, *connection.channel_errors)
        # The clients of other brokers see to it themselves.
        if connection.transport.driver_type == "amqp" and not isinstance(exc, expected):
            connection.collect()
        raise


def readable(socket: Any) -> Callable[[float], Any]:
    """A function that waits so many seconds at most until *socket* can be read, and says whether it can."""
    # Looked up now: eventlet takes poll() away, and gevent puts its own in its place.
    make_poll = getattr(select, "poll", None)
    if make_poll is None:
        return lambda timeout: select.select((socket,), (), (), timeout)[0]
    poller = make_poll()
    poller.register(socket, select.POLLIN)
    return lambda timeout: poller.poll(timeout * 1000)
