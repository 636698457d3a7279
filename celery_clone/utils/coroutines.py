"""Coroutines of tasks: run to their end by whoever called, and interrupted where they wait.

Used by the tracer (:func:`outcome_of`) in every pool that calls functions, by the pools that have a loop of their
own (:class:`Interruptible`), and by signal handlers that have to end a task's time (:func:`interrupt`).  It owns one
loop for each thread that runs coroutines.  It may not know what a task is.

Importing this module is cheap; asyncio is brought in by the first coroutine.
"""

from __future__ import annotations

import atexit
import contextvars
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

__all__ = (
    "Interruptible",
    "close_loop",
    "end_loop",
    "interrupt",
    "outcome_beside",
    "outcome_of",
    "outcome_on",
    "run_coroutines_by",
)

Result = tuple[bool, Any]
"""Did it return, and what it returned or raised."""


class Interruptible(Awaitable[Any]):
    """Awaits *coroutine*, into which :meth:`throw` can raise an error wherever it waits."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine = coroutine
        self.is_stepping = False
        """Is the code of the coroutine just running?"""
        self.runs_elsewhere = False
        """Does its loop run in another thread than that of who waits for it?"""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[Result] | None = None
        self._error: BaseException | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[Result]:
        """Have it awaited by a task of *loop*, in a copy of the current context; :attr:`outcome` tells its end."""
        self.loop = loop
        self.task = loop.create_task(self._awaited())
        return self.task

    async def _awaited(self) -> Result:
        try:
            return True, await self
        except BaseException as exc:  # noqa: BLE001 a loop must not end because a task raised SystemExit
            # Without this line and that of __await__: what is shown is the code of the task.
            below = exc.__traceback__ and exc.__traceback__.tb_next
            return False, exc.with_traceback(below and below.tb_next)

    @property
    def outcome(self) -> Result:
        """How it ended.  ``RuntimeError`` stands for a cancellation that nobody here asked for."""
        from asyncio import CancelledError  # noqa: PLC0415 loaded long since, by whoever made the loop

        assert self.task is not None and self.task.done()
        if self.task.cancelled():
            # Before its first step.
            self.coroutine.close()
            return False, self._error or CancelledError()
        ok, value = self.task.result()
        if not ok and isinstance(value, CancelledError):
            error = RuntimeError("The coroutine of the task was cancelled, by itself or by what it waited for.")
            error.__cause__ = value
            return False, error.with_traceback(value.__traceback__)
        return ok, value

    def throw(self, error: BaseException) -> None:
        """Raise *error* in the coroutine.  In the thread of the loop."""
        if self.task is not None and not self.task.done():
            self._error = error
            self.task.cancel()

    def throw_soon(self, error: BaseException) -> None:
        """As :meth:`throw`, from any thread and from signal handlers."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.throw, error)

    def __await__(self) -> Generator[Any, Any, Any]:
        from asyncio import CancelledError  # noqa: PLC0415 as above

        coroutine = self.coroutine
        error: BaseException | None = None
        while True:
            self.is_stepping = True
            try:
                waits_for = coroutine.send(None) if error is None else coroutine.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                self.is_stepping = False
            error = None
            try:
                yield waits_for
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as exc:  # noqa: BLE001 it is for the coroutine to see
                error = exc
                if self._error is not None and isinstance(exc, CancelledError):
                    # Our own cancel(), which is how a task of asyncio is woken.
                    error, self._error = self._error, None
                    uncancel = getattr(self.task, "uncancel", None)  # Python 3.11
                    if uncancel is not None:
                        uncancel()


class _Home(threading.local):
    """The loop of a thread."""

    loop: Any = None
    pid = 0


_home = _Home()

_running: dict[int, list[Interruptible]] = {}
"""What threads run to its end, by their numbers, the innermost last."""

_run_by: Callable[[Coroutine[Any, Any, Any]], Result] | None = None


def interrupt(error: BaseException, thread: int | None = None) -> bool:
    """Raise *error* in the coroutine that *thread* (default: this one) runs, where it waits.  For signal handlers, too.

    ``False``: no coroutine runs, or its own code is just running: the caller has to raise by other means, and that
    is where it will show.  Raised between the steps of a loop an error would be taken for a fault of the loop.
    """
    running = _running.get(threading.get_ident() if thread is None else thread)
    if not running or (running[-1].is_stepping and not running[-1].runs_elsewhere):
        return False
    running[-1].throw_soon(error)
    return True


def run_coroutines_by(call: Callable[[Coroutine[Any, Any, Any]], Result] | None) -> None:
    """Have *call* run what is given to :func:`outcome_of`, in whatever thread; ``None``: no longer.

    For pools that have a loop, and for green threads, which cannot have a loop each.
    """
    global _run_by
    _run_by = call


def outcome_of(coroutine: Coroutine[Any, Any, Any]) -> Result:
    """Run *coroutine* to its end.

    The loop is that of this thread, and stays for the next one: connections that belong to a loop can be kept from
    one task to the next.  Called while a loop runs in this thread, it blocks that loop, and runs the coroutine in
    another thread.
    """
    import asyncio  # noqa: PLC0415 costs 30 ms that only apps with such tasks should pay

    if _run_by is not None:
        return _run_by(coroutine)
    if asyncio._get_running_loop() is not None:
        return outcome_beside(coroutine)
    return _outcome_here(coroutine)


def _outcome_here(coroutine: Coroutine[Any, Any, Any]) -> Result:
    loop = _loop_of_thread()
    interruptible = Interruptible(coroutine)
    with _innermost(interruptible):
        task = interruptible.start(loop)
        try:
            loop.run_until_complete(task)
        except BaseException as exc:  # noqa: BLE001 it goes where the task can see it
            if not task.done():
                # Raised by a signal handler in the loop's own code: the coroutine has not seen it.
                interruptible.throw(exc)
                loop.run_until_complete(task)
        return interruptible.outcome


@contextmanager
def _innermost(interruptible: Interruptible) -> Iterator[None]:
    """Within it :func:`interrupt` means this coroutine, for this thread."""
    number = threading.get_ident()
    running = _running.setdefault(number, [])
    running.append(interruptible)
    try:
        yield
    finally:
        running.pop()
        if not running:
            _running.pop(number, None)


def _loop_of_thread() -> Any:
    """The loop of this thread; a process that was forked does not go on with its parent's."""
    import asyncio  # noqa: PLC0415 as above

    if _home.loop is None or _home.pid != os.getpid() or _home.loop.is_closed():
        if not _home.pid and threading.current_thread() is threading.main_thread():
            atexit.register(close_loop)
        _home.loop, _home.pid = asyncio.new_event_loop(), os.getpid()
    asyncio.set_event_loop(_home.loop)
    return _home.loop


def close_loop() -> None:
    """Let go of the loop of this thread, which ends: what still waits on it is cancelled.  Legal twice."""
    loop, _home.loop = _home.loop, None
    if loop is not None and _home.pid == os.getpid() and not loop.is_closed() and not loop.is_running():
        end_loop(loop)


def end_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still waits on *loop*, which does not run, and close it."""
    import asyncio  # noqa: PLC0415 as above

    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def outcome_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> Result:
    """Run *coroutine* on *loop*, which runs in another thread, in the caller's context, and wait for it.

    What is raised in the caller meanwhile (a time limit, the end of a green thread) is for the coroutine.
    """
    ended = threading.Event()
    interruptible = Interruptible(coroutine)

    def begin() -> None:
        interruptible.start(loop).add_done_callback(lambda _: ended.set())

    interruptible.runs_elsewhere, interruptible.loop = True, loop
    loop.call_soon_threadsafe(begin, context=contextvars.copy_context())
    with _innermost(interruptible):
        while not ended.is_set():
            try:
                ended.wait()
            except BaseException as exc:  # noqa: BLE001 it goes where the task can see it
                interruptible.throw_soon(exc)
    return interruptible.outcome


def outcome_beside(coroutine: Coroutine[Any, Any, Any]) -> Result:
    """Run *coroutine* in a thread of its own, in the caller's context, and wait for it."""
    outcome: list[Result] = []

    def run() -> None:
        try:
            outcome.append(_outcome_here(coroutine))
        finally:
            close_loop()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="coroutine", daemon=True)
    thread.start()
    thread.join()
    return outcome[0]
