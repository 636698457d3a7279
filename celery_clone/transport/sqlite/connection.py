"""A kombu connection to the embedded broker: the ``Transport`` behind ``sqlite://`` URLs.

Used by :class:`kombu.Connection`: producers, consumers, simple queues, mailboxes and event receivers
work over it as over any other transport.  The worker's task messages take ``transport.sqlite_source``
instead.  It waits for messages, by itself or in a hub, and hands them to the consumers of its channels.

Options (``broker_transport_options``, or after ``?`` in the URL):

``synchronous``
    ``NORMAL`` (default): a crash of any process loses nothing, a power failure may lose the last
    commits.  ``FULL``: a message is on the disk when ``delay()`` returns.
``busy_timeout``
    Seconds to wait for the write lock before :exc:`~kombu.exceptions.OperationalError` (30).
``lease``
    Seconds after which a worker is given up that neither renews nor can be asked whether it lives (10).
``visibility_timeout``
    Seconds of silence after which a consumer is given up though its process lives (3600).
``polling_interval``
    Seconds between looks that nobody asked for (1).
"""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kombu.transport import base, virtual
from kombu.utils.json import loads

from celery_clone.transport.sqlite.broker import EmbeddedBroker
from celery_clone.transport.sqlite.channel import Channel
from celery_clone.transport.sqlite.database import BUSY_TIMEOUT_S, Database, DatabaseUnavailable, locate
from celery_clone.transport.sqlite.session import POLL_S, VISIBILITY_TIMEOUT_S, BrokerSession, ring
from celery_clone.transport.sqlite.tables import BROKER_TABLES, Claimed
from celery_clone.utils.log import get_logger

__all__ = ("Transport", "open_broker", "read_seconds")

logger = get_logger(__name__)

MOST_PER_PASS = 200
"""How many messages are delivered before the rest of the loop gets its turn."""

KombuTransport: Any = virtual.Transport


class Transport(KombuTransport):
    """One kombu connection to a file."""

    Channel = Channel
    can_parse_url = True
    polling_interval = None
    driver_type = "sqlite"
    driver_name = "sqlite3"
    connection_errors = (*virtual.Transport.connection_errors, DatabaseUnavailable)
    channel_errors = virtual.Transport.channel_errors
    implements = base.Transport.implements.extend(
        asynchronous=True,
        exchange_type=frozenset(("direct", "topic", "fanout")),
        heartbeats=False,
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        path, self.options = connection_settings(client)
        self.broker = open_broker(path, self.options)
        visibility_timeout_s = read_seconds(self.options, "visibility_timeout", VISIBILITY_TIMEOUT_S)
        self.session = BrokerSession(
            self.broker,
            # A process that only computes between fetching and acknowledging does not renew.
            lease_s=visibility_timeout_s,
            visibility_timeout_s=visibility_timeout_s,
            poll_s=read_seconds(self.options, "polling_interval", POLL_S),
        )
        self._loop: Any = None
        self._tick: Callable[[], None] | None = None
        self._timers: list[Any] = []
        self._watched: int | None = None
        self._look = False
        self._turn = 0

    def driver_version(self) -> str:
        """The version of SQLite."""
        return sqlite3.sqlite_version

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """The URL to show: the file, made absolute."""
        return f"sqlite:///{self.broker.database.path}"

    def establish_connection(self) -> Transport:
        """Open the file.

        Raises:
            DatabaseUnavailable: it cannot be used; the text says why and what to do.
        """
        self.broker.find_queue("")
        super().establish_connection()
        return self

    def close_connection(self, connection: Transport) -> None:
        """Close the channels, leave, let go of the file."""
        self._stop_watching()
        try:
            super().close_connection(connection)
        finally:
            try:
                self.session.close()
            finally:
                self.broker.database.close()

    def _collect(self, connection: Transport | None) -> None:
        """As :meth:`close_connection`; kombu asks for it after a fork, where nothing of the parent's is touched."""
        self.close_connection(self)

    # -- consuming

    def consumers_changed(self) -> None:
        """The set of consumed queues is another now."""
        names = {queue for channel in self.channels for queue in channel._active_queues}
        if names != self.session.queues.keys():
            self.session.consume(names)
        self.room_changed()

    def room_changed(self) -> None:
        """There may be room for messages that were left in their queues."""
        self._look = True

    def get(self, queue: str, *, no_ack: bool) -> dict[str, Any] | None:
        """One message of *queue*, as kombu's payload."""
        declared = self.broker.find_queue(queue)
        if declared is None:
            return None
        session = self.session
        harvest = self.broker.claim(
            session.open(), [declared.id], 1, time.time(), was_waiting=session.waiting, forget=no_ack
        )
        session.waiting = harvest.waiting
        return self._opened(harvest.messages[0], no_ack=no_ack) if harvest.messages else None

    def deliver_one(self, channels: Iterable[Any]) -> bool:
        """Hand one message to a consumer of these channels; was there one?"""
        consumed: dict[str, bool] = {}
        for channel in channels:
            consumed.update(channel.consumed_queues())
        for no_ack in (True, False):
            names = [queue for queue, unacknowledged in consumed.items() if unacknowledged is no_ack]
            for message in self.session.claim(names, 1, forget=no_ack) if names else ():
                payload = self._opened(message, no_ack=no_ack)
                if payload is not None:
                    self._deliver(payload, message.queue)
                return True
        return False

    def _opened(self, message: Claimed, *, no_ack: bool) -> dict[str, Any] | None:
        """The payload kombu expects; a text that is none is put aside, where an operator finds it."""
        try:
            payload: dict[str, Any] = loads(message.body)
            properties = payload["properties"]
            properties["delivery_tag"] = str(message.id)
            info = properties.setdefault("delivery_info", {})
            headers = payload["headers"] = payload.get("headers") or {}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            logger.error("Message %s of queue %r is no message: %r.", message.id, message.queue, error)  # noqa: TRY400
            if not no_ack and self.session.id is not None:
                self.broker.bury(self.session.id, message.id, f"not a message: {error!r}", time.time())
            return None
        if message.deliveries:
            info["redelivered"] = True
        if message.reason is not None:
            headers["x-death"] = [{"queue": message.origin, "reason": message.reason, "count": 1}]
        return payload

    def drain_events(self, connection: Transport, timeout: float | None = None) -> None:
        """Deliver one message, waiting for it at most *timeout* seconds.

        Raises:
            socket.timeout: none came.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        while not self.deliver_one(self.channels):
            left_s = None if ends is None else ends - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise socket.timeout()  # noqa: UP041 kombu's users catch it under this name
            self.session.keep()
            self.session.wait(left_s)
        self.session.keep()

    # -- the worker's loop

    def register_with_event_loop(self, connection: Transport, loop: Any) -> None:
        """Deliver from the hub *loop* from now on."""
        self._stop_watching()
        self._loop = loop
        self._tick = self._on_tick
        loop.on_tick.add(self._tick)
        self._timers = [
            loop.call_repeatedly(self.session.interval_s, self.session.keep),
            loop.call_repeatedly(self.session.poll_s, self.room_changed),
        ]
        self._look = True

    def unregister_from_event_loop(self, connection: Transport, loop: Any) -> None:
        """Undo :meth:`register_with_event_loop`."""
        self._stop_watching()

    def _on_tick(self) -> None:
        bell = self.session.bell
        descriptor = None if bell is None else bell.fileno()
        if descriptor != self._watched:
            self._unwatch_bell()
            if descriptor is not None:
                self._loop.add_reader(descriptor, self._on_ring)
                self._watched = descriptor
        if self._look:
            self._look = False
            self._deliver_all()

    def _on_ring(self) -> None:
        if self.session.bell is not None:
            self.session.bell.drain()
        self._deliver_all()

    def _deliver_all(self) -> None:
        for _ in range(MOST_PER_PASS):
            if not self.deliver_one(self.channels):
                return
        # The rest of the loop gets its turn; our own ring brings us back.
        ring([self.session.address] if self.session.address else [])

    def _unwatch_bell(self) -> None:
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            self._watched = None

    def _stop_watching(self) -> None:
        loop = self._loop
        if loop is not None:
            self._unwatch_bell()
            loop.on_tick.discard(self._tick)
            for timer in self._timers:
                timer.cancel()
            self._timers = []
            self._loop = None


def connection_settings(client: Any) -> tuple[str, dict[str, Any]]:
    """The path and the options of a :class:`kombu.Connection`."""
    hostname = client.hostname or ""
    if "://" in hostname:
        path, options = locate(hostname)
        return path, {**options, **(client.transport_options or {})}
    # kombu took the URL apart itself (it does after a failover), or was given a path.
    path = client.virtual_host if client.virtual_host not in (None, "", "/") else locate("sqlite://").path
    return path, dict(client.transport_options or {})


def read_seconds(options: Mapping[str, Any], name: str, default: float) -> float:
    """A number of seconds among transport options.

    Raises:
        DatabaseUnavailable: it is no number above zero.
    """
    value = options.get(name)
    if value is None:
        return default
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if seconds <= 0:
        raise DatabaseUnavailable(
            f"The transport option {name!r} is {value!r}; give it a number of seconds above zero."
        )
    return seconds


def open_broker(path: str, options: Mapping[str, Any]) -> EmbeddedBroker:
    """The queues in the file *path*, opened with transport *options* when first used."""
    return EmbeddedBroker(
        Database(
            path,
            BROKER_TABLES,
            synchronous=options.get("synchronous") or "NORMAL",
            busy_timeout_s=read_seconds(options, "busy_timeout", BUSY_TIMEOUT_S),
        )
    )
