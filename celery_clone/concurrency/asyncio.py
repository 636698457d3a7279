"""The pool of coroutines: ``async def`` tasks, many at once on one event loop, for tasks that wait.

Chosen with ``--pool=asyncio``.  The loop has a thread of its own, so the worker goes on while tasks run.  Tasks that
are plain functions run in other threads, and so does what would make the loop wait: storing failures, sending what
follows a task, signals, the task's own handlers.  Results that can wait are stored together, in one round trip.

A coroutine is ended where it waits.  One that computes without an ``await`` holds up all the others.
"""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from celery_clone.message.frames import Job
from celery_clone.utils import coroutines
from celery_clone.utils.log import get_logger

from .coroutine_run import LET_GO_S, CoroutineRun, LoopThread
from .crew import Crew
from .thread import TaskPool as ThreadPool

if TYPE_CHECKING:
    from celery_clone.app.runner import TaskRunner

__all__ = ("TaskPool",)

logger = get_logger("celery.pool")

HELPERS = 16
"""Threads for what would make the loop wait."""

LOOK_EVERY_S = 1.0
HELD_UP_S = 2.0
"""A loop that does not turn for so long is held up by somebody."""

HELD_UP = (
    "All coroutines have been waiting for more than %g s: task %s[%s] computes, or calls something that blocks, "
    "without an await. Use asyncio.to_thread(), or make it a plain function, which runs in a thread."
)

LOOK_S = 0.005
"""How often a pool that ends looks whether its coroutines have: their loops are in other threads."""


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
            time.sleep(LOOK_S)
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
            time.sleep(LOOK_S)

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
