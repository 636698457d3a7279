"""``app.events``: the classes of monitoring events, bound to an app.

Used by workers (to send), by monitors (to receive) and by ``app.amqp`` for
``task-sent``.  Opens nothing until it is asked to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

__all__ = ("Events",)


class Events:
    """Makes event senders, receivers and cluster states that know *app*."""

    receiver_cls = "celery_clone.events.receiver:EventReceiver"
    dispatcher_cls = "celery_clone.events.dispatcher:EventDispatcher"
    state_cls = "celery_clone.events.state:State"

    def __init__(self, app: Any = None) -> None:
        self.app = app

    @cached_property
    def Receiver(self) -> Any:  # noqa: N802 Celery's name
        """Class that consumes events."""
        return self.app.subclass_with_self(self.receiver_cls, reverse="events.Receiver")

    @cached_property
    def Dispatcher(self) -> Any:  # noqa: N802 Celery's name
        """Class that sends events."""
        return self.app.subclass_with_self(self.dispatcher_cls, reverse="events.Dispatcher")

    @cached_property
    def State(self) -> Any:  # noqa: N802 Celery's name
        """Class that keeps what events tell of a cluster."""
        return self.app.subclass_with_self(self.state_cls, reverse="events.State")

    @contextmanager
    def default_dispatcher(
        self, hostname: str | None = None, enabled: bool = True, buffer_while_offline: bool = False
    ) -> Iterator[Any]:
        """A dispatcher on a connection of the app's pool, given back at the end of the block."""
        with (
            self.app.amqp.producer_pool.acquire(block=True) as producer,
            self.Dispatcher(
                producer.connection,
                hostname,
                enabled,
                producer.channel,
                buffer_while_offline,
            ) as dispatcher,
        ):
            yield dispatcher
