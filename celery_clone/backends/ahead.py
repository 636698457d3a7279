"""Which results will be asked for next: whoever reads one after the other need not ask for each by itself.

Owned by stores that read many results for the price of one, told by ``app`` of each call that was
sent.  Looks at the order of sending and of reading alone; it may not read anything.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

__all__ = ("ReadAhead",)

REMEMBERED = 4096
"""Calls whose order is remembered."""

MOST = 64
"""Results that are read ahead at once; as far behind the last one the next may be to count as in order."""

MOST_BYTES = 1 << 20
"""As :data:`MOST`, by the size of what was read lately: results may be large, and nobody may want them after all."""


class ReadAhead:
    """The results of the calls that were sent lately, in order, without keeping them alive.

    Reading begins with one result ahead and doubles with each that is asked for in the order of
    sending.  A caller that sends and reads by turns has nothing ahead, and loses nothing.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew; in a forked child, where another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._sent: deque[weakref.ref[Any]] = deque(maxlen=REMEMBERED)
        self._in_order = 0
        self._size = 0

    def sent(self, result: Any) -> None:
        """A call was sent, whose result this is."""
        with self._lock:
            sent = self._sent
            # Callers that do not want their results drop them at once: nothing of them piles up.
            while sent and sent[0]() is None:
                sent.popleft()
            sent.append(weakref.ref(result))

    def arrived(self, size: int) -> None:
        """A result of *size* bytes was read."""
        # The largest one counts, and is forgotten slowly.
        self._size = max(size, self._size - (self._size >> 3))

    def after(self, result: Any) -> Sequence[Any]:
        """The results to read together with *result*, which somebody begins to wait for."""
        with self._lock:
            sent = self._sent
            place = next(
                (place for place, find in enumerate(islice(sent, 2 * MOST)) if find() is result), None
            )
            if place is None:
                self._in_order = 0
                return ()
            for _ in range(place + 1):
                sent.popleft()
            self._in_order += 1
            most = min(MOST, 1 << min(self._in_order - 1, 6), MOST_BYTES // (self._size + 1))
            found = (find() for find in islice(sent, most))
            return [other for other in found if other is not None and other._cache is None]
