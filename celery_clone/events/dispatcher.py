"""Sends events.

Made by the worker's consumer (buffering the events of tasks) and by ``app.events`` for clients.
Events tell, they do not carry work: a broker that is away must not stop who sends them, so they
are kept, within a bound, until it is back.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kombu import Producer

from celery_clone.utils.nodenames import anon_nodename
from celery_clone.utils.time import utcoffset

from .event import Event, get_exchange, group_from

__all__ = ("EventDispatcher",)

MOST_KEPT = 10_000
"""Events kept while the broker is away; older ones are dropped, as a monitor wants the newest."""


class EventDispatcher:
    """Sends events over a connection or a channel.

    Arguments:
        connection, channel: one of them, unless every event is given a producer.
        hostname: node name in the events.
        enabled: send from the start?
        buffer_while_offline: keep events that cannot be sent?
        serializer: name of the serializer; default ``event_serializer``.
        groups: send these groups only; all when empty.
        delivery_mode: 1 transient, 2 persistent.
        buffer_group: groups whose events are gathered.
        buffer_limit: send a gathered group when it has that many.
        on_send_buffered: called when an event was gathered.
    """

    DISABLED_TRANSPORTS = {"sql"}

    app: Any = None
    on_enabled: Any = None
    on_disabled: Any = None

    def __init__(
        self,
        connection: Any = None,
        hostname: str | None = None,
        enabled: bool = True,
        channel: Any = None,
        buffer_while_offline: bool = True,
        app: Any = None,
        serializer: str | None = None,
        groups: Iterable[str] | None = None,
        delivery_mode: int = 1,
        buffer_group: Iterable[str] | None = None,
        buffer_limit: int = 24,
        on_send_buffered: Callable[[], Any] | None = None,
    ) -> None:
        self.app = app or self.app
        self.connection = connection
        self.channel = channel
        if connection is None and channel:
            self.connection = channel.connection.client
        self.hostname = hostname or anon_nodename()
        self.buffer_while_offline = buffer_while_offline
        self.buffer_group = frozenset(buffer_group or ())
        self.buffer_limit = buffer_limit
        self.on_send_buffered = on_send_buffered
        self.mutex = threading.Lock()
        self.producer: Any = None
        self.serializer = serializer or self.app.conf.event_serializer
        self.on_enabled = set()
        self.on_disabled = set()
        self.groups = set(groups or ())
        self.tzoffset = [-time.timezone, -time.altzone]
        self.clock = self.app.clock
        self.delivery_mode = delivery_mode
        self.headers = {"hostname": self.hostname}
        self.pid = os.getpid()
        self._gathered: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._unsent: deque[tuple[Any, str]] = deque(maxlen=MOST_KEPT)
        self._closed = False
        self.enabled = enabled
        conninfo = self.connection or self.app.connection_for_write()
        self.exchange = get_exchange(conninfo, name=self.app.conf.event_exchange)
        if conninfo.transport.driver_type in self.DISABLED_TRANSPORTS:
            self.enabled = False
        if self.enabled:
            self.enable()

    def __enter__(self) -> EventDispatcher:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def enable(self) -> None:
        """Begin to send."""
        with self.mutex:
            self.producer = Producer(
                self.channel or self.connection,
                exchange=self.exchange,
                serializer=self.serializer,
                auto_declare=False,
            )
            self._closed = False
            self.enabled = True
        for callback in self.on_enabled:
            callback()

    def disable(self) -> None:
        """Stop sending."""
        if self.enabled:
            self.enabled = False
            self.close()
            for callback in self.on_disabled:
                callback()

    def publish(
        self,
        type: str,
        fields: Mapping[str, Any],
        producer: Any,
        blind: bool = False,
        Event: Callable[..., dict[str, Any]] = Event,  # noqa: N803 public name
        **kwargs: Any,
    ) -> None:
        """Send an event through *producer*, enabled or not.  *blind* leaves the clock as it is."""
        event = self._prepare_event(type, fields, blind=blind, Event=Event)
        with self.mutex:
            self._publish(event, producer, type.replace("-", "."), **kwargs)

    def _prepare_event(
        self,
        type: str,
        fields: Mapping[str, Any],
        blind: bool = False,
        Event: Callable[..., dict[str, Any]] = Event,  # noqa: N803 public name
    ) -> dict[str, Any]:
        clock = None if blind else self.clock.forward()
        return Event(type, hostname=self.hostname, utcoffset=utcoffset(), pid=self.pid, clock=clock, **fields)

    def _publish(
        self,
        event: Any,
        producer: Any,
        routing_key: str,
        retry: bool = False,
        retry_policy: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if producer is None:
            return
        try:
            producer.publish(
                event,
                routing_key=routing_key,
                exchange=self.exchange.name,
                retry=retry,
                retry_policy=retry_policy,
                declare=[self.exchange],
                serializer=self.serializer,
                headers=self.headers,
                delivery_mode=self.delivery_mode,
            )
        except Exception:  # whatever the broker's client raises: the event waits for better times
            if not self.buffer_while_offline:
                raise
            self._unsent.append((event, routing_key))

    def send(
        self,
        type: str,
        blind: bool = False,
        utcoffset: Any = utcoffset,
        retry: bool = False,
        retry_policy: Mapping[str, Any] | None = None,
        Event: Callable[..., dict[str, Any]] = Event,  # noqa: N803 public name
        **fields: Any,
    ) -> None:
        """Send an event, or gather it with others of its group."""
        if not self.enabled:
            return
        group = group_from(type)
        if self.groups and group not in self.groups:
            return
        if group not in self.buffer_group:
            event = self._prepare_event(type, fields, blind=blind, Event=Event)
            with self.mutex:
                if not self._closed:
                    self._publish(
                        event, self.producer, type.replace("-", "."), retry=retry, retry_policy=retry_policy
                    )
            return
        gathered = self._gathered[group]
        gathered.append(self._prepare_event(type, fields, Event=Event))
        if len(gathered) >= self.buffer_limit:
            self.flush()
        elif self.on_send_buffered:
            self.on_send_buffered()

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Send what could not be sent before (*errors*) and what was gathered (*groups*)."""
        with self.mutex:
            if self._closed:
                return
            if errors:
                for _ in range(len(self._unsent)):
                    event, routing_key = self._unsent.popleft()
                    self._publish(event, self.producer, routing_key)
            if groups:
                for group, events in self._gathered.items():
                    if events:
                        batch = events[:]
                        self._publish(batch, self.producer, f"{group}.multi")
                        del events[: len(batch)]

    @property
    def unsent(self) -> int:
        """How many events could not be sent and wait for a better connection."""
        return len(self._unsent)

    def extend_buffer(self, other: EventDispatcher) -> None:
        """Take over what *other* could not send."""
        self._unsent.extend(other._unsent)

    def close(self) -> None:
        """Stop sending; legal twice."""
        with self.mutex:
            self._closed = True
            self.producer = None

    @property
    def publisher(self) -> Any:
        """An older name of the producer."""
        return self.producer

    @publisher.setter
    def publisher(self, producer: Any) -> None:
        self.producer = producer
