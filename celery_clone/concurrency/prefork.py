"""The pool of processes as the worker knows it, and what a process does before it runs tasks.

Chosen with ``--pool=prefork``, the default.  Made by ``worker.components``; also used directly, as a pool
that calls functions, by whoever knew it as such.  The work is done by ``procpool``.
"""

from __future__ import annotations

import os
import pickle
import signal as process_signals
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from billiard.common import REMAP_SIGTERM, TERM_SIGNAME, human_status
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import TimeoutError as CallTimeoutError
from kombu.asynchronous import get_event_loop, set_event_loop

from celery_clone import platforms, signals
from celery_clone._state import _set_task_join_will_block
from celery_clone.app import trace
from celery_clone.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery_clone.message.frames import TELL_BEGIN, Began, Job, Lost, Overtime, Report, Returned
from celery_clone.utils.functional import noop
from celery_clone.utils.log import get_logger

from .base import BasePool
from .procpool import Plan, ProcessPool
from .procpool.parent import START_TIMEOUT

if TYPE_CHECKING:
    from .procpool.child import Closable
    from .protocols import Runner

__all__ = ("TaskPool", "process_destructor", "process_initializer")

logger = get_logger("celery.concurrency.prefork")

#: Signals that get their default action back when a process starts.
WORKER_SIGRESET = {"SIGTERM", "SIGHUP", "SIGTTIN", "SIGTTOU", "SIGUSR1"}

#: Signals that a process ignores.
WORKER_SIGIGNORE = {"SIGINT", TERM_SIGNAME} if REMAP_SIGTERM else {"SIGINT"}

FIRST_CALL = -2
"""Calls are numbered downwards from here: the numbers from 0 up are the worker's, -1 is nobody's."""

ATTENDANT_TURN = 0.2

_process_hostname: str | None = None


def process_initializer(app: Any, hostname: str | None) -> None:
    """Make this process one that runs tasks of *app*; called in each process when it starts."""
    global _process_hostname
    _set_task_join_will_block(True)
    platforms.signals.reset(*WORKER_SIGRESET)
    platforms.signals.ignore(*WORKER_SIGIGNORE)
    platforms.set_mp_process_title("celeryd", hostname=hostname)
    app.loader.init_worker()
    app.loader.init_worker_process()
    logfile = os.environ.get("CELERY_LOG_FILE") or None
    if logfile and "%i" in logfile.lower():
        app.log.already_setup = False  # the name of the file is another one here
    app.log.setup(
        int(os.environ.get("CELERY_LOG_LEVEL", 0) or 0),
        logfile,
        bool(os.environ.get("CELERY_LOG_REDIRECT", False)),
        str(os.environ.get("CELERY_LOG_REDIRECT_LEVEL")),
        hostname=hostname,
    )
    trace.setup_worker_optimizations(app, hostname)
    for name, task in app.tasks.items():
        task.__trace__ = trace.build_tracer(name, task, app.loader, hostname, app=app)
    _process_hostname = hostname
    signals.worker_process_init.send(sender=hostname)


def process_destructor(pid: int, exitcode: int) -> None:
    """Say that this process ends; called in each process when it leaves."""
    signals.worker_process_shutdown.send(sender=_process_hostname, pid=pid, exitcode=exitcode)


class _LoopOfParent:
    """The parent's hub: a child would share its poller, and change what the parent waits for."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub

    def close(self) -> None:
        """Close this process' copies, without asking the shared poller for anything."""
        set_event_loop(None)
        for name in ("_poller", "_waker"):
            part = getattr(self._hub, name, None)
            if part is not None:
                part.close()


def _left_behind() -> Iterator[Closable]:
    hub = get_event_loop()
    if hub is not None:
        yield _LoopOfParent(hub)


class CallResult:
    """The outcome of a call made with :meth:`TaskPool.apply_async`."""

    def __init__(
        self, pool: TaskPool, number: int, callbacks: dict[str, Any], correlation_id: str | None
    ) -> None:
        self.correlation_id = correlation_id
        self._pool = pool
        self._number = number
        self._callbacks = callbacks
        self._done = threading.Event()
        self._value: Any = None
        self._ok = False
        self._pid: int | None = None
        self._overtime: float | None = None

    def ready(self) -> bool:
        """Has it ended?"""
        return self._done.is_set()

    def successful(self) -> bool:
        """Did it return?  ``ValueError`` if it has not ended."""
        if not self.ready():
            raise ValueError("The call has not ended yet; wait() for it.")
        return self._ok

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended, *timeout* seconds at most."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self.ready() and (until is None or time.monotonic() < until):
            step = 0.5 if until is None else min(0.5, max(0.0, until - time.monotonic()))
            if not self._pool._attend(step):
                self._done.wait(step)

    def get(self, timeout: float | None = None) -> Any:
        """What it returned, or raise what it raised.  Billiard's ``TimeoutError`` after *timeout* seconds."""
        self.wait(timeout)
        if not self.ready():
            raise CallTimeoutError(f"The call has not ended within {timeout} seconds.")
        if self._ok:
            return self._value
        error = self._value.exception
        raise error.exc if isinstance(error, ExceptionWithTraceback) else error

    def worker_pids(self) -> list[int]:
        """The process that runs it."""
        return [] if self._pid is None else [self._pid]

    def terminate(self, signum: int | None) -> None:
        """End the process that runs it."""
        if self._pid is not None and not self.ready():
            self._pool.terminate_job(self._pid, signum)

    def _note(self, report: Report) -> bool:
        """A report about this call; returns whether it was the last."""
        if isinstance(report, Began):
            self._pid = report.pid
            self._call_back("accept", report.pid, report.at)
            return False
        if isinstance(report, Overtime):
            if not report.soft:
                self._overtime = report.limit
            self._call_back("timeout", report.soft, report.limit)
            return False
        if isinstance(report, Returned):
            ok, value = pickle.loads(report.value)  # our own child wrote it
        else:
            ok, value = False, self._error_of(report)
        self.finish(ok, value)
        return True

    def _error_of(self, report: Report) -> ExceptionInfo:
        error: Exception
        if not isinstance(report, Lost):
            error = WorkerLostError(f"The call could not be made: {getattr(report, 'detail', report)}")
        elif self._overtime is not None:
            error = TimeLimitExceeded(self._overtime)
        elif report.pid in self._pool.terminated:
            error = Terminated(-(report.exitcode or 0))
        else:
            status = human_status(report.exitcode)
            error = WorkerLostError(f"Worker exited prematurely: {status} Job: {self._number}.")
        try:
            raise error
        except Exception:  # noqa: BLE001 raised only to get its traceback
            return ExceptionInfo()

    def finish(self, ok: bool, value: Any) -> None:
        """It has ended: *value* is what it returned, or an ``ExceptionInfo``."""
        self._ok, self._value = ok, value
        self._done.set()
        self._call_back("success" if ok else "error", value)

    def _call_back(self, name: str, *args: Any) -> None:
        callback = self._callbacks.get(name)
        if callback is None:
            return
        try:
            callback(*args)
        except self._callbacks["propagate"]:
            raise
        except Exception as exc:
            logger.exception("Pool callback raised exception: %r", exc)


class _Attendant(threading.Thread):
    """Serves a pool that no loop serves.

    It lives until the pool has ended, even when it has nothing to do: processes it started die with it.
    """

    def __init__(self, pool: ProcessPool) -> None:
        super().__init__(name="pool-attendant", daemon=True)
        self._pool = pool
        self._ended = threading.Event()
        self.paused = False

    def run(self) -> None:
        while not self._ended.is_set():
            if self.paused:
                self._ended.wait(ATTENDANT_TURN)
                continue
            try:
                self._pool.serve(ATTENDANT_TURN)
            except Exception:
                logger.exception("The pool could not be served, which is tried again")
                self._ended.wait(ATTENDANT_TURN)

    def end(self) -> None:
        self._ended.set()
        if self is not threading.current_thread():
            self.join(5.0)


class TaskPool(BasePool):
    """A pool of *limit* processes.

    Options are those of Celery's pool: ``initargs`` (app and host name), ``maxtasksperchild``,
    ``max_memory_per_child`` (kilobytes a process may take beyond what it started with), ``timeout`` and
    ``soft_timeout`` (seconds), ``threads`` (serve the pool from a thread, for use without a loop).
    With ``forking_enable=False`` processes are spawned as fresh interpreters.
    """

    Pool = ProcessPool
    BlockingPool = ProcessPool

    uses_semaphore = True
    write_stats = None

    _pool: ProcessPool | None = None
    _runner: Runner | None = None
    _attendant: _Attendant | None = None

    def bind(self, runner: Runner, tell: Callable[[Sequence[Report]], None]) -> None:
        """What runs the jobs, and who is told of them.  Before ``start``."""
        self._runner, self._tell = runner, tell

    def prepare(self) -> None:
        """Jobs do not run in this process."""

    # -- life

    def on_start(self) -> None:
        """Start the processes."""
        options = self.options
        initargs = options.get("initargs") or (self.app, None)
        if not self.forking_enable:
            os.environ["FORKED_BY_MULTIPROCESSING"] = "1"
        start_timeout = self.app.conf.worker_proc_alive_timeout if self.app is not None else None
        self._calls: dict[int, CallResult] = {}
        self._next_call = FIRST_CALL
        self._numbering = threading.Lock()
        self.terminated: set[int] = set()
        pool = self.Pool(
            (os.cpu_count() or 1) if self.limit is None else self.limit,
            Plan(
                initializer=process_initializer if initargs[0] is not None else None,
                initargs=initargs,
                on_exit=process_destructor,
                max_tasks=options.get("maxtasksperchild"),
                max_memory=options.get("max_memory_per_child"),
            ),
            limits=(options.get("soft_timeout"), options.get("timeout")),
            start_timeout=start_timeout or START_TIMEOUT,
            start_method="fork" if self.forking_enable else "spawn",
            inherited=_left_behind,
        )
        pool.start(self._runner, self._tell_all)
        self._pool = pool
        if options.get("threads", True):
            self._attendant = _Attendant(pool)
            self._attendant.start()

    def did_start_ok(self) -> bool:
        """Has no process failed to start so far?"""
        return self._pool is None or self._pool.is_up()

    def watch(self, hub: Any) -> None:
        """Have *hub* serve the pool."""
        if self._pool is not None:
            if self._attendant is not None:
                self._attendant.paused = True
            self._pool.watch(hub)

    def unwatch(self, hub: Any) -> None:
        """Take back what :meth:`watch` registered."""
        if self._pool is not None:
            self._pool.unwatch(hub)
            if self._attendant is not None:
                self._attendant.paused = False

    def register_with_event_loop(self, loop: Any) -> None:
        """As :meth:`watch`."""
        self.watch(loop)

    def wait(self, timeout: float) -> None:
        """Tell what there is, after waiting *timeout* seconds at most for something."""
        if self._pool is not None and not self._attend(timeout):
            time.sleep(timeout)

    def _attend(self, timeout: float) -> bool:
        """Serve the pool from here, unless the attendant does."""
        attendant = self._attendant
        if self._pool is None or (attendant is not None and not attendant.paused and attendant.is_alive()):
            return False
        self._pool.serve(timeout)
        return True

    def stop(self, *, deadline: float | None = None) -> None:
        """End: jobs that run are waited for, *deadline* seconds at most.  Legal early and twice."""
        if deadline is None:
            self.on_stop()
        else:
            self._end(lambda pool: pool.stop(deadline=deadline))
        self._state = self.TERMINATE

    def on_stop(self) -> None:
        """Wait for what runs, and end the processes."""
        self._end(lambda pool: pool.stop(deadline=None))

    def on_terminate(self) -> None:
        """End the processes at once."""
        self._end(lambda pool: pool.stop(deadline=0.0))

    def terminate(self) -> None:
        """End without waiting."""
        self._state = self.TERMINATE
        self.on_terminate()

    def kill_all(self, grace: float) -> None:
        """End the processes, with *grace* seconds between TERM and KILL, and tell nothing of their jobs."""
        self._end(lambda pool: pool.kill_all(grace))

    def _end(self, how: Callable[[ProcessPool], None]) -> None:
        pool, attendant = self._pool, self._attendant
        if pool is None:
            return
        if attendant is not None:
            attendant.paused = True
        how(pool)
        self._pool = self._attendant = None
        if attendant is not None:
            attendant.end()
        for call in [*self._calls.values()]:
            call._note(Lost(call._number, 0, None))
        self._calls.clear()

    # -- jobs

    def room(self) -> int:
        """How many jobs may be handed over now."""
        return 0 if self._pool is None else self._pool.room()

    def submit(
        self, jobs: Sequence[Job], limits: Sequence[tuple[float | None, float | None]] | None = None
    ) -> None:
        """Hand jobs over."""
        self._running_pool().submit(jobs, limits)

    def recall(self) -> Sequence[int]:
        """Take back every job that has not begun; their numbers."""
        return [] if self._pool is None else self._pool.recall()

    def begun(self) -> dict[int, tuple[int, float]]:
        """The jobs running now: number to (pid, monotonic time of begin)."""
        if self._pool is None:
            return {}
        return {seq: at for seq, at in self._pool.begun().items() if seq >= 0}

    def kill(self, seq: int, signum: int) -> bool:
        """Signal the process that runs *seq*.  ``False``: none does."""
        return self._pool is not None and self._pool.kill(seq, signum)

    def _running_pool(self) -> ProcessPool:
        if self._pool is None:
            raise RuntimeError("The pool does not run; start() it first.")
        return self._pool

    def _tell_all(self, reports: Sequence[Report]) -> None:
        jobs = []
        for report in reports:
            if report.seq >= 0:
                jobs.append(report)
                continue
            call = self._calls.get(report.seq)
            if call is not None and call._note(report):
                self._calls.pop(report.seq, None)
        if jobs:
            self._tell(jobs)

    # -- calls

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[Any], Any] | None = None,
        accept_callback: Callable[[int, float], Any] | None = None,
        timeout_callback: Callable[[bool, float], Any] | None = None,
        waitforslot: bool | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        callbacks_propagate: tuple[type[BaseException], ...] = (),
        correlation_id: str | None = None,
        **_: Any,
    ) -> CallResult:
        """Call *target*, which must be picklable, in a process.

        ``waitforslot`` waits until the pool has room.  Raises what pickling raises.
        """
        pool = self._running_pool()
        packed = pickle.dumps((target, tuple(args or ()), dict(kwargs or {})), pickle.HIGHEST_PROTOCOL)
        while waitforslot and pool.room() <= 0 and self._pool is pool:
            if threading.current_thread() is self._attendant:
                break  # called from a callback: whoever makes room is waiting for us
            if not self._attend(ATTENDANT_TURN):
                time.sleep(0.001)
        callbacks = {
            "success": callback,
            "error": error_callback,
            "accept": accept_callback,
            "timeout": timeout_callback,
            "propagate": tuple(callbacks_propagate or ()),
        }
        with self._numbering:
            number = self._next_call
            self._next_call -= 1
        result = self._calls[number] = CallResult(self, number, callbacks, correlation_id)
        job = Job(number, getattr(target, "__name__", "call"), flags=TELL_BEGIN, call=packed)
        try:
            pool.submit([job], [(soft_timeout, timeout)])
        except BaseException:
            del self._calls[number]
            raise
        return result

    # -- children

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the process *pid* (with TERM), if it is one of ours."""
        if self._pool is not None and self._pool.kill_child(pid, signal or process_signals.SIGTERM):
            self.terminated.add(pid)

    def resize(self, change: int) -> None:
        """Start *change* more processes, or have that many leave as soon as they are idle."""
        if self._pool is not None:
            self._pool.resize(change)

    def grow(self, n: int = 1) -> None:
        """Start *n* more processes."""
        self.resize(n)

    def shrink(self, n: int = 1) -> None:
        """Have *n* processes leave as soon as they are idle."""
        self.resize(-n)

    def restart(self) -> None:
        """Replace every process by a new one, each when its job has ended."""
        self._running_pool().restart()
        self.apply_async(noop, waitforslot=False)

    @property
    def num_processes(self) -> int:
        """How many processes there should be."""
        return (self.limit or 0) if self._pool is None else self._pool.size

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "put-guarded-by-semaphore": self.putlocks,
            **({} if self._pool is None else self._pool.info()),
        }
