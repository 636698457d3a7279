"""Time and memory limits as arithmetic: when a job's time is over, how big this process is.

Used by ``procpool.parent`` (one :class:`Clock` for each child, one :class:`Timetable`) and by
``procpool.child`` (:func:`highest_kilobytes`).  It may send no signal and set no timer: it only
says what is due.
"""

from __future__ import annotations

import heapq
import itertools
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

if sys.platform != "win32":
    import resource

__all__ = ("Clock", "Due", "Limits", "Timetable", "highest_kilobytes", "resident_kilobytes", "resolve")

Limits = tuple[float | None, float | None]
"""Soft and hard limit in seconds; ``None``: no limit."""


class Due(NamedTuple):
    """The time of job *seq* is over."""

    seq: int
    soft: bool
    limit: float


def resolve(own: Limits | None, default: Limits) -> Limits:
    """The limits that hold for a job: its own, and where it has none, the pool's."""
    soft, hard = own or (None, None)
    return soft or default[0] or None, hard or default[1] or None


class Clock:
    """The limits of the job that one child runs."""

    __slots__ = ("_hard", "_hard_at", "_seq", "_soft", "_soft_at")

    def __init__(self) -> None:
        self._seq: int | None = None
        self._soft = self._hard = 0.0
        self._soft_at: float | None = None
        self._hard_at: float | None = None

    @property
    def seq(self) -> int | None:
        """The job whose time is measured."""
        return self._seq

    def start(self, seq: int, began_at: float, limits: Limits) -> None:
        """Measure the time of *seq*, which began at *began_at* (monotonic seconds)."""
        soft, hard = limits
        self._seq = seq
        self._soft, self._hard = soft or 0.0, hard or 0.0
        self._soft_at = began_at + soft if soft else None
        self._hard_at = began_at + hard if hard else None

    def stop(self, seq: int) -> None:
        """The job *seq* ended.  Does nothing for another one."""
        if self._seq == seq:
            self._seq = self._soft_at = self._hard_at = None

    def next_at(self) -> float | None:
        """When to ask :meth:`due` again."""
        if self._soft_at is None:
            return self._hard_at
        return self._soft_at if self._hard_at is None else min(self._soft_at, self._hard_at)

    def due(self, now: float) -> Due | None:
        """The limit that is reached at *now*.  Each is told once; a hard one makes the soft one moot."""
        seq = self._seq
        if seq is None:
            return None
        if self._hard_at is not None and now >= self._hard_at:
            self._hard_at = self._soft_at = None
            return Due(seq, False, self._hard)
        if self._soft_at is not None and now >= self._soft_at:
            self._soft_at = None
            return Due(seq, True, self._soft)
        return None


class Timetable:
    """What is to be called when.  Entries are few and cannot be cancelled."""

    __slots__ = ("_count", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def add(self, when: float, callback: Callable[[], None]) -> None:
        """Call *callback* at *when* (monotonic seconds)."""
        heapq.heappush(self._heap, (when, next(self._count), callback))

    def next_at(self) -> float | None:
        """When the next entry is due."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> list[Callable[[], None]]:
        """The entries due at *now*, oldest first."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        return due

    def clear(self) -> None:
        """Forget all entries."""
        self._heap.clear()


def highest_kilobytes() -> int:
    """The most memory this process ever had in RAM, in kilobytes; 0 where the system does not say.

    Counted since the process began, by itself: what the system calls the highest value of a process that was
    forked (``ru_maxrss``) may be that of its parent.
    """
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1])
    except OSError:
        pass  # no /proc
    return resident_kilobytes()


def resident_kilobytes() -> int:
    """Memory of this process that is in RAM, in kilobytes; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    except OSError:
        pass  # no /proc: the highest value so far has to do
    if sys.platform == "win32":
        return 0
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest // 1024 if sys.platform == "darwin" else highest
