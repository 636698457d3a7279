"""One page of memory shared by the parent and one child: which job the child has begun, and when.

Made by ``procpool.parent`` before the fork.  The first half of the page is written by the child (and, while
it receives a packet, by the kernel for it), the second half by the parent; either side reads both.
It may not lock: a reader that meets a half-written record sees by its check word that it has to look again.

The job number of a packet is received straight into the page, so that there is no moment in which a packet
has left the socket and the page does not say so, however the child is killed.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import NamedTuple

__all__ = ("HOLDS", "NOBODY", "Claim", "Slot", "memory_file")

NOBODY = -1
"""The number that is no job's."""

HOLDS = 32
"""How many ended jobs a child may keep unreported."""

PAGE_BYTES = 4096
CLAIMED, BEGAN_NS, CHECK, READY, HELD_COUNT, HELD = 0, 1, 2, 3, 4, 8
TARGET, LEAVE = 256, 257
SALT = 0x5EED_0F_5EED_0F
"""Keeps a page of zeros from looking like a valid record."""


class Claim(NamedTuple):
    """The job a child took last; *began_at* (monotonic seconds) is ``None`` until its run has begun."""

    seq: int
    began_at: float | None


def memory_file(name: str) -> int:
    """Open an unnamed file in memory, or where the system has none, an unlinked one on disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Slot:
    """One child's page.  *descriptor* is that of a file to map; without it the page is inherited by fork."""

    __slots__ = ("_page", "_words", "claim_bytes", "descriptor")

    def __init__(self, descriptor: int = -1) -> None:
        self.descriptor = descriptor
        self._page = mmap.mmap(descriptor, PAGE_BYTES)
        view = memoryview(self._page)
        self._words = view.cast("q")
        self.claim_bytes = view[:8]
        """Where the kernel writes the number of a packet while the child receives it."""

    @classmethod
    def create(cls, *, inherited: bool) -> Slot:
        """A fresh page, for a child that is forked (*inherited*) or one that is spawned."""
        descriptor = -1
        if not inherited:
            descriptor = memory_file("celery-slot")
            os.ftruncate(descriptor, PAGE_BYTES)
        slot = cls(descriptor)
        slot._words[CLAIMED] = slot._words[TARGET] = NOBODY
        return slot

    def close(self) -> None:
        """Unmap the page.  Legal twice."""
        if self._page.closed:
            return
        self.claim_bytes.release()
        self._words.release()
        self._page.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    # -- the child writes

    def begin(self, seq: int, now_ns: int) -> None:
        """The run of the claimed job begins."""
        words = self._words
        words[BEGAN_NS] = now_ns
        words[CHECK] = seq ^ now_ns ^ SALT

    def hold(self, seq: int) -> None:
        """The job has ended and its report waits in the child."""
        words = self._words
        count = words[HELD_COUNT]
        words[HELD + count] = seq
        words[HELD_COUNT] = count + 1

    def release(self) -> None:
        """The reports that waited were sent."""
        self._words[HELD_COUNT] = 0

    def set_ready(self) -> None:
        """The child is set up and takes jobs."""
        self._words[READY] = 1

    # -- the parent writes

    @property
    def target(self) -> int:
        """The job that the next soft-limit signal is meant for."""
        return self._words[TARGET]

    @target.setter
    def target(self, seq: int) -> None:
        self._words[TARGET] = seq

    @property
    def leave(self) -> bool:
        """Shall the child leave when it is idle?"""
        return bool(self._words[LEAVE])

    @leave.setter
    def leave(self, wanted: bool) -> None:
        self._words[LEAVE] = wanted

    # -- both read

    @property
    def ready(self) -> bool:
        """Did the child say that it takes jobs?"""
        return bool(self._words[READY])

    def claim(self) -> Claim:
        """The job taken last, ended or not."""
        words = self._words
        seq, began_ns, check = words[CLAIMED], words[BEGAN_NS], words[CHECK]
        if check != seq ^ began_ns ^ SALT:
            return Claim(seq, None)
        return Claim(seq, began_ns / 1e9)

    def held(self) -> list[int]:
        """The jobs that ended and are not reported."""
        words = self._words
        return words[HELD : HELD + words[HELD_COUNT]].tolist()

    def seen(self) -> list[int]:
        """Every job this child has taken and may not have reported."""
        words = self._words
        while True:
            claimed = words[CLAIMED]
            held = self.held()
            if words[CLAIMED] == claimed:
                return [*held, claimed]
