"""The states a task can be in, which of them win over others, and the sets they form.

Read by everything that stores, shows or waits for a result.  Holds names and comparisons only.

``READY_STATES``: the task is over.  ``UNREADY_STATES``: it is not.  ``EXCEPTION_STATES``: its
result is an exception.  ``PROPAGATE_STATES``: that exception is raised by ``AsyncResult.get()``.
``ALL_STATES``: every state a task passes through that is stored by default.
"""

from __future__ import annotations

__all__ = (
    "ALL_STATES",
    "EXCEPTION_STATES",
    "FAILURE",
    "IGNORED",
    "PENDING",
    "PRECEDENCE",
    "PROPAGATE_STATES",
    "READY_STATES",
    "RECEIVED",
    "REJECTED",
    "RETRY",
    "REVOKED",
    "STARTED",
    "SUCCESS",
    "UNREADY_STATES",
    "precedence",
    "state",
)

#: Not known to the result store: waiting, or never sent.
PENDING = "PENDING"
#: Taken by a worker.
RECEIVED = "RECEIVED"
#: Begun by a worker (only with ``task_track_started``).
STARTED = "STARTED"
#: Returned normally.
SUCCESS = "SUCCESS"
#: Raised an exception.
FAILURE = "FAILURE"
#: Cancelled before or while it ran.
REVOKED = "REVOKED"
#: Refused with ``Reject``; used in events.
REJECTED = "REJECTED"
#: Sent again for another try.
RETRY = "RETRY"
#: Ended with ``Ignore``: nothing is stored.
IGNORED = "IGNORED"

#: Strongest first.  ``None`` is the place of every state that is not listed: a custom state.
PRECEDENCE: list[str | None] = [SUCCESS, FAILURE, None, REVOKED, STARTED, RECEIVED, REJECTED, RETRY, PENDING]

#: Place of each state in :data:`PRECEDENCE`.
PRECEDENCE_LOOKUP: dict[str | None, int] = {name: place for place, name in enumerate(PRECEDENCE)}
#: Place of a custom state.
NONE_PRECEDENCE: int = PRECEDENCE_LOOKUP[None]

READY_STATES = frozenset({SUCCESS, FAILURE, REVOKED})
UNREADY_STATES = frozenset({PENDING, RECEIVED, STARTED, REJECTED, RETRY})
EXCEPTION_STATES = frozenset({RETRY, FAILURE, REVOKED})
PROPAGATE_STATES = frozenset({FAILURE, REVOKED})
ALL_STATES = frozenset({PENDING, RECEIVED, STARTED, SUCCESS, FAILURE, RETRY, REVOKED})


def precedence(state: str) -> int:
    """Return the place of *state* in the order of strength: the lower, the stronger."""
    return PRECEDENCE_LOOKUP.get(state, NONE_PRECEDENCE)


class state(str):  # Celery's public name
    """The name of a state that compares by strength instead of by letters.

    ``state("SUCCESS") > state("PENDING")`` is true.  A custom state is weaker than SUCCESS and
    FAILURE and stronger than every other built-in one.
    """

    __slots__ = ()

    def __gt__(self, other: str) -> bool:
        return precedence(self) < precedence(other)

    def __ge__(self, other: str) -> bool:
        return precedence(self) <= precedence(other)

    def __lt__(self, other: str) -> bool:
        return precedence(self) > precedence(other)

    def __le__(self, other: str) -> bool:
        return precedence(self) >= precedence(other)
