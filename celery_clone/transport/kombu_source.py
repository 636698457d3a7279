"""Deliveries from any kombu transport: memory, filesystem, SQS and what else there is.

Opened by ``transport.open_source`` for transports without a source of their own, used by the
worker's loop.  Owns one channel and a kombu consumer.  It may use public kombu names only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kombu import Consumer

from celery_clone.message.delivery import Delivery
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from kombu import Queue

__all__ = ("KombuSource",)

logger = get_logger(__name__)

MEMORY_POLL_S = 0.01
"""How long a look into the queues of this process is put off; kombu's default is a second."""


class KombuSource:
    """A :class:`~celery_clone.transport.protocols.MessageSource` over a kombu channel."""

    survives_reconnect = False
    keeps_dead = False

    def __init__(
        self,
        connection: Any,
        *,
        accept: Collection[str] | None = None,
        epoch: int = 0,
        prefetch: int = 0,
    ) -> None:
        """*connection* is a connected :class:`kombu.Connection`; see :func:`transport.open_source`."""
        self.connection = connection
        self.accept = accept
        self.epoch = epoch
        self.channel = connection.channel()
        self._consumer: Any = Consumer(self.channel, on_message=self._on_message, accept=accept)
        self._queues: dict[str, str] = {}
        self._prefix = f"{epoch}."
        self._count = 0
        self._prefetch = prefetch
        self._window: int | None = None
        self._taken: dict[str, Any] = {}
        self._arrived: deque[Delivery] = deque()
        self._acks: list[str] = []
        self._timer: Any = None
        self._pushes = False
        self._ready: Callable[[], None] | None = None
        self._quiet = self._closed = False

    def watch(self, hub: Any, ready: Callable[[], None]) -> None:
        """Have *hub* drive the transport, or look regularly where the transport cannot be driven."""
        self._ready = ready
        self._pushes = bool(self.connection.transport.implements.asynchronous)
        if not self._pushes:
            self._timer = hub.call_repeatedly(self._poll_s(), ready)

    def _poll_s(self) -> float:
        if self.connection.transport.driver_type == "memory":
            return MEMORY_POLL_S
        return float(getattr(self.connection.transport, "polling_interval", None) or 1.0)

    def set_queues(self, queues: Sequence[Queue]) -> None:
        """Consume from exactly *queues*, declaring them."""
        wanted = {queue.name: queue for queue in queues}
        for name in [queue.name for queue in self._consumer.queues if queue.name not in wanted]:
            self._consumer.cancel_by_queue(name)
            self._give_back(name)
        known = {queue.name for queue in self._consumer.queues}
        for name, queue in wanted.items():
            if name not in known:
                self._consumer.add_queue(queue)
        self._queues = dict.fromkeys(wanted, "")
        self._consumer.consume()

    def _on_message(self, message: Any) -> None:
        self._count += 1
        tag = f"{self._prefix}{self._count}"
        delivery = Delivery.of_kombu(
            message, self._queue_of(message), self, tag=tag, epoch=self.epoch, accept=self.accept
        )
        self._taken[tag] = message
        self._arrived.append(delivery)
        if self._ready is not None and self._pushes:
            self._ready()

    def _queue_of(self, message: Any) -> str:
        """The queue a message came from, by its exchange and routing key, as kombu does not tell."""
        info = message.delivery_info or {}
        if len(self._queues) == 1:
            return next(iter(self._queues))
        for queue in self._consumer.queues:
            if info.get("exchange") == queue.exchange.name and info.get("routing_key") == queue.routing_key:
                return str(queue.name)
        return str(info.get("routing_key") or "")

    def take(self, credit: int, timeout: float = 0.0) -> Sequence[Delivery]:
        """Give at most *credit* deliveries, waiting at most *timeout* seconds for the first."""
        self.flush()
        if self._quiet or credit <= 0:
            return []
        arrived = self._arrived
        self._fit_window(credit)
        if not self._pushes and self._consumer.queues:
            deadline = time.monotonic() + timeout
            while len(arrived) < credit:
                left = 0.0 if arrived else max(0.0, deadline - time.monotonic())
                if not self._drain(left) and (arrived or time.monotonic() >= deadline):
                    break
        return [arrived.popleft() for _ in range(min(credit, len(arrived)))]

    def _drain(self, timeout: float) -> bool:
        if self.connection.transport.driver_type == "memory":
            timeout = min(timeout, MEMORY_POLL_S)
        try:
            self.connection.drain_events(timeout=timeout)
        except TimeoutError:
            return False
        return True

    def _fit_window(self, credit: int) -> None:
        """Let the transport prefetch what may be held beside what is held; a plain number in kombu."""
        wanted = len(self._taken) - len(self._arrived) + credit if self._prefetch else 0
        if wanted != self._window:
            self._window = wanted
            self._consumer.qos(prefetch_count=wanted)

    # -- settling -------------------------------------------------------------------------------------

    def ack(self, tags: Iterable[str]) -> None:
        """Settle as done; sent with the next :meth:`take` or :meth:`flush`."""
        self._acks.extend(tags)

    def reject(self, tag: str, *, requeue: bool) -> None:
        """Give up or give back."""
        message = self._taken.pop(tag, None)
        if message is None:
            return
        if requeue:
            message.requeue()
        else:
            message.reject()

    def put_back(self, delivery: Delivery, losses: int) -> bool:
        """A message that lies at the broker cannot be changed."""
        return False

    def note_losses(self, delivery: Delivery, losses: int) -> None:
        """Nothing, for the same reason."""

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Reject: kombu knows no place for what cannot be used, some brokers do."""
        self.reject(delivery.tag, requeue=False)

    def park(self, delivery: Delivery, due: float) -> bool:
        """The worker must hold it."""
        return False

    def parked(self, most: int) -> Sequence[Delivery]:
        """Nothing ever is."""
        return ()

    def extend(self) -> None:
        """Leases are the transport's own matter."""
        self.flush()

    def flush(self) -> None:
        """Acknowledge one by one, as kombu does; what fails stays for the next time."""
        acks = self._acks
        while acks:
            message = self._taken.get(acks[0])
            if message is not None:
                message.ack()
                del self._taken[acks[0]]
            del acks[0]

    def _give_back(self, queue: str | None = None) -> None:
        for delivery in [found for found in self._arrived if queue is None or found.queue == queue]:
            self._arrived.remove(delivery)
            self.reject(delivery.tag, requeue=True)

    # -- the end --------------------------------------------------------------------------------------

    def quiet(self) -> None:
        """Stop consuming and give back what was not taken yet; acknowledgements go on."""
        if self._quiet:
            return
        self._quiet = True
        self._consumer.cancel()
        self._give_back()

    def close(self) -> None:
        """Acknowledge and close the channel; what was not settled is given back, by kombu or the broker."""
        if self._closed:
            return
        self._closed = self._quiet = True
        if self._timer is not None:
            self._timer.cancel()
        try:
            self.flush()
            if self.connection.transport.driver_type == "memory":
                # The one transport where kombu does not and nobody else can.
                for tag in list(self._taken):
                    self.reject(tag, requeue=True)
            self.channel.close()
        except (*self.connection.connection_errors, *self.connection.channel_errors):
            logger.debug("The connection broke before the channel was closed.", exc_info=True)
        self._arrived.clear()
