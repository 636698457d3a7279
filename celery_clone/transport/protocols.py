"""The two shapes every way to a broker has: ``MessageSource`` and ``Publisher``.

Implemented by the sources and publishers of this package, used by ``worker.dispatch``,
``worker.consumer`` and ``app.amqp``.  Holds types only and may not import a client library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from kombu import Queue

    from celery_clone.message.delivery import Delivery
    from celery_clone.message.outgoing import TaskMessage

__all__ = ("Destination", "MessageSource", "Publisher", "SendOptions")


class Destination(NamedTuple):
    """Where one message goes, and what must be declared on the broker before it does."""

    exchange: str
    routing_key: str
    declare: tuple[Queue, ...] = ()
    exchange_type: str | None = None


@dataclass(frozen=True, slots=True)
class SendOptions:
    """How a message is published.

    ``deadline_s`` bounds everything a publish may do (connecting, retrying, waiting for the
    confirmation), in seconds; ``None`` means no bound.  ``extra`` holds further keyword arguments
    of :meth:`kombu.Producer.publish` (``priority``, ``delivery_mode``, ``expiration``, ...).
    """

    serializer: str | None = "json"
    compression: str | None = None
    retry: bool = True
    retry_policy: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float | None = 10.0
    extra: Mapping[str, Any] = field(default_factory=dict)


class MessageSource(Protocol):
    """Where deliveries come from.  Used by the worker's loop only.  Never blocks longer than asked.

    Every method that talks to the broker raises the connection errors of its client; the caller
    then drops this source and builds a new one.
    """

    survives_reconnect: bool
    """May a delivery taken before a reconnect still be acknowledged after it?  Redis and SQLite: yes, AMQP: no."""

    def watch(self, hub: Any, ready: Callable[[], None]) -> None:
        """Register with the loop; *ready* is called when :meth:`take` may find something."""

    def set_queues(self, queues: Sequence[Queue]) -> None:
        """Consume from exactly these queues from now on, declaring what is missing."""

    def take(self, credit: int, timeout: float = 0.0) -> Sequence[Delivery]:
        """Return at most *credit* new deliveries; wait at most *timeout* seconds for the first."""

    def ack(self, tags: Iterable[str]) -> None:
        """Settle these deliveries as done.  Buffered until the next :meth:`take` or :meth:`flush`."""

    def reject(self, tag: str, *, requeue: bool) -> None:
        """Give a delivery up: back to its queue when *requeue*, else dropped or dead-lettered."""

    def put_back(self, delivery: Delivery, losses: int) -> bool:
        """Give back a delivery whose process died under it, and have its message say how often that was.

        ``False``: this broker cannot change a message; nothing was done.
        """

    def note_losses(self, delivery: Delivery, losses: int) -> None:
        """Have the message say so, should it be given out again because this whole worker died.

        Nothing where the broker cannot.  Sent with the next :meth:`flush`.
        """

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Put a delivery that cannot be used where an operator finds it, with the *reason*.

        Redis and SQLite: list ``<queue>.dead``; AMQP: rejected, so that a dead-letter exchange gets it.
        """

    def park(self, delivery: Delivery, due: float) -> bool:
        """Hand a delivery back to the broker until *due* (epoch seconds).  ``False``: this broker cannot.

        A source may have ``holds_at_most`` and ``holds_for_s``: so many deliveries, due within so many seconds, the
        worker should rather hold itself, because this broker cannot show what is parked.
        """

    def parked(self, most: int) -> Sequence[Delivery]:
        """At most *most* of what is parked in the consumed queues, the soonest first, to be looked at only.

        Whoever parked it.  May be called from any thread.
        """

    def extend(self) -> None:
        """Renew the lease of all that is held, give back what dead workers held, promote what is due."""

    def flush(self) -> None:
        """Send buffered acknowledgements now."""

    def quiet(self) -> None:
        """Take nothing more from the broker, keep acknowledging."""

    def close(self) -> None:
        """Flush and let go.  Legal twice, and before :meth:`watch`."""


class Publisher(Protocol):
    """Where messages go."""

    def publish(self, message: TaskMessage, to: Destination, how: SendOptions) -> None:
        """Publish one message.

        Raises:
            kombu.exceptions.EncodeError: the body cannot be serialised; nothing was sent.
            kombu.exceptions.OperationalError: the broker did not take it within the deadline.
        """

    def publish_many(self, batch: Sequence[tuple[TaskMessage, Destination, SendOptions]]) -> None:
        """Publish a batch in as few round trips as the broker allows, in order."""

    def close(self) -> None:
        """Let go of what is this publisher's own.  Legal twice; publishing opens it again."""
