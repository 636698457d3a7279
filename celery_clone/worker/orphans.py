"""Runs whose connection was lost before their messages were settled.

Kept by ``worker.dispatch``.  Where a delivery is good for one connection only, the broker gives it out
again while its task still runs, or has ended meanwhile; the books say whose message it is, so that it is
not run twice.  It settles nothing by itself.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from celery_clone.execution.acks import Settle

if TYPE_CHECKING:
    from celery_clone.message.delivery import Delivery

    from .state import InFlight

__all__ = ("Orphans",)

LIMIT = 10_000
"""Runs remembered; their messages may have gone to another worker, so nobody says when to forget one."""


class Orphans:
    """At most *limit* runs, the oldest of which is forgotten first."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._runs: OrderedDict[str, tuple[InFlight, Settle]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, flight: InFlight) -> None:
        """A run goes on without its connection."""
        self._runs[flight.id] = (flight, Settle.ACK)
        self._runs.move_to_end(flight.id)
        while len(self._runs) > self.limit:
            self._runs.popitem(last=False)

    def note(self, flight: InFlight, how: Settle) -> None:
        """How the message of *flight* is to be settled when it comes again; nothing if the run is not known."""
        if self._runs.get(flight.id, (None,))[0] is flight:
            self._runs[flight.id] = (flight, how)

    def claim(self, delivery: Delivery, task_id: str) -> tuple[InFlight, Settle] | None:
        """The run that *delivery* is the message of, and how it ended, if it has; it is not kept any longer."""
        found = self._runs.get(task_id)
        if found is None or not delivery.redelivered:
            return None
        if delivery.headers.get("retries") != found[0].delivery.headers.get("retries"):
            return None  # another try of the same call: a message of its own
        return self._runs.pop(task_id)

    def drop(self, flight: InFlight) -> None:
        """Its message may run anew."""
        self._runs.pop(flight.id, None)
