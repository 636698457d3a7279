"""Consumer step: listens to the events of the other workers, and holds elections among them.

Started by the consumer after ``Mingle``.  It knows who is there (``state``), keeps the logical clock in
step, and chooses the one worker that does what only one shall do.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from kombu import Consumer
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_clone.bootsteps import ConsumerStep
from celery_clone.utils.log import get_logger
from celery_clone.utils.objects import Bunch
from celery_clone.worker.pidbox import let_go, when_cancelled

__all__ = ("Gossip",)

logger = get_logger("celery.worker.consumer.gossip")

ELECTION_FIELDS = ("id", "clock", "hostname", "pid", "topic", "action", "cver")

UNHEARD_S = 5.0
"""After so many seconds each worker has told of itself twice."""

MOST_ELECTIONS = 1000
"""Elections that are kept open; an older one that nobody finished is dropped."""


class Gossip(ConsumerStep):
    """Consumes the events of workers; ``--without-gossip`` turns it off."""

    name = "celery.worker.consumer.gossip.Gossip"
    label = "Gossip"
    requires = ("celery_clone.worker.consumer.mingle:Mingle",)

    #: Brokers on which workers hear each other's events.
    compatible_transports = {"amqp", "redis"}

    def __init__(
        self,
        c: Any,
        without_gossip: bool = False,
        interval: float = 5.0,
        heartbeat_interval: float | None = 2.0,
        **kwargs: Any,
    ) -> None:
        self.enabled = not without_gossip and self.compatible_transport(c.app)
        self.app = c.app
        c.gossip = self
        self.Receiver = c.app.events.Receiver
        self.hostname = c.hostname
        self.full_hostname = f"{c.hostname}.{c.pid}"
        #: Functions to call with a worker that comes, goes, or is not heard of any more.
        self.on = Bunch(node_join=set(), node_leave=set(), node_lost=set())
        self.timer = c.timer
        self.clock = c.app.clock
        self.dispatcher: Any = None
        if self.enabled:
            self.state = c.app.events.State(
                on_node_join=self.on_node_join, on_node_leave=self.on_node_leave, max_tasks_in_memory=1
            )
            self.update_state = self.state.event
        self.interval = interval
        self.heartbeat_interval = heartbeat_interval or 2.0
        self._tref: Any = None
        self._listens_since = 0.0
        #: The candidates of each election, and who has taken note of it.
        self.consensus_requests: dict[str, list[Any]] = defaultdict(list)
        self.consensus_replies: dict[str, list[str]] = {}
        self.event_handlers: dict[str, Callable[[Any], Any]] = {
            "worker.elect": self.on_elect,
            "worker.elect.ack": self.on_elect_ack,
        }
        #: What a winner does, by topic.
        self.election_handlers: dict[str, Callable[[Any], Any]] = {"task": self.call_task}
        super().__init__(c, **kwargs)

    def compatible_transport(self, app: Any) -> bool:
        """Do the workers of *app* hear each other?"""
        with app.connection_for_read() as connection:
            return connection.transport.driver_type in self.compatible_transports

    # --- life --------------------------------------------------------------------------

    def start(self, c: Any) -> None:
        super().start(c)
        self._listens_since = time.monotonic()
        self.dispatcher = c.event_dispatcher
        for consumer in self.consumers or ():
            when_cancelled(c, consumer, partial(self._listen_again, c))

    def _listen_again(self, c: Any) -> None:
        self.stop(c)
        self.start(c)

    def stop(self, c: Any) -> None:
        """Listen no more.  Legal early and twice."""
        tref, self._tref = self._tref, None
        if tref is not None:
            tref.cancel()
        consumers, self.consumers = self.consumers, None
        for consumer in consumers or ():
            let_go(c, consumer.channel, consumer)

    shutdown = stop

    def get_consumers(self, channel: Any) -> list[Any]:
        """The consumer of the others' events."""
        self.register_timer()
        receiver = self.Receiver(channel, routing_key="worker.#", queue_ttl=self.heartbeat_interval)
        prepare = partial(receiver.event_from_message, localize=False)
        return [
            Consumer(
                channel,
                queues=[receiver.queue],
                on_message=partial(self.on_message, prepare),
                accept=receiver.accept,
                no_ack=True,
            )
        ]

    def register_timer(self) -> None:
        """Look for silent workers every :attr:`interval` seconds."""
        if self._tref is not None:
            self._tref.cancel()
        self._tref = self.timer.call_repeatedly(self.interval, self.periodic)

    # --- who is there ---------------------------------------------------------------------

    def on_message(self, prepare: Callable[[Any], Any], message: Any) -> None:
        """An event came."""
        type = message.delivery_info["routing_key"]
        if type.split(".", 1)[0] == "task":
            return  # a broker that cannot tell routing keys apart sends all
        try:
            handler = self.event_handlers.get(type)
            if handler is not None:
                handler(message.payload)
                return
            hostname = message.headers.get("hostname") or message.payload["hostname"]
            if hostname == self.hostname:
                self.clock.forward()
            else:
                self.update_state(prepare(message.payload)[1])
        except (ContentDisallowed, DecodeError, KeyError, TypeError) as exc:
            logger.error("An event that cannot be used was passed over: %r", exc)  # noqa: TRY400

    def count_workers(self) -> int | None:
        """How many workers there are, this one with them; ``None`` while some may not have been heard yet."""
        if self.consumers is None or time.monotonic() - self._listens_since < UNHEARD_S:
            return None
        return 1 + sum(1 for _ in self.state.alive_workers())

    def periodic(self) -> None:
        """Drop the workers that are not heard of any more."""
        workers = self.state.workers
        for worker in [worker for worker in workers.values() if not worker.alive]:
            self.on_node_lost(worker)
            workers.pop(worker.hostname, None)
        # Those that were waited for may be gone.
        for id in [*self.consensus_replies]:
            self._decide(id)

    def on_node_join(self, worker: Any) -> None:
        """A worker is there."""
        logger.debug("%s joined the party", worker.hostname)
        self._call_handlers(self.on.node_join, worker)

    def on_node_leave(self, worker: Any) -> None:
        """A worker said goodbye."""
        logger.debug("%s left", worker.hostname)
        self._call_handlers(self.on.node_leave, worker)

    def on_node_lost(self, worker: Any) -> None:
        """A worker was silent for too long."""
        logger.info("missed heartbeat from %s", worker.hostname)
        self._call_handlers(self.on.node_lost, worker)

    def _call_handlers(self, handlers: Iterable[Callable[..., Any]], *args: Any) -> None:
        for handler in [*handlers]:
            try:
                handler(*args)
            except Exception as exc:
                logger.exception("Ignored error from handler %r: %r", handler, exc)

    # --- elections ------------------------------------------------------------------------

    def election(self, id: str, topic: str, action: Any = None) -> None:
        """Stand for election *id*: one of all workers asked will do *action*."""
        self.consensus_replies[id] = []
        drop_oldest(self.consensus_replies)
        self.dispatcher.send("worker-elect", id=id, topic=topic, action=action, cver=1)

    def on_elect(self, event: dict[str, Any]) -> None:
        """A worker stands for an election: tell all that this one knows."""
        missing = [field for field in ELECTION_FIELDS if field not in event]
        if missing:
            logger.error("election request missing field %s", ", ".join(missing))
            return
        id, clock, hostname, pid, topic, action = (event[field] for field in ELECTION_FIELDS[:-1])
        # Whoever stands after hearing of this one must come after it in the order of clocks.
        self.clock.adjust(clock)
        self.consensus_requests[id].append((clock, f"{hostname}.{pid}", topic, action))
        drop_oldest(self.consensus_requests)
        self.dispatcher.send("worker-elect-ack", id=id)

    def on_elect_ack(self, event: dict[str, Any]) -> None:
        """A worker has taken note of an election."""
        id, hostname = event["id"], event["hostname"]
        noted = self.consensus_replies.get(id)
        if noted is not None and hostname not in noted:
            noted.append(hostname)
            self._decide(id)

    def _decide(self, id: str) -> None:
        """When all workers have taken note of an election, every candidate knows who won."""
        voters = {self.hostname, *(worker.hostname for worker in self.state.alive_workers())}
        if not voters.issubset(self.consensus_replies[id]):
            return
        del self.consensus_replies[id]
        candidates = self.consensus_requests.pop(id, None)
        if not candidates:
            return
        _, leader, topic, action = min(candidates, key=lambda candidate: candidate[:2])
        if leader != self.full_hostname:
            logger.info("node %s elected for %r", leader, id)
            return
        logger.info("I won the election %r", id)
        handler = self.election_handlers.get(topic)
        if handler is None:
            logger.error("Unknown election topic %r; known are: %s", topic, ", ".join(self.election_handlers))
        else:
            handler(action)

    def call_task(self, task: Any) -> None:
        """Send the task whose signature was elected."""
        try:
            self.app.signature(task).apply_async()
        except Exception as exc:
            logger.exception("Could not call task: %r", exc)


def drop_oldest(elections: dict[str, Any]) -> None:
    """Keep memory bounded when elections are left unfinished."""
    while len(elections) > MOST_ELECTIONS:
        del elections[next(iter(elections))]
