"""Task messages over the embedded broker: the worker's source and the app's publisher.

Chosen by ``transport.open_source`` and ``transport.open_publisher`` for ``sqlite://`` URLs.  Fetching,
acknowledging and parking share one transaction per turn; messages travel as the raw text they are
stored as.  What a claim or a lease means is decided in ``transport.sqlite.broker``.

The lease covers the session of a source, not single messages: while the worker's process lives,
nothing it holds is given to others, however long a task runs.
"""

from __future__ import annotations

import base64
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from kombu import Exchange, Producer, Queue
from kombu.common import maybe_declare
from kombu.entity import maybe_delivery_mode
from kombu.exceptions import DecodeError, OperationalError

from celery_clone.message import codec
from celery_clone.message.delivery import Delivery
from celery_clone.message.envelope import Envelope, with_losses
from celery_clone.transport.publisher import SHIPPED_PUBLISH, KombuPublisher
from celery_clone.transport.sqlite.connection import read_seconds
from celery_clone.transport.sqlite.database import DatabaseUnavailable
from celery_clone.transport.sqlite.keeper import SessionKeeper
from celery_clone.transport.sqlite.session import POLL_S, VISIBILITY_TIMEOUT_S, BrokerSession, ring
from celery_clone.transport.sqlite.tables import Claimed, Letter, NoRoute, Settlement, UnknownExchange
from celery_clone.utils.ids import uuid
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from celery_clone.message.outgoing import TaskMessage
    from celery_clone.transport.protocols import Destination, SendOptions
    from celery_clone.transport.sqlite.database import Database

__all__ = ("SqlitePublisher", "SqliteSource")

logger = get_logger(__name__)

Answer = TypeVar("Answer")

NOT_OURS = frozenset(("mandatory", "immediate", "content_type", "content_encoding"))
"""Arguments of :meth:`kombu.Producer.publish` that are left to kombu."""

LEASE_S = 10.0
MOST_DECLARED = 1024
"""How many declared queues and exchanges a publisher remembers."""

MOST_UNSENT = 256
"""How many settlements may wait for the next :meth:`SqliteSource.take`."""


class SqliteSource:
    """Deliveries from the embedded broker.  Made for each connection of the worker.

    Args:
        connection: a :class:`kombu.Connection` with a ``sqlite://`` URL.
        epoch: number of the connection, noted on each delivery.
        accept: content types that deliveries may decode, ``None`` for kombu's.
        previous: the source of a lost connection; what it held and did not settle is held by this one.
        lease_s: overrides the transport option ``lease``.
        renew_in_background: renew the lease from a thread, because tasks run in the loop's own.
    """

    survives_reconnect = True
    keeps_dead = True

    def __init__(
        self,
        connection: Any,
        *,
        epoch: int = 0,
        accept: Collection[str] | None = None,
        previous: SqliteSource | None = None,
        lease_s: float | None = None,
        renew_in_background: bool = False,
    ) -> None:
        self.connection = connection
        self.epoch = epoch
        self.accept = accept
        transport = connection.transport
        self._broker = transport.broker
        if previous is None:
            self._session = new_session(transport, lease_s)
            self._settlement = Settlement()
        else:
            self._session = previous._session
            self._session.resume(transport.broker)
            self._settlement = previous._settlement
        self._names: list[str] = []
        self._quiet = False
        self._closed = False
        self._hub: Any = None
        self._ready: Callable[[], None] | None = None
        self._watched: int | None = None
        self._timers: list[Any] = []
        self._due_timer: Any = None
        self._due_at: float | None = None
        self._keeper = SessionKeeper(self._session) if renew_in_background else None

    # -- consuming

    def watch(self, hub: Any, ready: Callable[[], None]) -> None:
        """Register with the loop; *ready* is called when :meth:`take` may find something."""
        self._hub, self._ready = hub, ready
        self._session.open()
        self._timers = [
            hub.call_repeatedly(self._session.interval_s, self.extend),
            hub.call_repeatedly(self._session.poll_s, ready),
        ]
        self._watch_bell()

    def _watch_bell(self) -> None:
        bell = self._session.bell
        descriptor = None if bell is None else bell.fileno()
        if self._hub is not None and descriptor != self._watched:
            self._unwatch_bell()
            if descriptor is not None:
                self._hub.add_reader(descriptor, self._on_ring)
                self._watched = descriptor

    def _unwatch_bell(self) -> None:
        if self._watched is not None:
            self._hub.remove_reader(self._watched)
            self._watched = None

    def _on_ring(self) -> None:
        if self._session.bell is not None:
            self._session.bell.drain()
        if self._ready is not None:
            self._ready()

    def set_queues(self, queues: Sequence[Queue]) -> None:
        """Consume from exactly these queues from now on, declaring what is missing."""
        channel = self.connection.default_channel
        for queue in queues:
            queue(channel).declare()
        self._names = [queue.name for queue in queues]
        self._session.consume(self._names)
        self._watch_bell()

    def take(self, credit: int, timeout: float = 0.0) -> Sequence[Delivery]:
        """Return at most *credit* new deliveries; wait at most *timeout* seconds for the first.

        What was settled since leaves in the same transaction.
        """
        if self._quiet or self._closed or not self._names:
            self.flush()
            return ()
        ends = time.monotonic() + timeout
        while True:
            found = self._claim(credit)
            left_s = ends - time.monotonic()
            if found or left_s <= 0:
                self._set_due_timer()
                return [self._delivery(message) for message in found]
            self._session.keep()
            self._session.wait(left_s)

    def _claim(self, credit: int) -> list[Claimed]:
        settlement, self._settlement = self._settlement, Settlement()
        try:
            return self._session.claim(self._names, credit, settlement or None)
        except BaseException:
            self._settlement = settlement
            raise

    def _delivery(self, message: Claimed) -> Delivery:
        envelope = Envelope(message.body)
        facts: Mapping[str, Any] | None = None
        if message.deliveries:
            facts = redelivery_facts(envelope, message)
        return Delivery(
            str(message.id),
            message.queue,
            self,
            envelope=envelope,
            epoch=self.epoch,
            accept=self.accept,
            facts=facts,
        )

    def _set_due_timer(self) -> None:
        due = self._session.next_due
        if self._hub is None or self._ready is None or due == self._due_at:
            return
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None
        self._due_at = due
        if due is not None:
            self._due_timer = self._hub.call_later(max(0.0, due - time.time()), self._on_due)

    def _on_due(self) -> None:
        self._due_timer = self._due_at = None
        if self._ready is not None:
            self._ready()

    # -- settling

    def ack(self, tags: Iterable[str]) -> None:
        """Settle these deliveries as done.  Buffered until the next :meth:`take` or :meth:`flush`."""
        self._settlement.done.extend(number for number in map(number_of, tags) if number is not None)
        if len(self._settlement.done) >= MOST_UNSENT:
            self.flush()

    def reject(self, tag: str, *, requeue: bool) -> None:
        """Give a delivery back to its old place in its queue, or drop it."""
        number = number_of(tag)
        if requeue and number is not None:
            ring(self._broker.release(self._session.open(), [number]))
        else:
            self.ack((tag,))

    def put_back(self, delivery: Delivery, losses: int) -> bool:
        """Give a delivery back to its old place, with the number of *losses* in its headers."""
        number = number_of(delivery.tag)
        if number is None or delivery.envelope is None:
            return False
        text = with_losses(delivery.envelope.raw, losses, redelivered=True)
        ring(self._broker.release(self._session.open(), [number], {number: text}))
        return True

    def note_losses(self, delivery: Delivery, losses: int) -> None:
        """Write the number into the message, which stays held."""
        number = number_of(delivery.tag)
        if number is not None and delivery.envelope is not None:
            self._broker.rewrite(self._session.open(), {number: with_losses(delivery.envelope.raw, losses)})

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Move a delivery that cannot be used to the queue ``<queue>.dead``, with the *reason*."""
        number = number_of(delivery.tag)
        if number is not None:
            self._broker.bury(self._session.open(), number, reason, time.time())

    def park(self, delivery: Delivery, due: float) -> bool:
        """Hand a delivery back until *due*; in the file with the next :meth:`take` or :meth:`flush`."""
        number = number_of(delivery.tag)
        if number is None:
            return False
        self._settlement.parked.append((number, due))
        if len(self._settlement.parked) >= MOST_UNSENT:
            self.flush()
        return True

    def parked(self, most: int) -> Sequence[Delivery]:
        """What waits in the file for its time, in the queues of this source, the soonest first."""
        return [self._delivery(message) for message in self._broker.parked(self._names, most)]

    def extend(self) -> None:
        """Renew the lease, and give back what dead workers held."""
        if self._closed:
            return
        if not self._session.keep():
            logger.warning(
                "This worker was silent for longer than %s seconds: others have taken over what it held, "
                "and its running tasks may run twice. Is the machine overloaded, or the process stopped?",
                self._session.visibility_timeout_s,
            )
        self._watch_bell()

    def flush(self) -> None:
        """Commit what was settled."""
        if not self._settlement:
            return
        settlement, self._settlement = self._settlement, Settlement()
        try:
            ring(self._broker.settle(self._session.id, settlement))
        except BaseException:
            self._settlement = settlement
            raise
        if settlement.parked and self._ready is not None:
            # The next take finds out when the first of them is due.
            self._ready()

    def quiet(self) -> None:
        """Take nothing more from the broker, keep acknowledging."""
        self._quiet = True

    def close(self) -> None:
        """Flush and let go.  Legal twice, and before :meth:`watch`.

        What is left goes back to the queues at once after :meth:`quiet`.  Without, the connection was
        lost while tasks go on: it stays held for one lease, for the source that has this one as
        *previous*.
        """
        if self._closed:
            return
        self._closed = True
        if self._hub is not None:
            self._unwatch_bell()
            for timer in (*self._timers, *filter(None, (self._due_timer,))):
                timer.cancel()
            self._timers, self._due_timer, self._hub, self._ready = [], None, None, None
        if self._keeper is not None:
            self._keeper.stop()
        try:
            self.flush()
            if self._quiet:
                self._session.close()
            else:
                self._session.pause()
        except DatabaseUnavailable as error:
            # A later source settles it, or the session ends with this process: nothing is lost.
            logger.warning("Settlements could not be written, and wait for the next connection: %s", error)


def number_of(tag: str) -> int | None:
    """The message a tag stands for; ``None`` for a tag that is none of ours."""
    return int(tag) if tag.isdecimal() else None


def redelivery_facts(envelope: Envelope, message: Claimed) -> dict[str, Any]:
    """Delivery information of a message that was handed out before."""
    try:
        info = (envelope.message().get("properties") or {}).get("delivery_info")
    except DecodeError:
        info = None
    return {**(info or {}), "redelivered": True, "delivery_count": message.deliveries}


def new_session(transport: Any, lease_s: float | None) -> BrokerSession:
    """A session with the options of a connection."""
    options = transport.options
    return BrokerSession(
        transport.broker,
        lease_s=lease_s or read_seconds(options, "lease", LEASE_S),
        visibility_timeout_s=read_seconds(options, "visibility_timeout", VISIBILITY_TIMEOUT_S),
        poll_s=read_seconds(options, "polling_interval", POLL_S),
    )


class SqlitePublisher:
    """Publishes task messages into the file: one transaction for a message, and one for a batch.

    Safe to use from any thread and after a fork.

    Args:
        pool: a pool of kombu producers; it tells the connection, and publishes itself what is not ours:
            everything when somebody replaced :meth:`kombu.Producer.publish`, as tracers do.
    """

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.kombu = KombuPublisher(pool)
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._connection: Any = None
        self._declared: dict[int, Any] = {}

    def publish(self, message: TaskMessage, to: Destination, how: SendOptions) -> None:
        """Publish one message.

        Raises:
            kombu.exceptions.EncodeError: the body cannot be serialised; nothing was sent.
            kombu.exceptions.OperationalError: the file cannot be written, or the message leads nowhere.
        """
        if self.is_plain(message, how):
            self._publish([(message, to, how)])
        else:
            self.kombu.publish(message, to, how)

    def publish_many(self, batch: Sequence[tuple[TaskMessage, Destination, SendOptions]]) -> None:
        """Publish a batch, in order: all of it, or nothing when this raises."""
        if not all(self.is_plain(message, how) for message, _, how in batch):
            self.kombu.publish_many(batch)
        elif batch:
            self._publish(batch)

    def publish_if(
        self,
        condition: Callable[[sqlite3.Connection], bool],
        message: TaskMessage,
        to: Destination,
        how: SendOptions,
    ) -> None:
        """Publish a plain message, unless a condition says no; it is asked, and may write, in the same transaction."""
        self._publish([(message, to, how)], condition)

    def write(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Do *work* in a transaction on the broker's file."""
        database: Database = self._opened().transport.broker.database
        return database.write(work)

    def is_plain(self, message: TaskMessage, how: SendOptions) -> bool:
        """Does kombu do nothing more for this message than to store it?"""
        return (
            Producer.publish is SHIPPED_PUBLISH
            and self.pool.Producer is Producer
            and NOT_OURS.isdisjoint(how.extra)
            and NOT_OURS.isdisjoint(message.properties)
        )

    def close(self) -> None:
        """Let go of the file.  Legal twice; publishing opens it again."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None and self._process == os.getpid():
                # kombu closes only what it has connected, and we may have got along without.
                connection.transport.broker.database.close()
                connection.release()

    def _publish(
        self,
        batch: Sequence[tuple[TaskMessage, Destination, SendOptions]],
        condition: Callable[[sqlite3.Connection], bool] | None = None,
    ) -> None:
        connection = self._opened()
        encoding = connection.transport.options.get("body_encoding", "base64")
        outgoing = [encode(message, to, how, encoding) for message, to, how in batch]
        deadlines = [how.deadline_s for _, _, how in batch if how.deadline_s is not None]
        patience_s = min(deadlines, default=None)
        broker = connection.transport.broker
        try:
            self._declare(connection, batch)
            bells = broker.publish(outgoing, time.time(), mandatory=True, patience_s=patience_s, condition=condition)
        except (UnknownExchange, NoRoute):
            # What we had declared was deleted since, or the whole file replaced: once more from the start.
            connection.declared_entities.clear()
            self._declared.clear()
            self._declare(connection, batch)
            try:
                bells = broker.publish(
                    outgoing, time.time(), mandatory=True, patience_s=patience_s, condition=condition
                )
            except (UnknownExchange, NoRoute) as error:
                raise leads_nowhere(error, broker.database.path) from error
        ring(bells)

    def _opened(self) -> Any:
        if self._process != os.getpid():
            # A forked child: the connection is the parent's, and the lock may be held by a thread of it.
            self._lock = threading.Lock()
            self._process = os.getpid()
            self._connection = None
        with self._lock:
            if self._connection is None:
                connection = self.pool.connections.connection.clone()
                # A file that cannot be used says so now, without the retries of kombu's connecting.
                connection.transport.broker.find_queue("")
                self._connection = connection
                self._declared.clear()
            return self._connection

    def _declare(self, connection: Any, batch: Sequence[tuple[TaskMessage, Destination, SendOptions]]) -> None:
        # Hot: kombu's own look whether an entity was declared copies it first, half the cost of a publish.
        declared = self._declared
        for _, to, _ in batch:
            for entity in to.declare:
                if declared.get(id(entity)) is not entity:
                    with self._lock:
                        maybe_declare(entity, connection.default_channel)
                        if entity.can_cache_declaration:
                            declared[id(entity)] = entity
                            if len(declared) > MOST_DECLARED:
                                declared.pop(next(iter(declared)))


def leads_nowhere(error: UnknownExchange | NoRoute, path: str) -> OperationalError:
    """The error for a message that no queue takes."""
    if isinstance(error, UnknownExchange):
        return OperationalError(
            f"Exchange {error.args[0]!r} is not declared in {path!r}: "
            "declare its queue in task_queues, or correct the route."
        )
    exchange, routing_key = error.args
    return OperationalError(
        f"No queue of {path!r} is bound to exchange {exchange!r} for routing key {routing_key!r}: "
        "declare the queue in task_queues, or correct the route."
    )


def encode(message: TaskMessage, to: Destination, how: SendOptions, body_encoding: str = "base64") -> Letter:
    """The text of a message, as kombu's producer and virtual channel write it.

    Raises:
        kombu.exceptions.EncodeError: the body or a header cannot be serialised.
    """
    body, content_type, content_encoding = codec.encode(message.body, message.headers, how.serializer, how.compression)
    properties = {**how.extra, **message.properties}
    for name in ("timeout", "confirm_timeout"):
        properties.pop(name, None)
    priority, ttl_s = properties.pop("priority", None), properties.pop("expiration", None)
    delivery_mode, exchange = properties.pop("delivery_mode", None), to.exchange
    if isinstance(exchange, Exchange):
        delivery_mode, exchange = delivery_mode or exchange.delivery_mode, exchange.name
    properties["delivery_mode"] = maybe_delivery_mode(delivery_mode)
    if ttl_s is not None:
        properties["expiration"] = str(int(ttl_s * 1000))
    if isinstance(properties.get("reply_to"), Queue):
        properties["reply_to"] = properties["reply_to"].name
    properties["delivery_info"] = {"exchange": exchange, "routing_key": to.routing_key}
    properties["priority"] = priority or 0
    properties["body_encoding"] = body_encoding
    properties["delivery_tag"] = uuid()
    envelope = {
        "body": encode_body(body, body_encoding),
        "content-encoding": content_encoding,
        "content-type": content_type,
        "headers": message.headers,
        "properties": properties,
    }
    try:
        text = codec.encode_json(envelope)
    except Exception as exc:  # a user's __json__ may raise anything
        rest = {"headers": message.headers, "properties": properties}
        raise codec.unserializable(rest, "json", exc) from exc
    if message.headers.get("expires"):
        # A worker decides by this header, and tells who waits for the result; dropped here, nobody would.
        ttl_s = None
    return Letter(exchange, to.routing_key, text.encode("utf-8"), int(priority or 0), ttl_s)


def encode_body(body: Any, encoding: str) -> str:
    """The serialised body as text."""
    data = body.encode("utf-8") if isinstance(body, str) else bytes(body)
    return base64.b64encode(data).decode("ascii") if encoding == "base64" else data.decode("utf-8")
