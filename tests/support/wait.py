"""Wait for a condition, never for a time.

Used by every test and benchmark that watches another process.
It may not know what it waits for: the caller hands in the condition and the words for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_until(
    condition: Callable[[], Value],
    timeout: float = 10.0,
    describe: str | Callable[[], str] = "the condition",
    every: float = 0.02,
) -> Value:
    """Call *condition* until its answer is true, and return that answer.

    *timeout* and *every* are seconds. *describe* says what was awaited, as text or as a function that is
    called only when the time is over, so that it can show the state of the world at that moment.
    Raises AssertionError with that description when the time is over.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            what = describe() if callable(describe) else describe
            raise AssertionError(f"waited {timeout:g} s in vain for {what}; the last answer was {answer!r}")
        time.sleep(every)
