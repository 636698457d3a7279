"""Results that wait a moment, so that those of several short tasks are stored in one round trip.

Made by a store's ``defer_results()`` in a process that runs tasks, filled by the store, emptied by
``app.runner`` before it tells of ended tasks, and by the guard thread of a pool's process when a
task takes longer.  Knows nothing of what it holds: the store hands in the function that sends.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from celery_clone.utils.log import get_logger

__all__ = ("Deferred", "ResultWriter")

logger = get_logger(__name__)

MOST = 256
"""Results that may wait; the one after them is stored together with them at once."""

MOST_BYTES = 1 << 20
"""As :data:`MOST`, in bytes: what waits is held twice while it is sent."""


class Deferred(NamedTuple):
    """One result that waits: for which task, its state, how large it is, and what the store needs to send it."""

    task_id: str
    state: str
    size: int
    what: Any


class ResultWriter:
    """A buffer of results.  Safe to use from several threads; a forked child starts with it empty.

    *send* stores a batch, all of it or raises; it may be called again with what it stored already.
    """

    def __init__(self, send: Callable[[Sequence[Deferred]], Any]) -> None:
        self._send = send
        self._reset()
        ours = weakref.ref(self)

        def forget_in_child() -> None:
            writer = ours()
            if writer is not None:
                # The parent has them too, and will send them.
                writer._reset()

        os.register_at_fork(after_in_child=forget_in_child)

    def _reset(self) -> None:
        self._waiting: list[Deferred] = []
        self._ids: dict[str, int] = {}
        self._size = 0
        self._adding = threading.Lock()
        self._flushing = threading.RLock()
        self._told: set[str] = set()

    @property
    def pending(self) -> int:
        """How many results wait, those being sent included."""
        return len(self._ids)

    def holds(self, task_id: str) -> bool:
        """Does a result of this task wait, or is it just being sent?"""
        return task_id in self._ids

    def add(self, item: Deferred) -> None:
        """Have one more wait; stores all of them if there are too many then."""
        with self._adding:
            self._waiting.append(item)
            self._ids[item.task_id] = self._ids.get(item.task_id, 0) + 1
            self._size += item.size
            full = len(self._waiting) > MOST or self._size > MOST_BYTES
        if full:
            self.flush()

    def flush(self) -> None:
        """Store everything that waits.

        If that fails nothing is lost: what was not stored waits again, in its old place, and the
        error is raised.
        """
        if not self._ids:
            return
        with self._flushing:
            # Sending may add more: whoever ends a chord stores the failures of what will not run.
            while self._waiting:
                self._send_waiting()
            self._told.clear()

    def _send_waiting(self) -> None:
        with self._adding:
            batch, self._waiting = self._waiting, []
            size, self._size = self._size, 0
        try:
            self._send(batch)
        except BaseException as exc:
            with self._adding:
                self._waiting[:0] = batch
                self._size += size
            self._tell(batch, exc)
            raise
        with self._adding:
            for item in batch:
                left = self._ids[item.task_id] - 1
                if left:
                    self._ids[item.task_id] = left
                else:
                    del self._ids[item.task_id]

    def _tell(self, batch: Sequence[Deferred], exc: BaseException) -> None:
        """Log each result that could not be stored, once."""
        for item in batch:
            if item.task_id not in self._told:
                self._told.add(item.task_id)
                logger.error(
                    "The result of task %s (%s) could not be stored: %r.  It is kept in this process, which "
                    "tries again with the next result; if the process ends before, the result is lost.",
                    item.task_id,
                    item.state,
                    exc,
                )
