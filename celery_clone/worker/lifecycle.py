"""Phases of a worker, and which nudge moves it from one to the next.

Asked by ``apps.worker`` when a process signal arrives and by ``worker.worker`` while it stops.
A table and a function over it: it may not touch a process.
"""

from __future__ import annotations

from enum import Enum

__all__ = ("AFTER", "Nudge", "Phase", "after")


class Phase(Enum):
    """How a worker stands."""

    RUNNING = "running"
    WARM = "warm"
    """Takes nothing more; what was begun is finished."""
    SOFT = "soft"
    """As warm, with a deadline (``worker_soft_shutdown_timeout``)."""
    COLD = "cold"
    """What runs is cancelled; what is not acknowledged goes back to its queue."""
    DEAD = "dead"
    """Ends at once."""


class Nudge(Enum):
    """What pushes a worker on."""

    TERM = "SIGTERM"
    INT = "SIGINT"
    QUIT = "SIGQUIT"
    TIMEOUT = "the soft deadline is over"


AFTER: dict[tuple[Phase, Nudge], Phase] = {
    (Phase.RUNNING, Nudge.TERM): Phase.WARM,
    (Phase.RUNNING, Nudge.INT): Phase.WARM,
    (Phase.RUNNING, Nudge.QUIT): Phase.SOFT,
    (Phase.WARM, Nudge.INT): Phase.SOFT,
    (Phase.WARM, Nudge.QUIT): Phase.SOFT,
    (Phase.SOFT, Nudge.INT): Phase.COLD,
    (Phase.SOFT, Nudge.QUIT): Phase.COLD,
    (Phase.SOFT, Nudge.TIMEOUT): Phase.COLD,
    (Phase.COLD, Nudge.INT): Phase.DEAD,
    (Phase.COLD, Nudge.QUIT): Phase.DEAD,
}


def after(phase: Phase, nudge: Nudge) -> Phase:
    """The phase that follows; a nudge that the table does not name changes nothing."""
    return AFTER.get((phase, nudge), phase)
