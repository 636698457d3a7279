"""Publishing to Redis: one LPUSH per message or batch, with the very text kombu would send.

Opened by ``transport.open_publisher`` for Redis, used by ``app.amqp`` from any thread.  Broadcasts,
topics and whatever else is not a plain push go through kombu, and everything does when a tracing
library has replaced kombu's ``Producer.publish``.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu import Exchange, Producer, Queue
from kombu.common import maybe_declare
from kombu.entity import maybe_delivery_mode
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError

from celery_clone.message import codec
from celery_clone.transport.publisher import (
    CONNECT_TIMEOUT_S,
    SHIPPED_PUBLISH,
    Deadline,
    KombuPublisher,
    RetryPolicy,
    not_sent,
    undeclared,
)
from celery_clone.transport.redis_layout import Layout, pack
from celery_clone.transport.waits import readable
from celery_clone.utils.ids import uuid
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from celery_clone.message.outgoing import TaskMessage
    from celery_clone.transport.protocols import Destination, SendOptions

__all__ = ("RedisPublisher",)

logger = get_logger(__name__)

IDLE_S = 1.0
"""A connection unused for longer is looked at before it is used: the server may have closed it."""

SLICE_BYTES = 1024 * 1024
"""About how much of a batch is sent before its answers are read."""

NOT_OURS = frozenset({"mandatory", "immediate", "content_type", "content_encoding"})
"""Arguments of :meth:`kombu.Producer.publish` that are left to kombu."""


class Outgoing(NamedTuple):
    """One message with its body serialised."""

    message: TaskMessage
    to: Destination
    how: SendOptions
    body: codec.Encoded

    @classmethod
    def of(cls, message: TaskMessage, to: Destination, how: SendOptions) -> Outgoing:
        """Serialise the body of a message."""
        return cls(message, to, how, codec.encode(message.body, message.headers, how.serializer, how.compression))


class RedisPublisher:
    """A :class:`~celery_clone.transport.protocols.Publisher` over Redis lists."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.kombu = KombuPublisher(pool)
        self._lock = threading.Lock()
        self._session: Session | None = None

    def publish(self, message: TaskMessage, to: Destination, how: SendOptions) -> None:
        """Publish one message; see :class:`~celery_clone.transport.protocols.Publisher`."""
        if self.is_plain(message, to, how):
            self._send([(message, to, how)])
        else:
            self.kombu.publish(message, to, how)

    def publish_many(self, batch: Sequence[tuple[TaskMessage, Destination, SendOptions]]) -> None:
        """Publish in order; what stands together and is plain leaves together."""
        for plain, run in groupby(batch, lambda row: self.is_plain(*row)):
            if plain:
                self._send([*run])
            else:
                self.kombu.publish_many([*run])

    def is_plain(self, message: TaskMessage, to: Destination, how: SendOptions) -> bool:
        """Does kombu do nothing more for this message than to push it onto lists?"""
        if Producer.publish is not SHIPPED_PUBLISH or self.pool.Producer is not Producer:
            return False
        if not (NOT_OURS.isdisjoint(how.extra) and NOT_OURS.isdisjoint(message.properties)):
            return False
        exchange = to.exchange
        if isinstance(exchange, Exchange):
            return not exchange.name or exchange.type == "direct"
        return not exchange or to.exchange_type == "direct"

    def publish_by(
        self,
        make: Callable[[Session, Sequence[tuple[str, bytes]]], bytes],
        message: TaskMessage,
        to: Destination,
        how: SendOptions,
    ) -> Any:
        """Publish a plain message by a command that the caller makes of its pushes; returns what Redis answers.

        The command may be sent twice, when the answer to the first is lost.
        """
        outgoing = Outgoing.of(message, to, how)

        def push(session: Session, deadline: Deadline) -> Any:
            pushes, expiring = session.pushes(outgoing)
            return session.call([make(session, pushes), *session.renewals(expiring)], deadline)[0]

        return self._persist(how, push)

    def call(self, make: Callable[[Session], bytes], how: SendOptions) -> Any:
        """Send one command; returns what Redis answers."""
        return self._persist(how, lambda session, deadline: session.call([make(session)], deadline)[0])

    # -- sending --------------------------------------------------------------------------------------

    def _send(self, batch: Sequence[tuple[TaskMessage, Destination, SendOptions]]) -> None:
        """Push until it works or the policy says no; a batch goes on where it stopped."""
        waiting = [Outgoing.of(message, to, how) for message, to, how in batch]

        def push(session: Session, deadline: Deadline) -> None:
            while waiting:
                del waiting[: session.push(waiting, deadline)]

        def done() -> str:
            return f", {len(batch) - len(waiting)} of {len(batch)} were sent" if len(batch) > 1 else ""

        self._persist(batch[0][2], push, done)

    def _persist(
        self, how: SendOptions, attempt: Callable[[Session, Deadline], Any], done: Callable[[], str] = str
    ) -> Any:
        """Attempt it until it works or the policy says no; *done* says what was done until then."""
        policy = RetryPolicy(how.retry, how.retry_policy, Deadline(how.deadline_s))
        errors: tuple[type[BaseException], ...] = (RedisError, OSError, OperationalError, *policy.errors)
        while True:
            session: Session | None = None
            try:
                session = self._open(policy.deadline)
                return attempt(session, policy.deadline)
            except errors as exc:
                self._close(session)
                if not policy.again():
                    raise not_sent(self.kombu.uri, policy, exc, done()) from exc
                logger.debug("Publishing failed, trying again: %r", exc)

    def _open(self, deadline: Deadline) -> Session:
        session = self._session
        if session is not None and session.pid == os.getpid():
            return session
        with self._lock:
            session = self._session
            if session is None or session.pid != os.getpid():
                session = self._session = Session(self.kombu, deadline, inherited=session)
            return session

    def _close(self, session: Session | None) -> None:
        """Give a session up: what was declared may be gone with the server."""
        with self._lock:
            if session is None or self._session is not session:
                return
            self._session = None
        session.close()

    def close(self) -> None:
        """Close all connections.  Legal twice; the next publish opens new ones."""
        self._close(self._session)


class Session:
    """Connections to one server, and what was declared on it.  Shared by threads, not by processes.

    *inherited* is the session of a parent process: kept, so that nobody closes the sockets they share.
    """

    def __init__(self, kombu: KombuPublisher, deadline: Deadline, inherited: Session | None = None) -> None:
        self.pid = os.getpid()
        self.inherited = inherited
        self._lock = threading.RLock()
        self._idle: deque[tuple[Any, float]] = deque()
        self._closed = False
        pool = kombu.pool.connections
        self._permits = threading.BoundedSemaphore(pool.limit) if pool.limit else None
        self.connection = pool.connection.clone()
        self.socket_timeout = kombu.socket_timeout
        kombu.connect(self.connection, deadline)
        self.channel = self.connection.default_channel
        self.layout = Layout.of_channel(self.channel)

    # -- messages -------------------------------------------------------------------------------------

    def push(self, waiting: Sequence[Outgoing], deadline: Deadline) -> int:
        """Push the first of *waiting* in one round trip; returns how many."""
        pushes: list[tuple[str, bytes]] = []
        expiring: set[str] = set()
        size = taken = 0
        for outgoing in waiting:
            its_pushes, its_expiring = self.pushes(outgoing)
            pushes += its_pushes
            expiring.update(its_expiring)
            taken += 1
            size += sum(len(text) for _, text in its_pushes)
            if size >= SLICE_BYTES:
                break
        commands = [
            pack(b"LPUSH", key, *(text for _, text in run)) for key, run in groupby(pushes, lambda push: push[0])
        ]
        commands += self.renewals(expiring)
        if commands:
            self.call(commands, deadline)
        return taken

    def pushes(self, outgoing: Outgoing) -> tuple[list[tuple[str, bytes]], list[str]]:
        """The lists that a message goes to, each with its text, and those of its queues that expire."""
        if outgoing.to.declare:
            self.declare(outgoing.to.declare)
        queues, priority, text = self.prepare(outgoing)
        names = [*queues]
        pushes = [(self.layout.list_of(queue, priority), text) for queue in names]
        return pushes, [queue for queue in names if queue in self.channel._expires]

    def renewals(self, expiring: Iterable[str]) -> list[bytes]:
        """The commands that put off the end of these queues."""
        commands = []
        for queue in expiring:
            lifetime_ms = self.channel._expires[queue]
            commands += [pack(b"PEXPIRE", key, lifetime_ms) for key in self.layout.lists_of([queue])]
        return commands

    def prepare(self, outgoing: Outgoing) -> tuple[Iterable[str], Any, bytes]:
        """The queues, the priority and the text of one message, as kombu's producer and channel make them."""
        message, to, how, body = outgoing
        given = {**how.extra, **message.properties} if how.extra else dict(message.properties)
        for name in ("timeout", "confirm_timeout"):
            given.pop(name, None)
        priority, expiration = given.pop("priority", None), given.pop("expiration", None)
        delivery_mode = given.pop("delivery_mode", None)
        exchange = to.exchange
        if isinstance(exchange, Exchange):
            delivery_mode, exchange = delivery_mode or exchange.delivery_mode, exchange.name
        given["delivery_mode"] = maybe_delivery_mode(delivery_mode)
        if expiration is not None:
            given["expiration"] = str(int(expiration * 1000))
        if isinstance(given.get("reply_to"), Queue):
            given["reply_to"] = given["reply_to"].name
        info = given.setdefault("delivery_info", {})
        priority = given.setdefault("priority", priority or 0)
        data, encoding = self.channel.encode_body(body.body, self.channel.body_encoding)
        given["body_encoding"] = encoding
        given["delivery_tag"] = uuid()
        info.update(exchange=exchange, routing_key=to.routing_key)
        envelope = {
            "body": data,
            "content-encoding": body.content_encoding,
            "content-type": body.content_type,
            "headers": message.headers,
            "properties": given,
        }
        try:
            text = codec.encode_json(envelope)
        except Exception as exc:  # a user's __json__ may raise anything
            raise codec.unserializable({"headers": message.headers, "properties": given}, "json", exc) from exc
        queues = self.channel._lookup(exchange, to.routing_key) if exchange else (to.routing_key,)
        return queues, priority, text.encode("utf-8")

    def declare(self, entities: Iterable[Any]) -> None:
        """Declare what was not declared in this session."""
        for entity in undeclared(self.connection, entities):
            with self._lock:
                maybe_declare(entity, self.channel)

    # -- connections ----------------------------------------------------------------------------------

    def call(self, commands: Sequence[bytes], deadline: Deadline) -> list[Any]:
        """Send commands in one write and read their answers; raises the first that is an error."""
        if self._permits is not None and not self._permits.acquire(timeout=deadline.left()):
            raise OperationalError(
                "all connections were in use; raise broker_pool_limit, or publish from fewer threads at once"
            )
        try:
            client = self._acquire(deadline)
            try:
                answers = talk(client, commands, deadline.left(self.socket_timeout))
            except BaseException:
                client.disconnect()
                raise
            if self._closed:
                client.disconnect()
            else:
                self._idle.append((client, time.monotonic()))
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise answer
            return answers
        finally:
            if self._permits is not None:
                self._permits.release()

    def _acquire(self, deadline: Deadline) -> Any:
        while True:
            try:
                client, used_at = self._idle.pop()
            except IndexError:
                return self._connect(deadline)
            if time.monotonic() - used_at < IDLE_S or is_silent(client):
                return client
            client.disconnect()

    def _connect(self, deadline: Deadline) -> Any:
        pool = self.channel.pool
        client = pool.connection_class(
            **{
                **pool.connection_kwargs,
                "socket_timeout": deadline.left(self.socket_timeout),
                "socket_connect_timeout": deadline.left(self.connection.connect_timeout or CONNECT_TIMEOUT_S),
            }
        )
        client.connect()
        return client

    def close(self) -> None:
        """Close what is idle; connections in use are closed by those who use them."""
        self._closed = True
        while self._idle:
            self._idle.pop()[0].disconnect()
        try:
            self.connection.release()
        except (RedisError, OSError):
            logger.debug("A broken connection could not be closed.", exc_info=True)


def talk(client: Any, commands: Sequence[bytes], timeout: float | None) -> list[Any]:
    """Send commands and read their answers, errors being answers, too."""
    client._sock.settimeout(timeout)
    client.send_packed_command([b"".join(commands)], check_health=False)
    answers: list[Any] = []
    for _ in commands:
        try:
            answers.append(client.read_response())
        except ResponseError as exc:
            answers.append(exc)
    return answers


def is_silent(client: Any) -> bool:
    """Is the connection open?  One that can be read although nothing was asked was closed by the server."""
    return not readable(client._sock)(0.0)
