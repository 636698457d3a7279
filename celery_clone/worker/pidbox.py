"""The mailbox of a worker: takes remote commands in, sends replies out, and asks other workers.

Owned by the consumer's step ``Control``; ``Inquiry`` is used by ``Mingle`` too.  A :class:`Pidbox` is served
by the hub, before task messages; a :class:`gPidbox` has a connection and a greenlet (or thread) of its
own.  What a command does is in ``worker.control``; nothing here may wait for another worker.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from kombu import Consumer, Exchange, Producer, Queue
from kombu.exceptions import EncodeError, InconsistencyError
from kombu.pidbox import Node as KombuNode
from kombu.utils.encoding import safe_repr, safe_str

from celery_clone.exceptions import WorkerTerminate
from celery_clone.transport.broadcasts import WORKERS_HEADER
from celery_clone.utils.collections import AttributeDict
from celery_clone.utils.functional import pass1
from celery_clone.utils.ids import uuid
from celery_clone.utils.log import get_logger
from celery_clone.utils.serialization import jsonify
from celery_clone.utils.suggest import closest

from . import control
from . import state as worker_state

__all__ = ("Inquiry", "Janitor", "MailboxNode", "Pidbox", "gPidbox")

logger = get_logger("celery.worker.pidbox")

LOOKS_S = (0.03, 0.1, 0.25, 0.5, 1.0, 2.0)
"""When the replies to an inquiry are looked for, in seconds after it was sent; at the last it ends."""

MOST_ASKED = 8
"""How often a question is asked whose asker got it instead of those who were asked."""

RETRY_S = 5.0
"""Pause before a mailbox that could not be opened is opened again."""

SERVE_S = 0.25
"""How long a mailbox beside the loop waits before it looks whether it shall end."""

CLOSE_S = 1.0
"""How long a worker waits for a mailbox beside the loop to say goodbye to its broker."""

OPEN_S = 5.0
"""How long the start of the worker waits for a mailbox beside the loop to open."""

REPLY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}
"""Replies over a connection of the pool: the asker does not wait long, so neither do we."""


# --- taking commands in ---------------------------------------------------------------


class MailboxNode(KombuNode):
    """One name that commands can be sent to.

    ``over_pool`` sends replies over the app's pool of producers instead of the mailbox' own channel.
    """

    over_pool = False
    mailbox: Any
    state: Any
    handlers: Any

    def Consumer(self, channel: Any = None, no_ack: bool = True, accept: Any = None, **options: Any) -> Any:  # noqa: N802
        """The consumer of the mailbox.  That the name is free is found out by asking, on every broker."""
        queue = self.mailbox.get_queue(self.hostname)
        accept = self.mailbox.accept if accept is None else accept
        return Consumer(channel or self.channel, [queue], no_ack=no_ack, accept=accept, **options)

    def handle(self, method: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Call a command."""
        command = self.handlers.get(method)
        if command is None:
            near = closest(str(method), self.handlers)
            hint = f" Did you mean {near!r}?" if near else ""
            logger.error("No such control command: %r.%s", method, hint)
            return control.nok(f"No such control command: {method!r}.{hint}")
        return command(self.state, **(arguments or {}))

    def reply(self, data: Any, exchange: str, routing_key: str, ticket: str, **kwargs: Any) -> None:
        """Send a reply; what its serializer cannot express is sent as text."""
        try:
            self._send_reply(data, exchange, routing_key, ticket)
        except EncodeError:
            self._send_reply(jsonify(data, unknown_type_filter=safe_repr), exchange, routing_key, ticket)

    def _send_reply(self, data: Any, exchange: str, routing_key: str, ticket: str) -> None:
        mailbox = self.mailbox
        target = Exchange(exchange, type="direct", delivery_mode="transient", durable=False)
        headers = {"ticket": ticket, "clock": mailbox.clock.forward()}
        gossip = self.state.consumer.gossip
        if gossip is not None and (workers := gossip.count_workers()):
            headers[WORKERS_HEADER] = workers
        # With no asker left there is no queue either; brokers that route by themselves raise then.
        with (
            mailbox.producer_or_acquire(None if self.over_pool else self._producer()) as producer,
            suppress(InconsistencyError),
        ):
            producer.publish(
                data,
                exchange=target,
                routing_key=routing_key,
                declare=[target],
                headers=headers,
                serializer=mailbox.serializer,
                **({"retry": True, "retry_policy": REPLY_POLICY} if self.over_pool else {}),
            )

    def _producer(self) -> Producer:
        return Producer(self.channel, auto_declare=False)


class Pidbox:
    """The mailbox of the worker that *c*, its consumer, belongs to."""

    consumer: Any = None

    def __init__(self, c: Any) -> None:
        self.c = c
        self.hostname = c.hostname
        self.mailbox = c.app.control.mailbox
        self.token = uuid()
        state = AttributeDict(
            app=c.app,
            hostname=c.hostname,
            consumer=c,
            tset=pass1 if c.controller.use_eventloop else set,
        )
        make_node: Any = MailboxNode
        self.node = make_node(safe_str(c.hostname), state, handlers=control.Panel.data, mailbox=self.mailbox)
        self.janitor = Janitor(c, self.mailbox)
        self._inquiry: Inquiry | None = None
        self._forward_clock = c.app.clock.forward

    # -- commands

    def on_message(self, body: Any, message: Any) -> None:
        """A command came: do it, if it is for this worker.

        Raises:
            Exception: connection errors, which end the session; anything else is logged.
        """
        # Clients seldom have a clock that ours could follow.
        self._forward_clock()
        try:
            if (body.get("arguments") or {}).get("asker") == self.token:
                # Sent before this mailbox was open: it is shared with a twin, or one who had our name left it behind.
                if self._inquiry is not None:
                    self._inquiry.ask_again()
                return
            self.janitor.note(body, message.headers)
            self.node.handle_message(body, message)
        except WorkerTerminate as exc:
            worker_state.should_terminate = exc.code
        except SystemExit as exc:
            # Raised from here it would leave a half-read connection behind; the loop looks at the flag.
            worker_state.should_stop = exc.code or 0
        except self.c.connection_errors as exc:
            if not isinstance(exc, KeyError):
                raise
            logger.exception("A remote command of unexpected form was ignored: %r", body)
        except Exception:
            logger.exception("Control command error; the command was %r", body)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """A command that cannot be read is dropped."""
        logger.error("A remote command cannot be decoded and is ignored: %r", exc)

    # -- life

    def start(self, c: Any) -> None:
        """Open the mailbox, and find out whether another worker has this name."""
        self._ask_for_twin(c)
        try:
            self._listen(c.connection)
        except c.channel_errors as exc:
            # An exclusive mailbox of the same name, for instance: tasks can be run all the same.
            logger.error(  # noqa: TRY400 the broker's text says it
                "The mailbox of %s cannot be opened: %s. Remote control does not reach this worker; the next "
                "try is in %s seconds.",
                self.hostname,
                exc,
                RETRY_S,
            )
            self._close_channel(c)
            c.timer.call_after(RETRY_S, c.call_soon, (self._start_again, c.connection))
            return
        when_cancelled(c, self.consumer, self.reset)
        subscribe_now(c.connection)
        self.janitor.start(self.node.channel)

    def _start_again(self, connection: Any) -> None:
        if self.c.connection is connection and self.consumer is None:
            self.start(self.c)

    def _listen(self, connection: Any) -> None:
        self.node.channel = connection.channel()
        self.consumer = self.node.listen(callback=self.on_message)
        self.consumer.on_decode_error = self.on_decode_error

    def _ask_for_twin(self, c: Any) -> None:
        """Ask for an answer from our own name, before we can give one."""
        warned: list[str] = []

        def answered(node: str, answer: Any) -> None:
            if node == self.hostname and not warned:
                warned.append(node)
                logger.warning(TWIN, node)

        self._inquiry = Inquiry(c, "ping", {"asker": self.token}, answered, destination=[self.hostname])
        self._inquiry.start()

    def on_stop(self) -> None:
        """Called before the mailbox is closed."""
        inquiry, self._inquiry = self._inquiry, None
        if inquiry is not None:
            inquiry.stop()
        self.janitor.stop()

    def stop(self, c: Any) -> None:
        """Close the mailbox.  Legal early and twice."""
        self.on_stop()
        self._close_channel(c)

    def shutdown(self, c: Any) -> None:
        """As :meth:`stop`."""
        self.stop(c)

    def reset(self) -> None:
        """Close and open."""
        self.stop(self.c)
        self.start(self.c)

    def _close_channel(self, c: Any) -> None:
        consumer, self.consumer = self.consumer, None
        channel, self.node.channel = self.node.channel, None
        if channel is not None:
            let_go(c, channel, consumer)


def subscribe_now(connection: Any) -> None:
    """Have Redis send broadcasts from now on.

    Kombu subscribes in the loop's next pass only, and what was broadcast before is lost: a command that is
    sent as soon as the worker says that it is ready.
    """
    subscribe = getattr(getattr(connection.transport, "cycle", None), "on_poll_start", None)
    if subscribe is not None:
        subscribe()


TWIN = (
    "Another worker on this broker is named %s, as this one is. Commands to that name reach both, and monitors "
    "take them for one. Give each worker a name of its own with the -n option."
)


class gPidbox(Pidbox):
    """A mailbox with a connection of its own, served beside the loop.

    For pools whose loop has no hub, and for the solo pool, so that it answers while its task runs.
    """

    _resets = 0

    def __init__(self, c: Any) -> None:
        super().__init__(c)
        self.node.over_pool = True
        self._ending = threading.Event()
        self._ended = threading.Event()
        self._ended.set()
        self._open = threading.Event()

    def start(self, c: Any) -> None:
        """Have the mailbox served beside the worker's loop."""
        self._ask_for_twin(c)
        self._ending, self._ended, self._open = threading.Event(), threading.Event(), threading.Event()
        # With a green pool the library is patched, and this is a greenlet.
        threading.Thread(target=self.loop, args=(c,), name="celery-mailbox", daemon=True).start()
        # A worker that says it is ready hears what is sent to it then.
        self._open.wait(OPEN_S)

    def on_message(self, body: Any, message: Any) -> None:
        """A command came.  From a thread, what changes something is left to the worker's loop."""
        command = control.Panel.meta.get(str(body.get("method"))) if isinstance(body, dict) else None
        if self.c.pool.is_green or (command is not None and command.type == "inspect"):
            super().on_message(body, message)
        else:
            self.c.call_soon(super().on_message, body, message)
            self.c.controller.waker.wake()

    def on_stop(self) -> None:
        """End the greenlet or thread, and wait for that."""
        super().on_stop()
        self._ending.set()
        # One that says goodbye to a broker that has stopped answering is left to it.
        self._ended.wait(SERVE_S + CLOSE_S)

    def reset(self) -> None:
        """Open the mailbox anew, in the greenlet."""
        self._resets += 1

    def loop(self, c: Any) -> None:
        """Serve the mailbox until :meth:`stop`, over as many connections as it takes."""
        ending, ended, opened = self._ending, self._ended, self._open
        try:
            while not ending.is_set() and c.connection is not None:
                try:
                    self._serve(c, ending, opened)
                except (*c.connection_errors, *c.channel_errors) as exc:
                    logger.warning("The connection of the mailbox was lost: %r", exc)
                    opened.set()  # tasks do not wait for it
                    ending.wait(RETRY_S)
        except SystemExit:
            return  # the worker ends while it waits for the broker
        finally:
            ended.set()
            opened.set()

    def _serve(self, c: Any, ending: threading.Event, opened: threading.Event) -> None:
        with c.connection_for_read() as connection:
            logger.info("pidbox: Connected to %s.", connection.as_uri())
            resets = None
            while not ending.is_set() and c.connection is not None:
                if resets != self._resets:
                    resets = self._resets
                    self._close_channel(c)
                    self._listen(connection)
                    subscribe_now(connection)
                    opened.set()
                try:
                    connection.drain_events(timeout=SERVE_S)
                except TimeoutError:
                    continue


# --- asking others --------------------------------------------------------------------


class Inquiry:
    """Sends a command to other workers and takes their answers in as they come, without waiting.

    Arguments:
        c: the consumer, whose connection and timer are used.
        command, arguments: what is asked.
        on_answer: called with node name and answer.
        on_end: called with the number of answers when no more are taken.
        destination: names of the nodes asked; all when missing.
    """

    def __init__(
        self,
        c: Any,
        command: str,
        arguments: Mapping[str, Any],
        on_answer: Callable[[str, Any], None],
        on_end: Callable[[int], None] | None = None,
        destination: Iterable[str] | None = None,
    ) -> None:
        self.c = c
        self.command = command
        self.arguments = dict(arguments)
        self.on_answer = on_answer
        self.on_end = on_end
        self.destination = None if destination is None else [*destination]
        self.answers = 0
        self._asked = 0
        self._ticket = uuid()
        self._connection: Any = None
        self._queue: Any = None
        self._consumer: Any = None
        self._timers: list[Any] = []

    def start(self) -> None:
        """Ask."""
        c, mailbox, ticket = self.c, self.c.app.control.mailbox, self._ticket
        self._connection = c.connection
        self._queue = Queue(
            f"{ticket}.{mailbox.reply_exchange.name}",
            exchange=mailbox.reply_exchange,
            routing_key=ticket,
            durable=False,
            auto_delete=True,
            expires=mailbox.reply_queue_expires,
            message_ttl=mailbox.reply_queue_ttl,
        )(c.connection.channel())
        self._queue.declare()
        self._ask()
        if pushes(c) and c.hub is not None:
            channel = self._queue.channel
            self._consumer = Consumer(
                channel,
                [self._queue],
                callbacks=[self._answered],
                no_ack=True,
                auto_declare=False,
                accept=mailbox.accept,
            )
            self._consumer.consume()
            when_cancelled(c, self._consumer, self.stop)
        for number, delay in enumerate(LOOKS_S, 1):
            look = self._look, number == len(LOOKS_S)
            self._timers.append(c.timer.call_after(delay, c.call_soon, look))

    def _ask(self) -> None:
        mailbox = self.c.app.control.mailbox
        self._asked += 1
        Producer(self._queue.channel, auto_declare=False).publish(
            {
                "method": self.command,
                "arguments": self.arguments,
                "destination": self.destination,
                "pattern": None,
                "matcher": None,
                "ticket": self._ticket,
                "reply_to": {"exchange": mailbox.reply_exchange.name, "routing_key": self._ticket},
            },
            exchange=mailbox.exchange.name,
            declare=[mailbox.exchange],
            headers={"clock": mailbox.clock.forward(), "expires": time.time() + LOOKS_S[-1]},
            serializer=mailbox.serializer,
        )

    def ask_again(self) -> None:
        """The question was not heard by all; ask again, unless it was asked often enough."""
        if self._queue is not None and not self.answers and self._asked < MOST_ASKED:
            self._ask()

    def _look(self, last: bool) -> None:
        """Take in what has come."""
        if self._queue is None:
            return
        if self.c.connection is not self._connection:
            self.stop()
            return
        if self._consumer is None:
            accept = self.c.app.control.mailbox.accept
            while (message := self._queue.get(no_ack=True, accept=accept)) is not None:
                self._answered(message.payload, message)
        if last:
            self.stop()
            if self.on_end is not None:
                self.on_end(self.answers)

    def _answered(self, body: Any, message: Any) -> None:
        self.c.app.control.mailbox.clock.adjust(message.headers.get("clock") or 0)
        for node, answer in body.items():
            self.answers += 1
            self.on_answer(node, answer)

    def stop(self) -> None:
        """Take no more answers.  Legal early and twice."""
        queue, self._queue = self._queue, None
        consumer, self._consumer = self._consumer, None
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if queue is None:
            return
        if consumer is None:
            self.c.ignoring_errors(queue.delete, nowait=True)
        # Else it goes with its consumer. Deleted before that, RabbitMQ would end the consumer by itself, which
        # py-amqp tells as the end of the connection.
        let_go(self.c, queue.channel, consumer)


def when_cancelled(c: Any, consumer: Any, renew: Callable[[], None]) -> None:
    """Have *renew* called when the broker ends *consumer* by itself, because its queue was deleted."""
    connection = c.connection

    def renew_if_connected() -> None:
        if c.connection is connection:
            renew()

    callbacks = getattr(consumer.channel, "cancel_callbacks", None)  # RabbitMQ alone does so
    if callbacks is not None:
        callbacks.update(dict.fromkeys(consumer._active_tags.values(), lambda _tag: c.call_soon(renew_if_connected)))


def let_go(c: Any, channel: Any, consumer: Any = None) -> None:
    """Stop consuming and close the channel, in whatever state the connection of *c* is, and without waiting."""
    if pushes(c):
        # Closing would wait for an answer of a broker that may have stopped answering.  The channel ends with
        # its connection, and its private queues with their consumer.
        for tag in [*consumer._active_tags.values()] if consumer is not None else ():
            c.ignoring_errors(channel.basic_cancel, tag, nowait=True)
        return
    if consumer is not None:
        c.ignoring_errors(consumer.cancel)
    c.ignoring_errors(channel.close)
    # Kombu's Redis channel stops half-way when the server is not there to delete its queues.
    for part in ("_disconnect_pools", "_close_clients"):
        c.ignoring_errors(getattr(channel, part, nothing))


def pushes(c: Any) -> bool:
    """Does the broker bring messages by itself, over a connection that every command waits on?"""
    return bool(c.conninfo.transport.driver_type == "amqp")


def nothing() -> None:
    """The channel has no such part."""


# --- what the dead leave behind -------------------------------------------------------


class Janitor:
    """Removes from Redis what dead workers, monitors and clients have left of their private queues.

    Redis has no owner for a queue.  Its messages expire, but the note that it is bound to an exchange stays
    with the notes of the living.  Those of broadcast exchanges serve nobody (kombu broadcasts with
    PUBLISH), and living queues are noted again by their owners.  Those of reply queues are removed when
    the time has passed for which their client said it would wait.
    """

    FIRST_S = 1.0
    EVERY_S = 60.0
    GRACE_S = 60.0
    UNKNOWN_S = 3600.0
    """How long a reply queue is left alone whose client has said nothing since this worker began."""

    MOST_CLIENTS = 10_000

    def __init__(self, c: Any, mailbox: Any, now: Callable[[], float] = time.time) -> None:
        self.c = c
        self.mailbox = mailbox
        self.now = now
        #: Routing key of a reply queue, and the epoch time until which its client waits.
        self.clients: dict[str, float] = {}
        self._channel: Any = None
        self._timers: list[Any] = []

    def note(self, body: Mapping[str, Any], headers: Mapping[str, Any]) -> None:
        """A command came; if it wants a reply, remember until when."""
        reply_to = body.get("reply_to")
        if reply_to and len(self.clients) < self.MOST_CLIENTS:
            until = float(headers.get("expires") or 0) or self.now() + self.UNKNOWN_S
            key = reply_to["routing_key"]
            self.clients[key] = max(until, self.clients.get(key, 0.0))

    def start(self, channel: Any) -> None:
        """Begin, if this broker needs it.  *channel* is that of the mailbox."""
        if getattr(channel, "keyprefix_queue", None) is None or self.c.hub is None:
            return
        self._channel = channel
        self._timers = [
            self.c.timer.call_after(self.FIRST_S, self._begin),
            self.c.timer.call_repeatedly(self.EVERY_S, self._sweep_replies),
        ]

    def stop(self) -> None:
        """End.  Legal early and twice."""
        self._channel = None
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _begin(self) -> None:
        conf = self.c.app.conf
        own = {f"{self.c.hostname}.{self.mailbox.exchange.name}", *self._own_event_queues()}
        for exchange in (self.mailbox.exchange.name, conf.event_exchange):
            self._unbind(exchange, lambda routing_key, queue: queue not in own)
        until = self.now() + self.UNKNOWN_S
        for key, _, _ in self._channel.get_table(self.mailbox.reply_exchange.name):
            if len(self.clients) < self.MOST_CLIENTS:
                self.clients.setdefault(key, until)

    def _own_event_queues(self) -> set[str]:
        gossip = self.c.gossip
        return {queue.name for each in (gossip and gossip.consumers) or () for queue in each.queues}

    def _sweep_replies(self) -> None:
        latest = self.now() - self.GRACE_S
        over = {key for key, until in self.clients.items() if until < latest}
        if over:
            self._unbind(self.mailbox.reply_exchange.name, lambda routing_key, queue: routing_key in over)
            for key in over:
                del self.clients[key]

    def _unbind(self, exchange: str, unwanted: Callable[[str, str], bool]) -> None:
        channel = self._channel
        if channel is None:
            return
        members = [
            channel.sep.join((routing_key, pattern, queue))
            for routing_key, pattern, queue in channel.get_table(exchange)
            if unwanted(routing_key, queue)
        ]
        if not members:
            return
        with channel.conn_or_acquire() as client:
            for key in (channel.keyprefix_queue, channel.keyprefix_binding_permanent):
                client.srem(key % (exchange,), *members)
        logger.debug("Removed %s bindings of %s whose owners are gone.", len(members), exchange)
