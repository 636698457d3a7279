"""Consumes events.

Made through ``app.events.Receiver`` by monitors.  Each receiver has a private queue with a bound on
the age of messages and of the queue itself, so that a monitor that died leaves nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kombu import Queue
from kombu.connection import maybe_channel
from kombu.mixins import ConsumerMixin

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.ids import uuid
from celery_clone.utils.time import adjust_timestamp

from .event import get_exchange

__all__ = ("EventReceiver",)

CLIENT_CLOCK_SKEW = -1
"""A client's own clock means little; its events are put just before what was seen last."""


class EventReceiver(ConsumerMixin):
    """Calls handlers with the events that arrive.

    Arguments:
        channel: a channel or connection.
        handlers: event type (or ``"*"``) to function.
        routing_key: which events, ``"#"`` for all.
        node_id: names the queue; made when missing.
        queue_prefix, queue_ttl, queue_expires (seconds), queue_exclusive, queue_durable: of the queue;
            default the settings ``event_queue_*``.
        accept: serializers to accept.

    Raises:
        ImproperlyConfigured: the queue would be both exclusive and durable.
    """

    app: Any = None

    def __init__(
        self,
        channel: Any,
        handlers: Mapping[str, Callable[[dict[str, Any]], Any]] | None = None,
        routing_key: str = "#",
        node_id: str | None = None,
        app: Any = None,
        queue_prefix: str | None = None,
        accept: Iterable[str] | None = None,
        queue_ttl: float | None = None,
        queue_expires: float | None = None,
        queue_exclusive: bool | None = None,
        queue_durable: bool | None = None,
    ) -> None:
        self.app = app or self.app
        conf = self.app.conf
        self.channel = maybe_channel(channel)
        self.handlers = {} if handlers is None else handlers
        self.routing_key = routing_key
        self.node_id = node_id or uuid()
        self.queue_prefix = queue_prefix or conf.event_queue_prefix
        self.exchange = get_exchange(
            self.connection or self.app.connection_for_write(), name=conf.event_exchange
        )
        exclusive = conf.event_queue_exclusive if queue_exclusive is None else queue_exclusive
        durable = conf.event_queue_durable if queue_durable is None else queue_durable
        if exclusive and durable:
            raise ImproperlyConfigured(
                "Queue cannot be both exclusive and durable, choose one or the other: "
                "event_queue_exclusive or event_queue_durable."
            )
        self.queue = Queue(
            f"{self.queue_prefix}.{self.node_id}",
            exchange=self.exchange,
            routing_key=self.routing_key,
            auto_delete=not durable,
            durable=durable,
            exclusive=exclusive,
            message_ttl=conf.event_queue_ttl if queue_ttl is None else queue_ttl,
            expires=conf.event_queue_expires if queue_expires is None else queue_expires,
        )
        self.clock = self.app.clock
        self.adjust_clock = self.clock.adjust
        self.forward_clock = self.clock.forward
        self.accept = {conf.event_serializer, "json"} if accept is None else accept

    def process(self, type: str, event: dict[str, Any]) -> None:
        """Call the handler of this type, if there is one."""
        handler = self.handlers.get(type) or self.handlers.get("*")
        if handler:
            handler(event)

    def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:  # noqa: N803 kombu's name
        """The consumer of the queue."""
        return [Consumer(queues=[self.queue], callbacks=[self._receive], no_ack=True, accept=self.accept)]

    def on_consume_ready(
        self, connection: Any, channel: Any, consumers: Any, wakeup: bool = True, **kwargs: Any
    ) -> None:
        """Ask the workers to say that they are there."""
        if wakeup:
            self.wakeup_workers(channel=channel)

    def itercapture(
        self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True
    ) -> Iterator[Any]:
        """Consume, giving control back after each message."""
        consume: Any = self.consume
        yield from consume(limit=limit, timeout=timeout, wakeup=wakeup)

    def capture(self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True) -> None:
        """Consume *limit* messages, or until *timeout* seconds pass without one."""
        for _ in self.itercapture(limit=limit, timeout=timeout, wakeup=wakeup):
            continue

    def wakeup_workers(self, channel: Any = None) -> None:
        """Ask all workers for a heartbeat."""
        self.app.control.broadcast("heartbeat", connection=self.connection, channel=channel)

    def event_from_message(
        self,
        body: dict[str, Any],
        localize: bool = True,
        CLIENT_CLOCK_SKEW: int = CLIENT_CLOCK_SKEW,  # noqa: N803
    ) -> tuple[str, dict[str, Any]]:
        """``(type, event)`` of a message, with its clock taken over and its time made ours."""
        type = body["type"]
        if type == "task-sent":
            body["clock"] = (self.clock.value or 1) + CLIENT_CLOCK_SKEW
            self.adjust_clock(body["clock"])
        elif "clock" in body:
            self.adjust_clock(body["clock"])
        else:
            body["clock"] = self.forward_clock()
        if localize and "utcoffset" in body and "timestamp" in body:
            body["timestamp"] = adjust_timestamp(body["timestamp"], body["utcoffset"])
        body["local_received"] = time.time()
        return type, body

    def _receive(self, body: Any, message: Any) -> None:
        for event in body if isinstance(body, list) else [body]:
            self.process(*self.event_from_message(event))

    @property
    def connection(self) -> Any:
        """The connection of the channel."""
        return self.channel.connection.client if self.channel else None
