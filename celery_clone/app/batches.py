"""Calls that leave together: gathered by a thread, published as one batch.

Owned by ``app.amqp``, used for groups.  A group that comes from a generator is a batch, too, but may not wait for
its end: the generator may take its time, or wait itself for what it gave first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_clone.message.outgoing import TaskMessage
    from celery_clone.transport.protocols import Destination, SendOptions

    from .calls import Way
    from .stencils import Stencil

__all__ = ("Batch", "Ferry")

GATHER_S = 0.02
"""How long what a generator gives is gathered before it is sent."""


class Batch:
    """Messages that leave together, and what those of one group have in common.

    ``ways`` holds the few ways they go.  ``stencil`` is the last call that others can be made like, by its task.
    ``announcements`` are what to do for each message that was published.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[TaskMessage, Destination, SendOptions]] = []
        self.announcements: list[Callable[[], None]] = []
        self.ways: dict[Any, Way] = {}
        self.stencil: tuple[Any, Stencil] | None = None


class Ferry:
    """Publishes from a thread what lies in a batch, as long as its maker runs a generator.

    The maker holds the ferry (``with ferry:``) while it makes a call, and lets go of it while the generator runs.
    """

    def __init__(self, batch: Batch, publish: Callable[[list[Any]], None]) -> None:
        self._batch = batch
        self._publish = publish
        self._lock = threading.Lock()
        self._landed: list[Callable[[], None]] = []
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celery-group-ferry", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        batch = self._batch
        while not self._stop.wait(GATHER_S):
            with self._lock:
                rows, announcements = batch.rows, batch.announcements
                if not rows or self._stop.is_set():
                    continue
                batch.rows, batch.announcements = [], []
                try:
                    self._publish(rows)
                except Exception as exc:  # noqa: BLE001 the maker raises it at its next step
                    self._error = exc
                    return
                self._landed += announcements

    def __enter__(self) -> None:
        """Begin to make a call.

        Raises:
            Exception: what an earlier one could not be published for.
        """
        self._lock.acquire()
        if self._error is not None:
            self._lock.release()
            raise self._error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def stop(self) -> None:
        """End the thread, and do what is to be done for the messages that it published."""
        self._stop.set()
        self._thread.join()
        for announce in self._landed:
            announce()
