"""How an app speaks AMQP: its queues and routes, the messages it makes, and their sending.

``app.amqp`` of every app; called by ``app.base`` for each call and by the worker for its queues.
Decisions about one call are in ``app.calls``, the bytes in ``message``, the sockets in ``transport``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from functools import partial
from typing import Any, cast

from kombu import Connection, Consumer, Exchange, Producer, Queue, pools, serialization
from kombu.common import Broadcast, oid_from
from kombu.exceptions import LimitExceeded, OperationalError

from celery_clone import signals
from celery_clone._state import get_current_worker_task
from celery_clone.message import protocol
from celery_clone.message.outgoing import TaskMessage
from celery_clone.transport import open_publisher
from celery_clone.transport.protocols import Destination, Publisher, SendOptions
from celery_clone.utils.nodenames import anon_nodename
from celery_clone.utils.objects import FallbackContext
from celery_clone.utils.quorum_queues import detect_quorum_queues
from celery_clone.utils.saferepr import saferepr

from . import routes as _routes
from .batches import Batch, Ferry
from .calls import SendDefaults, Way, delayed_route, destination, expiration_seconds, unknown_transport
from .queues import Queues
from .queues import Queues as QueueTable
from .stencils import Plain, Stencil

__all__ = ("AMQP", "Queues", "task_message")

#: Celery's public name of the message type.
task_message = TaskMessage

_PLAIN = frozenset({str, int, bool, type(None)})
"""Types of which equal values mean the same to a publisher."""

PUBLISH_DEADLINE_S = 10.0
"""What ``delay()`` may take when the broker is away; ``broker_transport_options["publish_deadline"]`` changes it."""


class Together(threading.local):
    """The messages that a thread gathers to publish as one batch; ``None`` outside of that.

    ``sample`` is the call that the thread just makes and that may become a stencil: its task and options.
    """

    batch: Batch | None = None
    sample: tuple[Any, Mapping[str, Any]] | None = None


class AMQP:
    """Queues, routes, message making and sending of one app."""

    Connection = Connection
    Consumer = Consumer
    Producer = Producer
    BrokerConnection = Connection

    queues_cls = QueueTable

    #: Bounds of the arguments' repr on the wire, in characters.
    argsrepr_maxsize = 1024
    kwargsrepr_maxsize = 1024

    #: Makes the exchange of automatic queues from their name.
    autoexchange: Any = None

    _producer_pool: Any = None

    def __init__(self, app: Any) -> None:
        self.app = app
        self.task_protocols: dict[int, Callable[..., TaskMessage]] = {1: self.as_task_v1, 2: self.as_task_v2}
        self._together = Together()
        self._publisher: Publisher | None = None
        self._publisher_lock = threading.Lock()
        self._rtable: Any = None
        self._router: Any = None
        self._queues: QueueTable | None = None
        self._default_exchange: Exchange | None = None
        self._defaults: SendDefaults | None = None
        self._send_task_message: Callable[..., Any] | None = None
        self._repr_levels: int | None = None
        self._sent_dispatcher: Any = None
        self._driver_type: str | None = None
        self._plain: dict[str, Plain] = {}
        app._conf.bind_to(self._handle_conf_update)

    # --- messages ----------------------------------------------------------

    @property
    def create_task_message(self) -> Callable[..., TaskMessage]:
        """The message maker of the protocol that the setting ``task_protocol`` names."""
        return self.task_protocols[self.app.conf.task_protocol]

    def as_task_v2(
        self,
        task_id: str,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        group_id: str | None = None,
        group_index: int | None = None,
        expires: Any = None,
        retries: int = 0,
        chord: Any = None,
        callbacks: Any = None,
        errbacks: Any = None,
        reply_to: str | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        create_sent_event: bool = False,
        root_id: str | None = None,
        parent_id: str | None = None,
        shadow: str | None = None,
        chain: Any = None,
        now: datetime | None = None,
        timezone: Any = None,
        origin: str | None = None,
        ignore_result: bool | None = False,
        argsrepr: str | None = None,
        kwargsrepr: str | None = None,
        stamped_headers: Any = None,
        replaced_task_nesting: int = 0,
        **options: Any,
    ) -> TaskMessage:
        """A call as a message of protocol 2.

        Raises:
            TypeError: *args* is not a list or tuple, or *kwargs* not a mapping.
            ValueError: *countdown* or *expires* is out of range.
        """
        if self._repr_levels is None:
            self._repr_levels = self.app.conf.task_repr_maxlevels
        return protocol.task_message_v2(
            task_id,
            name,
            args,
            kwargs,
            countdown,
            eta,
            group_id,
            group_index,
            expires,
            retries,
            chord,
            callbacks,
            errbacks,
            reply_to,
            time_limit,
            soft_time_limit,
            create_sent_event,
            root_id,
            parent_id,
            shadow,
            chain,
            now,
            timezone or self.app.timezone,
            origin or anon_nodename(),
            cast(bool, ignore_result),
            argsrepr,
            kwargsrepr,
            stamped_headers,
            replaced_task_nesting,
            clock=self.app.now,
            argsrepr_maxsize=self.argsrepr_maxsize,
            kwargsrepr_maxsize=self.kwargsrepr_maxsize,
            repr_maxlevels=self._repr_levels,
            **options,
        )

    _shipped_as_task_v2 = as_task_v2

    def as_task_v1(
        self,
        task_id: str,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        group_id: str | None = None,
        group_index: int | None = None,
        expires: Any = None,
        retries: int = 0,
        chord: Any = None,
        callbacks: Any = None,
        errbacks: Any = None,
        reply_to: str | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        create_sent_event: bool = False,
        root_id: str | None = None,
        parent_id: str | None = None,
        shadow: str | None = None,
        now: datetime | None = None,
        timezone: Any = None,
        **compat_kwargs: Any,
    ) -> TaskMessage:
        """A call as a message of protocol 1, for workers of Celery 3 (``task_protocol = 1``)."""
        return protocol.task_message_v1(
            task_id,
            name,
            args,
            kwargs,
            countdown,
            eta,
            group_id,
            group_index,
            expires,
            retries,
            chord,
            callbacks,
            errbacks,
            reply_to,
            time_limit,
            soft_time_limit,
            create_sent_event,
            now,
            clock=self.app.now,
            utc=self.utc,
        )

    def through_the_serializer(
        self, args: Any, kwargs: Any, serializer: str | None = None, producer: Any = None
    ) -> tuple[Any, Any]:
        """The arguments as a worker would get them; eager calls see the same types so."""
        chosen = serializer or getattr(producer, "serializer", None) or self.app.conf.task_serializer
        content_type, encoding, data = serialization.dumps((args, kwargs), chosen)
        args, kwargs = serialization.loads(data, content_type, encoding, accept=[content_type])
        return args, kwargs

    def route_delayed(self, options: dict[str, Any], eta: Any, countdown: float | None) -> None:
        """Send a delayed call through RabbitMQ's delay exchanges, where quorum queues need that."""
        if detect_quorum_queues(self.app, self.publisher_driver_type())[0]:
            delayed_route(options, eta, countdown, now=self.app.now)

    def expiration(self, expires: Any, task_id: str) -> float:
        """Seconds until a message that expires then is dropped by the broker."""
        return expiration_seconds(expires, task_id, now=self.app.now)

    # --- sending -----------------------------------------------------------

    @property
    def publisher(self) -> Publisher:
        """What publishes for this app: made on first use, safe to use from any thread."""
        publisher = self._publisher
        if publisher is None:
            with self._publisher_lock:
                if self._publisher is None:
                    self._publisher = open_publisher(self.producer_pool)
                publisher = self._publisher
        return publisher

    @property
    def is_gathering(self) -> bool:
        """Does this thread gather calls to publish as one batch?"""
        return self._together.batch is not None

    @contextmanager
    def publishing_together(self) -> Iterator[None]:
        """Inside, calls of this thread are gathered; they leave as one batch at the end.

        On an error nothing that was gathered is sent.  Nested uses join the outer one.
        """
        together = self._together
        if together.batch is not None:
            yield
            return
        together.batch = batch = Batch()
        try:
            yield
        finally:
            together.batch = None
        if batch.rows:
            self.publisher.publish_many(batch.rows)
            for announce in batch.announcements:
                announce()

    @contextmanager
    def publishing_as_they_come(self) -> Iterator[AbstractContextManager[None]]:
        """As :meth:`publishing_together`, for calls from a generator: what it has given does not wait for the rest.

        Gives what is to be held while a call is made, and not while the generator runs.  On an error what has left
        already stays sent.
        """
        outermost = self._together.batch is None
        with self.publishing_together():
            batch = self._together.batch
            if not outermost or batch is None:
                yield nullcontext()
                return
            ferry = Ferry(batch, self.publisher.publish_many)
            try:
                yield ferry
            finally:
                ferry.stop()
            with ferry:
                pass  # raises what could not be published

    def send_alike(self, task: Any, task_id: str, args: Any, kwargs: Any, options: Mapping[str, Any]) -> bool:
        """Send a call of *task* that is like one before it; ``False`` if there is none, and it must be made anew.

        Most of what a call takes (routes, settings, destination) is the same for all members of a group,
        and for all calls of a task that have no options.
        """
        batch = self._together.batch
        if signals.before_task_publish.receivers or signals.after_task_publish.receivers:
            return False  # what they are given is for them to change
        if batch is not None:
            options = {**options, "task_id": task_id}
            if batch.stencil is None or batch.stencil[0] is not task or not batch.stencil[1].fits(options):
                self._together.sample = (task, options) if Stencil.allows(options) else None
                return False
            stencil, reply_to = batch.stencil[1], None
        else:
            if options or get_current_worker_task() is not None:
                return False
            plain = self._plain.get(task.name)
            if plain is None or not self._holds(plain, task):
                self._together.sample = (task, {"task_id": task_id})
                return False
            stencil, reply_to = plain.stencil, self.app.thread_oid
        args, kwargs = protocol.check_arguments(args, kwargs)
        levels = self._repr_levels or 0
        message = stencil.filled(
            task_id,
            options.get("group_index"),
            args,
            kwargs,
            saferepr(args, self.argsrepr_maxsize, maxlevels=levels),
            saferepr(kwargs, self.kwargsrepr_maxsize, maxlevels=levels),
            reply_to,
        )
        if stencil.wants_result:
            self.app.backend.on_task_call(None, task_id)
        to, _, how = stencil.way
        if batch is not None:
            batch.rows.append((message, to, how))
        else:
            self.publisher.publish(message, to, how)
        return True

    def _holds(self, plain: Plain, task: Any) -> bool:
        """Would a call of *task* without options still be made like this one?"""
        queue = plain.queue
        return (
            plain.task is task
            and plain.conf is self.app.conf
            and plain.preset is task._exec_options
            and plain.stencil.wants_result is not bool(task.ignore_result)
            and (self._queues or {}).get(queue.name) is queue
            and self._is_shipped()
        )

    def _is_shipped(self) -> bool:
        """Does nobody's own function make or send the messages?  One has to see every call."""
        return (
            getattr(self.app.send_task, "__func__", None) is self.app._shipped_send_task.__func__
            and getattr(self.create_task_message, "__func__", None) is AMQP._shipped_as_task_v2
            and self.send_task_message == self._send
        )

    def _keep_stencil(self, batch: Batch | None, message: TaskMessage, way: Way) -> None:
        """Keep a call that was made the long way, if what was made of it did not depend on its arguments."""
        task, options = self._together.sample or (None, {})
        self._together.sample = None
        if batch is not None:
            batch.stencil = None
        if (
            task is None
            or message.headers.get("task") != task.name
            or message.headers.get("id") != options.get("task_id")
            or message.sent_event is not None
            or not self._is_shipped()
        ):
            return
        stencil = Stencil(options, message, way, not message.headers["ignore_result"])
        if batch is not None:
            if not self.router.routes:
                batch.stencil = (task, stencil)
        elif way.queue_name and way.to.declare and Plain.allows(message) and self._routes_by_name():
            self._plain[task.name] = Plain(stencil, task, self.app.conf, task._exec_options, way.to.declare[0])

    def _routes_by_name(self) -> bool:
        """Does the way of a call depend on the name of its task alone?"""
        router = self.router
        return type(router) is _routes.Router and all(type(route) is _routes.MapRoute for route in router.routes)

    @property
    def send_task_message(self) -> Callable[..., Any]:
        """The function ``(producer, name, message, **options)`` that publishes a task message."""
        if self._send_task_message is None:
            self._send_task_message = self._send
        return self._send_task_message

    def _send(
        self,
        producer: Any,
        name: str,
        message: TaskMessage,
        exchange: Any = None,
        routing_key: str | None = None,
        queue: Any = None,
        event_dispatcher: Any = None,
        retry: bool | None = None,
        retry_policy: Mapping[str, Any] | None = None,
        serializer: str | None = None,
        delivery_mode: Any = None,
        compression: str | None = None,
        declare: Any = None,
        headers: Mapping[str, Any] | None = None,
        exchange_type: str | None = None,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
        **properties: Any,
    ) -> None:
        """Publish *message*; with no *producer* through the app's publisher."""
        message_headers, message_properties, body, sent_event = message
        if headers:
            message_headers.update(headers)
        if properties:
            message_properties.update(properties)
        if queue is None and exchange is None:
            queue = self.default_queue
        elif isinstance(queue, str):
            queue = self.queues[queue]
        before = signals.before_task_publish
        batch = self._together.batch if producer is None else None
        given = (exchange, routing_key, exchange_type, delivery_mode, retry, serializer, compression)
        way = known = None
        if batch is not None and not before.receivers:
            # What receivers get is for them to change, and what is not plain may compare equal and yet differ.
            particular = any(value is not None for value in (declare, retry_policy, timeout, confirm_timeout))
            known = None if particular or not _PLAIN.issuperset(map(type, given)) else (id(queue), *given)
            way = batch.ways.get(known)
        if way is None:
            way = self._way(queue, *given, declare, retry_policy, timeout, confirm_timeout)
            if batch is not None and known is not None:
                batch.ways[known] = way
        to, queue_name, how = way
        if before.receivers:
            declared = list(to.declare)
            before.send(
                sender=name,
                body=body,
                exchange=to.exchange,
                routing_key=to.routing_key,
                declare=declared,
                headers=message_headers,
                properties=message_properties,
                retry_policy=how.retry_policy,
            )
            to = to._replace(declare=tuple(declared))
        if producer is not None:
            producer.publish(
                body,
                exchange=to.exchange,
                routing_key=to.routing_key,
                serializer=how.serializer,
                compression=how.compression,
                retry=how.retry,
                retry_policy=how.retry_policy,
                declare=list(to.declare),
                headers=message_headers,
                **how.extra,
                **message_properties,
            )
        elif batch is not None:
            batch.rows.append((message, to, how))
        else:
            self.publisher.publish(message, to, how)
        if producer is None and self._together.sample is not None:
            self._keep_stencil(batch, message, way)
        if sent_event is not None or signals.after_task_publish.receivers:
            announce = partial(self._announce, producer, name, message, to, queue_name, how, event_dispatcher)
            if batch is None:
                announce()
            else:
                batch.announcements.append(announce)

    def _bound_to(self, exchange: Any) -> tuple[Any, ...] | None:
        """The app's queues that hang on an exchange a call names itself; ``None`` if there are none.

        Declared with the call, they let brokers that keep no exchanges of their own find the way, too.
        """
        name = getattr(exchange, "name", exchange)
        found = [
            queue
            for queue in self.queues.values()
            if queue.exchange is not None and queue.exchange.name == name and not isinstance(queue, Broadcast)
        ]
        return tuple(found) or None

    def _way(
        self,
        queue: Any,
        exchange: Any,
        routing_key: str | None,
        exchange_type: str | None,
        delivery_mode: Any,
        retry: bool | None,
        serializer: str | None,
        compression: str | None,
        declare: Any,
        retry_policy: Mapping[str, Any] | None,
        timeout: float | None,
        confirm_timeout: float | None,
    ) -> Way:
        """Complete what one call says of its sending by the settings."""
        defaults = self._defaults or self._read_defaults()
        if delivery_mode is None:
            queue_exchange = getattr(queue, "exchange", None)
            delivery_mode = getattr(queue_exchange, "delivery_mode", None) or defaults.delivery_mode
        if declare is None and exchange:
            declare = self._bound_to(exchange)
        to, queue_name = destination(queue, exchange, routing_key, exchange_type, declare, defaults)
        extra = {"delivery_mode": delivery_mode}
        if timeout is not None:
            extra["timeout"] = timeout
        if confirm_timeout is not None:
            extra["confirm_timeout"] = confirm_timeout
        how = SendOptions(
            serializer=serializer or defaults.serializer,
            compression=compression or defaults.compression,
            retry=defaults.retry if retry is None else retry,
            retry_policy={**defaults.retry_policy, **(retry_policy or {})},
            deadline_s=defaults.deadline_s,
            extra=extra,
        )
        return Way(to, queue_name, how)

    def _announce(
        self,
        producer: Any,
        name: str,
        message: TaskMessage,
        to: Destination,
        queue_name: str | None,
        how: SendOptions,
        event_dispatcher: Any,
    ) -> None:
        """Send ``after_task_publish`` and the ``task-sent`` event."""
        after = signals.after_task_publish
        if after.receivers:
            after.send(
                sender=name,
                body=message.body,
                headers=message.headers,
                exchange=to.exchange,
                routing_key=to.routing_key,
            )
        if message.sent_event is None:
            return
        exchange_name = to.exchange.name if isinstance(to.exchange, Exchange) else to.exchange
        message.sent_event.update(queue=queue_name, exchange=exchange_name, routing_key=to.routing_key)
        if event_dispatcher is None:
            if self._sent_dispatcher is None:
                self._sent_dispatcher = self.app.events.Dispatcher(enabled=False)
            event_dispatcher = self._sent_dispatcher
        with FallbackContext(producer, self.app._acquire_producer) as sender:
            event_dispatcher.publish(
                "task-sent", message.sent_event, sender, retry=how.retry, retry_policy=how.retry_policy
            )

    def _read_defaults(self) -> SendDefaults:
        conf = self.app.conf
        options = conf.broker_transport_options or {}
        self._defaults = defaults = SendDefaults(
            exchange=self.default_exchange.name,
            routing_key=conf.task_default_routing_key,
            delivery_mode=conf.task_default_delivery_mode,
            serializer=conf.task_serializer,
            compression=conf.task_compression,
            retry=conf.task_publish_retry,
            retry_policy=dict(conf.task_publish_retry_policy),
            deadline_s=options.get("publish_deadline", PUBLISH_DEADLINE_S),
        )
        return defaults

    # --- queues and routes ---------------------------------------------------

    def Queues(  # noqa: N802 Celery's name
        self,
        queues: Any,
        create_missing: bool | None = None,
        create_missing_queue_type: str | None = None,
        create_missing_queue_exchange_type: str | None = None,
        autoexchange: Any = None,
        max_priority: int | None = None,
    ) -> Any:
        """A table of queues, with the settings of the app for what is not given."""
        conf = self.app.conf

        def given(value: Any, setting: str) -> Any:
            return conf[setting] if value is None else value

        if not queues and conf.task_default_queue:
            quorum = conf.task_default_queue_type == "quorum"
            queues = (
                Queue(
                    conf.task_default_queue,
                    exchange=self.default_exchange,
                    routing_key=conf.task_default_routing_key,
                    queue_arguments={"x-queue-type": "quorum"} if quorum else None,
                ),
            )
        return self.queues_cls(
            queues,
            default_exchange=self.default_exchange,
            create_missing=given(create_missing, "task_create_missing_queues"),
            create_missing_queue_type=given(create_missing_queue_type, "task_create_missing_queue_type"),
            create_missing_queue_exchange_type=given(
                create_missing_queue_exchange_type, "task_create_missing_queue_exchange_type"
            ),
            autoexchange=self.autoexchange if autoexchange is None else autoexchange,
            max_priority=given(max_priority, "task_queue_max_priority"),
            default_routing_key=conf.task_default_routing_key,
        )

    def Router(self, queues: Any = None, create_missing: bool | None = None) -> Any:  # noqa: N802 Celery's name
        """What finds the queue of a call."""
        return _routes.Router(
            self.routes,
            queues or self.queues,
            self.app.either("task_create_missing_queues", create_missing),
            app=self.app,
        )

    def TaskConsumer(self, channel: Any, queues: Any = None, accept: Any = None, **kw: Any) -> Any:  # noqa: N802
        """A kombu consumer of task messages, for code that consumes by itself."""
        consumer: Any = self.Consumer
        return consumer(
            channel,
            accept=self.app.conf.accept_content if accept is None else accept,
            queues=queues or list(self.queues.consume_from.values()),
            **kw,
        )

    def flush_routes(self) -> None:
        """Read ``task_routes`` anew."""
        self._rtable = _routes.prepare(self.app.conf.task_routes)
        self._router = None

    @property
    def routes(self) -> Any:
        """The prepared ``task_routes``."""
        if self._rtable is None:
            self.flush_routes()
        return self._rtable

    @property
    def router(self) -> Any:
        """The router of the app's own queues."""
        if self._router is None:
            self._router = self.Router()
        return self._router

    @router.setter
    def router(self, value: Any) -> None:
        self._router = value

    @property
    def queues(self) -> QueueTable:
        """The table of queues, made from ``task_queues``."""
        if self._queues is None:
            self._queues = self.Queues(self.app.conf.task_queues)
        return self._queues

    @queues.setter
    def queues(self, queues: Any) -> None:
        self._queues = queues if isinstance(queues, QueueTable) else self.Queues(queues)
        self._router = None

    @property
    def default_queue(self) -> Queue:
        """The queue of calls that are routed nowhere else."""
        return self.queues[self.app.conf.task_default_queue]

    @property
    def default_exchange(self) -> Exchange:
        """The exchange of queues that name none."""
        if self._default_exchange is None:
            conf = self.app.conf
            self._default_exchange = Exchange(conf.task_default_exchange, conf.task_default_exchange_type)
        return self._default_exchange

    def identity(self, *, threads: bool) -> str:
        """Where replies to this app in this process (or thread) go."""
        return str(oid_from(self.app, threads=threads))

    def connection_pool(self) -> Any:
        """The pool of broker connections, within ``broker_pool_limit``."""
        pools.set_limit(self.app.conf.broker_pool_limit)
        return pools.connections[self.app.connection_for_write()]

    def acquire(self, pool: Any, what: str, timeout: float | None = None) -> Any:
        """Take one of *pool*, waiting ``broker_pool_acquire_timeout`` seconds unless told otherwise.

        Raises:
            OperationalError: all were in use all the time.
        """
        conf = self.app.conf
        timeout = conf.broker_pool_acquire_timeout if timeout is None else timeout
        try:
            return pool.acquire(block=True, timeout=timeout)
        except LimitExceeded as exc:
            limit = conf.broker_pool_limit
            raise OperationalError(
                f"Timed out waiting for a broker {what} after {timeout}s: all {limit} are in use. "
                f"Raise broker_pool_limit (now {limit}) or broker_pool_acquire_timeout (now {timeout}s)."
            ) from exc

    @property
    def producer_pool(self) -> Any:
        """Pool of kombu producers, for code that publishes by itself."""
        if self._producer_pool is None:
            self._producer_pool = pools.producers[self.app.connection_for_write()]
            self._producer_pool.limit = self.app.pool.limit
        return self._producer_pool

    publisher_pool = producer_pool

    def explain_unknown_transport(self, error: KeyError) -> str | None:
        """What to say when kombu knows no transport for a URL; ``None`` for any other error."""
        return unknown_transport(error)

    def publisher_driver_type(self) -> str:
        """The kind of broker that calls go to: ``"amqp"``, ``"redis"``, ..."""
        if self._driver_type is None:
            self._driver_type = str(self.app.connection_for_write().transport.driver_type)
        return self._driver_type

    @property
    def utc(self) -> bool:
        """Are times in messages UTC?"""
        return bool(self.app.conf.enable_utc)

    def close(self) -> None:
        """Close what publishes.  Legal twice; the next call opens it again."""
        with self._publisher_lock:
            publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()

    def after_fork(self) -> None:
        """Forget what a parent process opened."""
        self._producer_pool = None
        self._publisher = None
        self._publisher_lock = threading.Lock()
        self._together = Together()
        # Their messages name the process they come from.
        self._plain = {}

    def _handle_conf_update(self, *args: Any, **kwargs: Any) -> None:
        self._defaults = None
        self._plain = {}
        self._repr_levels = None
        changed = {*kwargs, *(args[0] if args else ())}
        if changed & set(self.app.conf._to_keys("task_routes")):
            self._rtable = None
            self._router = None
