"""A process's presence in the broker's file: its lease, its doorbell, what it consumes, whom it buries.

Owned by one kombu transport or one ``transport.sqlite_source``, used by the thread that consumes.
It decides when another session is dead.  It starts no thread: its owner calls :meth:`BrokerSession.keep`
from a timer or from the loop that waits.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Collection, Iterable

from celery_clone.transport.sqlite import doorbell
from celery_clone.transport.sqlite.broker import EmbeddedBroker
from celery_clone.transport.sqlite.database import file_mode
from celery_clone.transport.sqlite.doorbell import Doorbell, Sign
from celery_clone.transport.sqlite.tables import Claimed, Other, Settlement
from celery_clone.transport.waits import OTHERS_ARE_BACK_S

__all__ = ("BrokerSession", "ring")

POLL_S = 1.0
"""How often a waiting session looks by itself, in case a ring was lost."""
POLL_WITHOUT_BELL_S = 0.05
VISIBILITY_TIMEOUT_S = 3600.0


class BrokerSession:
    """What one consumer holds and waits for.  Made on the first use, again after it was given up.

    Args:
        broker: the queues.
        lease_s: seconds of silence after which the others may give this session up, when they cannot tell
            by its doorbell whether the process lives.
        visibility_timeout_s: seconds of silence after which a session is given up even though its
            process lives.
        poll_s: seconds between looks that no ring asked for.
    """

    def __init__(
        self,
        broker: EmbeddedBroker,
        *,
        lease_s: float,
        visibility_timeout_s: float = VISIBILITY_TIMEOUT_S,
        poll_s: float = POLL_S,
    ) -> None:
        self.broker = broker
        self.lease_s = lease_s
        self.visibility_timeout_s = visibility_timeout_s
        self.poll_s = poll_s
        self.queues: dict[str, int] = {}
        self.bell: Doorbell | None = None
        self.waiting = False
        self.next_due: float | None = None
        self._number: int | None = None
        self._process = 0
        self._turn = 0
        self._kept_at = 0.0
        self._witness = Witness(visibility_timeout_s, 1.5 * self.interval_s)

    # -- being there

    @property
    def id(self) -> int | None:
        """The number the others know it by, ``None`` while it is not in the file (as in a forked child)."""
        return self._number if self._process == os.getpid() else None

    def open(self) -> int:
        """Enter the file if need be; the session's number."""
        number = self.id
        if number is None:
            self._process = os.getpid()
            self._renew_bell()
            self.waiting = False
            self.queues = self.broker.numbers(self.queues, time.time())
            number = self._number = self.broker.enter(
                self.address, f"{self._process}@{socket.gethostname()}", self.lease_s, self.queues.values()
            )
            self._kept_at = time.monotonic()
            self.bring_back()
        return number

    @property
    def address(self) -> str | None:
        """Where others ring, ``None`` if they cannot."""
        return None if self.bell is None else self.bell.address

    @property
    def interval_s(self) -> float:
        """Seconds between two calls of :meth:`keep`."""
        return min(self.lease_s / 3, 5.0)

    def keep(self) -> bool:
        """Renew the lease and give back what dead sessions held, if it is time to.

        Returns:
            ``False`` if this session itself had been given up: what it held is with others.
        """
        number = self.id
        if number is None or time.monotonic() - self._kept_at < self.interval_s / 2:
            return True
        self._kept_at = time.monotonic()
        self._renew_bell()
        consumed = self.broker.beat(number, self.address)
        if consumed is None:
            self._number = None
            self.open()
            return False
        if consumed != len(self.queues):
            # Somebody deleted a queue that is consumed here: make it anew, as a worker's start would.
            self.consume(self.queues)
        self.bring_back()
        return True

    def beat(self) -> None:
        """Show that this session lives, and nothing more.  For a thread of its own, while the loop stands still."""
        number = self.id
        if number is not None:
            self.broker.beat(number, self.address)

    def _renew_bell(self) -> None:
        """Listen, again if a cleaner of temporary files took the socket or a fork closed it."""
        bell = self.bell
        if bell is not None and (bell.fileno() == -1 or not bell.is_in_place()):
            bell.close()
            bell = None
        if bell is None:
            path = self.broker.database.path
            self.bell = doorbell.listen(path, file_mode(path))

    def bring_back(self) -> None:
        """Give back what dead sessions held, and delete what has expired."""
        now = time.time()
        dead = self._witness.dead(self.broker.others(self.id), time.monotonic())
        if dead:
            ring(self.broker.leave(dead, now))
            for other in dead:
                if other.bell is not None:
                    doorbell.remove(other.bell)
        self.broker.tidy(now)

    def pause(self) -> None:
        """Stop waiting, and keep what is held for one lease: somebody may :meth:`resume` until then."""
        number = self.id
        if number is None or not self.broker.holds(number):
            self.close()
            return
        # Without a doorbell the others go by the lease alone.
        self.broker.beat(number, None)
        bell, self.bell = self.bell, None
        if bell is not None:
            bell.close()

    def resume(self, broker: EmbeddedBroker) -> None:
        """Go on after :meth:`pause`, over another connection to the same file."""
        self.broker = broker
        # Others, too, could not beat while the file was away.
        self._witness.pardon(time.monotonic() + max(self.lease_s, OTHERS_ARE_BACK_S))
        number = self.id
        if number is not None:
            self._renew_bell()
            self.waiting = False
            if broker.beat(number, self.address) is None:
                self._number = None

    def close(self) -> None:
        """Give back what is held and leave.  Legal twice, before :meth:`open`, and in a forked child."""
        number, self._number = self.id, None
        bell, self.bell = self.bell, None
        try:
            if number is not None:
                ring(self.broker.leave([number], time.time()))
        finally:
            if bell is not None:
                bell.close()

    # -- consuming

    def consume(self, names: Iterable[str]) -> None:
        """Consume from exactly these queues."""
        self.queues = self.broker.numbers(names, time.time())
        number = self.id
        if number is not None:
            self.broker.consume(number, self.queues.values(), time.time())
        elif self.queues:
            self.open()

    def claim(
        self,
        names: Collection[str],
        limit: int,
        settlement: Settlement | None = None,
        *,
        forget: bool = False,
    ) -> list[Claimed]:
        """Settle, and take up to *limit* ready messages.  Another queue comes first each time."""
        number = self.open()
        queues = [self.queues[name] for name in names]
        now = time.time()
        if self.waiting and not settlement:
            # Rung for nothing, or not at all: no need for the write lock.
            ready, self.next_due = self.broker.outlook(queues, now)
            if not ready:
                return []
        self._turn += 1
        turn = self._turn % len(queues) if queues else 0
        ordered = [*queues[turn:], *queues[:turn]]
        found, self.waiting, bells, self.next_due = self.broker.claim(
            number, ordered, limit, now, settlement=settlement, was_waiting=self.waiting, forget=forget
        )
        ring(bells)
        return found

    def pause_s(self, longest_s: float | None = None) -> float:
        """How long to wait before looking again without having been rung."""
        pause_s = self.poll_s if self.bell is not None else min(self.poll_s, POLL_WITHOUT_BELL_S)
        if self.next_due is not None:
            pause_s = min(pause_s, max(0.0, self.next_due - time.time()))
        return pause_s if longest_s is None else max(0.0, min(pause_s, longest_s))

    def wait(self, longest_s: float | None = None) -> None:
        """Wait until somebody rings, something is due, or it is time to look anyway."""
        pause_s = self.pause_s(longest_s)
        if self.bell is not None:
            self.bell.wait(pause_s)
        else:
            time.sleep(pause_s)


class Witness:
    """Tells living sessions from dead ones, by what it has seen itself.

    Only changes of the row and this process's own monotonic clock count, so that a step of the wall
    clock or a machine that slept makes nobody look dead.  Looks follow each other within *longest_step_s*; where one
    took longer, the file was locked or the machine stood still, and the others could show no life either.
    """

    def __init__(self, visibility_timeout_s: float, longest_step_s: float = math.inf) -> None:
        self.visibility_timeout_s = visibility_timeout_s
        self.longest_step_s = longest_step_s
        self._seen: dict[int, tuple[int, float]] = {}
        self._looked_at: float | None = None
        self._patient_until = -math.inf

    def pardon(self, until: float) -> None:
        """Begin anew, and let silence mean nothing before the monotonic time *until*: the file was away."""
        self._seen.clear()
        self._patient_until = until

    def dead(self, others: Iterable[Other], instant: float) -> list[Other]:
        """Which of these sessions to give up, at the monotonic time *instant*."""
        return [other for other in self._note(others, instant) if self._is_dead(other, instant)]

    def _note(self, others: Iterable[Other], instant: float) -> list[Other]:
        present = list(others)
        step_s = 0.0 if self._looked_at is None else instant - self._looked_at
        unseen_s = max(0.0, step_s - self.longest_step_s)
        self._looked_at = instant
        self._seen = {
            other.id: (seen[0], seen[1] + unseen_s)
            if (seen := self._seen.get(other.id)) is not None and seen[0] == other.beats
            else (other.beats, instant)
            for other in present
        }
        return present

    def _is_dead(self, other: Other, instant: float) -> bool:
        silent_s = instant - self._seen[other.id][1] if instant >= self._patient_until else 0.0
        if silent_s >= self.visibility_timeout_s:
            return True
        sign = doorbell.sign_of_life(other.bell)
        return sign is Sign.DEAD or (sign is Sign.UNKNOWN and silent_s >= other.lease_s)


def ring(addresses: list[str]) -> None:
    """Wake those who wait; whoever is not there any more is found by the next :meth:`BrokerSession.keep`."""
    doorbell.ring(addresses)
