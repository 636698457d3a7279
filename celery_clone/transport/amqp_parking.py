"""Due deliveries given back to RabbitMQ until their time, through the delay queues that Celery has there.

Owned by ``transport.amqp_source``.  A delivery is published to the first delay exchange, over a connection of its
own, and counts as parked when the broker has confirmed that; only then may the original be acknowledged.  So a
message may be there twice after a crash between the two, and never not at all.  It may not settle anything
itself.

The delay queues are those that ``worker.consumer.delayed_delivery`` declares for quorum queues; here they serve
every kind of queue.  At their end a parked message comes back to the very queue it was taken from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amqp import Message, spec
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    MAX_LEVEL,
    calculate_routing_key,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)

from celery_clone.transport.waits import CLOSING_TIMEOUT_S, REPLY_TIMEOUT_S, bound_waits, prepare_waits
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from celery_clone.message.delivery import Delivery

__all__ = ("LONGEST_S", "Parking")

logger = get_logger(__name__)

LONGEST_S = 2 ** (MAX_LEVEL + 1) - 1
"""The longest time that the delay queues can hold a message, in seconds: eight years."""

LONGEST_KEY = 255
"""Bytes of a routing key."""

MOST_OPEN = 500
"""Publishes that may wait for their confirmation."""

RETRY_S = 30.0
"""How long deliveries are held by the worker after parking has failed."""

END_OF_KEY = "celery-parked"
"""The last word of the routing key under which a parked message comes back; the name of its queue stands before."""

NOT_AGAIN = ("x-death", "x-first-death-", "x-last-death-")
"""Headers that RabbitMQ writes when a message leaves a delay queue; with them it would drop one that comes again."""


NOT_KEPT = ("user_id", "application_headers")
"""Properties that are no property of the message as it is published again: a user may only use its own name."""


class Parking:
    """Publishes into the delay queues.

    Arguments:
        connection: of the source; this opens one like it when it is needed.
        queue_type: of the delay queues, if they must be declared.
        parked: called with the number given to :meth:`park`, and whether the broker has it.
    """

    def __init__(self, connection: Any, queue_type: str, parked: Callable[[int, bool], None]) -> None:
        self._like = connection
        self._queue_type = queue_type
        self._parked = parked
        self._connection: Any = None
        self._channel: Any = None
        self._hub: Any = None
        self._bound: set[str] = set()
        #: Number of the publish, which counts from 1 on each channel, to the number that the caller gave.
        self._open: dict[int, int] = {}
        self._published = 0
        self._not_before = 0.0
        self._returned = False

    def watch(self, hub: Any) -> None:
        """Have *hub* read the confirmations."""
        self._hub = hub

    @property
    def waiting(self) -> int:
        """How many publishes wait for their confirmation."""
        return len(self._open)

    def park(self, number: int, delivery: Delivery, seconds: float) -> bool:
        """Publish *delivery* so that it comes back in *seconds*, or a little earlier; ``False`` if that cannot be."""
        key = f"{delivery.queue}.{END_OF_KEY}"
        whole = int(seconds)
        if not 1 <= whole <= LONGEST_S or len(key.encode()) + 2 * (MAX_LEVEL + 1) > LONGEST_KEY:
            return False
        if time.monotonic() < self._not_before:
            return False
        try:
            self._open_for(delivery.queue, key)
            while len(self._open) >= MOST_OPEN:
                self._connection.drain_events(timeout=REPLY_TIMEOUT_S)
            self._publish(delivery, level_name(whole.bit_length() - 1), calculate_routing_key(whole, key))
        except Exception as exc:
            # Whatever is wrong: it can still be held.
            if not isinstance(exc, self._errors()):
                logger.exception("A due message of queue %r cannot be parked", delivery.queue)
            self._fail(exc)
            return False
        self._open[self._published] = number
        return True

    def _errors(self) -> tuple[type[BaseException], ...]:
        return (*self._like.connection_errors, *self._like.channel_errors, OSError)

    def _open_for(self, queue: str, key: str) -> None:
        if self._connection is None:
            connection = self._like.clone(heartbeat=0)
            prepare_waits(connection, REPLY_TIMEOUT_S)
            connection.connect()
            bound_waits(connection, REPLY_TIMEOUT_S)
            self._connection = connection
            self._declare()
            self._channel = connection.channel()
            self._channel.confirm_select()
            self._channel.events["basic_ack"].add(self._on_ack)
            self._channel.events["basic_nack"].add(self._on_nack)
            self._channel.events["basic_return"].add(self._on_return)
            self._published = 0
            if self._hub is not None:
                self._hub.add_reader(connection.connection.sock, self.collect)
        if queue not in self._bound:
            self._channel.queue_bind(queue, CELERY_DELAYED_DELIVERY_EXCHANGE, f"#.{key}")
            self._bound.add(queue)

    def _declare(self) -> None:
        """Declare the delay queues, which takes a hundred round trips, unless they are there."""
        connection = self._connection
        channel = connection.channel()
        try:
            channel.exchange_declare(CELERY_DELAYED_DELIVERY_EXCHANGE, "topic", passive=True)
            channel.queue_declare(level_name(0), passive=True)
            channel.close()
        except connection.channel_errors:
            declare_native_delayed_delivery_exchanges_and_queues(connection, self._queue_type)

    def _publish(self, delivery: Delivery, exchange: str, routing_key: str) -> None:
        parts = delivery.parts
        headers = {name: value for name, value in parts.headers.items() if not str(name).startswith(NOT_AGAIN)}
        properties = {name: value for name, value in parts.properties.items() if name not in NOT_KEPT}
        properties.update(content_type=parts.content_type, content_encoding=parts.content_encoding)
        message = Message(
            parts.body,
            application_headers=headers,
            **{name: value for name, value in properties.items() if value is not None},
        )
        self._channel.send_method(spec.Basic.Publish, "Bssbb", (0, exchange, routing_key, True, False), message)
        self._published += 1

    # -- what the broker says

    def collect(self) -> None:
        """Read the confirmations that are there."""
        if self._connection is None:
            return
        try:
            while True:
                self._connection.drain_events(timeout=0)
        except (TimeoutError, BlockingIOError):
            pass  # everything was read
        except Exception as exc:
            if not isinstance(exc, self._errors()):
                raise
            self._fail(exc)

    def _on_ack(self, tag: int, several: bool) -> None:
        taken, self._returned = not self._returned, False
        self._answered(tag, several, taken)

    def _on_nack(self, tag: int, several: bool) -> None:
        self._refuse(f"the broker refused message {tag}")
        self._answered(tag, several, taken=False)

    def _on_return(self, exc: BaseException, exchange: str, routing_key: str, message: Any) -> None:
        # Its confirmation follows, which would otherwise say that all is well.
        self._refuse(f"no delay queue takes it: {exc}")
        self._returned = True

    def _answered(self, tag: int, several: bool, taken: bool) -> None:
        numbers = [number for number in self._open if number <= tag] if several else [tag]
        for number in numbers:
            given = self._open.pop(number, None)
            if given is not None:
                self._parked(given, taken)

    def _refuse(self, why: object) -> None:
        if time.monotonic() >= self._not_before:
            logger.warning(
                "Due tasks cannot be parked in RabbitMQ, and are held by this worker for %g s: %s. "
                "broker_transport_options={'park': False} turns parking off.",
                RETRY_S,
                why,
            )
        self._not_before = time.monotonic() + RETRY_S

    def _fail(self, exc: BaseException) -> None:
        """The connection broke, or something is not allowed: what was not confirmed is given back."""
        self._refuse(repr(exc))
        self._let_go()
        numbers, self._open = [*self._open.values()], {}
        for number in numbers:
            self._parked(number, False)

    # -- the end

    def finish(self) -> None:
        """Wait, briefly, for the confirmations that are on their way."""
        deadline = time.monotonic() + CLOSING_TIMEOUT_S
        try:
            while self._open and (left := deadline - time.monotonic()) > 0:
                self._connection.drain_events(timeout=left)
        except (TimeoutError, BlockingIOError):
            pass  # the broker gives the originals out again
        except Exception as exc:
            if not isinstance(exc, self._errors()):
                raise
            self._fail(exc)

    def close(self) -> None:
        """Let go of the connection.  Legal twice."""
        self._open.clear()
        self._let_go()

    def _let_go(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        self._bound.clear()
        if connection is None:
            return
        try:
            sock = connection.connection.sock if connection.connected else None
            if self._hub is not None and sock is not None:
                self._hub.remove_reader(sock)
            bound_waits(connection, CLOSING_TIMEOUT_S)
            connection.close()
        except self._errors():
            logger.debug("The connection for parking was broken before it was closed.", exc_info=True)
