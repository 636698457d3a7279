"""Runs whose connection was lost before their messages were settled.

Kept by ``worker.dispatch``.  Where a delivery is good for one connection only, the broker gives it out
again while its task still runs, or has ended meanwhile; the books say whose message it is, so that it is
not run twice.  Nobody confirms an acknowledgement, either: those of the last seconds may not have arrived.
It settles nothing by itself.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_clone.execution.acks import Settle

if TYPE_CHECKING:
    from celery_clone.message.delivery import Delivery

    from .state import InFlight

__all__ = ("Orphans",)

LIMIT = 10_000
"""Runs remembered; their messages may have gone to another worker, so nobody says when to forget one."""


LATELY = 1000
LATELY_S = 30.0
"""So many acknowledgements, sent within so many seconds before a connection was lost, may not have arrived."""


class KnownRun(NamedTuple):
    """What is known of the run whose message came again: ``flight`` is ``None`` if it was settled before."""

    flight: InFlight | None
    how: Settle


class Orphans:
    """At most *limit* runs, the oldest of which is forgotten first."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._runs: OrderedDict[str, tuple[InFlight | None, Any, Settle]] = OrderedDict()
        self._lately: deque[tuple[float, str, Any, Settle]] = deque(maxlen=LATELY)

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, flight: InFlight) -> None:
        """A run goes on without its connection."""
        self._put(flight.id, flight, retries_of(flight.delivery), Settle.ACK)

    def _put(self, task_id: str, flight: InFlight | None, retries: Any, how: Settle) -> None:
        self._runs[task_id] = (flight, retries, how)
        self._runs.move_to_end(task_id)
        while len(self._runs) > self.limit:
            self._runs.popitem(last=False)

    def settled(self, flight: InFlight, how: Settle, now: float) -> None:
        """The broker was told, at *now* (monotonic seconds), and does not say whether it heard."""
        self._lately.append((now, flight.id, retries_of(flight.delivery), how))

    def lose(self, now: float) -> None:
        """The connection is lost: what was settled just before may come again."""
        lately = [*self._lately]
        self._lately.clear()
        for at, task_id, retries, how in lately:
            if now - at <= LATELY_S and task_id not in self._runs:
                self._put(task_id, None, retries, how)

    def note(self, flight: InFlight, how: Settle) -> None:
        """How the message of *flight* is to be settled when it comes again; nothing if the run is not known."""
        found = self._runs.get(flight.id)
        if found is not None and found[0] is flight:
            self._runs[flight.id] = (flight, found[1], how)

    def claim(self, delivery: Delivery, task_id: str) -> KnownRun | None:
        """The run that *delivery* is the message of, and how it ended, if it has; it is not kept any longer."""
        found = self._runs.get(task_id)
        if found is None or not delivery.redelivered:
            return None
        flight, retries, how = found
        if retries_of(delivery) != retries:
            return None  # another try of the same call: a message of its own
        del self._runs[task_id]
        return KnownRun(flight, how)

    def drop(self, flight: InFlight) -> None:
        """Its message may run anew."""
        self._runs.pop(flight.id, None)


def retries_of(delivery: Delivery) -> Any:
    """Which try of its call a message is."""
    return delivery.headers.get("retries")
