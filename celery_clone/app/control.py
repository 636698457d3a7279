"""``app.control``: commands to running workers, and questions to them.

Used by ``celery control`` and ``celery inspect``, by monitors and by projects.  The
commands themselves are in ``worker.control``; this side only sends their names with
arguments over kombu's mailbox and collects what comes back.  Nothing here waits longer
than the timeout it was given.

Replies are lists of mappings of node name to answer; :class:`Inspect` merges them into one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, cast

from kombu import Consumer, pidbox
from kombu.matcher import match

from celery_clone.exceptions import DuplicateNodenameWarning, ImproperlyConfigured
from celery_clone.transport import broadcasts, revocations
from celery_clone.transport.revocations import Revocations
from celery_clone.transport.waits import closed_if_interrupted
from celery_clone.utils.functional import maybe_list
from celery_clone.utils.text import pluralize

__all__ = ("Control", "Inspect", "flatten_reply")

Reply = dict[str, Any]

STRANGERS_S = 0.2
"""How long answers are waited for of workers that tell the others nothing of themselves."""

#: How node names are compared with a pattern if the caller does not say.
DEFAULT_MATCHER = "glob"


def flatten_reply(reply: Sequence[Mapping[str, Any]]) -> Reply:
    """Merge replies, one per node, into one mapping of node name to answer.

    Warns if a name occurs twice: two workers then go by the same name, and commands to one
    of them reach both.
    """
    nodes: Reply = {}
    twice: dict[str, None] = {}
    for item in reply:
        twice.update(dict.fromkeys(name for name in item if name in nodes))
        nodes.update(item)
    if twice:
        names = pluralize(len(twice), "name")
        warnings.warn(
            f"Received multiple replies from node {names}: {', '.join(sorted(twice))}.\n"
            "Please make sure you give each node a unique nodename using\nthe celery worker `-n` option.",
            DuplicateNodenameWarning,
            stacklevel=4,
        )
    return nodes


class Inspect:
    """Questions to workers.  Answers are mappings of node name to answer; ``None`` if nobody answered.

    Made by ``app.control.inspect(...)``.

    Arguments:
        destination: the nodes to ask, by name; all if not given.  A single name, given as
            text, makes its answer the result.
        timeout: seconds to wait for answers.
        callback: called with each answer as it comes.
        connection: connection to use instead of one of the app's pool.
        limit: number of answers to wait for; the number of destinations if these are given.
        pattern: ask nodes whose names match it.
        matcher: how, ``"glob"`` or ``"pcre"``.
    """

    app: Any = None

    def __init__(
        self,
        destination: Sequence[str] | str | None = None,
        timeout: float = 1.0,
        callback: Callable[[Any], Any] | None = None,
        connection: Any = None,
        app: Any = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        self.app = app or self.app
        self.destination = destination
        self.timeout = timeout
        self.callback = callback
        self.connection = connection
        self.limit = limit
        self.pattern = pattern
        self.matcher = matcher

    def _prepare(self, reply: Sequence[Mapping[str, Any]] | None) -> Any:
        if not reply:
            return None
        by_node = flatten_reply(reply)
        if isinstance(self.destination, str):
            return by_node.get(self.destination)
        if self.pattern:
            # Workers that do not know patterns answer, too.
            fits: Callable[..., Any] = match
            matcher = self.matcher or DEFAULT_MATCHER
            return {node: answer for node, answer in by_node.items() if fits(node, self.pattern, matcher)}
        return by_node

    def _request(self, command: str, **kwargs: Any) -> Any:
        """Ask *command* with these arguments; commands that a project added are asked so, too."""
        return self._prepare(
            self.app.control.broadcast(
                command,
                arguments=kwargs,
                destination=self.destination,
                callback=self.callback,
                connection=self.connection,
                limit=self.limit,
                timeout=self.timeout,
                reply=True,
                pattern=self.pattern,
                matcher=self.matcher,
            )
        )

    def report(self) -> Any:
        """Versions and settings, as text under ``"ok"``."""
        return self._request("report")

    def clock(self) -> Any:
        """The logical clocks, under ``"clock"``."""
        return self._request("clock")

    def active(self, safe: bool | None = None) -> Any:
        """The tasks being run.  With *safe*, their arguments as the texts that were sent with them."""
        return self._request("active", safe=safe)

    def scheduled(self, safe: bool | None = None) -> Any:
        """The tasks waiting for their time: ``eta``, ``priority`` and ``request``.

        *safe* makes no difference to workers of today and is not sent.
        """
        return self._request("scheduled")

    def reserved(self, safe: bool | None = None) -> Any:
        """The tasks received and not begun.  *safe* as in :meth:`scheduled`."""
        return self._request("reserved")

    def stats(self) -> Any:
        """Counters, pool, broker and resource use."""
        return self._request("stats")

    def revoked(self) -> Any:
        """The ids of revoked tasks."""
        return self._request("revoked")

    def registered(self, *taskinfoitems: str) -> Any:
        """The names of the tasks the workers know, each with the attributes named."""
        return self._request("registered", taskinfoitems=taskinfoitems)

    registered_tasks = registered

    def ping(self, destination: Sequence[str] | None = None) -> Any:
        """``{"ok": "pong"}`` from every node that is alive."""
        if destination:
            self.destination = destination
        return self._request("ping")

    def active_queues(self) -> Any:
        """The queues consumed from."""
        return self._request("active_queues")

    def query_task(self, *ids: Any) -> Any:
        """Where tasks with these ids are: state and description, for those a worker holds."""
        if len(ids) == 1 and isinstance(ids[0], (list, tuple)):
            ids = ids[0]  # type: ignore[assignment]  # sent as it was given
        return self._request("query_task", ids=ids)

    def conf(self, with_defaults: bool = False) -> Any:
        """The settings, without secrets; those that somebody set, or all."""
        return self._request("conf", with_defaults=with_defaults)

    def hello(self, from_node: str, revoked: Any = None) -> Any:
        """What workers tell each other when one starts: clock and revoked ids."""
        return self._request("hello", from_node=from_node, revoked=revoked)

    def memsample(self) -> Any:
        """Take a sample of memory use, and report it.  Needs psutil on the worker."""
        return self._request("memsample")

    def memdump(self, samples: int = 10) -> Any:
        """The samples of memory use taken so far.  Needs psutil on the worker."""
        return self._request("memdump", samples=samples)

    def objgraph(self, type: str = "Request", n: int = 200, max_depth: int = 10) -> Any:
        """Draw what keeps *n* objects of *type* alive; the name of the picture, on the worker's host."""
        return self._request("objgraph", num=n, max_depth=max_depth, type=type)


class _ProducersOf:
    """The producer pool of an app, looked up for every use: that of a parent process must not be kept."""

    def __init__(self, app: Any) -> None:
        self.app = app

    @contextmanager
    def acquire(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with (
            self.app.amqp.producer_pool.acquire(*args, **kwargs) as producer,
            closed_if_interrupted(producer.connection),
        ):
            yield producer


class Mailbox(pidbox.Mailbox):
    """Collects answers; knows of some brokers how many will come."""

    def _collect(
        self,
        ticket: str,
        limit: int | None = None,
        timeout: float | None = 1,
        callback: Callable[[Any], Any] | None = None,
        channel: Any = None,
        accept: Any = None,
    ) -> Any:
        """The answers to the question with this *ticket*; *timeout* is that of each.

        *limit* is the number of answers to wait for.  Where the broker does not tell it (RabbitMQ), the answers do:
        each says how many workers there are, once its worker has had time to hear of them.
        """
        connection: Any = self.connection
        channel = channel or connection.default_channel
        replies: list[Any] = []
        workers = 0
        begun, last = time.monotonic(), 0.0

        def answered(body: Any, message: Any) -> None:
            nonlocal workers, last
            headers = message.headers
            self.clock.adjust(headers.get("clock") or 0)
            expires = headers.get("expires")
            if expires and time.time() > expires:
                return
            asked = headers.get("ticket", ticket)
            if asked != ticket:
                self.unclaimed[asked].append(body)
                return
            if callback is not None:
                callback(body)
            replies.append(body)
            workers = max(workers, headers.get(broadcasts.WORKERS_HEADER) or 0)
            last = time.monotonic() - begun

        def patience() -> float | None:
            """Seconds to wait for the next answer: few when all workers that the others know of have answered."""
            if limit is not None or timeout is None or not workers or len(replies) < workers:
                return timeout
            return min(timeout, max(STRANGERS_S, 3 * last))

        if ticket in self.unclaimed:
            return self.unclaimed.pop(ticket)
        queue = self.reply_queue
        accept = self.accept if accept is None else accept
        try:
            with (
                Consumer(channel, [queue], callbacks=[answered], accept=accept, no_ack=True),
                closed_if_interrupted(connection),
            ):
                while limit is None or len(replies) < limit:
                    connection.drain_events(timeout=patience())
        except TimeoutError:
            pass  # whoever has not answered by now will not
        finally:
            channel.after_reply_message_received(queue.name)
        return replies

    def listeners(self, channel: Any = None) -> int | None:
        """How many nodes hear what is sent to all, where the broker can tell."""
        nobody: Reply = {"method": "ping", "arguments": {}, "destination": [""], "pattern": None, "matcher": None}
        connection, exchange = cast(Any, self.connection), cast(Any, self.exchange)
        return broadcasts.listeners(channel or connection.default_channel, exchange.name, nobody)


class Control:
    """Commands to workers.

    Every command takes ``destination``, a list of node names; without it all workers obey.
    Further keyword arguments are those of :meth:`broadcast`: ``reply=True`` waits for what
    they answer, at most ``timeout`` seconds.
    """

    Mailbox: Any = Mailbox

    def __init__(self, app: Any = None) -> None:
        self.app = app
        conf = app.conf
        if conf.control_queue_exclusive and conf.control_queue_durable:
            raise ImproperlyConfigured(
                "control_queue_exclusive and control_queue_durable cannot both be True: the broker deletes "
                "exclusive queues with their connection. Turn one of them off."
            )
        self.mailbox = self.Mailbox(
            conf.control_exchange,
            type="fanout",
            accept=conf.accept_content,
            serializer=conf.task_serializer,
            producer_pool=_ProducersOf(app),
            queue_ttl=conf.control_queue_ttl,
            reply_queue_ttl=conf.control_queue_ttl,
            queue_expires=conf.control_queue_expires,
            reply_queue_expires=conf.control_queue_expires,
            queue_exclusive=conf.control_queue_exclusive,
            queue_durable=conf.control_queue_durable,
        )

    @cached_property
    def inspect(self) -> Any:
        """Class of questions to workers, see :class:`Inspect`."""
        return self.app.subclass_with_self(Inspect, reverse="control.inspect")

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Sequence[str] | str | None = None,
        connection: Any = None,
        reply: bool = False,
        timeout: float | None = 1.0,
        limit: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        channel: Any = None,
        pattern: str | None = None,
        matcher: str | None = None,
        **extra_kwargs: Any,
    ) -> list[Reply] | None:
        """Send a command.

        Arguments:
            command: its name.
            arguments: its arguments; further keyword arguments are added to them.
            destination: the nodes that are to obey, by name; all if not given.
            connection: connection to use instead of one of the app's pool.
            reply: wait for answers and return them.
            timeout: seconds to wait for each of them.
            limit: number of answers to wait for; the number of destinations if these are given, else of the workers
                that heard the command, where the broker can tell (Redis and the embedded one).
            callback: called with each answer as it comes.
            channel: channel to use on the connection.
            pattern: let the nodes obey whose names match it.
            matcher: how, ``"glob"`` (the default) or ``"pcre"``.
        """
        if isinstance(destination, str):
            destination = [destination]
        selection = {"pattern": pattern, "matcher": matcher or DEFAULT_MATCHER} if pattern else {}
        with self.app.connection_or_acquire(connection) as conn, closed_if_interrupted(conn):
            mailbox = self.mailbox(conn)
            if reply and limit is None and not (destination or pattern) and isinstance(mailbox, Mailbox):
                limit = mailbox.listeners(channel)
                if limit == 0:
                    return []
            replies: list[Reply] | None = mailbox._broadcast(
                command,
                {**(arguments or {}), **extra_kwargs},
                destination,
                reply,
                timeout,
                limit,
                callback,
                channel=channel,
                **selection,
            )
        return replies

    # -- messages and queues

    def purge(self, connection: Any = None) -> int:
        """Throw away all waiting messages of the app's queues; returns their number.

        There is no way to bring them back.
        """
        with self.app.connection_or_acquire(connection) as conn:
            purged: int = self.app.amqp.TaskConsumer(conn).purge()
        return purged

    discard_all = purge

    def add_consumer(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str = "direct",
        routing_key: str | None = None,
        options: Mapping[str, Any] | None = None,
        destination: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Start consuming from *queue*, which is declared if the worker does not know it."""
        arguments = {
            "queue": queue,
            "exchange": exchange,
            "exchange_type": exchange_type,
            "routing_key": routing_key,
            **(options or {}),
        }
        return self.broadcast("add_consumer", arguments, destination, **kwargs)

    def cancel_consumer(self, queue: str, destination: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Stop consuming from *queue*."""
        return self.broadcast("cancel_consumer", {"queue": queue}, destination, **kwargs)

    # -- tasks

    def revoke(
        self,
        task_id: str | Sequence[str],
        destination: Sequence[str] | None = None,
        terminate: bool = False,
        signal: str = "SIGTERM",
        **kwargs: Any,
    ) -> Any:
        """Do not run the task, or tasks, with this id.

        With *terminate*, a task that is running is stopped by sending *signal* to its process.

        Redis and SQLite keep the revoke for a week, so it holds although no worker runs now.  Elsewhere, and with a
        *destination*, only workers that run hear of it.
        """
        arguments = {"task_id": task_id, "terminate": terminate, "signal": signal}
        if not destination:
            self._remember(Revocations(ids=frozenset(maybe_list(task_id) or ())), **kwargs)
        return self.broadcast("revoke", arguments, destination, **kwargs)

    def _remember(self, found: Revocations, connection: Any = None, **_: Any) -> None:
        with self.app.connection_or_acquire(connection) as conn:
            revocations.remember(conn, found, now=time.time())

    def revoke_by_stamped_headers(
        self,
        headers: Mapping[str, Any],
        destination: Sequence[str] | None = None,
        terminate: bool = False,
        signal: str = "SIGTERM",
        **kwargs: Any,
    ) -> Any:
        """Do not run tasks that carry one of these stamps; see :meth:`revoke`."""
        arguments = {"headers": headers, "terminate": terminate, "signal": signal}
        if not destination and isinstance(headers, Mapping):
            self._remember(Revocations(stamps=headers), **kwargs)
        return self.broadcast("revoke_by_stamped_headers", arguments, destination, **kwargs)

    def terminate(
        self,
        task_id: str | Sequence[str],
        destination: Sequence[str] | None = None,
        signal: str = "SIGTERM",
        **kwargs: Any,
    ) -> Any:
        """Stop a task, running or not: :meth:`revoke` with ``terminate``."""
        return self.revoke(task_id, destination=destination, terminate=True, signal=signal, **kwargs)

    def rate_limit(
        self, task_name: str, rate_limit: Any, destination: Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        """Change the rate limit of a task, as in ``"10/m"``; ``0`` lifts it."""
        arguments = {"task_name": task_name, "rate_limit": rate_limit}
        return self.broadcast("rate_limit", arguments, destination, **kwargs)

    def time_limit(
        self,
        task_name: str,
        soft: float | None = None,
        hard: float | None = None,
        destination: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Change the time limits of a task, in seconds; ``None`` lifts them."""
        arguments = {"task_name": task_name, "hard": hard, "soft": soft}
        return self.broadcast("time_limit", arguments, destination, **kwargs)

    # -- workers

    def ping(self, destination: Sequence[str] | None = None, timeout: float = 1.0, **kwargs: Any) -> Any:
        """Ask who is alive; each answers ``{name: {"ok": "pong"}}``."""
        return self.broadcast("ping", {}, destination, timeout=timeout, **{"reply": True, **kwargs})

    def enable_events(self, destination: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Start sending events about tasks."""
        return self.broadcast("enable_events", {}, destination, **kwargs)

    def disable_events(self, destination: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Stop sending events about tasks."""
        return self.broadcast("disable_events", {}, destination, **kwargs)

    def pool_grow(self, n: int = 1, destination: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Add *n* processes or threads to the pool."""
        return self.broadcast("pool_grow", {"n": n}, destination, **kwargs)

    def pool_shrink(self, n: int = 1, destination: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Take *n* processes or threads out of the pool, when they are idle."""
        return self.broadcast("pool_shrink", {"n": n}, destination, **kwargs)

    def autoscale(self, max: int, min: int, destination: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Change the bounds of a pool that scales itself."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination, **kwargs)

    def pool_restart(
        self,
        modules: Sequence[str] | None = None,
        reload: bool = False,
        reloader: Any = None,
        destination: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Replace all processes of the pool; needs ``worker_pool_restarts``.

        Arguments:
            modules: modules to import, instead of those of the app.
            reload: load modules anew that are loaded already.
            reloader: function to do that with.
        """
        arguments = {"modules": modules, "reload": reload, "reloader": reloader}
        return self.broadcast("pool_restart", arguments, destination, **kwargs)

    def heartbeat(self, destination: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Have a heartbeat event sent now."""
        return self.broadcast("heartbeat", {}, destination, **kwargs)

    def shutdown(self, destination: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Stop workers once the tasks they run have ended."""
        return self.broadcast("shutdown", {}, destination, **kwargs)

    def election(self, id: str, topic: str, action: Any = None, connection: Any = None) -> Any:
        """Have the workers choose one among them that carries out *action*, a signature."""
        arguments = {"id": id, "topic": topic, "action": action}
        return self.broadcast("election", arguments, connection=connection)
