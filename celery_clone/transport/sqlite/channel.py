"""The channels of a kombu connection to the embedded broker.

Made by ``connection.Transport``, used by kombu's producers, consumers, simple queues and mailboxes.
Translates kombu's calls into transactions of ``broker``, which decides what a queue or a lease means;
who consumes, and waits, is the connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from queue import Empty
from typing import TYPE_CHECKING, Any

from kombu.exceptions import ChannelError
from kombu.transport import base, virtual
from kombu.utils.json import dumps

from celery_clone.transport.sqlite.session import ring
from celery_clone.transport.sqlite.tables import (
    HIGHEST_PRIORITY,
    Letter,
    NoRoute,
    QueueTraits,
    Settlement,
    UnknownExchange,
)
from celery_clone.utils.ids import uuid
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from celery_clone.transport.sqlite.broker import EmbeddedBroker
    from celery_clone.transport.sqlite.connection import Transport

__all__ = ("Channel", "QoS")

logger = get_logger(__name__)

# kombu's classes are untyped; as Any their methods may be called from typed code.
KombuQoS: Any = virtual.QoS
KombuChannel: Any = virtual.Channel

NOT_FOUND, NO_ROUTE, PRECONDITION_FAILED = "404", "312", "406"
KNOWN_ARGUMENTS = frozenset(("x-expires", "x-message-ttl", "x-max-length", "x-max-priority", "x-queue-type"))
QUEUE_DECLARED: Any = virtual.base.queue_declare_ok_t


class QoS(KombuQoS):
    """What a channel owes an acknowledgement for.  The database holds the truth, this only counts."""

    restore_at_shutdown = False

    def ack(self, delivery_tag: str) -> None:
        """Delete the message."""
        self.channel.settle_done([delivery_tag])
        super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back, or delete it."""
        if requeue:
            self.channel.give_back([delivery_tag])
        else:
            self.channel.settle_done([delivery_tag])
        super().ack(delivery_tag)

    def ack_until(self, delivery_tag: str) -> None:
        """Acknowledge this message and all delivered before it."""
        self._flush()
        tags: list[str] = []
        for tag in self._delivered:
            tags.append(tag)
            if tag == delivery_tag:
                break
        self.channel.settle_done(tags)
        for tag in tags:
            super().ack(tag)

    def restore_unacked(self) -> list[Any]:
        """Give back all that is not settled."""
        self._flush()
        tags = list(self._delivered)
        self._delivered.clear()
        if tags:
            self.channel.give_back(tags)
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """As :meth:`restore_unacked`; what is left when the process ends comes back by itself."""
        self._on_collect.cancel()
        if self.channel.connection is not None:
            self.restore_unacked()


class Channel(KombuChannel):
    """One kombu channel."""

    QoS = QoS
    supports_fanout = True

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._no_ack: set[str] = set()

    @property
    def broker(self) -> EmbeddedBroker:
        """The queues of the connection's file."""
        broker: EmbeddedBroker = self.connection.broker
        return broker

    # -- topology

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str | None = "direct",
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        nowait: bool = False,
        passive: bool = False,
    ) -> None:
        """Declare an exchange of type direct, topic or fanout.

        Raises:
            ChannelError: it exists and is different, or *passive* and missing.
            virtual.base.NotEquivalentError: it exists and is different.
        """
        kind = type or "direct"
        name = exchange or f"amq.{kind}"
        if passive:
            if not self.broker.has_exchange(name):
                raise not_found("exchange", name, "Channel.exchange_declare")
            return
        if kind not in self.connection.implements.exchange_type:
            raise ChannelError(
                f"The embedded broker has no exchanges of type {kind!r} (asked for {name!r}); "
                "use direct, topic or fanout.",
                (40, 10),
                "Channel.exchange_declare",
                PRECONDITION_FAILED,
            )
        if not self.broker.declare_exchange(
            name, kind, durable=bool(durable), auto_delete=bool(auto_delete), arguments=arguments or {}
        ):
            raise virtual.base.NotEquivalentError(
                f"Exchange {name!r} in {self.broker.database.path!r} was declared with another type, "
                "durability, auto_delete or arguments: delete it, or declare it alike everywhere."
            )

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings."""
        self.broker.delete_exchange(exchange, if_unused=if_unused)

    def prepare_queue_arguments(self, arguments: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Queue options of kombu as ``x-`` arguments."""
        prepared: dict[str, Any] = base.to_rabbitmq_queue_arguments(arguments, **options)
        return prepared

    def queue_declare(
        self,
        queue: str | None = None,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Declare a queue; its name, ready messages and consumers.

        Raises:
            ChannelError: *passive*, and there is no such queue.
        """
        name = queue or f"amq.gen-{uuid()}"
        if passive:
            found = self.broker.find_queue(name)
            if found is None:
                raise not_found("queue", name, "Channel.queue_declare")
        else:
            traits = read_traits(name, bool(exclusive or auto_delete), arguments or {})
            found = self.broker.declare_queue(name, traits, time.time())
            if found.consumers:
                # Some may be dead; who declares a private queue wants to know whether it is in use.
                self.connection.session.bring_back()
                found = self.broker.declare_queue(name, traits, time.time())
        return QUEUE_DECLARED(name, found.ready, found.consumers)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any) -> int:
        """Delete a queue with its messages and bindings; how many were ready."""
        return self.broker.delete_queue(queue, if_unused=if_unused, if_empty=if_empty)

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Let messages of *exchange* for *routing_key* go to *queue*."""
        name = exchange or "amq.direct"
        if name.startswith("amq."):  # every broker has these
            self.exchange_declare(name, name[4:], durable=True)
        try:
            self.broker.bind(queue, name, routing_key)
        except UnknownExchange as error:
            raise not_found("exchange", name, "Channel.queue_bind") from error

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Undo :meth:`queue_bind`."""
        self.broker.unbind(queue, exchange or "amq.direct", routing_key)

    def list_bindings(self) -> Iterator[tuple[str, str, str]]:
        """All bindings as (queue, exchange, routing key)."""
        return iter(self.broker.bindings())

    def _purge(self, queue: str) -> int:
        return self.broker.purge(queue)

    def _size(self, queue: str) -> int:
        found = self.broker.find_queue(queue)
        return 0 if found is None else found.ready

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self.broker.find_queue(queue) is not None

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self.queue_delete(queue)

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        self.queue_declare(queue)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self._publish(message, "", queue)

    # -- messages

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, mandatory: bool = False, **kwargs: Any
    ) -> None:
        """Store a message in the queues it leads to.

        Raises:
            ChannelError: the exchange is unknown, or *mandatory* and no queue is bound.
        """
        self._inplace_augment_message(message, exchange, routing_key)
        self._publish(message, exchange or "", routing_key or "", mandatory=mandatory)

    def _publish(self, message: dict[str, Any], exchange: str, routing_key: str, *, mandatory: bool = False) -> None:
        outgoing = Letter(
            exchange,
            routing_key,
            dumps(message).encode("utf-8"),
            self._get_message_priority(message),
            read_expiration(message["properties"].get("expiration")),
        )
        try:
            bells = self.broker.publish(
                [outgoing], time.time(), unroutable_queue=self.deadletter_queue, mandatory=mandatory
            )
        except UnknownExchange as error:
            raise not_found("exchange", exchange, "Basic.publish") from error
        except NoRoute as error:
            raise no_route(exchange, routing_key) from error
        ring(bells)

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[..., Any], consumer_tag: str, **kwargs: Any
    ) -> None:
        """Consume from *queue*."""
        if no_ack:
            self._no_ack.add(queue)
        else:
            self._no_ack.discard(queue)
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        self.connection.consumers_changed()

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop a consumer; a private queue goes with its last one."""
        if consumer_tag in self._consumers:
            super().basic_cancel(consumer_tag)
            self.connection.consumers_changed()

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """The next message of *queue*, ``None`` if it has none ready."""
        payload = self.connection.get(queue, no_ack=no_ack)
        if payload is None:
            return None
        message = self.Message(payload, channel=self)
        if not no_ack:
            self.qos.append(message, message.delivery_tag)
        return message

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        payload: dict[str, Any] | None = self.connection.get(queue, no_ack=True)
        if payload is None:
            raise Empty()
        return payload

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Acknowledge a message, with *multiple* also those before it."""
        if multiple:
            self.qos.ack_until(delivery_tag)
        else:
            self.qos.ack(delivery_tag)
        self.connection.room_changed()

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back to its queue, or drop it."""
        self.qos.reject(delivery_tag, requeue=requeue)
        self.connection.room_changed()

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Bound the number of unsettled messages of this channel."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self.connection.room_changed()

    def settle_done(self, tags: list[str]) -> None:
        """Delete messages."""
        self.broker.settle(None, Settlement(done=[int(tag) for tag in tags]))

    def give_back(self, tags: list[str]) -> None:
        """Give messages back to their queues."""
        session = self.connection.session
        if session.id is not None:
            ring(self.broker.release(session.id, [int(tag) for tag in tags]))

    def consumed_queues(self) -> dict[str, bool]:
        """The queues consumed here now that there is room, and whether nobody will acknowledge."""
        if not self._consumers or not self.qos.can_consume():
            return {}
        return {queue: queue in self._no_ack for queue in self._active_queues}

    def drain_events(self, timeout: float | None = None, callback: Callable[..., Any] | None = None) -> None:
        """Deliver one message of this channel's queues, without waiting."""
        if not self.connection.deliver_one([self]):
            raise Empty()

    def _restore(self, message: Any) -> None:
        self.give_back([message.delivery_tag])


def read_traits(name: str, private: bool, arguments: Mapping[str, Any]) -> QueueTraits:
    """Queue arguments as the broker wants them (``x-`` times are milliseconds)."""
    unknown = sorted(set(arguments) - KNOWN_ARGUMENTS)
    if unknown:
        logger.warning(
            "Queue %r: the embedded broker has no use for the arguments %s; it knows %s.",
            name,
            ", ".join(unknown),
            ", ".join(sorted(KNOWN_ARGUMENTS)),
        )
    most = arguments.get("x-max-priority")
    return QueueTraits(
        private=private,
        expires_s=seconds(arguments.get("x-expires")),
        message_ttl_s=seconds(arguments.get("x-message-ttl")),
        max_length=arguments.get("x-max-length"),
        max_priority=HIGHEST_PRIORITY if most is None else min(int(most), HIGHEST_PRIORITY),
    )


def seconds(milliseconds: Any) -> float | None:
    """Milliseconds as AMQP has them, in seconds."""
    return None if milliseconds is None else float(milliseconds) / 1000.0


def read_expiration(expiration: Any) -> float | None:
    """The AMQP property ``expiration`` (milliseconds, as text) in seconds."""
    return seconds(expiration) if expiration not in (None, "") else None


def not_found(what: str, name: str, method: str) -> ChannelError:
    """AMQP's answer to a name nobody declared."""
    return ChannelError(f"NOT_FOUND - no {what} {name!r}: declare it first.", (50, 10), method, NOT_FOUND)


def no_route(exchange: str, routing_key: str) -> ChannelError:
    """AMQP's answer to a message that leads nowhere."""
    return ChannelError(
        f"NO_ROUTE - no queue is bound to exchange {exchange!r} for {routing_key!r}: bind one first.",
        (60, 40),
        "Basic.publish",
        NO_ROUTE,
    )
