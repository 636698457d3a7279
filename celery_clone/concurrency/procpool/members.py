"""One child as the parent sees it: how it is started, stopped for a look, found dead, and let go.

Used by ``procpool.parent``.  It knows the process, its slot and its report socket; it may not decide what
becomes of a job.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from billiard import get_context

from celery_clone.message.frames import Report, ReportReader

from .child import Child, Closable, Plan, tell_if_late
from .limits import Clock
from .slots import Slot

if TYPE_CHECKING:
    from celery_clone.concurrency.protocols import Runner

__all__ = ("Gone", "Member")

READ_BYTES = 1 << 16
READS_PER_TURN = 32
FREEZE_TRIES = 100
FREEZE_STEP = 0.0002
OPTIONAL_SIGNALS = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1")
FORK_MASK = {getattr(signal, name) for name in OPTIONAL_SIGNALS if hasattr(signal, name)}


class Gone(Exception):
    """The other end of the report socket is closed."""


class Member:
    """One child.  *key* is unique in its pool, *index* the lowest free place (``%i`` in log file names)."""

    __slots__ = (
        "_process",
        "born",
        "clock",
        "done",
        "doomed",
        "expected",
        "index",
        "key",
        "name",
        "pid",
        "reader",
        "reports",
        "silent",
        "slot",
    )

    def __init__(self, key: int, index: int, *, inherited_slot: bool) -> None:
        self.key, self.index = key, index
        self.slot = Slot.create(inherited=inherited_slot)
        self.clock = Clock()
        self.reader = ReportReader()
        self.reports: Any = None
        self._process: Any = None
        self.name, self.pid, self.born = "", 0, 0.0
        self.done = 0
        """Jobs it has reported."""
        self.doomed: int | None = None
        """The job it was killed for."""
        self.expected = False
        """Did we end it ourselves?"""
        self.silent = False
        """Has its report socket reached its end?"""

    def start(
        self,
        start_method: str,
        plan: Plan,
        runner: Runner | None,
        jobs: socket.socket,
        inherited: Callable[[], Iterable[Closable]],
        patience: float = 0.0,
    ) -> None:
        """Start the process.  It reads from *jobs* and closes what *inherited* gives.

        Forked, it tells where it is shortly before *patience* seconds are over, if it is not ready by then; 0 for ever.
        """
        self.reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            child = Child(plan, runner, self.slot, jobs, theirs, inherited)
            process = get_context(start_method).Process(target=child)
            process.name = process.name.replace("Process", "PoolWorker")
            process.daemon = True
            process.index = self.index
            with ready_to_fork(patience) as mask:
                child.signal_mask = mask
                process.start()
        finally:
            theirs.close()
        self.reports.setblocking(False)
        self._process = process
        self.name, self.pid, self.born = process.name, process.pid, time.monotonic()

    def parent_ends(self) -> Iterator[Closable]:
        """What a younger sibling must close."""
        yield self.reports
        if self._process is not None and self._process._popen.sentinel is not None:
            yield _Sentinel(self._process._popen.sentinel)

    def exit_status(self) -> tuple[bool, int | None]:
        """(is it dead, its exit code; ``None`` if somebody else reaped it)."""
        popen = self._process._popen
        code = popen.poll()
        if code is not None:
            return True, code
        try:
            if hasattr(os, "waitid"):
                # Its number may be another process' already, so the question is not whether there is such a process.
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            else:
                os.kill(self.pid, 0)
        except (ChildProcessError, ProcessLookupError):
            popen.returncode = 0  # or billiard would signal that number when this program ends
            return True, None
        return False, None

    def signal(self, signum: int) -> None:
        """Send *signum*, unless the child is dead: its number may be another process' by now."""
        if not self.exit_status()[0]:
            os.kill(self.pid, signum)

    def halt(self) -> None:
        """Stop the process and wait, for some milliseconds at most, until it stands still."""
        self.signal(signal.SIGSTOP)
        if not hasattr(os, "waitid"):
            time.sleep(FREEZE_STEP)
            return
        look = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            for _ in range(FREEZE_TRIES):
                if os.waitid(os.P_PID, self.pid, look) is not None:
                    return
                time.sleep(FREEZE_STEP)
        except ChildProcessError:
            pass  # it is dead, and somebody else knows already

    def stands_still(self) -> bool:
        """Was it stopped by a signal?"""
        if not hasattr(os, "waitid"):
            return False
        look = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self.pid, look) is not None
        except ChildProcessError:
            return False  # it is dead, and somebody else knows already

    def read(self, *, everything: bool = False) -> list[Report]:
        """The reports that have arrived, a turn's worth or all.  Raises :class:`Gone` after the last one."""
        reports: list[Report] = []
        turns = 0
        while everything or turns < READS_PER_TURN:
            turns += 1
            try:
                data = self.reports.recv(READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                if reports:
                    break  # the end will be read again
                raise Gone
            reports.extend(self.reader.feed(data))
            if len(data) < READ_BYTES and not everything:
                break
        return reports

    def runs(self, seq: int) -> bool:
        """Has it taken *seq* last, and not ended it?"""
        return self.slot.claim().seq == seq and seq not in self.slot.held()

    def close(self) -> None:
        """Give back what belongs to a dead child.  Legal twice."""
        if self.reports is not None:
            self.reports.close()
        self.slot.close()
        if self._process is not None:
            self._process.join(0)
            self._process._popen.close()


class _Sentinel:
    """The pipe by which billiard watches a sibling."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        os.close(self._descriptor)


LATE = 0.8
"""The part of its patience after which a child that is not ready tells where it is."""

_forking: tuple[int, float] | None = None
"""The thread that is just forking a child, and its patience with that."""


def watch_the_newborn() -> None:
    """In a forked child, before anything that could make it hang."""
    global _forking
    forking, _forking = _forking, None
    if forking is not None and forking[0] == threading.get_ident():
        tell_if_late(forking[1] * LATE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=watch_the_newborn)


@contextmanager
def ready_to_fork(patience: float) -> Iterator[set[signal.Signals]]:
    """Keep signals from a child that cannot handle them yet, and collections from its birth.

    Yields the mask of signals that was in force.
    """
    global _forking
    _forking = (threading.get_ident(), patience) if patience else None
    collecting = gc.isenabled()
    gc.disable()
    mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, FORK_MASK))
    try:
        yield {signal.Signals(number) for number in mask}
    finally:
        _forking = None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if collecting:
            gc.enable()
