"""The pool of coroutines: ``async def`` tasks, many at once on one event loop, for tasks that wait.

Chosen with ``--pool=asyncio``.  The loop has a thread of its own, so the worker goes on while tasks run.  Tasks that
are plain functions run in other threads, and so does what would make the loop wait: storing failures, sending what
follows a task, signals, the task's own handlers.  Results that can wait are stored together, in one round trip.

A coroutine is ended where it waits.  One that computes without an ``await`` holds up all the others.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar

from billiard.exceptions import SoftTimeLimitExceeded

from celery_clone.message.frames import Ended, Job, Lost, Unfit
from celery_clone.utils import coroutines
from celery_clone.utils.log import get_logger

from .crew import Crew
from .thread import TaskPool as ThreadPool

if TYPE_CHECKING:
    from celery_clone.app.runner import Call, TaskRunner
    from celery_clone.app.trace import Steps

__all__ = ("TaskPool",)

logger = get_logger("celery.pool")

HELPERS = 16
"""Threads for what would make the loop wait."""

LET_GO_S = 3.0
"""What a cancelled coroutine gets to end; then its place is given to another one."""

LOOK_EVERY_S = 1.0
HELD_UP_S = 2.0
"""A loop that does not turn for so long is held up by somebody."""

HELD_UP = (
    "All coroutines have been waiting for more than %g s: task %s[%s] computes, or calls something that blocks, "
    "without an await. Use asyncio.to_thread(), or make it a plain function, which runs in a thread."
)
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
            self.loop.call_soon_threadsafe(self._call_posted)

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


class TaskPool(ThreadPool):
    """Runs at most *limit* tasks at once: coroutines on a loop, functions in threads as that pool does.

    Option ``maxtasksperchild``: after so many coroutines the next ones get a new loop.
    """

    cannot: ClassVar[dict[str, str]] = {
        "time_limit": "a coroutine is ended where it waits, and plain functions run in threads, to their end",
        "max_tasks_per_child": "the next coroutines get a new loop after so many, but no memory is given back",
        "max_memory_per_child": "coroutines share the memory of the worker",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context = contextvars.copy_context()
        self._home: LoopThread | None = None
        self._homes: list[LoopThread] = []
        self._kinds: dict[str, bool] = {}
        self._look: Any = None
        self.helpers: Crew

    @property
    def runner(self) -> TaskRunner:
        """What understands and concludes jobs."""
        return self._bound_runner  # type: ignore[no-any-return]

    # -- life

    def on_start(self) -> None:
        """Start the loop."""
        self.context = contextvars.copy_context()
        self.helpers = Crew(HELPERS, "celery-helper")
        self._new_home()
        coroutines.run_coroutines_by(self._outcome_of)

    def _new_home(self) -> LoopThread:
        home = self._home = LoopThread()
        self._homes = [*(one for one in self._homes if one.is_alive()), home]
        home.start()
        return home

    def _outcome_of(self, coroutine: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
        """Run what a plain function of a task returned, or a task that is called eagerly."""
        home = self._home
        if home is None or threading.current_thread() in self._homes:
            return coroutines.outcome_beside(coroutine)
        return coroutines.outcome_on(home.loop, coroutine)

    def on_stop(self) -> None:
        """Wait for what runs; what waits is forgotten."""
        if self._home is None:
            return
        while self._jobs_handed:
            time.sleep(0.005)
        self._end(wait=True)

    def on_terminate(self) -> None:
        """Cancel the coroutines; what runs in threads ends with the process."""
        self._end(wait=False)

    def kill_all(self, grace: float) -> None:
        """Cancel the coroutines, which get *grace* seconds, and tell nothing of what still runs."""
        super().kill_all(grace)
        until = time.monotonic() + grace
        for home in self._homes:
            home.post(home.end_all)
        while any(home.running for home in self._homes) and time.monotonic() < until:
            time.sleep(0.005)

    def _end(self, wait: bool) -> None:
        homes, self._homes, self._home = self._homes, [], None
        if not homes:
            return
        coroutines.run_coroutines_by(None)
        for home in homes:
            if home.is_alive():
                home.loop.call_soon_threadsafe(home.loop.stop)
        self.executor.shutdown(wait=wait, cancel_futures=True)
        self.helpers.shutdown(wait=wait)
        for home in homes:
            home.join(LET_GO_S)
        self._alarms.stop()

    def watch(self, hub: Any) -> None:
        """Have *hub* tell the reports, and look after the loop."""
        super().watch(hub)
        self._look = hub.call_repeatedly(LOOK_EVERY_S, self._look_after)

    def unwatch(self, hub: Any) -> None:
        """Take back what :meth:`watch` registered."""
        super().unwatch(hub)
        look, self._look = self._look, None
        if look is not None:
            look.cancel()

    def _look_after(self) -> None:
        """Say which task keeps a loop from turning."""
        for home in self._homes:
            if home.running and not home.is_asked:
                home.is_asked, home.turned_at = True, time.monotonic()
                home.post(home.turned)
            elif home.is_asked and time.monotonic() - home.turned_at >= HELD_UP_S:
                busy = next((run for run in [*home.running.values()] if run.body and run.body.is_stepping), None)
                if busy is not None and busy is not home.accused:
                    home.accused = busy
                    logger.warning(HELD_UP, HELD_UP_S, busy.job.task, busy.call.id)

    def restart(self) -> None:
        """Give the next coroutines a new loop; the old one ends with the last that runs on it."""
        self._kinds.clear()
        with self._jobs_lock:
            old = self._home
            self._new_home()
        if old is not None:
            old.retire()

    # -- jobs

    def _start_job(self, job: Job, soft: float | None, hard: float | None) -> None:
        if job.call is not None or not self._is_coroutine(job.task):
            self.run_in_thread(job, soft, hard)
            return
        most = self.options.get("maxtasksperchild")
        with self._jobs_lock:
            home, old = self._home, None
            if home is None:
                raise RuntimeError("The pool does not run; start() it first.")
            if most and home.begun >= most:
                old, home = home, self._new_home()
            home.begun += 1
            run = home.running[job.seq] = CoroutineRun(self, home, job, (soft, hard))
        if old is not None:
            old.retire()
        home.post(run.begin)

    def _is_coroutine(self, name: str) -> bool:
        kind = self._kinds.get(name)
        if kind is None:
            known = getattr(self.runner, "is_coroutine", None)
            kind = self._kinds[name] = bool(known and known(name))
        return kind

    def run_in_thread(self, job: Job, soft: float | None, hard: float | None) -> None:
        """Have a job that is a plain function run."""
        super()._start_job(job, soft, None)
        if hard and not self._jobs_warned:
            self._jobs_warned = True
            logger.warning("Task %s runs in a thread, which cannot be ended at its hard time limit.", job.task)

    def still_wants(self, seq: int) -> bool:
        """Was this job not taken back by a cold end?"""
        return seq in self._jobs_handed

    def began(self, job: Job) -> None:
        """The body of *job* is next."""
        self._note_begin(job, os.getpid(), time.monotonic())

    def _begin_settling(self) -> None:
        # Elsewhere: the loop is not to wait for the store.
        self.helpers.submit(self._settle_all)

    def kill(self, seq: int, signum: int) -> bool:
        """Cancel the coroutine that runs *seq*; ``SIGUSR1`` raises ``SoftTimeLimitExceeded`` in it."""
        for home in self._homes:
            run = home.running.get(seq)
            if run is not None:
                home.post(run.interrupt if signum == signal.SIGUSR1 else partial(run.end, -signum))
                return True
        if seq in self.begun():
            logger.warning("A plain function cannot be terminated in the asyncio pool; it runs until the worker ends.")
        return False

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "processes": [os.getpid()],
            "timeouts": (self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0),
            "coroutines": sum(len(home.running) for home in self._homes),
        }
