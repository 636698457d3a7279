"""Soft time limits where no process is told: in threads, and in the thread of the worker itself.

Used by the pools of threads and solo.  Each begins an alarm when a job begins and takes it back when it ends, both
in the thread that runs it.  An error raised in a thread shows when that thread runs Python code again: a call into
the system, such as ``time.sleep``, is not cut short (in the main thread it is).
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

from billiard.exceptions import SoftTimeLimitExceeded

from celery_clone.message.frames import Job
from celery_clone.utils import timer2
from celery_clone.utils.coroutines import interrupt

from .base import BasePool

__all__ = ("AlarmClock", "AlarmedPool", "ThreadAlarms")


def raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Have *error* raised in the thread of that number; ``None``: not after all."""
    wanted = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), wanted)


class _Armed(NamedTuple):
    thread: int
    entry: Any


class ThreadAlarms:
    """One alarm for each running job, rung by a timer thread that the first of them starts."""

    def __init__(self) -> None:
        self._timer: timer2.Timer | None = None
        self._armed: dict[int, _Armed] = {}
        self._lock = threading.Lock()

    def arm(self, seq: int, seconds: float, tell: Callable[[], None]) -> None:
        """In *seconds* raise ``SoftTimeLimitExceeded`` in this thread, after *tell*."""
        with self._lock:
            if self._timer is None:
                self._timer = timer2.Timer(max_interval=1.0)
            entry = self._timer.call_after(seconds, self._ring, (seq, tell))
            self._armed[seq] = _Armed(threading.get_ident(), entry)

    def _ring(self, seq: int, tell: Callable[[], None]) -> None:
        with self._lock:
            armed = self._armed.get(seq)
            if armed is None:
                return
            tell()
            if not interrupt(SoftTimeLimitExceeded(), armed.thread):
                raise_in(armed.thread, SoftTimeLimitExceeded)

    def disarm(self, seq: int) -> None:
        """The job has ended; an error that was not raised yet is none."""
        with self._lock:
            armed = self._armed.get(seq)
            if armed is not None:
                raise_in(armed.thread, None)
                del self._armed[seq]
                armed.entry.cancel()

    def stop(self) -> None:
        """End the timer thread.  Legal twice."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()


class AlarmClock:
    """The alarm of the main thread, by the system's timer; it also ends calls into the system."""

    def __init__(self) -> None:
        self._before: Any = None
        self._is_armed = False

    @staticmethod
    def works_here() -> bool:
        """Is this the main thread, which alone is told of signals?"""
        return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()

    def arm(self, seconds: float, tell: Callable[[], None]) -> None:
        """In *seconds* raise ``SoftTimeLimitExceeded`` here, after *tell*."""

        def ring(signum: int, frame: FrameType | None) -> None:
            if self._is_armed:
                tell()
                error = SoftTimeLimitExceeded()
                if not interrupt(error):
                    raise error

        self._before = signal.signal(signal.SIGALRM, ring)
        self._is_armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def disarm(self) -> None:
        """The job has ended."""
        if self._is_armed:
            self._is_armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)


class AlarmedPool(BasePool):
    """A pool whose soft limits are alarms: of the thread that runs the job, from its begin to its end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._alarms = ThreadAlarms()
        self._soft: dict[int, float] = {}

    def _start_job(self, job: Job, soft: float | None, hard: float | None) -> None:
        if soft:
            self._soft[job.seq] = soft
        super()._start_job(job, soft, hard)

    def _on_begun(self, job: Job) -> None:
        super()._on_begun(job)
        soft = self._soft.get(job.seq)
        if soft:
            self._arm(job.seq, soft, partial(self._on_overtime, job.seq, True, soft))

    def _on_end(self, job: Job) -> None:
        # Disarmed first: an alarm that rings in between still finds its job.
        if job.seq in self._soft:
            self._disarm(job.seq)
            self._soft.pop(job.seq, None)

    def _arm(self, seq: int, seconds: float, tell: Callable[[], None]) -> None:
        self._alarms.arm(seq, seconds, tell)

    def _disarm(self, seq: int) -> None:
        self._alarms.disarm(seq)
