"""The end of one member of a chord, as the script that counts it takes it.

Made by ``RedisBackend`` for each member, sent at once or together with other results.  Holds values;
it may not talk to Redis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from celery_clone.transport.redis_layout import pack_script
from celery_clone.utils.ids import uuid

from .scripts import CHORD_DONE, CHORD_PART, STORE

__all__ = ("ChordPart", "ResultWrite")

CLAIM_S = 600
"""How long the claim to send a chord's body holds.  Longer than any publishing that is tried again; a
worker that died with the claim is followed by who runs or buries the same member, and that one may."""

BUSY_S = 15
"""How long another run of the member that has the claim may take to send the body: longer than publishing does."""

DONE_S = 2 * 3600
"""How long a chord that is over is remembered: members may be delivered again until then."""


class ResultWrite(NamedTuple):
    """A result to store: under which key, its text, and for how many seconds (0: for ever)."""

    key: Any
    payload: Any
    seconds: Any

    def command(self, how: str) -> bytes:
        """The command that stores it; *how* as ``store.lua`` says."""
        return pack_script(STORE, (self.key,), self.payload, self.seconds, how)

    @staticmethod
    def found(answer: Any) -> Any:
        """What *answer* says is stored already, if that decides what happens; ``None`` if it was decided."""
        return None if isinstance(answer, int) else answer


class ChordPart:
    """One member that has ended.  The same object may be sent again: its claim stays the same.

    *key_of* gives the key of the group with a suffix, *part* is what the member leaves for the body,
    *kept* are the seconds that the bookkeeping and the header are kept.
    """

    def __init__(
        self,
        request: Any,
        key_of: Callable[[str], Any],
        part: Any,
        ordered: bool,
        kept: tuple[Any, Any],
        result: ResultWrite | None = None,
    ) -> None:
        self.request = request
        self.result = result
        self.is_body_sent = False
        self.keeps_parts = False
        place = "+inf" if request.group_index is None else request.group_index
        member = f"{request.id}:{place}"
        self._run = f"{member} {uuid()}"
        self._keys = [key_of(suffix) for suffix in (".j", ".t", ".s", ".d", "", ".c")]
        self._arguments = [member, part, "1" if ordered else "0", place, *kept, CLAIM_S, self._run, BUSY_S]

    @property
    def payload(self) -> Any:
        """The text of the result that is stored in the same step."""
        return None if self.result is None else self.result.payload

    def command(self, how: str) -> bytes:
        """The command that stores the result, if there is one, and counts the member."""
        if self.result is None:
            return self.count()
        key, payload, seconds = self.result
        return pack_script(CHORD_PART, [*self._keys, key], *self._arguments, payload, seconds, how)

    def count(self) -> bytes:
        """The command that counts the member, whose result is stored or is not to be stored."""
        return pack_script(CHORD_PART, self._keys, *self._arguments)

    def done(self) -> bytes:
        """The command that says that the body was sent."""
        parts, added, size, counted, _, claim = self._keys
        over = (added, size, counted) if self.keeps_parts else (parts, added, size, counted)
        return pack_script(CHORD_DONE, [claim, *over], self._run, DONE_S)

    @staticmethod
    def found(answer: Any) -> Any:
        """As :meth:`ResultWrite.found`."""
        return answer[1] if answer[0] in (b"ask", "ask") else None
