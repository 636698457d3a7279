"""What the pools of gevent and eventlet have in common: calls in threads of the user's making.

Base of ``concurrency.gevent`` and ``concurrency.eventlet``, which know how such a thread is started, ended and
given an alarm.  Time limits and termination are raised inside a thread the next time it waits: one that never
does runs on.  It may import neither library.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from billiard.exceptions import SoftTimeLimitExceeded
from greenlet import GreenletExit

from celery_clone.utils import coroutines

from .base import BasePool, apply_target

__all__ = ("GreenPool",)


class HardLimit(BaseException):
    """Ends a call that has reached its hard time limit; tasks do not catch it by accident."""


class GreenPool(BasePool):
    """Runs calls in at most *limit* green threads of this thread."""

    signal_safe = False
    is_green = True
    task_join_will_block = False
    cannot: ClassVar[dict[str, str]] = {
        "max_tasks_per_child": "green threads live for one task, in one process",
        "max_memory_per_child": "green threads share the memory of the worker",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The threads that run a call, by their number, which stands where other pools have a process id.
        self.running: dict[int, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        coroutines.run_coroutines_by(self._outcome_of)

    # -- for the two

    def current(self) -> Any:
        """The green thread that runs now."""
        raise NotImplementedError

    def spawn(self, function: Callable[[], None]) -> Any:
        """Have *function* called in a thread of the pool."""
        raise NotImplementedError

    def apart(self, function: Callable[[], Any]) -> Any:
        """Have *function* called in a thread that is not of the pool."""
        raise NotImplementedError

    def spawn_outside(self, function: Callable[[], None]) -> Any:
        """Have *function* called in a thread that takes no place in the pool."""
        raise NotImplementedError

    def throw(self, thread: Any, error: BaseException) -> None:
        """Raise *error* in *thread*, without waiting for what it makes of that."""
        raise NotImplementedError

    def alarm(self, seconds: float, function: Callable[[], None]) -> Callable[[], Any]:
        """Have *function* called in *seconds*; what takes that back."""
        raise NotImplementedError

    # -- coroutines

    def _outcome_of(self, coroutine: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
        """Run the body of an ``async def`` task, on one loop for all: the threads here are one to asyncio."""
        if self._loop is None:
            # A selector that waits as the green threads do; others would stop them all.
            self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
            self.spawn_outside(self._loop.run_forever)
        return coroutines.outcome_on(self._loop, coroutine)

    def unbind(self) -> None:
        """End the loop, too."""
        super().unbind()
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._loop.stop)

    # -- the pool

    def on_terminate(self) -> None:
        """End what runs."""
        for thread in [*self.running.values()]:
            self.throw(thread, GreenletExit())

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        timeout: float | None = None,
        timeout_callback: Callable[[bool, float], Any] | None = None,
        soft_timeout: float | None = None,
        error_callback: Callable[[Any], Any] | None = None,
        **_: Any,
    ) -> Any:
        """Have *target* called in a green thread; *timeout* and *soft_timeout* are seconds."""

        def run() -> None:
            thread = self.current()
            number = id(thread)
            self.running[number] = thread
            try:
                with self._limits(thread, soft_timeout, timeout, timeout_callback):
                    apply_target(
                        target,
                        args or (),
                        kwargs,
                        callback,
                        accept_callback,
                        pid=number,
                        propagate=(GreenletExit, HardLimit),
                    )
            except (GreenletExit, HardLimit) as exc:
                if error_callback is not None:
                    error_callback(exc)
            finally:
                del self.running[number]

        if id(self.current()) in self.running:
            # The call that ends here has its place in the pool until it is gone: waiting for one would be for ever.
            return self.apart(lambda: self.spawn(run))
        return self.spawn(run)

    @contextmanager
    def _limits(
        self, thread: Any, soft: float | None, hard: float | None, tell: Callable[[bool, float], Any] | None
    ) -> Iterator[None]:
        """Within it *thread* gets ``SoftTimeLimitExceeded`` after *soft* seconds and is ended after *hard*."""

        def over(is_soft: bool, seconds: float) -> None:
            if tell is not None:
                tell(is_soft, seconds)
            self.throw(thread, SoftTimeLimitExceeded() if is_soft else HardLimit())

        asked = (True, soft), (False, hard)
        alarms = [
            self.alarm(seconds, lambda is_soft=is_soft, seconds=seconds: over(is_soft, seconds))  # type: ignore[misc]
            for is_soft, seconds in asked
            if seconds
        ]
        try:
            yield
        finally:
            for take_back in alarms:
                take_back()

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the thread of number *pid*; there are no signals between green threads."""
        thread = self.running.get(pid)
        if thread is not None:
            self.throw(thread, GreenletExit())

    def grow(self, n: int = 1) -> None:
        """Allow *n* more green threads."""
        self._resize(n)

    def shrink(self, n: int = 1) -> None:
        """Allow *n* fewer; those that run are not ended."""
        self._resize(-n)

    def _resize(self, change: int) -> None:
        raise NotImplementedError
