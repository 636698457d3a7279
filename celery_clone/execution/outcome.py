"""How a run ended, as a value that may cross a process boundary.

Made by ``app.trace`` where the task ran, read by ``worker.dispatch`` and ``execution.acks`` in
the parent.  Holds text and numbers only: live exceptions stay in the process that raised them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from celery_clone import states

__all__ = ("ErrorInfo", "Outcome")


class ErrorInfo(NamedTuple):
    """One exception as text.

    ``pickled`` holds the exception itself when it can be pickled; ``None`` when it cannot.
    """

    type_name: str
    module: str
    repr: str
    traceback: str
    pickled: bytes | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one run.

    ``state`` is one of SUCCESS, FAILURE, RETRY, IGNORED, REJECTED (``celery_clone.states``);
    ``summary`` a bounded repr of the result or the error, empty when nobody asked for it;
    ``runtime`` the seconds the task's body took; ``requeue`` is that of ``Reject(requeue=True)``.
    """

    state: str
    summary: str = ""
    runtime: float = 0.0
    error: ErrorInfo | None = None
    requeue: bool = False

    def pack(self) -> tuple[Any, ...]:
        """As a tuple of marshal-able values, for the frame between child and parent."""
        error = None if self.error is None else tuple(self.error)
        return (self.state, self.summary, self.runtime, error, self.requeue)

    @classmethod
    def unpack(cls, packed: tuple[Any, ...]) -> Outcome:
        """Inverse of :meth:`pack`."""
        state, summary, runtime, error, requeue = packed
        return cls(state, summary, runtime, None if error is None else ErrorInfo(*error), requeue)

    @property
    def ready(self) -> bool:
        """Did the run end for good (as opposed to RETRY, or given back)?"""
        return self.state in states.READY_STATES or self.state == states.IGNORED
