"""One run of an ``async def`` task on a loop, and the thread that the loop has.

Made by the pool of asyncio for each job.  A run goes through the steps of the task's tracer: what may wait for
somebody is done in the pool's helper threads, everything else on the loop.  It may not know of the worker.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded

from celery_clone.message.frames import Ended, Job, Lost, Unfit
from celery_clone.utils import coroutines
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from celery_clone.app.runner import Call
    from celery_clone.app.trace import Steps

    from .asyncio import TaskPool

__all__ = ("CoroutineRun", "LoopThread")

logger = get_logger("celery.pool")

LET_GO_S = 3.0
"""What a cancelled coroutine gets to end; then its place is given to another one."""

LET_GO = (
    "Task %s[%s] was cancelled %g s ago and goes on: it catches CancelledError. Its place is given to others; let the "
    "error through."
)


class Doomed(BaseException):
    """Ends the steps around a body that was cancelled: its end is told by the worker, not by the task."""


class LoopThread(threading.Thread):
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        super().__init__(name="celery-asyncio", daemon=True)
        self.loop = asyncio.new_event_loop()
        self.begun = 0
        """How many coroutines it was given."""
        self.running: dict[int, CoroutineRun] = {}
        self.is_retired = False
        self.is_asked = False
        """Was it asked to turn, and has not yet?"""
        self.turned_at = 0.0
        self.accused: CoroutineRun | None = None
        self._posted: deque[Callable[[], None]] = deque()

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            coroutines.end_loop(self.loop)

    def post(self, function: Callable[[], None]) -> None:
        """Have *function* called on the loop.  From any thread; those that come together wake it once."""
        self._posted.append(function)
        if len(self._posted) == 1:
            try:
                self.loop.call_soon_threadsafe(self._call_posted)
            except RuntimeError:
                self._posted.clear()  # the loop has ended: there is nothing left to look after

    def _call_posted(self) -> None:
        for _ in range(len(self._posted)):
            try:
                self._posted[0]()
            except Exception as exc:
                logger.critical("A coroutine could not be looked after: %r", exc, exc_info=True)
            # After the call: whoever posts meanwhile sees that the loop is awake.
            self._posted.popleft()
        if self._posted:
            self.loop.call_soon(self._call_posted)

    def turned(self) -> None:
        """On the loop: it turns."""
        self.is_asked = False

    def retire(self) -> None:
        """End when the last coroutine has ended."""
        self.is_retired = True
        self.post(self.end_if_idle)

    def end_all(self) -> None:
        """On the loop: cancel what runs."""
        for run in [*self.running.values()]:
            run.end(-signal.SIGTERM)

    def end_if_idle(self) -> None:
        """On the loop: a coroutine has ended."""
        if self.is_retired and not self.running:
            self.loop.stop()


class CoroutineRun:
    """One run of an ``async def`` task.  Everything but the work of :meth:`_advance` happens on the loop."""

    __slots__ = (
        "alarms",
        "body",
        "call",
        "context",
        "doomed",
        "home",
        "is_over",
        "job",
        "limits",
        "pool",
        "request",
        "steps",
        "tracer",
    )

    def __init__(self, pool: TaskPool, home: LoopThread, job: Job, limits: tuple[float | None, float | None]) -> None:
        self.pool = pool
        self.home = home
        self.job = job
        self.limits = limits
        self.alarms: list[asyncio.TimerHandle] = []
        self.body: coroutines.Interruptible | None = None
        self.doomed: int | None = None
        """It was ended from outside, with this status of a process that a signal ends."""
        self.is_over = False
        self.context: contextvars.Context
        self.call: Call
        self.tracer: Steps
        self.steps: Any = None
        self.request: Any = None

    def begin(self) -> None:
        """Understand the message and do what comes before the body."""
        pool, job = self.pool, self.job
        if not pool.still_wants(job.seq):
            self._leave()
            return
        call = pool.runner.understand(job)
        if isinstance(call, Unfit):
            self._tell(call)
            return
        tracer = call.task.__trace__
        if getattr(tracer, "steps", None) is None or hasattr(tracer, "__wrapped__"):
            # Somebody put a tracer of their own around ours: it is called as they mean it, in a thread.
            self._leave()
            pool.run_in_thread(job, *self.limits)
            return
        self.call, self.tracer = call, tracer.steps
        self.context = pool.context.copy()
        self.steps = self.tracer.open(*call[1:])
        pool.began(job)
        for limit, over in zip(self.limits, (self._over_soft, self._over_hard), strict=True):
            if limit:
                self.alarms.append(self.home.loop.call_later(limit, over, limit))
        self._do(self.tracer.begins_quietly(), self._open, self._opened)

    # -- the steps

    def _do(self, quietly: bool, function: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Call *function* in the context of the run, here or where it may wait, and *then*, here, with its outcome."""
        if quietly:
            then(self._outcome(function))
        else:
            self.pool.helpers.submit(self._do_and_post, function, then)

    def _do_and_post(self, function: Callable[[], Any], then: Callable[[Any], None]) -> None:
        outcome = self._outcome(function)
        self.home.post(lambda: then(outcome))

    def _outcome(self, function: Callable[[], Any]) -> Any:
        try:
            return self.context.run(function)
        except BaseException as exc:  # noqa: BLE001 a loop must not end because of a task
            return exc

    def _open(self) -> Any:
        try:
            self.request = next(self.steps)
        except StopIteration as end:
            ended = end.value
            return self._conclude(lambda: ended)
        except BaseException as exc:  # noqa: BLE001 what it means is for the runner to say
            error = exc
            return self._conclude(lambda: _raise(error))
        return None

    def _opened(self, report: Any) -> None:
        if report is not None:
            self._tell(report)
            return
        if self.doomed is not None:
            self._body_ended(None)
            return
        try:
            value = self.context.run(self.tracer.body, *self.call.args, **self.call.kwargs)
        except BaseException as exc:  # noqa: BLE001 this is where users' errors end up
            self._close(False, exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next))
            return
        if type(value) is not CoroutineType:
            self._close(True, value)
            return
        self.body = coroutines.Interruptible(value)
        self.context.run(self.body.start, self.home.loop).add_done_callback(self._body_ended)

    def _body_ended(self, _: Any) -> None:
        if self.doomed is not None:
            self._do(False, self._give_up, lambda _: self._tell(Lost(self.job.seq, os.getpid(), self.doomed)))
        elif self.body is not None:
            self._close(*self.body.outcome)

    def _close(self, ok: bool, value: Any) -> None:
        """The body has ended: what comes after it."""
        self._silence()
        quietly = ok and self.pool.runner.is_deferring and self.tracer.ends_quietly(self.request)
        last = partial(self._send, value) if ok else partial(self._throw, value)
        self._do(quietly, lambda: self._conclude(last), self._tell)

    def _send(self, value: Any) -> Any:
        try:
            self.steps.send(value)
        except StopIteration as end:
            return end.value

    def _throw(self, error: BaseException) -> Any:
        try:
            self.steps.throw(error)
        except StopIteration as end:
            return end.value

    def _conclude(self, run: Callable[[], Any]) -> Ended:
        return Ended(self.job.seq, self.pool.runner.conclude(self.call, run).pack())

    def _give_up(self) -> None:
        try:
            self.steps.throw(Doomed())
        except (Doomed, StopIteration):
            pass

    # -- its end

    def _silence(self) -> None:
        for alarm in self.alarms:
            alarm.cancel()

    def _tell(self, report: Any) -> None:
        self._silence()
        if isinstance(report, BaseException):
            # SystemExit and the like: what is to be stored of that was stored by the runner.
            report = Lost(self.job.seq, os.getpid(), None)
        self._leave()
        if not self.is_over:
            self.is_over = True
            self.pool.settle(report)

    def _leave(self) -> None:
        self.home.running.pop(self.job.seq, None)
        self.home.end_if_idle()

    def _over_soft(self, limit: float) -> None:
        if self.body is not None and self.doomed is None:
            self.pool._on_overtime(self.job.seq, True, limit)
            self.body.throw(SoftTimeLimitExceeded())

    def _over_hard(self, limit: float) -> None:
        if self.doomed is None:
            self.pool._on_overtime(self.job.seq, False, limit)
            self.end(-signal.SIGKILL)

    def interrupt(self) -> None:
        """Raise ``SoftTimeLimitExceeded`` in the body."""
        if self.body is not None:
            self.body.throw(SoftTimeLimitExceeded())

    def end(self, status: int) -> None:
        """Cancel the body, and tell that it was lost."""
        if self.doomed is not None or self.steps is None:
            return
        if self.body is None:
            self.doomed = status  # before the body: it does not begin
        elif self.body.task is not None and not self.body.task.done():
            self.doomed = status
            self.body.throw(asyncio.CancelledError())
            self.alarms.append(self.home.loop.call_later(LET_GO_S, self._let_go))

    def _let_go(self) -> None:
        if not self.is_over:
            self.is_over = True
            logger.error(LET_GO, self.job.task, self.call.id, LET_GO_S)
            self.pool.settle(Lost(self.job.seq, os.getpid(), self.doomed))


def _raise(error: BaseException) -> Any:
    raise error
