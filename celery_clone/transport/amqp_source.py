"""Deliveries from an AMQP broker: pushed by it within a window, acknowledged in runs.

Opened by ``transport.open_source``, used by the worker's loop.  Owns one channel and its consumers.
Tags are good for one connection only: each carries the number of its connection (the epoch), and a
tag of another epoch is dropped.  It may not look into bodies.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any

from kombu.utils.uuid import uuid

from celery_clone.message.delivery import Delivery
from celery_clone.transport.amqp_frames import FrameTap, RawDelivery, can_pump, decode_properties, pump
from celery_clone.transport.amqp_heartbeats import Heartbeats
from celery_clone.transport.amqp_parking import Parking
from celery_clone.transport.waits import CLOSING_TIMEOUT_S, readable
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from kombu import Queue

__all__ = ("AmqpSource",)

logger = get_logger(__name__)

LARGEST_WINDOW = 0xFFFF
"""AMQP counts prefetched deliveries with 16 bits."""

WINDOW_EVERY_S = 10.0
"""How often the window may shrink to what was needed meanwhile."""

CLOSE_TIMEOUT_S = 5.0
"""How long the broker may take to answer that the channel is closed."""

HELD_AT_MOST = 1000
"""So many due deliveries a worker holds, where it can show them; what is more is parked."""

HELD_FOR_S = 600.0
"""What is due later is parked in any case: after half an hour RabbitMQ takes back what is not acknowledged."""

ACK_FRAME = Struct(">BHIHHQBB")
ACK_SIZE = 13
BASIC, ACK = 60, 80
FRAME_END = 0xCE


class AmqpSource:
    """A :class:`~celery_clone.transport.protocols.MessageSource` over py-amqp."""

    survives_reconnect = False
    keeps_dead = False
    ack_confirms = True
    """RabbitMQ confirms a persistent message when it is on disk or acknowledged, whichever comes first."""

    def __init__(
        self,
        connection: Any,
        *,
        accept: Collection[str] | None = None,
        epoch: int = 0,
        prefetch: int = 0,
        global_qos: bool | None = None,
        delay_queue_type: str = "quorum",
        renew_in_background: bool = False,
    ) -> None:
        """*connection* is a connected :class:`kombu.Connection`; see :func:`transport.open_source`."""
        self.connection = connection
        self.accept = accept
        self.epoch = epoch
        self.channel = connection.channel()
        self._amqp = self.channel.connection
        self._tap: FrameTap | None = FrameTap(self._amqp, self.channel.channel_id, self._on_delivery)
        self._pumps = can_pump(self._amqp)
        self._heartbeats = Heartbeats(self._amqp) if renew_in_background and self._amqp.heartbeat else None
        self._prefix = f"{epoch}."
        self._global_qos = not connection.qos_semantics_matches_spec if global_qos is None else global_qos
        # A window that belongs to each consumer cannot be widened for what is held.
        self.holds_at_most = HELD_AT_MOST if self._global_qos else 0
        self.holds_for_s = HELD_FOR_S
        parks = bool((connection.transport_options or {}).get("park", True))
        self._parking = Parking(connection, delay_queue_type, self._on_parked) if parks else None
        self._floor = prefetch
        self._window: int | None = None
        self._widest = 0
        self._window_at = time.monotonic()
        self._queues: dict[str, Queue] = {}
        self._consumers: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._load: dict[str, int] = {}
        self._cancelled: list[str] = []
        self._arrived: deque[Delivery] = deque()
        self._taken: dict[int, str] = {}
        self._acks: set[int] = set()
        self._hub: Any = None
        self._ready: Callable[[], None] | None = None
        self._told = self._quiet = self._closed = False
        self._pumping = False

    # -- consuming ------------------------------------------------------------------------------------

    def watch(self, hub: Any, ready: Callable[[], None]) -> None:
        """Read the connection when *hub* says so; *ready* is called when deliveries came."""
        self._hub, self._ready = hub, ready
        if self._parking is not None:
            self._parking.watch(hub)
        if self._pumps:
            hub.add_reader(self._amqp.sock, self._on_readable)
        elif self._amqp.sock.fileno() not in hub.readers:
            self.connection.transport.register_with_event_loop(self._amqp, hub)

    def _on_readable(self) -> None:
        before = len(self._arrived)
        self._pumping = True
        try:
            while self._tap is not None and pump(self._amqp, self._tap):
                pass
        finally:
            self._pumping = False
        if len(self._arrived) > before and self._ready is not None:
            self._ready()

    def set_queues(self, queues: Sequence[Queue]) -> None:
        """Consume from exactly *queues*, declaring them."""
        wanted = {queue.name: queue for queue in queues}
        for name in [name for name in self._consumers if name not in wanted]:
            self._cancel(name)
            self._give_back(name)
        self._cancelled = [name for name in self._cancelled if name in wanted]
        if self._window is None:
            self._set_window(self._floor)
        for name, queue in wanted.items():
            self._queues[name] = bound = queue(self.channel)
            bound.declare()
            if name not in self._consumers:
                self._consume(name)

    def _consume(self, name: str) -> None:
        tag = self._consumers[name] = uuid()
        self._tags[tag], self._load[tag] = name, 0
        self._queues[name].consume(
            consumer_tag=tag, callback=self._on_message, no_ack=False, on_cancel=self._on_cancelled
        )

    def _on_cancelled(self, tag: str) -> None:
        """The broker ended a consumer: its queue was deleted, or moves to another node of the cluster.

        What was delivered stays good, so this is no reason to give the connection up, as py-amqp would.
        """
        name = self._tags.pop(tag, None)
        if name is None:
            return
        del self._consumers[name], self._load[tag]
        logger.warning("The broker cancelled the consumer of queue %r, which is declared and consumed anew.", name)
        self._cancelled.append(name)
        self._tell_soon()

    def _consume_again(self) -> None:
        """Take up the queues whose consumers the broker ended."""
        names, self._cancelled = self._cancelled, []
        for name in names:
            if name not in self._consumers:
                self._queues[name].declare()
                self._consume(name)

    def _cancel(self, name: str, nowait: bool = False) -> None:
        """Cancel the consumer of one queue; what the broker sent before it knew is still taken."""
        tag = self._consumers.pop(name)
        try:
            self.channel.basic_cancel(tag, nowait=nowait)
        finally:
            del self._load[tag], self._tags[tag]

    def _on_message(self, message: Any) -> None:
        """A delivery that py-amqp assembled, because its first frames came before the tap was in place."""
        info = message.delivery_info
        self._append(
            info["consumer_tag"],
            info["delivery_tag"],
            dict(message.properties),
            message.body,
            {**info, "redelivered": bool(info["redelivered"])},
        )

    def _on_delivery(self, raw: RawDelivery) -> None:
        self._append(
            raw.consumer_tag,
            raw.delivery_tag,
            decode_properties(raw.properties),
            raw.body,
            {
                "consumer_tag": raw.consumer_tag,
                "delivery_tag": raw.delivery_tag,
                "redelivered": raw.redelivered,
                "exchange": raw.exchange,
                "routing_key": raw.routing_key,
            },
        )

    def _append(
        self, consumer_tag: str, number: int, properties: dict[str, Any], body: Any, facts: dict[str, Any]
    ) -> None:
        queue = self._tags.get(consumer_tag, "")
        if self._quiet or not queue:
            self.channel.basic_reject(number, True)
            return
        self._taken[number] = consumer_tag
        self._load[consumer_tag] += 1
        self._arrived.append(
            Delivery.of_parts(
                properties.pop("application_headers", None),
                properties,
                body,
                properties.get("content_type"),
                properties.get("content_encoding"),
                f"{self._prefix}{number}",
                queue,
                self,
                epoch=self.epoch,
                accept=self.accept,
                channel=self.channel,
                delivery_tag=number,
                facts=facts,
            )
        )
        if not self._pumping:
            # py-amqp is reading: because of TLS, or since somebody waits for an answer on this connection.
            # Whoever is told now would read inside of that.
            self._tell_soon()

    def _tell_soon(self) -> None:
        if self._hub is not None and not self._told:
            self._told = True
            self._hub.call_soon(self._tell)

    def _tell(self) -> None:
        self._told = False
        if self._ready is not None:
            self._ready()

    def take(self, credit: int, timeout: float = 0.0) -> Sequence[Delivery]:
        """Send acknowledgements, and give what the broker has pushed, at most *credit* deliveries."""
        if self._closed:
            return []
        self.flush()
        if self._quiet:
            self._read(0.0)  # without a hub nobody else would: what was on its way is given back as it comes
            return []
        if self._cancelled:
            self._consume_again()
        if credit <= 0:
            return []
        self._fit_window(credit)
        arrived = self._arrived
        if len(arrived) < credit:
            self._read(0.0)
        deadline = time.monotonic() + timeout
        while not arrived and (left := deadline - time.monotonic()) > 0:
            self._read(left)
        return [arrived.popleft() for _ in range(min(credit, len(arrived)))]

    def _read(self, timeout: float) -> None:
        """Read what is there, waiting at most *timeout* seconds for it."""
        if self._pumps and self._tap is not None:
            if timeout > 0 and not self._amqp.transport._read_buffer:
                readable(self._amqp.sock)(timeout)
            while pump(self._amqp, self._tap):
                pass
            return
        try:
            while True:
                self.connection.drain_events(timeout=timeout)
                timeout = 0.0
        except (TimeoutError, BlockingIOError):
            pass  # everything was read

    # -- the window -----------------------------------------------------------------------------------

    def _fit_window(self, credit: int) -> None:
        """Have the broker send as far ahead as is wanted now, and shrink to what was wanted of late.

        Changing it costs a round trip, so it grows when it must and shrinks now and then.
        """
        if not self._floor or not self._window:
            return
        if not self._global_qos:
            self._renew_consumers(credit)
            return
        wanted = max(self._floor, len(self._taken) - len(self._arrived) + credit)
        self._widest = max(self._widest, wanted)
        if wanted > self._window:
            self._set_window(wanted)
        now = time.monotonic()
        if now - self._window_at >= WINDOW_EVERY_S:
            if self._widest < self._window:
                self._set_window(self._widest)
            self._widest, self._window_at = 0, now

    def _renew_consumers(self, credit: int) -> None:
        """Let queues send on that have sent all they may, when more is wanted.

        A window that belongs to each consumer (quorum queues, RabbitMQ 4) is fixed when the consumer is
        made: only a new one can be sent more while what the old one got is still held.
        """
        if self._arrived:
            return
        for name in [name for name, tag in self._consumers.items() if self._load[tag] >= (self._window or 0)]:
            self._cancel(name)
            size = max(self._floor, credit)
            if size != self._window:
                self._set_window(size)
            self._consume(name)

    def _set_window(self, size: int) -> None:
        self._window = size if size <= LARGEST_WINDOW else 0
        self.channel.basic_qos(0, self._window, self._global_qos)

    # -- settling -------------------------------------------------------------------------------------

    def _number(self, tag: str) -> int | None:
        """The broker's number of a delivery that is still open; ``None`` for one of an older connection."""
        if not tag.startswith(self._prefix):
            logger.debug("Dropped the answer to delivery %s: its connection is gone.", tag)
            return None
        number = int(tag[len(self._prefix) :])
        return number if number in self._taken else None

    def ack(self, tags: Iterable[str]) -> None:
        """Settle as done; sent with the next :meth:`take` or :meth:`flush`."""
        for tag in tags:
            number = self._number(tag)
            if number is not None:
                self._acks.add(number)

    def reject(self, tag: str, *, requeue: bool) -> None:
        """Give up (a dead-letter exchange gets it, where there is one) or give back."""
        number = self._number(tag)
        if number is None or number in self._acks:
            return
        self._settled(number)
        self.channel.basic_reject(number, requeue)

    def put_back(self, delivery: Delivery, losses: int) -> bool:
        """A message that lies at the broker cannot be changed."""
        return False

    def note_losses(self, delivery: Delivery, losses: int) -> None:
        """Nothing, for the same reason."""

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Reject, so that a dead-letter exchange gets it.  AMQP has no place for the reason."""
        self.reject(delivery.tag, requeue=False)

    def park(self, delivery: Delivery, due: float) -> bool:
        """Give it back through the delay queues; ``False`` if they cannot be used, or the transport option forbids it.

        It stays ours until the broker has confirmed that it is there, and is acknowledged then.
        """
        number = self._number(delivery.tag)
        if number is None or number in self._acks or self._parking is None:
            return False
        return self._parking.park(number, delivery, due - time.time())

    def _on_parked(self, number: int, taken: bool) -> None:
        if number not in self._taken:
            return
        if taken:
            self._acks.add(number)
            if self._ready is not None:
                self._ready()  # the next turn acknowledges it, and there is room for more
        else:
            self._settled(number)
            self.channel.basic_reject(number, True)

    def parked(self, most: int) -> Sequence[Delivery]:
        """Nothing that could be looked at: RabbitMQ shows no message without giving it out."""
        return ()

    def extend(self) -> None:
        """The connection is the lease: there is nothing to renew."""
        self.flush()

    def flush(self) -> None:
        """Acknowledge in one write: a frame for the unbroken run of the oldest, one for each other."""
        if self._hub is None and self._parking is not None and self._parking.waiting:
            self._parking.collect()
        acks = self._acks
        if not acks:
            return
        channel_id = self.channel.channel_id
        if channel_id is None:
            # The broker closed the channel; py-amqp raises the right error.
            self.channel.basic_ack(min(acks))
        frames: list[bytes] = []
        newest = 0
        for number in self._taken:
            if number not in acks:
                break
            newest = number
        if newest:
            frames.append(ack_frame(channel_id, newest, several=True))
        frames.extend(ack_frame(channel_id, number) for number in sorted(acks) if number > newest)
        self._amqp.transport.write(b"".join(frames))
        self._amqp.bytes_sent += len(frames)  # heartbeats look at it
        for number in acks:
            self._settled(number)
        acks.clear()

    def _settled(self, number: int) -> None:
        consumer_tag = self._taken.pop(number)
        if consumer_tag in self._load:
            self._load[consumer_tag] -= 1

    def _give_back(self, queue: str | None = None) -> None:
        """Requeue deliveries (of one queue) that came but were not taken yet."""
        for delivery in [found for found in self._arrived if queue is None or found.queue == queue]:
            self._arrived.remove(delivery)
            self.reject(delivery.tag, requeue=True)

    # -- the end --------------------------------------------------------------------------------------

    def quiet(self) -> None:
        """Cancel the consumers and give back what was not taken yet; acknowledgements go on."""
        if self._quiet:
            return
        nowait = False
        for name in list(self._consumers):
            try:
                with self._amqp.transport.having_timeout(CLOSING_TIMEOUT_S):
                    self._cancel(name, nowait)
            except TimeoutError:
                # A broker that does not answer must not keep a worker from its end; what still comes is given back.
                nowait = True
        self._quiet = True
        self._give_back()
        if self._parking is not None:
            self._parking.finish()

    def close(self) -> None:
        """Send acknowledgements and close the channel; the broker gives out again what was not settled."""
        if self._closed:
            return
        self._closed = self._quiet = True
        errors = (*self.connection.connection_errors, *self.connection.channel_errors)
        try:
            if self._parking is not None:
                self._parking.finish()
            self.flush()
            if self.channel.connection is not None:
                with self._amqp.transport.having_timeout(CLOSE_TIMEOUT_S):
                    self.channel.close()
        except errors:
            logger.debug("The connection broke before the channel was closed.", exc_info=True)
            # A broker that did not answer is asked nothing more: what follows would wait as long.
            self.connection.collect()
        finally:
            if self._parking is not None:
                self._parking.close()
            if self._heartbeats is not None:
                self._heartbeats.stop()
            self._arrived.clear()
            tap, self._tap = self._tap, None
            if tap is not None:
                tap.remove()
            self._give_reading_back()

    def _give_reading_back(self) -> None:
        """Other channels of the connection go on: kombu reads it from now on."""
        transport = self._amqp._transport
        if self._hub is not None and transport is not None and transport.connected:
            self.connection.transport.register_with_event_loop(self._amqp, self._hub)


def ack_frame(channel_id: int, number: int, several: bool = False) -> bytes:
    """The frame of ``basic.ack``; *several* acknowledges everything up to *number*."""
    return ACK_FRAME.pack(1, channel_id, ACK_SIZE, BASIC, ACK, number, several, FRAME_END)
