"""Reports on their way from whatever thread they came up in to the worker's loop.

Owned by pools that run jobs in this process (``concurrency.adapter``).  Any thread may put; only the loop
tells.  It owns the descriptor by which the hub is woken.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_clone.message.frames import Report

__all__ = ("Inbox",)


class Inbox:
    """Collects reports for *tell*.

    With *direct* they are told at once, by whoever puts them.  *work* is called in the loop's thread before
    reports are told, and says whether it wants to be called again in the next turn.
    """

    def __init__(
        self,
        tell: Callable[[Sequence[Report]], None],
        *,
        direct: bool = False,
        work: Callable[[], bool] | None = None,
    ) -> None:
        self._tell = tell
        self._direct = direct
        self._work = work
        self._reports: deque[Report] = deque()
        self._arrived = threading.Event()
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def put(self, report: Report) -> None:
        """Have *report* told.  Safe in any thread."""
        if self._direct:
            self._tell([report])
            return
        self._reports.append(report)
        self.wake()

    def wake(self) -> None:
        """Have :meth:`deliver` called soon.  Safe in any thread."""
        if not self._arrived.is_set():
            self._arrived.set()
            ends = self._ends
            if ends is not None:
                try:
                    ends[1].send(b"!")
                except OSError:
                    pass  # full of such bytes, or being closed: the loop looks anyway

    def deliver(self) -> None:
        """Tell what is there (in the loop's thread)."""
        self._arrived.clear()  # before looking: what is put from now on wakes the loop again
        if self._work is not None and self._work():
            self.wake()
        reports: list[Report] = []
        while self._reports:
            reports.append(self._reports.popleft())
        if reports:
            self._tell(reports)

    def wait(self, timeout: float) -> None:
        """Wait at most *timeout* seconds for something to come up, then :meth:`deliver`."""
        self._arrived.wait(timeout)
        self.deliver()

    def watch(self, hub: Any) -> None:
        """Have *hub* call :meth:`deliver`.  Legal again, as after the hub was reset."""
        self.unwatch(hub)
        self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(False)
        hub.add_reader(self._ends[0].fileno(), self._on_readable)
        self._arrived.clear()
        self.wake()

    def _on_readable(self) -> None:
        if self._ends is not None:
            try:
                self._ends[0].recv(4096)
            except BlockingIOError:
                pass  # told of twice; the bytes were read the first time
        self.deliver()

    def unwatch(self, hub: Any) -> None:
        """Take the registration with *hub* back.  Legal twice."""
        ends, self._ends = self._ends, None
        if ends is None:
            return
        if ends[0].fileno() in hub.readers:
            hub.remove(ends[0].fileno())
        for end in ends:
            end.close()
