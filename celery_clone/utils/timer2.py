"""A timer with a thread of its own.

Used by the worker for pools and brokers without an event loop; where there is
one, kombu's timer runs on it instead.
Owns one thread, from the first entry to :meth:`Timer.stop`.  What is called runs
in that thread, one after the other, so it may not block.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from kombu.asynchronous.timer import Entry, to_timestamp
from kombu.asynchronous.timer import Timer as Schedule

from celery_clone.utils.log import get_logger

__all__ = ("Entry", "Schedule", "Timer", "to_timestamp")

#: How long to sleep with nothing scheduled, in seconds.  An entry wakes the
#: thread up, so this only bounds how late a stop is seen.
IDLE_S = 1.0

logger = get_logger("celery.utils.timer2")


class Timer(threading.Thread):
    """Calls functions at or after a time, in a thread of its own.

    ``schedule`` holds the entries (a new one by default, made with ``on_error``,
    ``max_interval`` and the other options), ``on_tick`` is called with the
    seconds of each sleep, ``on_start`` with the timer when its thread starts.
    """

    Entry = Entry
    Schedule = Schedule

    #: Whether the thread is at work.
    running: bool = False

    on_tick: Callable[[float], Any] | None = None

    _timer_count = count(1)

    def __init__(
        self,
        schedule: Any = None,
        on_error: Callable[[BaseException], Any] | None = None,
        on_tick: Callable[[float], Any] | None = None,
        on_start: Callable[[Timer], Any] | None = None,
        max_interval: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=f"Timer-{next(self._timer_count)}", daemon=True)
        if schedule is None:
            make_schedule: Any = self.Schedule
            schedule = make_schedule(on_error=on_error, max_interval=max_interval, **kwargs)
        self.schedule = schedule
        self.on_start = on_start
        self.on_tick = on_tick or self.on_tick
        self.mutex = threading.Lock()
        self.not_empty = threading.Condition(self.mutex)
        self._stop_requested = threading.Event()
        self._launched = False
        #: Whether an entry came in since the schedule was last looked at.
        self._changed = False
        self._scheduler: Iterator[tuple[float | None, Any]] | None = None

    # .. the thread

    def run(self) -> None:
        """Make the calls until :meth:`stop`."""
        self.running = True
        try:
            while not self._stop_requested.is_set():
                delay = self.next()
                if delay:
                    if self.on_tick:
                        self.on_tick(delay)
                    self._sleep(delay)
        except SystemExit:
            return  # an entry asked for it, see exit_after()
        except Exception as error:
            # A worker whose timer is dead would wait for its tasks for ever
            # and look well; ended, it is started again and loses nothing.
            logger.critical("Thread Timer crashed: %r", error, exc_info=True)
            sys.stderr.flush()
            os._exit(1)
        finally:
            self.running = False

    def _sleep(self, delay: float) -> None:
        with self.not_empty:
            if not self._changed and not self._stop_requested.is_set():
                self.not_empty.wait(delay)

    def next(self) -> float | None:
        """Make the next call if it is time; else return the seconds until then."""
        with self.not_empty:
            self._changed = False
            if self._scheduler is None:
                self._scheduler = iter(self.schedule)
            delay, entry = next(self._scheduler)
        if entry is None:
            return IDLE_S if delay is None else delay
        self.schedule.apply_entry(entry)
        return None

    __next__ = next

    def ensure_started(self) -> None:
        """Start the thread unless that has been done."""
        with self.mutex:
            is_first, self._launched = not self._launched, True
        if is_first and not self.is_alive():
            if self.on_start:
                self.on_start(self)
            self.start()

    def stop(self) -> None:
        """End the thread after the current call; legal early and twice."""
        with self.not_empty:
            self._stop_requested.set()
            self.not_empty.notify_all()
        if self.is_alive() and self is not threading.current_thread():
            self.join()

    # .. entries

    def _enter(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.ensure_started()
        with self.not_empty:
            entry = getattr(self.schedule, method)(*args, **kwargs)
            self._changed = True
            self.not_empty.notify()
        return entry

    def enter(self, entry: Any, eta: float, priority: int | None = None) -> Any:
        """Schedule an entry for the time ``eta``."""
        return self._enter("enter_at", entry, eta, priority=priority)

    def enter_after(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule an entry in that many seconds."""
        return self._enter("enter_after", *args, **kwargs)

    def call_at(self, *args: Any, **kwargs: Any) -> Any:
        """Call a function at a time; return the entry, which can be cancelled."""
        return self._enter("call_at", *args, **kwargs)

    def call_after(self, *args: Any, **kwargs: Any) -> Any:
        """Call a function in that many seconds."""
        return self._enter("call_after", *args, **kwargs)

    def call_repeatedly(self, *args: Any, **kwargs: Any) -> Any:
        """Call a function every so many seconds."""
        return self._enter("call_repeatedly", *args, **kwargs)

    def exit_after(self, secs: float, priority: int = 10) -> None:
        """End the timer's thread in that many seconds."""
        self.call_after(secs, sys.exit, priority=priority)

    def cancel(self, tref: Any) -> None:
        """Take an entry back."""
        tref.cancel()

    def clear(self) -> None:
        """Take all entries back."""
        self.schedule.clear()

    def empty(self) -> bool:
        """Return true if nothing is scheduled."""
        return not len(self)

    def __len__(self) -> int:
        return len(self.schedule)

    def __bool__(self) -> bool:
        return True

    @property
    def queue(self) -> Any:
        """The entries, in the order of their time."""
        return self.schedule.queue
