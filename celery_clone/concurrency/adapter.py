"""Jobs for pools that only know how to call functions.

Base of ``concurrency.base.BasePool``, so that every pool written against that class, here or by others, can
be driven by the worker: each job becomes one ``apply_async`` whose callbacks become reports.  Pools with a
way of their own (prefork) replace these methods.  It may not assume where the function runs; a pool of
processes finds the runner by its number, in a child that inherited it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from billiard.exceptions import SoftTimeLimitExceeded

from celery_clone.message.frames import (
    TELL_BEGIN,
    Began,
    Ended,
    Job,
    Lost,
    Overtime,
    Report,
    Returned,
    Unfit,
)
from celery_clone.utils.log import get_logger

from .reports import Inbox

if TYPE_CHECKING:
    from .protocols import Runner

__all__ = ("JobsByCalls", "run_job")

logger = get_logger("celery.pool")

FINAL = (Ended, Unfit, Returned, Lost)


class _Bound:
    """A runner, made ready in each process that uses it, and flushed by one thread at a time."""

    def __init__(
        self, runner: Runner, on_begin: Callable[[Job], None], on_end: Callable[[Job], None], settles: bool
    ) -> None:
        self.runner = runner
        self.on_begin = on_begin
        self.on_end = on_end
        self.settles = settles
        """Does the pool store results before it tells of them?"""
        self.home = os.getpid()
        self.pid = 0
        self.lock = threading.Lock()

    def prepare(self) -> None:
        if self.pid != os.getpid():
            self.pid = os.getpid()
            self.lock = threading.Lock()
            self.runner.prepare()

    def run(self, job: Job) -> Report:
        self.prepare()
        reports: list[Report] = []
        try:
            # In one go: a soft limit that comes when the task has just ended must not lose its report.
            reports.extend(map(self.runner, (job,), (partial(self._begin, job),)))
        except Exception as exc:
            if not reports:
                logger.exception("Task %r could not be run", job.task)
                detail = f"{exc!r} left the runner, so it is unknown how far the task was."
                reports.append(Unfit(job.seq, "crashed", detail))
        finally:
            self._end(job)
        report = reports[0]
        if self.settles:
            return report
        try:
            self.flush()
        except Exception:
            logger.exception("The result of task %r could not be stored", job.task)
            report = Lost(job.seq, os.getpid(), None)
        return report

    def _begin(self, job: Job) -> None:
        # From another process nothing can be told: there the pool's own word, given a little earlier, has to do.
        if os.getpid() == self.home:
            self.on_begin(job)

    def _end(self, job: Job) -> None:
        if os.getpid() == self.home:
            while True:
                try:
                    self.on_end(job)
                    return
                except SoftTimeLimitExceeded:
                    pass  # as late as that it is for nobody

    def flush(self) -> None:
        # Under the lock: a report may not overtake its result, which another thread is just storing.
        with self.lock:
            if self.runner.unsent:
                self.runner.flush()


_bound: dict[int, _Bound] = {}


def run_job(number: int, fields: tuple[Any, ...]) -> Report:
    """Run the job made of *fields* with runner *number*.  Called by the pool, wherever it calls functions."""
    return _bound[number].run(Job(*fields))


class JobsByCalls:
    """The methods of ``concurrency.protocols.Pool`` in terms of ``apply_async``."""

    is_green = False
    runs_here = False
    """Does ``apply_async`` return when the call has ended?"""

    settles = False
    """Does it store the results of jobs before it tells of them, rather than have each job do it?"""

    has_hard_limits = True
    """Does it end calls that reach ``timeout``?"""

    cannot: ClassVar[Mapping[str, str]] = {}
    """What it cannot do, by the worker's option that asks for it: said when the worker starts."""

    num_processes: Any
    options: dict[str, Any]
    apply_async: Callable[..., Any]
    terminate_job: Callable[..., Any]

    _jobs_inbox: Inbox | None = None
    _jobs_closed = False
    _jobs_warned = False
    _jobs_number = 0
    _jobs_tell: Callable[[Sequence[Report]], None]

    @property
    def name(self) -> str:
        """The short name of the pool."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def green(self) -> bool:
        """Does it need the blocking loop?"""
        return self.is_green

    def bind(self, runner: Runner, tell: Callable[[Sequence[Report]], None]) -> None:
        """What runs the jobs, and who is told of them.  Before ``start``."""
        self._jobs_number = id(self)
        _bound[self._jobs_number] = _Bound(runner, self._on_begun, self._on_end, self.settles)
        self._jobs_tell = tell
        self._jobs_inbox = Inbox(
            self._tell_at_once if self.is_green else tell,
            direct=self.is_green,
            work=self._run_one if self.runs_here else None,
        )
        self._jobs_waiting: deque[tuple[Job, tuple[float | None, float | None]]] = deque()
        self._jobs_running: dict[int, tuple[int, float]] = {}
        self._jobs_handed: set[int] = set()
        self._jobs_lock = threading.RLock()
        self._jobs_closed = False

    def prepare(self) -> None:
        """Make this process ready to run jobs."""
        bound = _bound.get(id(self))
        if bound is not None:
            bound.prepare()

    def unbind(self) -> None:
        """The pool has ended: let go of the runner.  Legal twice, and without :meth:`bind`."""
        self._jobs_closed = True
        bound = _bound.pop(id(self), None)
        if bound is not None and bound.pid == os.getpid():
            bound.runner.finish()

    def watch(self, hub: Any) -> None:
        """Have *hub* tell the reports."""
        if self._jobs_inbox is not None:
            self._jobs_inbox.watch(hub)
            hub.on_tick.add(self._flush_own_results)

    def unwatch(self, hub: Any) -> None:
        """Take back what :meth:`watch` registered."""
        if self._jobs_inbox is not None:
            self._jobs_inbox.unwatch(hub)
            hub.on_tick.discard(self._flush_own_results)

    def _tell_at_once(self, reports: Sequence[Report]) -> None:
        """For green pools, whose loop has no ticks: what the worker has to say of a report is stored with it."""
        self._jobs_tell(reports)
        self._flush_own_results()

    def _flush_own_results(self) -> None:
        """Store what the worker itself had to say: here its results wait in the same buffer as those of tasks."""
        bound = _bound.get(id(self))
        if bound is not None and bound.runner.unsent:
            try:
                bound.flush()
            except Exception:
                logger.exception("Results could not be stored, which is tried again")

    def wait(self, timeout: float) -> None:
        """Tell the reports that are there, after waiting *timeout* seconds at most for one."""
        if self._jobs_inbox is not None:
            self._flush_own_results()
            self._jobs_inbox.wait(timeout)

    def room(self) -> int:
        """How many jobs could begin now."""
        return max(0, int(self.num_processes or 0) - len(self._jobs_handed) - len(self._jobs_waiting))

    def submit(
        self, jobs: Sequence[Job], limits: Sequence[tuple[float | None, float | None]] | None = None
    ) -> None:
        """Hand jobs over.  Those for which there is no room yet wait here, where they can be recalled."""
        soft_default, hard_default = self.options.get("soft_timeout"), self.options.get("timeout")
        with self._jobs_lock:
            for number, job in enumerate(jobs):
                soft, hard = limits[number] if limits is not None else (None, None)
                self._jobs_waiting.append((job, (soft or soft_default or None, hard or hard_default or None)))
        if self._jobs_inbox is not None and self.runs_here:
            self._jobs_inbox.wake()
        else:
            self._hand_over()

    def _run_one(self) -> bool:
        """For pools that call at once: one job in each turn of the loop, which has more to do than tasks."""
        self._hand_over_one()
        return bool(self._jobs_waiting) and not self._jobs_closed

    def _hand_over(self) -> None:
        while self._hand_over_one():
            pass

    def _hand_over_one(self) -> bool:
        """Have the next job called, if there is one and room for it."""
        with self._jobs_lock:
            full = len(self._jobs_handed) >= (self.num_processes or 0)
            if full or not self._jobs_waiting or self._jobs_closed:
                return False
            job, (soft, hard) = self._jobs_waiting.popleft()
            self._jobs_handed.add(job.seq)
        try:
            self._start_job(job, soft, hard)
        except Exception as exc:
            logger.exception("The %s pool refused task %r", self.name, job.task)
            detail = f"Task {job.task!r} was refused by the pool: {exc!r}"
            self._job_ended(Unfit(job.seq, "unsendable", detail))
        return True

    def _start_job(self, job: Job, soft: float | None, hard: float | None) -> None:
        """Have *job* run.  *soft* and *hard* are its limits in seconds."""
        if hard and not self.has_hard_limits and not self._jobs_warned:
            self._jobs_warned = True
            logger.warning("The %s pool cannot enforce hard time limits; the prefork pool can.", self.name)
        self.apply_async(
            run_job,
            args=(self._jobs_number, tuple(job)),
            accept_callback=partial(self._on_accepted, job),
            timeout_callback=partial(self._on_overtime, job.seq),
            callback=partial(self._on_returned, job.seq),
            error_callback=partial(self._on_failed, job.seq),
            soft_timeout=soft,
            timeout=hard,
            correlation_id=str(job.seq),
        )

    def _on_accepted(self, job: Job, pid: int, at: float) -> None:
        if pid != os.getpid():
            self._note_begin(job, pid, at)

    def _on_begun(self, job: Job) -> None:
        self._note_begin(job, os.getpid(), time.monotonic())

    def _on_end(self, job: Job) -> None:
        """The run of *job* is over; in the thread that ran it, also if it had not begun."""

    def _note_begin(self, job: Job, pid: int, at: float) -> None:
        if job.seq not in self._jobs_handed or job.seq in self._jobs_running:
            return
        self._jobs_running[job.seq] = (pid, at)
        if job.flags & TELL_BEGIN and self._jobs_inbox is not None:
            began = Began(job.seq, pid, at)
            if self.runs_here:
                self._jobs_tell([began])  # while the job runs nobody would
            else:
                self._jobs_inbox.put(began)

    def _on_returned(self, seq: int, value: Any) -> None:
        # An ExceptionInfo: the job ended with SystemExit or the like, in a pool that calls in this process.
        self._job_ended(value if isinstance(value, FINAL) else Lost(seq, self._pid_of(seq), None))

    def _on_failed(self, seq: int, error: Any) -> None:
        self._job_ended(Lost(seq, self._pid_of(seq), None))

    def _on_overtime(self, seq: int, soft: bool, timeout: float) -> None:
        if seq in self._jobs_handed and self._jobs_inbox is not None:
            self._jobs_inbox.put(Overtime(seq, soft, timeout))

    def _pid_of(self, seq: int) -> int:
        return self._jobs_running.get(seq, (os.getpid(), 0.0))[0]

    def _job_ended(self, report: Report) -> None:
        with self._jobs_lock:
            if report.seq not in self._jobs_handed:
                return
            self._jobs_handed.discard(report.seq)
            self._jobs_running.pop(report.seq, None)
        if self._jobs_inbox is not None:
            self._jobs_inbox.put(report)
        if self._jobs_waiting and not self.runs_here:
            self._hand_over()

    def recall(self) -> Sequence[int]:
        """Take back what was not yet given to a thread or process; their numbers."""
        if self._jobs_inbox is None:
            return []
        with self._jobs_lock:
            recalled = [job.seq for job, _ in self._jobs_waiting]
            self._jobs_waiting.clear()
        return recalled

    def begun(self) -> dict[int, tuple[int, float]]:
        """The jobs running now: number to (pid, monotonic time of begin)."""
        return dict(self._jobs_running) if self._jobs_inbox is not None else {}

    def kill(self, seq: int, signum: int) -> bool:
        """End *seq*, in pools that can.  ``False``: it does not run, or this pool cannot."""
        pid, _ = self.begun().get(seq, (0, 0.0))
        if not pid:
            return False
        try:
            self.terminate_job(pid, signum)
        except NotImplementedError:
            logger.warning("A task cannot be terminated in the %s pool; it runs on until the worker ends.", self.name)
            return False
        return True

    def resize(self, change: int) -> None:
        """Grow or shrink, in pools that can."""
        if change:
            method = getattr(self, "grow" if change > 0 else "shrink", None)
            if method is None:
                raise NotImplementedError(f"The {self.name} pool keeps its size: start it with another -c.")
            method(abs(change))

    def kill_all(self, grace: float) -> None:
        """Begin nothing more, and tell nothing of what still runs: it ends with this process."""
        if self._jobs_inbox is not None:
            self._jobs_closed = True
            self.recall()
            with self._jobs_lock:
                self._jobs_handed.clear()
                self._jobs_running.clear()
