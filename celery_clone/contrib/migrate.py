"""Moving task messages to another broker, or to other queues of the same one.

Used by ``celery migrate``, and by projects through :func:`move` and its relatives.

A message is published at its new place before it is acknowledged at the old one, so an end at any moment
leaves it at one of them at least.  What waits for its time inside a broker (tasks with an ``eta``) is in no queue:
:func:`migrate_tasks` puts it into its queue first, on Redis and SQLite; :func:`move` and its relatives leave it where
it is until it is due, and what is in RabbitMQ's delay queues stays there in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from kombu import Queue, eventloop
from kombu.common import maybe_declare
from kombu.utils.encoding import ensure_bytes

from celery_clone.app import app_or_default
from celery_clone.transport.unparking import unpark
from celery_clone.utils.log import get_logger
from celery_clone.utils.nodenames import worker_direct
from celery_clone.utils.text import str_to_list

__all__ = (
    "State",
    "StopFiltering",
    "migrate_task",
    "migrate_tasks",
    "move",
    "move_by_idmap",
    "move_by_taskmap",
    "move_direct",
    "move_direct_by_id",
    "move_direct_by_idmap",
    "move_direct_by_taskmap",
    "move_task_by_id",
    "republish",
    "start_filter",
    "task_id_eq",
    "task_id_in",
)

logger = get_logger("celery.contrib.migrate")

MOVING = "Moving task {filtered}/{total}: {task}[{id}]"
NOT_READ = "A message of %s cannot be read and stays there: %r"

#: Properties that say how the message came here, or that are arguments of their own.
PROPERTIES_OF_THE_OLD_PLACE = frozenset(
    ("application_headers", "content_type", "content_encoding", "headers", "expiration")
    + ("delivery_info", "delivery_tag", "body_encoding")
)

Filter = Callable[[Any, Any], Any]


class StopFiltering(Exception):
    """Enough: raised by a filter, it ends the filtering."""


class State:
    """How far it is.

    Attributes:
        count: messages that were looked at.
        filtered: messages that were moved.
        total_apx: messages that there were in the beginning, roughly.
    """

    count = 0
    filtered = 0
    total_apx = 0

    @property
    def strtotal(self) -> str:
        """:attr:`total_apx` as a text; a question mark if it is not known."""
        return str(self.total_apx or "?")

    def __repr__(self) -> str:
        return f"^{self.filtered}" if self.filtered else f"{self.count}/{self.strtotal}"


# -- what a message says


def _field(name: str, body: Any, message: Any) -> Any:
    """A field of a task message: in its headers, or in the body of the older protocol."""
    headers = message.headers or {}
    if name in headers:
        return headers[name]
    return body.get(name) if isinstance(body, Mapping) else None


def task_id_eq(task_id: str, body: Any, message: Any) -> bool:
    """Is this the task of that id?"""
    return bool(_field("id", body, message) == task_id)


def task_id_in(ids: Collection[str], body: Any, message: Any) -> bool:
    """Is this one of the tasks of these ids?"""
    return _field("id", body, message) in ids


def filter_status(state: State, body: Any, message: Any, **kwargs: Any) -> None:
    """Print a line for a message; a callback for :func:`move`."""
    task, id = _field("task", body, message), _field("id", body, message)
    print(MOVING.format(filtered=state.filtered, total=state.strtotal, task=task, id=id))


# -- from here to there


def republish(
    producer: Any,
    message: Any,
    exchange: str | None = None,
    routing_key: str | None = None,
    remove_props: Iterable[str] | None = None,
) -> None:
    """Publish *message* again as it is, at its old address or another.

    *remove_props* are names of properties that are not kept.
    """
    came_from = message.delivery_info
    headers = dict(message.headers or {})
    properties = dict(message.properties or {})
    # The body was decompressed for us; the producer compresses it again.
    compression = headers.pop("compression", None)
    milliseconds = properties.get("expiration")
    unwanted = PROPERTIES_OF_THE_OLD_PLACE.union(remove_props or ())
    producer.publish(
        ensure_bytes(message.body),
        exchange=came_from["exchange"] if exchange is None else exchange,
        routing_key=came_from["routing_key"] if routing_key is None else routing_key,
        compression=compression,
        headers=headers,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        expiration=None if milliseconds is None else float(milliseconds) / 1000,
        **{name: value for name, value in properties.items() if name not in unwanted},
    )


def migrate_task(producer: Any, body_: Any, message: Any, queues: Mapping[str, str] | None = None) -> None:
    """Publish a message again; *queues* are new names for exchanges and routing keys."""
    queues = queues or {}
    came_from = message.delivery_info
    republish(
        producer,
        message,
        exchange=queues.get(came_from["exchange"]),
        routing_key=queues.get(came_from["routing_key"]),
    )


def migrate_tasks(
    source: Any,
    dest: Any,
    migrate: Callable[..., Any] = migrate_task,
    app: Any = None,
    queues: Any = None,
    **kwargs: Any,
) -> State:
    """Publish the messages of the connection *source* at the connection *dest*.

    Arguments:
        migrate: publishes one message; takes what :func:`migrate_task` takes.
        app: its queues are looked at.
        queues: names of the queues to look at, ``"a,b"`` or a list, with new names as in ``"a:new,b"``;
            or a mapping from old to new names.
        kwargs: see :func:`start_filter`.  Without ``ack_messages`` the messages are copied, not moved.
    """
    app = app_or_default(app)
    renamed = prepare_queues(queues)
    producer = app.amqp.Producer(_confirming(dest), auto_declare=False)

    def declare_there(queue: Any) -> None:
        new = queue(producer.channel)
        if new.routing_key == queue.name:
            new.routing_key = renamed.get(queue.name, new.routing_key)
        if new.exchange.name == queue.name:
            new.exchange.name = renamed.get(queue.name, queue.name)
        new.name = renamed.get(queue.name, queue.name)
        new.declare()

    if not unpark(source):
        logger.debug("Tasks that this broker keeps until they are due stay there until then.")
    return start_filter(
        app,
        source,
        partial(migrate, producer, queues=renamed),
        queues=renamed,
        on_declare_queue=declare_there,
        **kwargs,
    )


def _confirming(connection: Any) -> Any:
    """*connection*, which waits until a message is taken where the broker can tell."""
    if getattr(connection.transport, "driver_type", None) == "amqp":
        connection.transport_options.setdefault("confirm_publish", True)
    return connection


def prepare_queues(queues: Any) -> dict[str, str]:
    """The names of queues and their new names, from any of the forms that :func:`migrate_tasks` takes."""
    if isinstance(queues, Mapping):
        return dict(queues)
    names = queues.split(",") if isinstance(queues, str) else queues or ()
    pairs = (name.partition(":") for name in names)
    return {old: new or old for old, _, new in pairs}


def _queue_of(app: Any, queue: Any) -> Any:
    return app.amqp.queues[queue] if isinstance(queue, str) else queue


def move(
    predicate: Filter,
    connection: Any = None,
    exchange: Any = None,
    routing_key: str | None = None,
    source: Iterable[Any] | None = None,
    app: Any = None,
    callback: Callable[[State, Any, Any], Any] | None = None,
    limit: int | None = None,
    transform: Callable[[Any], Any] | None = None,
    **kwargs: Any,
) -> State:
    """Move the messages that *predicate* chooses to another queue of the same broker.

    Arguments:
        predicate: takes body and message; what it returns says where to: a queue, a tuple of exchange and
            routing key, any other true value for *exchange* and *routing_key*, a false one to leave it.
        connection: a new one without it.
        source: queues, or names of queues, to look at; those of the app without it.
        callback: called for each message moved.
        limit: move so many at most.
        transform: makes a destination of what *predicate* returned.
        kwargs: see :func:`start_filter`.

    For instance, all calls of one task to the queue ``slow``::

        move(lambda body, message: message.headers["task"] == "proj.tasks.report" and app.amqp.queues["slow"])
    """
    app = app_or_default(app)
    queues = [_queue_of(app, queue) for queue in source or ()] or None
    with app.connection_or_acquire(connection, pool=False) as opened:
        producer = app.amqp.Producer(_confirming(opened))
        state = State()

        def move_if_wanted(body: Any, message: Any) -> None:
            wanted = predicate(body, message)
            if not wanted:
                return
            if transform:
                wanted = transform(wanted)
            if isinstance(wanted, Queue):
                maybe_declare(wanted, opened.default_channel)
                place = wanted.exchange.name, wanted.routing_key
            else:
                place = expand_dest(wanted, exchange, routing_key)
            republish(producer, message, exchange=place[0], routing_key=place[1])
            message.ack()
            state.filtered += 1
            if callback:
                callback(state, body, message)
            if limit and state.filtered >= limit:
                raise StopFiltering

        return start_filter(app, opened, move_if_wanted, consume_from=queues, state=state, **kwargs)


def expand_dest(ret: Any, exchange: Any, routing_key: Any) -> tuple[Any, Any]:
    """Exchange and routing key: *ret*, if it is a pair of them, else the given ones."""
    if isinstance(ret, (tuple, list)) and len(ret) == 2:
        return ret[0], ret[1]
    return exchange, routing_key


def move_task_by_id(task_id: str, dest: Any, **kwargs: Any) -> State:
    """Move one task to the queue *dest*; *kwargs* as of :func:`move`."""
    return move_by_idmap({task_id: dest}, **kwargs)


def move_by_idmap(map: Mapping[str, Any], **kwargs: Any) -> State:
    """Move tasks by their ids: *map* is ids to queues; *kwargs* as of :func:`move`."""
    return move(lambda body, message: map.get(_field("id", body, message)), limit=len(map), **kwargs)


def move_by_taskmap(map: Mapping[str, Any], **kwargs: Any) -> State:
    """Move tasks by their names: *map* is names to queues; *kwargs* as of :func:`move`."""
    return move(lambda body, message: map.get(_field("task", body, message)), **kwargs)


move_direct = partial(move, transform=worker_direct)
"""As :func:`move`; what the predicate returns is the name of a worker."""
move_direct_by_id = partial(move_task_by_id, transform=worker_direct)
move_direct_by_idmap = partial(move_by_idmap, transform=worker_direct)
move_direct_by_taskmap = partial(move_by_taskmap, transform=worker_direct)


# -- looking at all messages


def start_filter(
    app: Any,
    conn: Any,
    filter: Filter,
    limit: int | None = None,
    timeout: float | None = 1.0,
    ack_messages: bool = False,
    tasks: Any = None,
    queues: Any = None,
    callback: Callable[[State, Any, Any], Any] | None = None,
    forever: bool = False,
    on_declare_queue: Callable[[Any], Any] | None = None,
    consume_from: Iterable[Any] | None = None,
    state: State | None = None,
    accept: Any = None,
    **kwargs: Any,
) -> State:
    """Give the messages of queues to *filter*, one after the other.

    What nobody acknowledges is given back to its queue in the end.

    Arguments:
        conn: the connection to consume with.
        filter: takes body and message; :exc:`StopFiltering` ends it all.
        limit: look at so many messages at most.
        timeout: seconds without a message after which it ends.
        ack_messages: remove each message from its queue once *filter* is done with it?
        tasks: look at tasks of these names only, ``"a,b"`` or a list.
        queues: names of queues, as of :func:`migrate_tasks`.
        callback: takes the state, body and message, after each message.
        forever: wait for further messages, until interrupted?
        on_declare_queue: takes each queue first.
        consume_from: queues, or names of queues; *queues* or those of the app without it.
        accept: content types to decode.
    """
    state = state or State()
    names = set(str_to_list(tasks) or ())
    renamed = prepare_queues(queues)
    chosen = [_queue_of(app, queue) for queue in consume_from or renamed]

    left: list[Any] = []

    def look(body: Any, message: Any) -> None:
        try:
            if not names or _field("task", body, message) in names:
                handle(body, message)
        finally:
            if not message.acknowledged:
                left.append(message)

    def handle(body: Any, message: Any) -> None:
        filter(body, message)
        state.count += 1
        if ack_messages:
            message.ack()
        if callback is not None:
            callback(state, body, message)
        if limit and state.count >= limit:
            raise StopFiltering

    def leave(message: Any, error: BaseException) -> None:
        left.append(message)
        logger.error(NOT_READ, (message.delivery_info or {}).get("routing_key"), error)

    consumer = app.amqp.TaskConsumer(
        conn, queues=chosen, accept=accept, callbacks=[look], on_decode_error=leave, auto_declare=True
    )
    for queue in consumer.queues:
        if not renamed or queue.name in renamed:
            if on_declare_queue is not None:
                on_declare_queue(queue)
            state.total_apx += _count(conn, queue(consumer.channel))
    try:
        with consumer:
            for _ in eventloop(conn, timeout=timeout, ignore_timeouts=forever):
                pass
    except (TimeoutError, StopFiltering):
        pass
    finally:
        # Not every transport does it when the connection is closed.
        for message in reversed(left):
            message.requeue()
    return state


def _count(conn: Any, queue: Any) -> int:
    try:
        return int(queue.queue_declare(passive=True).message_count or 0)
    except conn.channel_errors:
        return 0
