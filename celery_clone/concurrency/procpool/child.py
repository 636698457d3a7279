"""What a child of the process pool does: take a job, run it, report it, again.

Built by ``procpool.members`` and run by ``billiard.Process`` in the new process.  The loop stands inside
the job-wait hook of billiard's ``Worker``: instrumentation that replaces ``Worker.workloop`` surrounds it.
Owns its two sockets, its slot and the reports that wait; it may not know what a task is (the runner does).

Reports of short jobs wait for the next ones and leave together, after the results of the runner were flushed.
A guard thread sends them when the job that is running keeps them waiting.  The main thread alone is hit by
signals; while it sends, they wait (a report must not be cut in half).
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

from billiard.common import reset_signals
from billiard.einfo import ExceptionInfo
from billiard.pool import EX_FAILURE, EX_OK, EX_RECYCLE, MAXMEM_USED_FMT, MaybeEncodingError, Worker
from billiard.process import current_process

from celery_clone import states
from celery_clone.exceptions import SoftTimeLimitExceeded, WorkerTerminate
from celery_clone.execution.outcome import ErrorInfo, Outcome
from celery_clone.message.frames import (
    MAY_WAIT,
    TELL_BEGIN,
    Began,
    Ended,
    Job,
    Report,
    Returned,
    Unfit,
    encode_reports,
)
from celery_clone.platforms import signals
from celery_clone.utils.coroutines import interrupt
from celery_clone.utils.log import get_logger

from .jobs import Intake, Kind
from .limits import highest_kilobytes, resident_kilobytes
from .slots import HOLDS, NOBODY, Slot

if TYPE_CHECKING:
    from celery_clone.concurrency.protocols import Runner

__all__ = ("Child", "Closable", "Plan", "run_call")

logger = get_logger("celery.pool")

BATCH_AGE_NS = 5_000_000
"""The main thread sends reports that have waited this long before it begins another job."""

STALL_AGE_NS = 20_000_000
"""The guard sends reports that have waited this long while a job runs."""

GUARD_EVERY = 0.01
GUARD_DOZES_AFTER = 50
"""Turns without anything to do after which the guard waits to be woken."""


# Billiard's function of this purpose compiles declarations with cffi in every child, which costs 5 MB each.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, where it can (Linux)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def tell_if_late(seconds: float) -> None:
    """Have the stacks of this process written to its standard error in *seconds*, unless :func:`not_late` is called."""
    try:
        faulthandler.dump_traceback_later(seconds, file=sys.__stderr__ or sys.stderr)
    except (AttributeError, OSError, RuntimeError, ValueError):
        pass  # there is no standard error, or it is no file: nobody to tell


def not_late() -> None:
    """What :func:`tell_if_late` watches has been done."""
    faulthandler.cancel_dump_traceback_later()


class Closable(Protocol):
    """Something of the parent that the child must let go of."""

    def close(self) -> None:
        """Close this process' copy."""


class Plan(NamedTuple):
    """How children live, the same for all children of a pool."""

    initializer: Callable[..., Any] | None = None
    initargs: Sequence[Any] = ()
    on_exit: Callable[[int, int], Any] | None = None
    """Called with pid and exit code when the child leaves."""
    max_tasks: int | None = None
    max_memory: int | None = None
    """Kilobytes this child may grow by beyond what it started with."""


def run_call(job: Job) -> Returned:
    """Run a plain call.  What is not an ``Exception`` flies on."""
    assert job.call is not None
    try:
        target, args, kwargs = pickle.loads(job.call)
        value = target(*args, **kwargs)
    except Exception:  # noqa: BLE001 whatever the function raises is for the caller to see
        return returned_error(job.seq)
    try:
        return Returned(job.seq, pickle.dumps((True, value), pickle.HIGHEST_PROTOCOL))
    except Exception as exc:  # noqa: BLE001 any user class may refuse to be pickled
        try:
            raise MaybeEncodingError(exc, value) from exc
        except MaybeEncodingError:
            return returned_error(job.seq)


def returned_error(seq: int) -> Returned:
    """The report of a call that raised the exception which is being handled."""
    error = ExceptionInfo()
    try:
        return Returned(seq, pickle.dumps((False, error), pickle.HIGHEST_PROTOCOL))
    except Exception as exc:  # noqa: BLE001 any user class may refuse to be pickled
        try:
            raise MaybeEncodingError(exc, error.exception) from None
        except MaybeEncodingError:
            return Returned(seq, pickle.dumps((False, ExceptionInfo()), pickle.HIGHEST_PROTOCOL))


def report_of_escape(job: Job | None, seq: int, exc: BaseException) -> Report:
    """The last word on a job out of which *exc*, the exception being handled, flew.

    A task that leaves with ``SystemExit`` or ``KeyboardInterrupt`` has failed.  Anything else came from
    the runner itself, and means that nobody can say how far the task was.
    """
    if job is not None and job.call is not None:
        return returned_error(seq)
    traceback = ExceptionInfo().traceback
    if isinstance(exc, (SystemExit, KeyboardInterrupt)):
        try:
            pickled: bytes | None = pickle.dumps(exc)
        except Exception:  # noqa: BLE001 any user class may refuse to be pickled
            pickled = None
        error = ErrorInfo(type(exc).__name__, type(exc).__module__, repr(exc), traceback, pickled)
        return Ended(seq, Outcome(states.FAILURE, repr(exc), error=error).pack())
    detail = f"{exc!r} left the runner, so it is unknown how far the task was.\n{traceback}"
    return Unfit(seq, "crashed", detail)


def exit_code(exc: SystemExit) -> int:
    """The status a process ends with when *exc* ends it."""
    if exc.code is None:
        return int(EX_OK)
    return exc.code & 0xFF if isinstance(exc.code, int) else int(EX_FAILURE)


class _NoQueue:
    """Billiard's loop asks for its result queue; reports do not go through it."""

    def put(self, value: Any) -> None:
        raise RuntimeError(f"{value!r} was put into a queue nobody reads; the child sends its own reports.")


class Child(Worker):
    """The body of one child process."""

    def __init__(
        self,
        plan: Plan,
        runner: Runner | None,
        slot: Slot,
        jobs: socket.socket,
        reports: socket.socket,
        inherited: Callable[[], Iterable[Closable]] | None,
    ) -> None:
        # The base class is not initialised: its queues do not exist here.
        self.plan, self.runner, self.slot = plan, runner, slot
        self.jobs, self.reports = jobs, reports
        self.inherited = inherited
        self.parent_pid = os.getpid()
        self.signal_mask: Iterable[int] = ()
        """Signals to leave blocked once the child handles them itself."""
        # What billiard's workloop() looks at before it waits for a job.
        self.outq = _NoQueue()
        self.inqW_fd = self.synqW_fd = -1
        self.maxtasks = self.max_memory_per_child = None
        self.wait_for_syn = self.on_ready_counter = None
        self.wait_for_job = self.serve

    def __reduce__(self) -> tuple[Any, ...]:
        """For a child that is spawned: what it needs, with its descriptors handed over."""
        wanted = (self.slot.descriptor, self.jobs.fileno(), self.reports.fileno())
        return _rebuild, (self.plan, self.runner, *map(_hand_over, wanted), self.parent_pid)

    # -- life

    def __call__(self) -> NoReturn:
        """Set up, work, leave.  Never returns."""
        self.pid = os.getpid()
        self.name = current_process().name
        self.pending: list[Report] = []
        self.oldest_ns = 0
        self.running = NOBODY
        self.flags = 0
        self.completed = 0
        self.terminated = 0
        self.shielded = False
        self.flushing = threading.Lock()
        self.guard = Guard(self)
        code = EX_FAILURE
        ready = False
        try:
            self._set_up()
            ready = True
            self.workloop(pid=self.pid)
            code = EX_OK
        except SystemExit as exc:
            code = exit_code(exc)
        except BaseException as exc:
            logger.critical("Pool process %r error: %r", self.name, exc, exc_info=True)
        finally:
            self._leave(code, ready)

    def _set_up(self) -> None:
        if self.inherited is not None:
            for thing in self.inherited():
                thing.close()
            self.inherited = None
        die_with_parent()
        if os.getppid() != self.parent_pid:
            os._exit(EX_FAILURE)  # the parent died before it could be watched
        signals.reset("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1")
        signals.ignore("SIGINT")
        signal.pthread_sigmask(signal.SIG_SETMASK, self.signal_mask)
        gc.enable()
        self.first_kilobytes = resident_kilobytes() if self.plan.max_memory else 0
        if self.plan.initializer is not None:
            self.plan.initializer(*self.plan.initargs)
        # After the initializer, which is user code and may have set its own.
        reset_signals(self._on_terminate)
        signals["SIGUSR1"] = self._on_soft_limit
        signals.ignore("SIGINT")
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._forked
        )
        if self.runner is not None:
            self.runner.prepare()
        self.intake = Intake(self.jobs, self.slot.claim_bytes)
        self.slot.set_ready()
        not_late()

    def _leave(self, code: int, ready: bool) -> NoReturn:
        if os.getpid() != self.pid:
            os._exit(code)
        try:
            if ready:
                self.shielded = True
                self._send_pending()
                if self.runner is not None:
                    self.runner.finish()
                if self.plan.on_exit is not None:
                    self.plan.on_exit(self.pid, code)
        except BaseException as exc:
            code = code or EX_FAILURE
            logger.critical("Pool process %r failed while it was leaving: %r", self.name, exc, exc_info=True)
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except Exception:  # noqa: BLE001, S110 closed or replaced by the task; there is nobody to tell
                    pass
            if self.terminated:
                # Die of the signal, so that whoever reads the exit status sees which.
                signal.signal(self.terminated, signal.SIG_DFL)
                os.kill(self.pid, self.terminated)
            os._exit(code)

    # -- signals (main thread)

    def _on_terminate(self, signum: int, frame: FrameType | None) -> None:
        """SIGTERM and its like: leave through a ``SystemExit``, so that the task's ``finally`` blocks run.

        It is one of its own, by which the runner can tell that the task did not ask for it.
        """
        if os.getpid() == self.pid:
            signal.signal(signum, signal.SIG_DFL)  # the second one ends the process at once
            self.terminated = signum
            if self.shielded or (frame is not None and frame.f_code is RUN_CODE):
                return  # a report is being noted or sent: leave after it
        raise WorkerTerminate(128 + signum)

    def _on_soft_limit(self, signum: int, frame: FrameType | None) -> None:
        """SIGUSR1: stop the job it was meant for, if that one still runs."""
        if self.running == NOBODY or self.slot.target != self.running or os.getpid() != self.pid:
            return
        if frame is not None and frame.f_code is RUN_CODE:
            return  # on the last steps: the job has ended and only its report is not yet noted
        error = SoftTimeLimitExceeded()
        if not interrupt(error):
            raise error

    # -- forks by user code

    def _before_fork(self) -> None:
        # Not while the guard is half-way through a flush.  Bounded: a stuck store must not stop the task.
        self.lock_held_over_fork = self.flushing.acquire(timeout=1.0)

    def _after_fork(self) -> None:
        if self.lock_held_over_fork:
            self.flushing.release()

    def _forked(self) -> None:
        """In a process that the task forked: it has no part in this pool."""
        self.flushing = threading.Lock()
        self.jobs.close()
        self.reports.close()

    # -- work

    def serve(self) -> NoReturn:
        """Take jobs until it is time to leave."""
        take, slot = self.intake.take, self.slot
        while True:
            kind = take(wait=False) if self.pending else None
            if kind is None:
                self.settle()
                if slot.leave:
                    raise SystemExit(EX_OK)
                kind = take(wait=True)
            if kind is Kind.JOB or kind is Kind.FILE:
                self._work(slot.claim().seq, self.intake.flags)
            elif kind is not Kind.POKE:
                raise SystemExit(EX_OK)

    def _work(self, seq: int, flags: int) -> None:
        pending = self.pending
        if pending:
            late = time.monotonic_ns() - self.oldest_ns > BATCH_AGE_NS
            if late or len(pending) >= HOLDS or not flags & MAY_WAIT:
                self.settle()
            else:
                self.guard.wake()
        self.flags = flags
        leave_by = self._run(seq)
        self.completed += 1
        self._check_life(leave_by)

    def _begin(self) -> None:
        """The job that was taken is understood, and its run begins: from here on it can be lost."""
        now_ns = time.monotonic_ns()
        seq = self.slot.claim().seq
        self.slot.begin(seq, now_ns)
        if self.flags & TELL_BEGIN:
            self._send([Began(seq, self.pid, now_ns / 1e9)])
        # Last, because what it allows, being interrupted by a soft limit, must not cut that report in half.
        self.running = seq

    def _run(self, seq: int) -> BaseException | None:
        """Run the job and note its report.  Returns what ends this process, if the job raised that."""
        report: Report
        job: Job | None = None
        leave_by: BaseException | None = None
        try:
            job = self.intake.job()
            if self.terminated:
                raise SystemExit(EX_FAILURE)  # as if the signal had come a moment later
            if job.call is not None:
                self._begin()
                report = run_call(job)
            elif self.runner is None:
                report = Unfit(seq, "no-runner", "The pool was started without a runner: for calls only.")
            else:
                report = self.runner(job, self._begin)
            self.running = NOBODY
        except BaseException as exc:
            self.running = NOBODY
            if os.getpid() != self.pid:
                os._exit(exit_code(exc) if isinstance(exc, SystemExit) else EX_FAILURE)
            if self.terminated:
                raise  # unfinished: the job is lost with this process
            report = report_of_escape(job, seq, exc)
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                leave_by = exc
        if os.getpid() != self.pid:
            os._exit(EX_OK)  # a fork inside the task came back from it
        with self.flushing:
            if not self.pending:
                self.oldest_ns = time.monotonic_ns()
            self.pending.append(report)
            self.slot.hold(seq)
        return leave_by

    def _check_life(self, leave_by: BaseException | None) -> None:
        """Is this the end: asked for by the job, by a signal, or by a limit of this child?"""
        plan = self.plan
        if leave_by is not None:
            raise SystemExit(exit_code(leave_by) if isinstance(leave_by, SystemExit) else EX_FAILURE)
        if self.terminated:
            raise SystemExit(EX_FAILURE)
        if self.slot.leave:
            raise SystemExit(EX_OK)
        if plan.max_tasks and self.completed >= plan.max_tasks:
            raise SystemExit(EX_RECYCLE)
        if plan.max_memory:
            # What it had while the task ran, and may have given back since.
            grown = highest_kilobytes() - self.first_kilobytes
            if grown > plan.max_memory:
                logger.warning(MAXMEM_USED_FMT.format(grown, plan.max_memory))
                raise SystemExit(EX_RECYCLE)

    # -- reports

    def settle(self) -> None:
        """Store the results that wait and send their reports (main thread)."""
        self.shielded = True
        try:
            self._send_pending()
        finally:
            self.shielded = False
        if self.terminated:
            raise SystemExit(EX_FAILURE)

    def settle_late(self) -> None:
        """As :meth:`settle`, from the guard, for reports that have waited too long."""
        if self.pending and time.monotonic_ns() - self.oldest_ns >= STALL_AGE_NS:
            self._send_pending()

    def _send_pending(self) -> None:
        with self.flushing:
            reports = self.pending
            if not reports:
                return
            if self.runner is not None and self.runner.unsent:
                self.runner.flush()
            self._write(reports)
            reports.clear()
            self.slot.release()

    def _send(self, reports: list[Report]) -> None:
        """Send *reports* now, ahead of those that wait (main thread)."""
        self.shielded = True
        try:
            with self.flushing:
                self._write(reports)
        finally:
            self.shielded = False
        if self.terminated:
            raise SystemExit(EX_FAILURE)

    def _write(self, reports: list[Report]) -> None:
        try:
            self.reports.sendall(encode_reports(reports))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(EX_FAILURE)  # the parent is gone, and nobody is left to work for


RUN_CODE = Child._run.__code__


class Guard:
    """The thread that sends reports which a long job keeps waiting.  Started when reports first wait."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._dozing = True

    def wake(self) -> None:
        """Reports wait while a job begins."""
        if not self._dozing:
            return
        self._dozing = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="report-guard", daemon=True)
            self._thread.start()
        self._wake.set()

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        child = self._child
        while True:
            self._wake.wait()
            self._wake.clear()
            idle = 0
            while idle < GUARD_DOZES_AFTER:
                time.sleep(GUARD_EVERY)
                idle = 0 if child.pending else idle + 1
                try:
                    child.settle_late()
                except Exception as exc:
                    # The main thread meets the same error when it settles, and ends the process.
                    logger.critical("Results of finished tasks could not be stored: %r", exc, exc_info=True)
                    time.sleep(1.0)
            self._dozing = True
            if child.pending:
                self._dozing = False
                self._wake.set()


# -- children that are spawned


def _hand_over(descriptor: int) -> int:
    from billiard.context import get_spawning_popen  # noqa: PLC0415 known only while a process is being spawned

    popen = get_spawning_popen()
    if popen is None:
        raise TypeError("A child of the pool is pickled only to spawn it.")
    return int(popen.duplicate_for_child(descriptor))


def _rebuild(plan: Plan, runner: Runner | None, slot: int, jobs: int, reports: int, parent_pid: int) -> Child:
    child = Child(plan, runner, Slot(slot), socket.socket(fileno=jobs), socket.socket(fileno=reports), None)
    child.parent_pid = parent_pid
    return child
