"""When a message is acknowledged: one table of pure functions.

Asked by ``worker.dispatch`` and ``worker.request`` when a job begins, ends, or dies with its
process.  Decides only; it may not talk to the broker.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_clone import states

if TYPE_CHECKING:
    from .outcome import Outcome

__all__ = ("AckRule", "Settle", "settle_on_begin", "settle_on_end", "settle_on_loss", "settle_on_timeout")


class Settle(enum.Enum):
    """What to do with a delivery."""

    ACK = "ack"
    DROP = "drop"
    REQUEUE = "requeue"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class AckRule:
    """The acknowledgement options of one task."""

    late: bool = False
    ack_on_failure: bool = True
    ack_on_timeout: bool = True
    requeue_on_loss: bool = False

    @classmethod
    def of(cls, task: Any) -> AckRule:
        """Read the rule from a bound task.

        ``acks_on_failure_or_timeout`` is the older option that covered both; it speaks where the
        newer two are not set.
        """
        both = task.acks_on_failure_or_timeout
        both = True if both is None else bool(both)
        on_failure, on_timeout = task.acks_on_failure, task.acks_on_timeout
        return cls(
            late=bool(task.acks_late),
            ack_on_failure=both if on_failure is None else bool(on_failure),
            ack_on_timeout=both if on_timeout is None else bool(on_timeout),
            requeue_on_loss=bool(task.reject_on_worker_lost),
        )


def settle_on_begin(rule: AckRule) -> Settle:
    """A process has begun the job."""
    return Settle.NONE if rule.late else Settle.ACK


def settle_on_end(rule: AckRule, outcome: Outcome) -> Settle:
    """The job came to its end in its process.

    ``Reject`` is obeyed for late tasks only: an early task was acknowledged when it began.
    """
    if not rule.late:
        return Settle.NONE
    if outcome.state == states.REJECTED:
        return Settle.REQUEUE if outcome.requeue else Settle.DROP
    if outcome.state == states.FAILURE and not rule.ack_on_failure:
        return Settle.DROP
    return Settle.ACK


def settle_on_timeout(rule: AckRule) -> Settle:
    """The job was killed at its hard time limit."""
    if not rule.late:
        return Settle.NONE
    return Settle.ACK if rule.ack_on_timeout else Settle.REQUEUE


def settle_on_loss(rule: AckRule) -> Settle:
    """The process died under the job."""
    if not rule.late:
        return Settle.NONE
    if rule.requeue_on_loss:
        return Settle.REQUEUE
    return Settle.ACK if rule.ack_on_failure else Settle.DROP
