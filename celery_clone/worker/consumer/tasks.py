"""Consumer step: the source of task messages."""

from __future__ import annotations

from typing import Any

from celery_clone.bootsteps import StartStopStep
from celery_clone.concurrency.prefork import TaskPool
from celery_clone.transport import open_source
from celery_clone.utils.log import get_logger
from celery_clone.utils.quorum_queues import detect_quorum_queues

__all__ = ("Tasks",)

logger = get_logger("celery.worker.consumer.tasks")


class QoS:
    """The prefetch window under the names that extensions use."""

    def __init__(self, credit: Any) -> None:
        self._credit = credit
        self.prev: int | None = None

    @property
    def value(self) -> int:
        """How many deliveries may be outstanding; 0 for no bound."""
        return int(self._credit.window)

    def increment_eventually(self, n: int = 1) -> int:
        """Widen the window by *n*."""
        self._credit.lend(n)
        return self.value

    def decrement_eventually(self, n: int = 1) -> int:
        """Narrow the window by *n*."""
        self._credit.repay(n)
        return self.value

    def set(self, pcount: int) -> int:
        """Make the window *pcount* wide."""
        self._credit.limit = pcount
        return pcount

    def update(self) -> int:
        """The window is read anew each turn; there is nothing to send."""
        return self.value


class TaskConsumer:
    """The source under the names that extensions use for a kombu consumer of the task queues."""

    def __init__(self, source: Any, queues: Any) -> None:
        self.source = source
        self._queues = {queue.name: queue for queue in queues}
        self.callbacks: list[Any] = []

    @property
    def queues(self) -> list[Any]:
        """The queues that are consumed."""
        return [*self._queues.values()]

    def consuming_from(self, queue: Any) -> bool:
        """Is this queue (or the one of this name) consumed?"""
        return getattr(queue, "name", queue) in self._queues

    def add_queue(self, queue: Any) -> Any:
        """Consume from *queue* after the next :meth:`consume`."""
        self._queues[queue.name] = queue
        return queue

    def consume(self, no_ack: bool | None = None) -> None:
        """Make the source consume from the queues as they are now."""
        self.source.set_queues(self.queues)

    def cancel_by_queue(self, queue: Any) -> None:
        """Stop consuming from *queue*."""
        if self._queues.pop(getattr(queue, "name", queue), None) is not None:
            self.consume()

    def cancel(self) -> None:
        """Take nothing more."""
        self.source.quiet()

    def close(self) -> None:
        """Let go of the source."""
        self.source.close()


class Tasks(StartStopStep):
    """Opens the source and gives it to the dispatcher."""

    name = "celery.worker.consumer.tasks.Tasks"
    requires = ("celery_clone.worker.consumer.connection:Connection",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        c.task_consumer = c.qos = None
        self._last: Any = None
        super().__init__(c, **kwargs)

    @property
    def survives_reconnect(self) -> bool:
        """Does what the last source gave stay ours when its connection is lost?"""
        return bool(self._last is not None and self._last.survives_reconnect)

    def start(self, c: Any) -> None:
        c.update_strategies()
        c.qos_global = self.qos_global(c)
        queues = [*c.app.amqp.queues.consume_from.values()]
        source = open_source(
            c.connection,
            accept=c.accept,
            epoch=c.restart_count,
            previous=self._last,
            prefetch=c.dispatcher.credit.limit,
            global_qos=c.qos_global,
            delay_queue_type=c.app.conf.broker_native_delayed_delivery_queue_type or "quorum",
            renew_in_background=not isinstance(c.pool, TaskPool),
        )
        self._last = source
        c.task_consumer = TaskConsumer(source, queues)
        c.qos = QoS(c.dispatcher.credit)
        source.set_queues(queues)
        if c.hub is not None:
            source.watch(c.hub, c.dispatcher.stir)
        c.dispatcher.attach(source, c.event_dispatcher)

    def stop(self, c: Any) -> None:
        """Take nothing more; the books stay with the dispatcher."""
        self._end(c)

    def shutdown(self, c: Any) -> None:
        """As :meth:`stop`."""
        self._end(c)

    def _end(self, c: Any) -> None:
        consumer, c.task_consumer = c.task_consumer, None
        if consumer is not None:
            c.dispatcher.detach()
            c.ignoring_errors(consumer.close)
            logger.debug("Closed the source of tasks")

    def info(self, c: Any) -> dict[str, Any]:
        """What ``inspect stats`` shows of prefetching."""
        return {"prefetch_count": c.qos.value if c.qos else "N/A"}

    def qos_global(self, c: Any) -> bool:
        """May the prefetch window be shared by all consumers of the channel?

        Quorum queues refuse that; the setting ``worker_detect_quorum_queues`` turns the look for them off.
        """
        shared = not c.connection.qos_semantics_matches_spec
        if c.app.conf.worker_detect_quorum_queues:
            using_quorum, _ = detect_quorum_queues(c.app, c.connection.transport.driver_type)
            if using_quorum:
                return False
        return shared
