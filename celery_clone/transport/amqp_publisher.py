"""Publishing over AMQP with the broker's confirmation, many messages without waiting for each.

Opened by ``transport.open_publisher`` for AMQP, used by ``app.amqp`` from any thread.  A message
that no queue takes, or that the broker refuses, is an error here instead of being lost in silence.
``broker_transport_options={"confirm_publish": False}`` gives plain AMQP back.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from amqp.exceptions import MessageNacked
from kombu import Exchange
from kombu.exceptions import OperationalError

from celery_clone.transport.publisher import (
    Deadline,
    KombuPublisher,
    RetryPolicy,
    not_sent,
    publish_arguments,
    undeclared,
)

if TYPE_CHECKING:
    from celery_clone.message.outgoing import TaskMessage
    from celery_clone.transport.protocols import Destination, SendOptions

__all__ = ("AmqpPublisher", "Unroutable")

SLICE = 500
"""Messages that may be unconfirmed at once: the broker must be able to answer while we still write."""


class Unroutable(OperationalError):
    """A message was published to an exchange from where no queue takes it.

    Declare the queue and its binding (``task_queues``), or correct exchange and routing key of the call.
    ``broker_transport_options={"confirm_publish": False}`` makes such messages vanish instead.
    """

    def __init__(self, exchange: str, routing_key: str) -> None:
        super().__init__(
            f"No queue takes messages from exchange {exchange!r} with routing key {routing_key!r}, so the "
            "broker returned the message.  Declare the queue and its binding (task_queues), or correct "
            "exchange and routing key of the call."
        )


publishers: weakref.WeakSet[AmqpPublisher] = weakref.WeakSet()
"""Those of this process."""


def leave_connections_to_the_parent() -> None:
    """In a forked child: let go of the copies of sockets.

    kombu closes the connections of its pools in every child of multiprocessing.  For AMQP that shuts the
    connection down, also for the parent, who may be waiting for the confirmation of a message.
    """
    for publisher in list(publishers):
        connections = publisher.pool.connections
        for each in (*connections._dirty, *connections._resource.queue):
            # Not the property without the underscore: that one connects.
            transport = getattr(getattr(each, "_connection", None), "_transport", None)
            socket = getattr(transport, "sock", None)
            if socket is not None and socket.fileno() != -1:
                os.close(socket.detach())


os.register_at_fork(after_in_child=leave_connections_to_the_parent)


class Returned(threading.local):
    """What the broker gave back to this thread while it published: ``(exchange, routing key)``."""

    def __init__(self) -> None:
        self.routes: list[tuple[str, str]] = []


class AmqpPublisher(KombuPublisher):
    """A :class:`~celery_clone.transport.protocols.Publisher` over py-amqp."""

    def prepare_template(self, connection: Any) -> None:
        """Confirm by default."""
        publishers.add(self)
        self._returned = Returned()
        connection.transport_options.setdefault("confirm_publish", True)
        self.confirms = bool(connection.transport_options["confirm_publish"])

    def _on_return(self, exc: BaseException, exchange: str, routing_key: str, message: Any) -> None:
        self._returned.routes.append((exchange, routing_key))

    def retryable(self, connection: Any, policy: RetryPolicy) -> tuple[type[BaseException], ...]:
        """A refusal may be passing (a queue is full), an address without a queue is not."""
        return (MessageNacked, *super().retryable(connection, policy))

    def attempt(
        self,
        connection: Any,
        message: TaskMessage,
        to: Destination,
        arguments: dict[str, Any],
        deadline: Deadline,
    ) -> None:
        """Publish once and wait for the confirmation."""
        if not self.confirms:
            super().attempt(connection, message, to, arguments, deadline)
            return
        channel = connection.default_channel
        self._listen(channel)
        arguments["confirm_timeout"] = deadline.left(arguments.get("confirm_timeout"))
        arguments.setdefault("mandatory", must_arrive(to))
        super().attempt(connection, message, to, arguments, deadline)

    def _send(
        self,
        connection: Any,
        message: TaskMessage,
        to: Destination,
        how: SendOptions,
        policy: RetryPolicy,
        done: str = "",
    ) -> None:
        super()._send(connection, message, to, how, policy, done)
        # Here and not in the attempt: the broker has answered, and would answer the same again.
        if self._returned.routes:
            raise Unroutable(*self._returned.routes.pop())

    def _listen(self, channel: Any) -> None:
        self._returned.routes.clear()
        channel.events["basic_return"].add(self._on_return)

    def publish_many(self, batch: Sequence[tuple[TaskMessage, Destination, SendOptions]]) -> None:
        """Publish everything, then wait for the confirmations.

        After a failure the messages without a confirmation are published again, as one alone would be.
        A message that no queue takes is reported after all others were sent.
        """
        if not self.confirms or len(batch) < 2:
            super().publish_many(batch)
            return
        how = batch[0][2]
        policy = RetryPolicy(how.retry, how.retry_policy, Deadline(how.deadline_s))
        waiting = list(batch)
        returned: list[tuple[str, str]] = []
        with self.connection(policy.deadline) as connection:
            while waiting:
                confirms = Confirms(waiting[:SLICE])
                try:
                    self.connect(connection, policy.deadline)
                    self._publish_slice(connection, confirms, policy.deadline)
                except self.retryable(connection, policy) as exc:
                    waiting[:SLICE] = confirms.open
                    self.drop(connection)
                    if not policy.again():
                        done = f", {len(batch) - len(waiting)} of {len(batch)} were sent"
                        raise not_sent(self.uri, policy, exc, done) from exc
                else:
                    del waiting[:SLICE]
                    returned += self._returned.routes
        if returned:
            raise Unroutable(*returned[0])

    def _publish_slice(self, connection: Any, confirms: Confirms, deadline: Deadline) -> None:
        # A channel of its own, because confirmations are counted from the opening of a channel.
        channel = connection.channel()
        try:
            channel.confirm_select()
            self._listen(channel)
            channel.events["basic_ack"].add(confirms.on_ack)
            channel.events["basic_nack"].add(confirms.on_nack)
            producer = self.pool.Producer(Unwaiting(channel))
            for message, to, how in confirms.messages:
                arguments = publish_arguments(message, to, how)
                arguments.setdefault("mandatory", must_arrive(to))
                arguments["declare"] = undeclared(connection, to.declare)
                arguments["timeout"] = deadline.left(arguments.get("timeout"))
                producer.publish(message.body, retry=False, **arguments)
            while not confirms.complete:
                if deadline.over:
                    raise TimeoutError(f"{len(confirms.open)} messages were not confirmed in time")
                connection.drain_events(timeout=deadline.left())
            if confirms.refused:
                raise MessageNacked(f"the broker refused {len(confirms.refused)} messages")
        finally:
            if channel.connection is not None and connection.connected:
                channel.close()


class Unwaiting:
    """A channel whose ``basic_publish`` does not wait for the confirmation; all else is the channel's."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.basic_publish = channel._basic_publish

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


class Confirms:
    """Which of a slice the broker has taken.  Message *n* of the slice has the delivery tag *n* + 1."""

    def __init__(self, messages: Sequence[tuple[TaskMessage, Destination, SendOptions]]) -> None:
        self.messages = list(messages)
        self._open = set(range(1, len(self.messages) + 1))
        self.refused: set[int] = set()

    def _answered(self, tag: int, several: bool) -> set[int]:
        answered = {number for number in self._open if number <= tag} if several else {tag} & self._open
        self._open -= answered
        return answered

    def on_ack(self, tag: int, several: bool) -> None:
        """The broker has taken it, or all up to it."""
        self._answered(tag, several)

    def on_nack(self, tag: int, several: bool) -> None:
        """The broker refuses it, or all up to it."""
        self.refused |= self._answered(tag, several)

    @property
    def complete(self) -> bool:
        """Has the broker answered for all?"""
        return not self._open

    @property
    def open(self) -> list[tuple[TaskMessage, Destination, SendOptions]]:
        """What the broker has not taken, in order."""
        return [self.messages[number - 1] for number in sorted(self._open | self.refused)]


def must_arrive(to: Destination) -> bool:
    """Must a queue take this message?  A broadcast may have no listener."""
    kind = to.exchange.type if isinstance(to.exchange, Exchange) else to.exchange_type
    return kind != "fanout"
