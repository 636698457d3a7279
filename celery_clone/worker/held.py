"""What a worker holds: where each of its tasks stands, in the words of the remote commands.

Asked by ``worker.control``.  It reads the worker's books and, through the dispatcher, what is parked in the broker; it
may not change anything.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from kombu.exceptions import ContentDisallowed, DecodeError

from celery_clone.exceptions import InvalidTaskError

from . import state as worker_state
from .state import InFlight, Phase

__all__ = ("Held", "held_info", "held_tasks", "parked_tasks")

MOST_PARKED = 1000
"""How many tasks that wait in the broker are shown, those that are due soonest."""


class Held(NamedTuple):
    """A task that this worker holds: ``where`` is active, reserved or scheduled."""

    id: str
    where: str
    request: Any
    facts: dict[str, Any]

    def info(self, safe: bool = False) -> dict[str, Any]:
        """The task as commands show it; with *safe* its arguments as the texts they were sent with."""
        try:
            found = self.request.info(safe=safe)
        except (ContentDisallowed, DecodeError, InvalidTaskError):
            # One body that cannot be read must not hide all the other tasks.
            found = self.request.info(safe=True)
        return {**found, **self.facts}


def standing(flight: InFlight, running: Collection[int]) -> str:
    """Where a flight stands, in the words of the commands; *running* are the numbers the pool runs."""
    if flight.phase is Phase.BEGUN or flight.seq in running:
        return "active"
    # Held without a time is held by a rate limit: it waits here as the others do.
    return "scheduled" if flight.phase is Phase.HELD and flight.due is not None else "reserved"


def standing_of_request(request: Any) -> str:
    """Where a request of an extension stands."""
    if request in worker_state.active_requests:
        return "active"
    if request in worker_state.reserved_requests:
        return "reserved"
    return "scheduled" if request in worker_state.scheduled_requests else "ready"


def began(flight: InFlight, running: Mapping[int, tuple[int, float]]) -> tuple[int | None, float | None]:
    """Process id and epoch time of the begin of a flight."""
    pid, at = running.get(flight.seq) or (flight.pid, flight.began_at)
    return pid, None if at is None else time.time() - (time.monotonic() - at)


def held_tasks(state: Any, where: str | None = None, ids: Collection[str] | None = None) -> Iterator[Held]:
    """The tasks of this worker; those *where* they are asked for, those with these *ids*."""
    running = state.consumer.pool.begun()
    for flight in [*worker_state.flights.values()]:
        place = standing(flight, running)
        if (where is None or place == where) and (ids is None or flight.id in ids):
            pid, time_start = began(flight, running) if place == "active" else (None, None)
            facts = {"time_start": time_start, "worker_pid": pid, "acknowledged": not flight.owed}
            yield Held(flight.id, place, flight.request, facts)
    requests = {
        *worker_state.requests.values(),
        *worker_state.active_requests,
        *worker_state.reserved_requests,
        *worker_state.scheduled_requests,
    }
    for request in requests:
        place = standing_of_request(request)
        if (where is None or place == where) and (ids is None or request.id in ids):
            yield Held(request.id, place, request, {})


def parked_tasks(state: Any) -> Iterator[Held]:
    """The tasks that wait in the broker, where it can hold them: each worker of their queue knows of them."""
    facts = {"time_start": None, "worker_pid": None, "acknowledged": False}
    for flight in state.consumer.dispatcher.parked(MOST_PARKED):
        yield Held(flight.id, "scheduled", flight.request, facts)


def held_info(state: Any, where: str, safe: bool = False) -> list[dict[str, Any]]:
    """What commands show of the tasks that are *where*."""
    return [held.info(safe) for held in held_tasks(state, where)]
