"""The queues that an app knows, and which of them a worker consumes.

Made by ``app.amqp`` from the settings, asked by ``app.routes`` for destinations and by the worker
for what to consume.  A table only: it may not talk to the broker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from kombu import Exchange, Queue

from celery_clone.utils.functional import maybe_list
from celery_clone.utils.text import indent as text_indent

__all__ = ("Queues",)

#: One line of the worker's banner.
QUEUE_FORMAT = ".> {0.name:<16} exchange={0.exchange.name}({0.exchange.type}) key={0.routing_key}"


class Queues(dict[str, Queue]):
    """Name to :class:`kombu.Queue`; a missing name is declared when *create_missing* allows it.

    Arguments:
        queues: the queues, as a mapping or an iterable.
        default_exchange: exchange of queues that name none.
        create_missing: make a queue for an unknown name?
        create_missing_queue_type: ``"classic"`` or ``"quorum"``.
        create_missing_queue_exchange_type: exchange type of queues made so.
        autoexchange: makes the exchange of queues made so, from their name.
        max_priority: ``x-max-priority`` of queues that set none.
        default_routing_key: routing key of queues that name none.
    """

    #: The subset that is consumed; the rest is for routing only.
    _consume_from: dict[str, Queue] | None = None

    def __init__(
        self,
        queues: Any = None,
        default_exchange: Any = None,
        create_missing: bool = True,
        create_missing_queue_type: str | None = None,
        create_missing_queue_exchange_type: str | None = None,
        autoexchange: Callable[[str], Any] | None = None,
        max_priority: int | None = None,
        default_routing_key: str | None = None,
    ) -> None:
        super().__init__()
        self.aliases: WeakValueDictionary[str, Queue] = WeakValueDictionary()
        self.default_exchange = default_exchange
        self.default_routing_key = default_routing_key
        self.create_missing = create_missing
        self.create_missing_queue_type = create_missing_queue_type
        self.create_missing_queue_exchange_type = create_missing_queue_exchange_type
        self.autoexchange = Exchange if autoexchange is None else autoexchange
        self.max_priority = max_priority
        if queues is not None and not isinstance(queues, Mapping):
            queues = {queue.name: queue for queue in queues}
        for name, queue in (queues or {}).items():
            if isinstance(queue, Queue):
                self.add(queue)
            else:
                self.add_compat(name, **queue)
        self._default_consume_from: dict[str, Queue] = dict(self)

    def __getitem__(self, name: str) -> Queue:
        alias = self.aliases.get(name)
        return alias if alias is not None else super().__getitem__(name)

    def __setitem__(self, name: str, queue: Any) -> None:
        if self.default_exchange and not queue.exchange:
            queue.exchange = self.default_exchange
        if not queue.routing_key:
            queue.routing_key = self.default_routing_key
        if self.max_priority is not None:
            if queue.queue_arguments is None:
                queue.queue_arguments = {}
            queue.queue_arguments.setdefault("x-max-priority", self.max_priority)
        super().__setitem__(name, queue)
        if queue.alias:
            self.aliases[queue.alias] = queue

    def __missing__(self, name: str) -> Queue:
        if self.create_missing:
            return self.add(self.new_missing(name))
        raise KeyError(name)

    def add(self, queue: Queue | str, **kwargs: Any) -> Queue:
        """Declare a queue: a :class:`kombu.Queue`, or a name with the options of one."""
        if not isinstance(queue, Queue):
            return self.add_compat(queue, **kwargs)
        if self.default_exchange and (queue.exchange is None or queue.exchange.name == ""):
            queue.exchange = self.default_exchange
        self[queue.name] = queue
        return queue

    def add_compat(self, name: str, **options: Any) -> Queue:
        """Declare a queue given as plain options; ``binding_key`` is an older word for ``routing_key``."""
        if options.get("routing_key") is None:
            options["routing_key"] = options.get("binding_key") or name
        return self.add(Queue.from_dict(name, **options))

    def new_missing(self, name: str) -> Queue:
        """A queue for a name that nobody declared.

        Raises:
            ValueError: ``task_create_missing_queue_type`` is neither ``"classic"`` nor ``"quorum"``.
        """
        kind = self.create_missing_queue_type
        if kind not in (None, "", "classic", "quorum"):
            raise ValueError(
                f"Invalid queue type '{kind}'. Valid types are 'classic' and 'quorum'; "
                "set task_create_missing_queue_type to one of them."
            )
        if self.create_missing_queue_exchange_type:
            exchange = Exchange(name, self.create_missing_queue_exchange_type)
        else:
            exchange = self.autoexchange(name)
        arguments = {"x-queue-type": "quorum"} if kind == "quorum" else None
        return Queue(name, exchange, name, queue_arguments=arguments)

    def format(self, indent: int = 0, indent_first: bool = True) -> str:
        """The consumed queues as text, a line each."""
        lines = [QUEUE_FORMAT.format(queue) for _, queue in sorted(self.consume_from.items())]
        if not lines:
            return ""
        if indent_first:
            return text_indent("\n".join(lines), indent)
        return "\n".join([lines[0], *([text_indent("\n".join(lines[1:]), indent)] if lines[1:] else [""])])

    def select_add(self, queue: Queue | str, **kwargs: Any) -> Queue:
        """Declare a queue and consume from it too."""
        added = self.add(queue, **kwargs)
        self.consume_from[added.name] = added
        return added

    def select(self, include: str | Iterable[str] | None) -> None:
        """Consume from these queues alone."""
        if include:
            chosen = [self[name] for name in maybe_list(include) or ()]
            self._consume_from = {queue.name: queue for queue in chosen}

    def deselect(self, exclude: str | Iterable[str] | None) -> None:
        """Do not consume from these queues."""
        for name in maybe_list(exclude or ()) or ():
            queue = self.aliases.get(name)
            self.consume_from.pop(queue.name if queue is not None else name, None)

    @property
    def consume_from(self) -> dict[str, Queue]:
        """The queues to consume from."""
        return self._default_consume_from if self._consume_from is None else self._consume_from
