"""Results as messages, sent to a queue of whoever called the task.

Chosen by ``result_backend = "rpc://"``; the broker is the app's.  Only the process that called a
task can have its result, and a chord cannot be counted this way.  Queue, messages and routing are
Celery's, so that workers and callers may be of either kind.

The caller's side is :class:`ResultConsumer`: one connection of a process, one queue for each of its
threads.  The queues stay when the connection is lost, and messages are acknowledged when they were
read, so a broken connection costs no result.  The worker's side is :class:`ResultSender`: it has the
broker confirm what it publishes, many results at a time.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import kombu
from kombu.utils.functional import retry_over_time

from celery_clone import states
from celery_clone.exceptions import OperationalError
from celery_clone.message import codec
from celery_clone.transport.protocols import SendOptions
from celery_clone.transport.publisher import Deadline
from celery_clone.transport.waits import closed_if_interrupted, prepare_waits
from celery_clone.utils.functional import LRUCache
from celery_clone.utils.log import get_logger

from .asynchronous import AsyncBackendMixin, ReconnectingConsumer, wait_readable
from .base import Backend, get_current_task, task_join_will_block
from .writer import Deferred, ResultWriter

__all__ = ("BacklogLimitExceeded", "RPCBackend")

logger = get_logger(__name__)

E_NO_CHORD_SUPPORT = (
    'The "rpc" result backend does not support chords!\n\n'
    "Note that a group chained with a task is also upgraded to be a chord, as this pattern requires "
    "synchronization.\n\n"
    "Result backends that supports chords: Redis, SQLite, Database, Memcached, and more."
)
E_STAYS_MESSAGES = "{0} is not supported by this backend: its results are messages, of which nothing is stored."

PREFETCH = 1000
"""Results the broker may send before they were read; the others wait in the queue."""

LOOK_EVERY_S = 30.0
"""A connection that was not read for so long is looked at before the next call is sent."""

BUSY_SLICE_S = 0.1
"""How long a transport that can only be read by waiting is waited for at a time."""

CONFIRM_TIMEOUT_S = 10.0
"""How long the broker may take to confirm results."""

CLOSE_TIMEOUT_S = 1.0
"""How long the end of a process waits for a thread that reads."""

REMEMBERED = 128
"""Results that were delivered and may be asked for once more."""

STATES_REMEMBERED = 1000
"""Tasks of which the last unfinished state is remembered."""


class BacklogLimitExceeded(Exception):
    """Too much state history to fast-forward."""


# --- the caller's side -----------------------------------------------------------


class ResultConsumer(ReconnectingConsumer):
    """Reads the reply queues of this process."""

    Consumer: Any = kombu.Consumer

    backend: RPCBackend

    def _forget(self) -> None:
        super()._forget()
        self._connection_errors = (OSError,)
        self._consumer: Any = None
        self._queues: dict[str, Any] = {}
        self._messages: list[Any] = []
        self._read_at = 0.0
        self._bell: tuple[int, int] | None = None

    def on_after_fork(self) -> None:
        """Let go of the parent's connection without a word to the broker."""
        connection, bell = self._connection, self._bell
        self._forget()
        abandon(connection)
        for descriptor in bell or ():
            os.close(descriptor)

    def start(self, initial_task_id: str, **kwargs: Any) -> None:
        """Connect, and consume from the reply queue of this thread."""
        self.consume_from(initial_task_id)

    def stop(self) -> None:
        """Disconnect.  The queues stay, and so do the results in them."""
        with self._lock:
            self._disconnect()

    def close(self) -> None:
        """The process ends: remove the queues, since nobody else can use them.  Does not wait for long."""
        if not self._lock.acquire(timeout=CLOSE_TIMEOUT_S):
            return
        try:
            if self._connection is not None and self._connection.connected:
                channel, socket = self._connection.default_channel, socket_of(self._connection)
                unanswered = {} if socket is None else {"nowait": True}
                if socket is not None:
                    socket.settimeout(CLOSE_TIMEOUT_S)
                for name, tag in list(self._consumer._active_tags.items()):
                    channel.basic_cancel(tag, **unanswered)
                    channel.queue_delete(name, **unanswered)
                # In good order: the broker would not read on after a socket that breaks.
                self._connection.release()
        except self._connection_errors as exc:
            logger.debug("Reply queues are left to expire: %r", exc)
        finally:
            self._queues.clear()
            self._disconnect()
            for descriptor in self._bell or ():
                os.close(descriptor)
            self._bell = None
            self._lock.release()

    # -- queues

    def consume_from(self, task_id: str) -> None:
        """Consume from the reply queue of this thread."""
        self.consume_from_all((task_id,))

    def consume_from_all(self, task_ids: Iterable[str]) -> None:
        """As :meth:`consume_from`.  If the broker is away, the wait for the results tries on."""
        try:
            self.open()
        except self._connection_errors as exc:
            with self._lock:
                self._lost(exc)

    def cancel_for(self, task_id: str) -> None:
        """Nothing: the queue is for all tasks."""

    def open(self, deadline: Deadline | None = None) -> None:
        """Have the reply queue of this thread there, and consumed from, by *deadline*.  Costs nothing if it is.

        Raises the connection errors of the transport.
        """
        name = self.backend.oid
        if name in self._queues and self._connection is not None and time.monotonic() - self._read_at < LOOK_EVERY_S:
            return
        with self._lock:
            known = name in self._queues
            if not known:
                self._queues[name] = self.backend.binding
            if self._connection is None:
                self._connect(deadline)
            elif not known:
                with self._given_up_if_interrupted():
                    self._consumer.add_queue(self._queues[name])
                    self._consumer.consume()
        self.read_now()

    def read_now(self) -> None:
        """Take what has arrived without waiting for it."""
        metas = self._read_there()
        if not metas:
            return
        for meta in metas:
            self.on_state_change(meta, None)
        if self._bell is not None:
            # The thread that waits for the socket may be the one that is waiting for this.
            try:
                os.write(self._bell[1], b"x")
            except BlockingIOError:
                pass  # it has been rung often enough

    def _connect(self, deadline: Deadline | None = None) -> None:
        connection = self.app.connection()
        left = None if deadline is None else deadline.left()
        if left is not None:
            # A broker that accepts and does not answer would be waited for, for ever.
            connection.connect_timeout = min(left, connection.connect_timeout or left)
            prepare_waits(connection, left)
        self._connection_errors = (
            OSError,
            *connection.connection_errors,
            *connection.channel_errors,
        )
        try:
            connect_once(connection)
            consumer = self.Consumer(
                connection.default_channel,
                list(self._queues.values()),
                on_message=self._messages.append,
                no_ack=False,
                accept=self.accept,
            )
            consumer.qos(prefetch_count=PREFETCH)
            consumer.consume()
        except BaseException:
            connection.collect()
            raise
        self._connection, self._consumer = connection, consumer
        self._read_at = time.monotonic()
        if self._bell is None and socket_of(connection) is not None:
            self._bell = os.pipe()
            os.set_blocking(self._bell[0], False)
            os.set_blocking(self._bell[1], False)

    def _disconnect(self) -> None:
        connection, self._connection, self._consumer = self._connection, None, None
        self._messages.clear()  # not acknowledged: they come again
        if connection is not None:
            try:
                connection.collect()
            except self._connection_errors as exc:
                logger.debug("A lost connection was closed: %r", exc)

    @contextmanager
    def _given_up_if_interrupted(self) -> Iterator[None]:
        """Connect again before the next use, if an exception comes that is none of the broker's."""
        try:
            with closed_if_interrupted(self._connection):
                yield
        except self._connection_errors:
            raise
        except BaseException:
            self._disconnect()
            raise

    # -- reading

    def _wait_readable(self, connection: Any, timeout: float) -> bool:
        socket, bell = socket_of(connection), self._bell
        if socket is None or bell is None:
            # The transport knows itself how to wait, and is not to be used by two threads at once.
            with self._lock:
                if self._connection is connection:
                    self._drain(min(timeout, BUSY_SLICE_S))
            return True
        there = wait_readable((socket, bell[0]), timeout)
        try:
            os.read(bell[0], 4096)
        except OSError:
            pass  # it was the socket, or the store was closed
        return there

    def _drain(self, timeout: float) -> bool:
        """Read one message, or what else the broker says; was there anything?"""
        try:
            with self._given_up_if_interrupted():
                self._connection.drain_events(timeout=timeout)
        except TimeoutError:
            return False
        except self._connection_errors as exc:
            self._lost(exc)
            return False
        return True

    def _read_there(self) -> list[Any] | None:
        with self._lock:
            while self._connection is not None and self._drain(0):
                pass
            self._read_at = time.monotonic()
            messages, self._messages[:] = list(self._messages), ()
            if not messages:
                return None
            metas = [meta for meta in map(self._meta_of, messages) if meta is not None]
            for meta in metas:
                self.backend._remember(meta)
            try:
                if socket_of(self._connection) is not None:
                    messages[-1].ack(multiple=True)
                else:
                    for message in messages:
                        message.ack()
            except self._connection_errors as exc:
                self._lost(exc)  # they come a second time, which changes nothing
            return metas

    def _meta_of(self, message: Any) -> Any:
        task_id = (message.properties or {}).get("correlation_id")
        try:
            meta = dict(message.payload)
            meta.setdefault("task_id", task_id)
            return self.backend.meta_from_decoded(meta)
        except Exception as exc:  # noqa: BLE001 whatever is wrong with it, the reader must go on
            logger.error("The result of task %s cannot be read: %r", task_id, exc)  # noqa: TRY400
            if task_id is None:
                return None
            return {"task_id": task_id, "status": states.FAILURE, "result": exc, "traceback": None}


def connect_once(connection: Any) -> None:
    """Connect, trying each host once; kombu's own way waits two seconds and tries each again."""
    hosts = max(1, len(connection.alt or ()))
    for failures in range(hosts):
        try:
            connection.ensure_connection(max_retries=0)
        except OperationalError as exc:
            if failures + 1 == hosts:
                # What those who wait look for is the error of the transport.
                raise exc.__cause__ or exc from None
            connection.maybe_switch_next()
        else:
            return


def socket_of(connection: Any) -> Any:
    """The socket of an AMQP connection; ``None`` for transports that have none to wait for."""
    if connection is None or connection.transport.driver_type != "amqp":
        return None
    # Not the property without the underscore: that one connects.
    return getattr(connection._connection, "sock", None)


def abandon(connection: Any) -> None:
    """In a forked child: close the copy of the parent's socket, and leave the connection as it is."""
    socket = socket_of(connection)
    if socket is not None and socket.fileno() != -1:
        os.close(socket.detach())


_consumers: weakref.WeakSet[ResultConsumer] = weakref.WeakSet()


@atexit.register
def close_consumers() -> None:
    """The process ends."""
    for consumer in list(_consumers):
        consumer.close()


# --- the worker's side -------------------------------------------------------------


class Reply(NamedTuple):
    """One result message: where to, of which task, and what, encoded."""

    routing_key: str
    correlation_id: str
    content_type: str
    content_encoding: str
    body: Any


class ResultSender:
    """Publishes results on a connection of its own, confirmed by brokers that can.

    Safe to use from several threads; a forked child begins with a new connection.
    """

    def __init__(self, backend: RPCBackend) -> None:
        self.backend = backend
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._errors: tuple[type[BaseException], ...] = (OSError, Unconfirmed)
        self._connection: Any = None
        self._producer: Any = None
        self._published = 0
        self._open: set[int] = set()
        self._refused: set[int] = set()

    def after_fork(self) -> None:
        """Let go of the parent's connection without a word to the broker."""
        connection = self._connection
        self._forget()
        abandon(connection)

    def close(self) -> None:
        """Disconnect.  Legal twice."""
        with self._lock:
            connection, self._connection, self._producer = self._connection, None, None
            self._published = 0
            self._open.clear()
            self._refused.clear()
            if connection is not None:
                connection.collect()

    def send(self, replies: Sequence[Reply]) -> None:
        """Publish, and wait for all confirmations; again if the connection is lost.

        Raises the connection errors of the transport when it was tried often enough.
        """
        with self._lock:
            try:
                self._send(replies)
                return
            except self._errors as exc:
                logger.warning("Results are sent again over a new connection: %r", exc)
            retry_over_time(self._send, self._errors, (replies,), {}, self._failed, **self.backend.retry_policy)

    def _failed(self, exc: BaseException, intervals: Any, retries: int) -> float:
        self.close()
        seconds: float = next(intervals)
        logger.error("Results could not be sent, retry %s in %s seconds: %r", retries, seconds, exc)
        return seconds

    def _send(self, replies: Sequence[Reply]) -> None:
        if self._connection is None:
            self._connect()
        backend = self.backend
        confirms = socket_of(self._connection) is not None
        try:
            for reply in replies:
                self._published += 1
                if confirms:
                    self._open.add(self._published)
                self._producer.publish(
                    reply.body,
                    exchange=backend.exchange,
                    routing_key=reply.routing_key,
                    correlation_id=reply.correlation_id,
                    content_type=reply.content_type,
                    content_encoding=reply.content_encoding,
                    delivery_mode=backend.delivery_mode,
                )
            end = time.monotonic() + CONFIRM_TIMEOUT_S
            while self._open:
                self._connection.drain_events(timeout=max(0.001, end - time.monotonic()))
            if self._refused:
                raise Unconfirmed(f"the broker refused {len(self._refused)} results")
        except BaseException:
            # What was published is not known any more; sent again it does no harm.
            self.close()
            raise

    def _connect(self) -> None:
        # Of this connection's own making is only the confirmation: one for a batch, not one each.
        connection = self.backend.app.connection(transport_options={"confirm_publish": False})
        self._errors = (OSError, Unconfirmed, *connection.connection_errors, *connection.channel_errors)
        connection.connect()
        channel = connection.default_channel
        if socket_of(connection) is not None:
            channel.confirm_select()
            channel.events["basic_ack"].add(self._on_ack)
            channel.events["basic_nack"].add(self._on_nack)
        self._connection = connection
        self._producer = kombu.Producer(channel, auto_declare=False)

    def _answered(self, tag: int, several: bool) -> set[int]:
        answered = {number for number in self._open if number <= tag} if several else {tag} & self._open
        self._open -= answered
        return answered

    def _on_ack(self, tag: int, several: bool) -> None:
        self._answered(tag, several)

    def _on_nack(self, tag: int, several: bool) -> None:
        self._refused |= self._answered(tag, several)


class Unconfirmed(Exception):
    """The broker refused a result, or did not confirm it."""


# --- the store ------------------------------------------------------------------------


class _Consumer(kombu.Consumer):
    """A consumer that declares nothing by itself."""

    auto_declare = False


class _Queue(kombu.Queue):
    """A queue that is declared each time it is asked for."""

    can_cache_declaration = False


class RPCBackend(Backend, AsyncBackendMixin):
    """Sends results to the reply queue of the caller.

    *persistent* results survive a restart of the broker (setting ``result_persistent``).  The other
    arguments are Celery's; results always go through the default exchange.
    """

    Exchange: Any = kombu.Exchange
    Producer: Any = kombu.Producer
    ResultConsumer: Any = ResultConsumer
    Consumer: Any = _Consumer
    Queue: Any = _Queue
    BacklogLimitExceeded = BacklogLimitExceeded

    persistent = False
    supports_autoexpire = True
    supports_native_join = True

    retry_policy = {"max_retries": 20, "interval_start": 0, "interval_step": 1, "interval_max": 1}

    def __init__(
        self,
        app: Any,
        connection: Any = None,
        exchange: Any = None,
        exchange_type: str | None = None,
        persistent: bool | None = None,
        serializer: str | None = None,
        auto_delete: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(app, serializer=serializer, **kwargs)
        conf = self.app.conf
        self._connection = connection
        self.persistent = self.prepare_persistent(persistent)
        self.delivery_mode = 2 if self.persistent else 1
        self.exchange = self._create_exchange(
            exchange or conf.result_exchange, exchange_type or conf.result_exchange_type, self.delivery_mode
        )
        self.auto_delete = auto_delete
        # One connection serves all threads, so a result may be read by another one than sent the call.
        self.thread_safe = True
        self._begin_empty()
        self.sender = ResultSender(self)
        self.result_consumer = self.ResultConsumer(
            self, self.app, self.accept, self._pending_results, self._pending_messages
        )
        ours = weakref.ref(self)

        def after_fork() -> None:
            backend = ours()
            if backend is not None:
                backend._after_fork()

        os.register_at_fork(after_in_child=after_fork)
        _consumers.add(self.result_consumer)

    def _begin_empty(self) -> None:
        self._recent = LRUCache(limit=REMEMBERED)
        self._states = LRUCache(limit=STATES_REMEMBERED)

    def _after_fork(self) -> None:
        """In a forked child: its replies must go to a queue of its own, and the parent's stay there."""
        self._writer = None
        self._pending_results.clear()
        self._pending_messages.clear()
        self._pending_messages.total = 0
        self._cache.clear()
        self._begin_empty()
        self.sender.after_fork()
        self.result_consumer._after_fork()

    def _create_exchange(self, name: str, type: str = "direct", delivery_mode: int = 2) -> Any:
        # The default exchange, which routes to the queue of that name.
        return self.Exchange(None)

    def _create_binding(self, task_id: str) -> Any:
        return self.binding

    @property
    def binding(self) -> Any:
        """The queue that replies to this thread go to.

        It is not deleted with its last consumer: when the connection is lost, the results of running
        tasks must find it.  It expires when nobody used it for as long as results are kept.
        """
        return self.Queue(
            self.oid, self.exchange, self.oid, durable=True, auto_delete=False, expires=self.expires or None
        )

    @property
    def oid(self) -> str:
        """Name of the reply queue of this thread."""
        return str(self.app.thread_oid)

    def as_uri(self, include_password: bool = True) -> str:
        """``rpc://``."""
        return "rpc://"

    def close(self) -> None:
        """Send what waits, remove the reply queues and let go of connections.  Legal twice."""
        self._flush_deferred()
        self.sender.close()
        self.result_consumer.close()

    def revive(self, channel: Any) -> None:
        """Nothing: connections are made again when they are needed."""

    # --- the caller's side ---------------------------------------------------------------

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:
        """A task is about to be sent: its reply queue must be there before the result is.

        Not in the processes of a worker, whose calls are not waited for.

        Raises:
            celery_clone.exceptions.OperationalError: the broker cannot be reached.
        """
        if task_join_will_block():
            return {}
        consumer = self.result_consumer
        options = self.app.conf.broker_transport_options or {}
        deadline = Deadline(options.get("publish_deadline", SendOptions().deadline_s))
        try:
            consumer.open(deadline)
        except consumer._connection_errors as first:
            with consumer._lock:
                consumer._lost(first)
            policy = {"max_retries": 3, **(self.app.conf.task_publish_retry_policy or {})}
            if deadline.over:
                policy["max_retries"] = 0
            try:
                retry_over_time(
                    consumer.open, consumer._connection_errors, (deadline,), timeout=deadline.left(), **policy
                )
            except consumer._connection_errors as exc:
                raise OperationalError(
                    f"The reply queue for results cannot be declared at {self.app.connection().as_uri()}: {exc!r}  "
                    "Is the broker there? Nothing was sent."
                ) from exc
        return {}

    def _take_kept(self, task_id: str) -> Any:
        return super()._take_kept(task_id) or self._recent.get(task_id)

    def _remember(self, meta: Mapping[str, Any]) -> None:
        """A state came: keep it for who asks without waiting."""
        task_id = meta["task_id"]
        if meta["status"] in states.READY_STATES:
            self._states.pop(task_id, None)
            self._recent[task_id] = meta
        else:
            self._states[task_id] = meta

    def _known(self, task_id: str) -> Any:
        buffer = self._pending_messages.get(task_id)
        return buffer[-1] if buffer else self._recent.get(task_id) or self._states.get(task_id)

    def get_task_meta(self, task_id: str, backlog_limit: int = 1000) -> Any:
        """What is known of a task by now; the messages that have arrived are read first."""
        self._ensure_not_eager()
        known = self._known(task_id)
        if known is None or known["status"] not in states.READY_STATES:
            consumer = self.result_consumer
            try:
                consumer.open()
                consumer.read_now()
            except consumer._connection_errors as exc:
                with consumer._lock:
                    consumer._lost(exc)
            known = self._known(task_id)
        return known or {"status": states.PENDING, "result": None}

    poll = get_task_meta

    def _get_task_meta_for(self, task_id: str) -> Any:
        return self.get_task_meta(task_id)

    def on_out_of_band_result(self, task_id: str, message: Any) -> None:
        """A result came on another way than the reply queue's consumer."""
        self._remember(message.payload)
        self.result_consumer.on_out_of_band_result(message)
        message.ack()

    def on_result_fulfilled(self, result: Any) -> None:
        """Nothing: the queue is for all tasks."""

    def forget(self, task_id: str) -> None:
        """Forget what came of a task."""
        for kept in (self._recent, self._states, self._cache):
            kept.pop(task_id, None)
        while self._pending_messages.get(task_id):
            super()._take_kept(task_id)

    # --- the worker's side ---------------------------------------------------------------

    def destination_for(self, task_id: str, request: Any) -> tuple[str, str]:
        """``(reply_to, correlation_id)`` of the message with the result of this task."""
        request = request or getattr(get_current_task(), "request", None)
        if request is None:
            raise RuntimeError(
                f"RPC backend missing task request for {task_id!r}: only a running task has a caller to reply to."
            )
        return request.reply_to, request.correlation_id or task_id

    def on_reply_declare(self, task_id: str) -> Any:
        """What to declare before a result is sent: nothing, the caller did."""

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Send the state and the result of a task to its caller."""
        routing_key, correlation_id = self.destination_for(task_id, request)
        if not routing_key:
            return None
        meta = self._to_result(task_id, state, result, traceback, request)
        reply = Reply(routing_key, correlation_id, *codec.dumps(meta, self.serializer))
        writer = self._writer
        if writer is not None:
            if request is not None and state in self.READY_STATES:
                writer.add(Deferred(task_id, state, len(reply.body), reply))
                return result
            if writer.holds(task_id):
                writer.flush()
        self._ensure_retryable(self.sender.send, [reply])
        return result

    def _to_result(self, task_id: str, state: str, result: Any, traceback: str | None, request: Any) -> dict[str, Any]:
        meta = self._get_result_meta(
            result=self.encode_result(result, state), state=state, traceback=traceback, request=request
        )
        meta["task_id"] = task_id
        return meta

    def defer_results(self) -> ResultWriter:
        """From now on let the results of this process wait for the writer's ``flush()``."""
        writer: ResultWriter = self._writer or ResultWriter(self._send_deferred)
        self._writer = writer
        return writer

    def _send_deferred(self, batch: Sequence[Deferred]) -> None:
        self._ensure_retryable(self.sender.send, [item.what for item in batch])

    # --- what messages cannot do -----------------------------------------------------------

    def ensure_chords_allowed(self) -> None:
        """Raise :exc:`NotImplementedError`: nobody could count."""
        raise NotImplementedError(E_NO_CHORD_SUPPORT)

    def reload_task_result(self, task_id: str) -> Any:
        """Not possible with messages."""
        raise NotImplementedError(E_STAYS_MESSAGES.format("reload_task_result"))

    def reload_group_result(self, task_id: str) -> Any:
        """Not possible with messages."""
        raise NotImplementedError(E_STAYS_MESSAGES.format("reload_group_result"))

    def save_group(self, group_id: str, result: Any) -> Any:
        """Not possible with messages."""
        raise NotImplementedError(E_STAYS_MESSAGES.format("save_group"))

    def restore_group(self, group_id: str, cache: bool = True) -> Any:
        """Not possible with messages."""
        raise NotImplementedError(E_STAYS_MESSAGES.format("restore_group"))

    def delete_group(self, group_id: str) -> Any:
        """Not possible with messages."""
        raise NotImplementedError(E_STAYS_MESSAGES.format("delete_group"))

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        own = {
            "connection": self._connection,
            "exchange": self.exchange.name,
            "exchange_type": self.exchange.type,
            "persistent": self.persistent,
            "serializer": self.serializer,
            "auto_delete": self.auto_delete,
            "expires": self.expires,
        }
        return super().__reduce__(args, {**(kwargs or {}), **own})
