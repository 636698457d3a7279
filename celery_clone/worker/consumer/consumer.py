"""The consumer: connect, run the loop, recover when the connection is lost.

Made by ``worker.components`` as the worker's last step.  It owns the connection through its steps,
and the dispatcher, whose books outlive every connection.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from kombu.asynchronous.semaphore import DummyLock
from kombu.exceptions import ContentDisallowed, DecodeError
from vine import ppartial, promise

from celery_clone import bootsteps
from celery_clone.app.trace import build_tracer
from celery_clone.exceptions import InvalidTaskError, WorkerShutdown, WorkerTerminate
from celery_clone.message import codec
from celery_clone.transport import revocations
from celery_clone.transport.distress import is_distress
from celery_clone.transport.waits import (
    CLOSING_TIMEOUT_S,
    REPLY_TIMEOUT_S,
    bound_waits,
    expect_nothing,
    prepare_waits,
)
from celery_clone.utils.log import get_logger
from celery_clone.utils.nodenames import gethostname
from celery_clone.utils.saferepr import saferepr
from celery_clone.utils.text import truncate
from celery_clone.utils.time import humanize_seconds

from .. import loops, state
from ..announce import headers_of
from ..dispatch import Dispatcher
from ..limits import RateBucket
from ..request import Request
from ..strategy import default as default_strategy
from .connection import Connection, HubTraces
from .tasks import Tasks

__all__ = ("Consumer", "Evloop", "dump_body")

logger = get_logger("celery.worker.consumer.consumer")

CONNECTION_LOST = "consumer: Connection to broker lost. Trying to re-establish the connection..."
CHANNEL_LOST = (
    "consumer: The broker closed the channel. Connecting anew; tasks that run go on. If an acknowledgement was "
    "overdue, raise the consumer_timeout of RabbitMQ, or let long tasks acknowledge early."
)
CONNECTION_ERROR = "consumer: Cannot connect to %s: %s.\n%s"
NEXT_TRY = "Trying again {when}... ({retries}/{max_retries})"
REFUSED = (
    "consumer: The broker at %s is there, but takes nothing now: %s.\nWhat runs goes on; nothing is lost. See what it "
    "lacks (memory, disk, its master). Trying again %s..."
)
NEXT_URL = "Will retry using next failover."
RETRY_DISABLED = (
    "Retrying to {verb} a connection to the message broker after a connection loss has been disabled "
    "(app.conf.{setting}=False). Shutting down..."
)
CANCELLING = (
    "Cancelling %s[%s]: the connection was lost, so the broker gives its message out again "
    "(worker_cancel_long_running_tasks_on_connection_loss)."
)

HEARTBEAT_S = 20
"""Seconds between AMQP heartbeats where no setting says otherwise: two that are missed are a dead connection."""

RESTARTS_PER_S = 5
"""More restarts than this in a second are a fault that a pause may heal."""


def dump_body(m: Any, body: Any) -> str:
    """A bounded text of a body, with its size in bytes, for the log."""
    body = m.body if body is None else body
    size = len(body) if isinstance(body, (bytes, str)) else 0
    return f"{truncate(saferepr(body), 1024)} ({size}b)"


def nothing(consumer: Any) -> None:
    """No callback was given."""


class Consumer:
    """Consumes task messages and hands them to the pool.

    Arguments:
        on_task_request: runs a ``Request`` made by an extension.
        init_callback: called with this object when it is ready for the first time.
        hostname: node name.
        pool, timer, hub, controller: those of the worker.
        amqheartbeat: seconds between AMQP heartbeats.
        worker_options: options for the steps.
        disable_rate_limits: ignore ``rate_limit``?
        initial_prefetch_count: how many deliveries may be outstanding; 0 for no bound.
        prefetch_multiplier: the same for each process.
    """

    Strategies = dict
    init_callback: Any = None
    pool: Any = None
    timer: Any = None
    timer_entries_before_start: Any = None
    timer_entries_registered: Any = None
    restart_count = -1

    #: How often the broker has refused one after the other, although it was there.
    _refusals = 0

    #: The timer that reads now and then what was revoked.
    reread_revoked: Any = None
    first_connection_attempt = True
    broker_connection_retry_attempt = 0
    heartbeat_timer: Any = None
    reply_s = REPLY_TIMEOUT_S
    """How long a new connection waits for an answer of the broker."""

    class Blueprint(bootsteps.Blueprint):
        """The steps of a consumer, in the order they start."""

        name = "Consumer"
        default_steps = (
            "celery_clone.worker.consumer.connection:Connection",
            "celery_clone.worker.consumer.mingle:Mingle",
            "celery_clone.worker.consumer.events:Events",
            "celery_clone.worker.consumer.gossip:Gossip",
            "celery_clone.worker.consumer.heart:Heart",
            "celery_clone.worker.consumer.control:Control",
            "celery_clone.worker.consumer.tasks:Tasks",
            "celery_clone.worker.consumer.delayed_delivery:DelayedDelivery",
            "celery_clone.worker.consumer.consumer:Evloop",
            "celery_clone.worker.consumer.agent:Agent",
        )

        def shutdown(self, parent: Any) -> None:
            """Close what the steps hold, without telling the broker."""
            self.send_all(parent, "shutdown")

    def __init__(
        self,
        on_task_request: Callable[[Any], Any],
        init_callback: Callable[[Any], Any] = nothing,
        hostname: str | None = None,
        pool: Any = None,
        app: Any = None,
        timer: Any = None,
        controller: Any = None,
        hub: Any = None,
        amqheartbeat: float | None = None,
        worker_options: dict[str, Any] | None = None,
        disable_rate_limits: bool = False,
        initial_prefetch_count: int = 2,
        prefetch_multiplier: int = 1,
        **kwargs: Any,
    ) -> None:
        self.app = app
        self.controller = controller
        self.init_callback = init_callback
        self.hostname = hostname or gethostname()
        self.pid = os.getpid()
        self.pool = pool
        self.timer = timer
        self.hub = hub
        self.connection: Any = None
        self.hub_traces: Any = None
        self.task_consumer: Any = None
        self.qos: Any = None
        self.qos_global: bool | None = None
        self.event_dispatcher: Any = None
        self.heart: Any = None
        self.gossip: Any = None
        self.strategies: dict[str, Any] = self.Strategies()
        conf = app.conf
        self.conninfo = app.connection_for_read()
        self.connection_errors = self.conninfo.connection_errors
        self.channel_errors = self.conninfo.channel_errors
        self.accept = codec.accepted(conf.accept_content)
        self.on_task_request = on_task_request
        self.on_task_message: set[Any] = set()
        self.amqheartbeat_rate = conf.broker_heartbeat_checkrate
        self.amqheartbeat = self._heartbeat() if amqheartbeat is None else amqheartbeat
        self.disable_rate_limits = disable_rate_limits
        self.initial_prefetch_count = initial_prefetch_count
        self.prefetch_multiplier = prefetch_multiplier
        self.task_buckets: dict[str, Any] = defaultdict(lambda: None)
        self.reset_rate_limits()
        # Extensions may set their own loop before this constructor runs.
        self.loop = getattr(self, "loop", None) or (loops.asynloop if hub else loops.synloop)
        self._pending_operations: deque[Callable[[], Any]] = deque()
        self._moment = threading.Event()
        self._restarts: deque[float] = deque(maxlen=RESTARTS_PER_S)
        self.dispatcher = Dispatcher(
            app,
            self.hostname,
            pool,
            timer,
            self,
            prefetch=initial_prefetch_count,
            elastic=getattr(controller, "prefetch_is_elastic", False),
        )
        self.dispatcher.limits_off = disable_rate_limits

        #: The last of the connections, counted as :attr:`restart_count`, whose loop has run.
        self.looped = -1
        self.steps: list[Any] = []
        self.blueprint = self.Blueprint(steps=app.steps["consumer"], on_close=self.on_close)
        self.blueprint.apply(self, **{**(worker_options or {}), **kwargs})

    def _heartbeat(self) -> int:
        """Seconds between AMQP heartbeats: as set, else so often that a dead connection is known within a minute."""
        conf = self.app.conf
        wanted = int(conf.broker_heartbeat or 0)
        return wanted if conf.value_set_for("broker_heartbeat") else min(wanted, HEARTBEAT_S)

    # --- life --------------------------------------------------------------------

    def start(self) -> None:
        """Connect and consume until told to stop, connecting again as often as it takes.

        Raises:
            WorkerShutdown: a stop flag was set, or retrying is turned off.
            WorkerTerminate: the process has no descriptors left, or a stop flag was set.
        """
        blueprint = self.blueprint
        conf = self.app.conf
        recoverable = self.connection_errors + (self.channel_errors if conf.broker_channel_error_retry else ())
        while blueprint.state not in (bootsteps.CLOSE, bootsteps.TERMINATE):
            state.maybe_shutdown()
            self._pause_if_restarting_wildly()
            self.restart_count += 1
            if self.hub is not None:
                # A timer that finds the connection lost must end the loop, not be logged each time.
                self.hub.propagate_errors = self.connection_errors + self.channel_errors
            started = self.dispatcher.monotonic()
            try:
                blueprint.start(self)
            except Exception as exc:
                distressed = is_distress(exc)
                if not distressed and not isinstance(exc, recoverable) and not self._lost_its_channel(exc):
                    raise
                at_startup, self.first_connection_attempt = self.first_connection_attempt, False
                self._check_retrying(exc, at_startup)
                state.maybe_shutdown()
                if blueprint.state not in (bootsteps.CLOSE, bootsteps.TERMINATE):
                    if distressed:
                        self._collect_connection()
                    elif self.connection is not None:
                        self.on_connection_error_after_connected(exc)
                    else:
                        self.on_connection_error_before_connected(exc)
                    self.on_close()
                    blueprint.restart(self)
                    if distressed:
                        self._wait_out(exc, self.dispatcher.monotonic() - started)

    def _lost_its_channel(self, exc: BaseException) -> bool:
        """Did RabbitMQ close a channel that was at work, as it does when an acknowledgement is overdue?

        Before the loop runs such an error says that something is set up wrongly, and would come again.
        """
        at_work = self.looped == self.restart_count
        return at_work and isinstance(exc, self.channel_errors) and self.conninfo.transport.driver_type == "amqp"

    def _wait_out(self, exc: BaseException, lasted_s: float) -> None:
        """The broker is there and refuses: wait before the next try, longer each time until one lasts."""
        if lasted_s > BACKOFF_MAX_S * 2:
            self._refusals = 0
        seconds = min(1.0 + BACKOFF_STEP_S * self._refusals, BACKOFF_MAX_S)
        self._refusals += 1
        logger.error(REFUSED, self.conninfo.as_uri(), exc, humanize_seconds(seconds, "in", " ", microseconds=True))
        self.pause(seconds)

    def _pause_if_restarting_wildly(self) -> None:
        now = self.dispatcher.monotonic()
        if len(self._restarts) == RESTARTS_PER_S and now - self._restarts[0] < 1.0:
            logger.critical("Restarted %s times within a second; pausing for a second.", RESTARTS_PER_S)
            self._restarts.clear()
            self.pause(1.0)
        self._restarts.append(now)

    def pause(self, seconds: float) -> None:
        """Wait, but end early when the worker shall stop."""
        deadline = self.dispatcher.monotonic() + seconds
        while self.dispatcher.monotonic() < deadline:
            state.maybe_shutdown()
            self._moment.wait(0.1)

    def _check_retrying(self, exc: BaseException, at_startup: bool) -> None:
        conf = self.app.conf
        setting = "broker_connection_retry"
        if at_startup and conf.broker_connection_retry_on_startup is not None:
            setting = "broker_connection_retry_on_startup"
        if not conf[setting]:
            logger.critical(RETRY_DISABLED.format(verb="establish" if at_startup else "re-establish", setting=setting))
            raise WorkerShutdown(1) from exc
        if isinstance(exc, OSError) and exc.errno == errno.EMFILE:
            logger.critical("Too many open files. Raise the limit (ulimit -n). Aborting...")
            raise WorkerTerminate(1) from exc

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        """The broker could not be reached."""
        logger.error(CONNECTION_ERROR, self.conninfo.as_uri(), exc, "Trying to reconnect...")

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """The connection was lost: this session is over, the books stay."""
        logger.warning("%s (%r)", CHANNEL_LOST if self._lost_its_channel(exc) else CONNECTION_LOST, exc)
        logger.debug("Connection error: %r", exc, exc_info=exc)
        self._collect_connection()
        if self.app.conf.worker_cancel_long_running_tasks_on_connection_loss:
            self._cancel_what_comes_again()

    def _cancel_what_comes_again(self) -> None:
        """End late tasks whose messages the broker gives out again.  Some brokers leave them with us."""
        if getattr(self.dispatcher.source, "survives_reconnect", False):
            return
        for flight in [*state.flights.values()]:
            if flight.owed and flight.phase is state.Phase.BEGUN and not flight.plan.early:
                logger.warning(CANCELLING, flight.name, flight.id)
                self._cancel(flight)
                self.dispatcher.abandon(flight)

    def _cancel(self, flight: Any, emit_retry: bool = True) -> None:
        try:
            flight.request.cancel(self.pool, emit_retry=emit_retry)
        except Exception as exc:
            logger.exception("Could not tell that task %s[%s] was cancelled: %r", flight.name, flight.id, exc)

    def let_go_of_connection(self) -> None:
        """The connection is lost and none is to follow: close what hangs on it, so that nobody waits for it."""
        self._collect_connection()
        self.blueprint.restart(self)

    def reopen(self) -> bool:
        """While the worker ends: renew and settle what it still holds over a new connection; did that work?

        Only where a delivery outlives its connection.  Elsewhere the broker has given it out again already.
        """
        steps = [step for step in self.steps if isinstance(step, (Connection, Tasks))]
        if not any(isinstance(step, Tasks) and step.survives_reconnect for step in steps):
            return True
        self.reply_s = CLOSING_TIMEOUT_S
        try:
            for step in steps:
                step.start(self)
            self.dispatcher.stop_taking()
        except (*self.connection_errors, *self.channel_errors, OSError, WorkerShutdown) as exc:
            logger.debug("The broker is still away: %r", exc)
            self.let_go_of_connection()
            return False
        return True

    def _collect_connection(self) -> None:
        connection = self.connection
        if connection is not None:
            expect_nothing(connection)
            self.ignoring_errors(connection.collect, socket_timeout=5)

    def ignoring_errors(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call something of a connection that may be dead already."""
        try:
            call(*args, **kwargs)
        except (*self.connection_errors, *self.channel_errors, OSError, AttributeError) as exc:
            logger.debug("While letting go of a connection: %r", exc)
            if isinstance(exc, (*self.connection_errors, OSError)):
                for connection in self.connections():
                    expect_nothing(connection)

    def connections(self) -> list[Any]:
        """The open connections to the broker."""
        found = [self.connection, getattr(self.event_dispatcher, "connection", None)]
        return [connection for connection in found if connection is not None]

    def shutdown(self) -> None:
        """End without waiting."""
        self.perform_pending_operations()
        self._hurry()
        self.blueprint.shutdown(self)

    def stop(self) -> None:
        """End: stop the steps in reverse order."""
        self._hurry()
        self.blueprint.stop(self)

    def _hurry(self) -> None:
        for connection in self.connections():
            bound_waits(connection, CLOSING_TIMEOUT_S)

    def on_ready(self) -> None:
        """The loop runs for the first time."""
        callback, self.init_callback = self.init_callback, None
        if callback:
            callback(self)

    def on_close(self) -> None:
        """The session ends: nothing of it may be acted on any more."""
        if self.controller and self.controller.semaphore:
            self.controller.semaphore.clear()
        for request in [*state.scheduled_requests, *state.reserved_requests]:
            if request not in state.active_requests:
                state.requests.pop(request.id, None)
        state.scheduled_requests.clear()
        state.reserved_requests.clear()
        state.reserved_requests.update(state.active_requests)

    # --- connecting ----------------------------------------------------------------

    def connect(self) -> Any:
        """Open the connection of this session and register it with the hub."""
        connection = self.connection_for_read(heartbeat=self.amqheartbeat)
        if self.hub is not None and connection.transport.implements.asynchronous:
            register = connection.transport.register_with_event_loop
            self.hub_traces = HubTraces(self.hub, lambda: register(connection.connection, self.hub))
        return connection

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """A connected connection for consuming."""
        return self.ensure_connected(self.app.connection_for_read(heartbeat=heartbeat))

    def connection_for_write(
        self, url: str | None = None, heartbeat: float | None = None, reply_s: float | None = None
    ) -> Any:
        """A connected connection for publishing; no answer is waited for longer than *reply_s* seconds."""
        return self.ensure_connected(self.app.connection_for_write(url=url, heartbeat=heartbeat), reply_s)

    def ensure_connected(self, conn: Any, reply_s: float | None = None) -> Any:
        """Connect *conn*, with the retries that the settings allow, saying what is tried."""
        conf = self.app.conf
        reply_s = reply_s or self.reply_s
        setting = "broker_connection_retry"
        if self.first_connection_attempt and conf.broker_connection_retry_on_startup is not None:
            setting = "broker_connection_retry_on_startup"
        prepare_waits(conn, reply_s)
        if not conf[setting]:
            conn.connect()
            bound_waits(conn, reply_s)
            self.first_connection_attempt = False
            return conn

        def report(exc: BaseException, interval: float) -> None:
            if getattr(conn, "alt", None) and interval == 0:
                step = NEXT_URL
            else:
                if interval > 0:
                    self.broker_connection_retry_attempt += 1
                step = NEXT_TRY.format(
                    when=humanize_seconds(interval, "in", " ", microseconds=True),
                    retries=self.broker_connection_retry_attempt,
                    max_retries=conf.broker_connection_max_retries,
                )
            logger.error(CONNECTION_ERROR, conn.as_uri(), exc, step)

        conn = conn.ensure_connection(
            report,
            conf.broker_connection_max_retries,
            interval_start=BACKOFF_START_S,
            interval_step=BACKOFF_STEP_S,
            interval_max=BACKOFF_MAX_S,
            callback=state.maybe_shutdown,
        )
        bound_waits(conn, reply_s)
        self.first_connection_attempt = False
        self.broker_connection_retry_attempt = 0
        return conn

    def loop_args(self) -> tuple[Any, ...]:
        """What the loop is called with."""
        return (
            self,
            self.connection,
            self.task_consumer,
            self.blueprint,
            self.hub,
            self.qos,
            self.amqheartbeat,
            self.app.clock,
            self.amqheartbeat_rate,
        )

    def register_with_event_loop(self, hub: Any) -> None:
        """Let the steps register what they wait for."""
        self.blueprint.send_all(self, "register_with_event_loop", args=(hub,), description="Hub.register")

    # --- calls from elsewhere ----------------------------------------------------------

    def call_soon(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Call *p* in the loop's next pass."""
        call = ppartial(p, *args, **kwargs)
        if self.hub is not None:
            return self.hub.call_soon(call)
        self._pending_operations.append(call)
        return call

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`call_soon`; without a hub at once, as a green pool's thread may acknowledge by itself."""
        call = ppartial(p, *args, **kwargs)
        if self.hub is not None:
            return self.hub.call_soon(call)
        try:
            self._guarded(call)
        except self.connection_errors as exc:
            # For the loop, which is in another green thread, and not for whoever acknowledges.
            self.dispatcher.broken = exc
        return call

    def perform_pending_operations(self) -> None:
        """Do what :meth:`call_soon` gathered, where there is no hub.

        Raises:
            Exception: a connection error, which ends the session.
        """
        while self.hub is None and self._pending_operations:
            self._guarded(self._pending_operations.popleft())

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as exc:
            # The errors of the connection have KeyError among them, on Redis.
            if isinstance(exc, self.connection_errors) and not isinstance(exc, LookupError):
                raise
            logger.exception("Pending callback raised: %r", exc)

    def on_send_event_buffered(self) -> None:
        """Events were buffered: send them when the pass is over."""
        if self.hub is not None and self.event_dispatcher is not None:
            self.hub.call_soon(promise(self.event_dispatcher.flush))

    # --- queues ------------------------------------------------------------------------

    def add_task_queue(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str | None = None,
        routing_key: str | None = None,
        **options: Any,
    ) -> None:
        """Consume from one more queue."""
        queues = self.app.amqp.queues
        if queue in queues:
            added = queues.select_add(queues[queue])
        else:
            added = queues.select_add(
                queue,
                exchange=exchange or queue,
                exchange_type=exchange_type or "direct",
                routing_key=routing_key,
                **options,
            )
        if not self.task_consumer.consuming_from(added.name):
            self.task_consumer.add_queue(added)
            self.task_consumer.consume()
            self.dispatcher.stir()
            logger.info("Started consuming from %s", queue)

    def cancel_task_queue(self, queue: str) -> None:
        """Stop consuming from a queue, after reconnects too."""
        logger.info("Canceling queue %s", queue)
        queues = self.app.amqp.queues
        alias = queues.aliases.get(queue)
        queues.deselect(queue)
        self.task_consumer.cancel_by_queue(alias or queue)

    # --- prefetch and rates -----------------------------------------------------------

    def bucket_for_task(self, type: Any) -> RateBucket | None:
        """The rate bucket of a task, or ``None``."""
        return RateBucket.of(getattr(type, "rate_limit", None), getattr(type, "name", ""))

    def reset_rate_limits(self) -> None:
        """Read the tasks' rate limits anew."""
        self.task_buckets.update((name, self.bucket_for_task(task)) for name, task in self.app.tasks.items())
        dispatcher = getattr(self, "dispatcher", None)
        if dispatcher is not None:
            dispatcher.limits_off = self.disable_rate_limits
            dispatcher.rebuild_plans()

    def _update_prefetch_count(self, index: int = 0) -> int:
        """The pool grew or shrank by *index* processes: the window follows."""
        if self.initial_prefetch_count and self.pool.num_processes:
            self.initial_prefetch_count = self.max_prefetch_count
            self.dispatcher.rebase(self.initial_prefetch_count)
        return self.initial_prefetch_count

    @property
    def max_prefetch_count(self) -> int:
        """The window for the pool as it is now."""
        return int(self.pool.num_processes * self.prefetch_multiplier)

    # --- the way of tasks with their own Strategy or Request ----------------------------

    def remember_revoked(self, found: revocations.Revocations) -> None:
        """Have the broker keep what was revoked, where it can, for workers that do not run now."""
        connection = self.connection
        if connection is None:
            return
        try:
            revocations.remember(connection, found, now=time.time())
        except (*self.connection_errors, *self.channel_errors, OSError) as exc:
            # Those that run know it, and the loop meets the error as well.
            logger.warning("What was revoked could not be kept at the broker: %r", exc)

    def read_revoked(self) -> None:
        """Read what was revoked while this worker did not listen."""
        connection = self.connection
        if connection is None:
            return
        found = revocations.read(connection)
        state.merge_revoked(found.ids)
        state.merge_revoked_stamps(found.stamps)

    def _read_revoked_again(self) -> None:
        """What is kept longer than this process remembers it must not be forgotten."""
        try:
            self.read_revoked()
        except (*self.connection_errors, *self.channel_errors, OSError) as exc:
            logger.debug("What was revoked could not be read: %r", exc)

    def update_strategies(self) -> None:
        """Prepare every task: its tracer, and its handler where it has one of its own."""
        loader = self.app.loader
        for name, task in self.app.tasks.items():
            self.strategies[name] = task.start_strategy(self.app, self)
            if task.__trace__ is None:
                task.__trace__ = build_tracer(name, task, loader, self.hostname, app=self.app)
        self.dispatcher.rebuild_plans()

    def legacy_handler(self, task: Any) -> Any:
        """The message handler of a task that brought its own Strategy or Request, else ``None``."""
        if (
            is_default(task.Strategy, default_strategy, "celery_clone.worker.strategy:default")
            and is_default(task.Request, Request, "celery_clone.worker.request:Request")
            and not self.on_task_message
        ):
            return None
        return self.strategies.get(task.name) or task.start_strategy(self.app, self)

    def handle_legacy(self, handler: Any, delivery: Any) -> None:
        """Give a delivery to a task's own handler, as a kombu message."""
        payload = None if "task" in delivery.headers else delivery.decode()
        try:
            handler(
                delivery,
                payload,
                promise(self.call_soon_ack, (delivery.ack_log_error,)),
                promise(self.call_soon_ack, (delivery.reject_log_error,)),
                self.on_task_message,
            )
        except (InvalidTaskError, ContentDisallowed) as exc:
            self.on_invalid_task(payload, delivery, exc)
        except DecodeError as exc:
            self.on_decode_error(delivery, exc)

    def create_task_handler(self, promise: Any = promise) -> Callable[[Any], None]:
        """The function that handles one message; for embedders that consume by themselves."""

        def on_task_received(message: Any) -> None:
            self.dispatcher.receive([message])

        return on_task_received

    def apply_eta_task(self, task: Any) -> None:
        """A request of an extension has become due."""
        state.task_reserved(task)
        self.on_task_request(task)
        self.qos.decrement_eventually()

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """A message cannot be decoded: log it and keep it."""
        self.dispatcher.bury(message, f"cannot be decoded: {exc}")

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """A message is not a valid call: log it and keep it."""
        self.dispatcher.bury(message, f"is not a valid call: {exc}")

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """A message is no task message at all: log it and keep it."""
        self.dispatcher.bury(message, "is not a task message")

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """A message of a task that is not registered here."""
        headers = headers_of(message)
        self.dispatcher.refuse_unknown(message, headers["task"], headers["id"])

    def cancel_active_requests(self) -> None:
        """Cold shutdown: end what runs, except late tasks that are finished but for their acknowledgement."""
        for flight in [*state.flights.values()]:
            if flight.phase is state.Phase.BEGUN and flight.id not in state.successful_requests:
                self._cancel(flight, emit_retry=flight.plan.early)

    def __repr__(self) -> str:
        return f"<Consumer: {self.hostname} ({self.blueprint.human_state()})>"


BACKOFF_START_S, BACKOFF_STEP_S, BACKOFF_MAX_S = 0.2, 0.5, 5.0
"""A broker that comes back must be used again within seconds, so the pause between tries stays small."""


def is_default(value: Any, default: Any, name: str) -> bool:
    """Is a swappable class of a task the one that every task has?"""
    return value is default or value == name or value == name.replace("celery_clone.", "celery.")


class Evloop(bootsteps.StartStopStep):
    """Consumer step: the loop itself."""

    name = "celery.worker.consumer.consumer.Evloop"
    label = "event loop"
    last = True

    def start(self, c: Any) -> None:
        self.patch_all(c)
        c.looped = c.restart_count
        # Now that new ones are heard of: none can fall between.
        c.read_revoked()
        if c.reread_revoked is None:
            again = c.call_soon, (c._read_revoked_again,)
            c.reread_revoked = c.timer.call_repeatedly(state.REVOKE_EXPIRES / 3, *again)
        c.loop(*c.loop_args())

    def patch_all(self, c: Any) -> None:
        """The loop runs in one thread; extensions that lock the window need not wait."""
        c.qos._mutex = DummyLock()
