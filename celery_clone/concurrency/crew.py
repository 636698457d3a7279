"""Threads that call functions: made when they are needed, replaced after a number of calls, left behind at the end.

Used by the pools of threads and of asyncio.  Those of ``concurrent.futures`` are waited for when the program ends,
whatever it was told: a worker could not end cold under a long task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any

from celery_clone.utils.coroutines import close_loop

__all__ = ("Crew",)

Errand = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Crew(Executor):
    """At most *size* threads called *name*; each is replaced after *most_calls*."""

    def __init__(self, size: int, name: str, most_calls: int | None = None) -> None:
        self.size = size
        self.threads: set[threading.Thread] = set()
        self._name = name
        self._most_calls = most_calls
        self._errands: SimpleQueue[Errand | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = self._idle = self._made = 0
        self._is_closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have *fn* called in a thread."""
        future: Future[Any] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("These threads were told to end; they take no more calls.")
            self._errands.put((future, fn, args, kwargs))
            self._waiting += 1
            self._hire()
        return future

    def _hire(self) -> None:
        """Make a thread if one is needed and allowed (under the lock)."""
        if self._waiting > self._idle and len(self.threads) < self.size:
            self._made += 1
            thread = threading.Thread(target=self._work, name=f"{self._name}_{self._made - 1}", daemon=True)
            self.threads.add(thread)
            thread.start()

    def _work(self) -> None:
        calls = 0
        while not self._most_calls or calls < self._most_calls:
            with self._lock:
                self._idle += 1
            errand = self._errands.get()
            with self._lock:
                self._idle -= 1
                self._waiting -= errand is not None
            if errand is None:
                break
            calls += 1
            self._run(errand)
            del errand  # its arguments may be large, and the next call may be long in coming
        close_loop()
        with self._lock:
            self.threads.discard(threading.current_thread())
            self._hire()

    @staticmethod
    def _run(errand: Errand) -> None:
        future, function, args, kwargs = errand
        if not future.set_running_or_notify_cancel():
            return
        try:
            value = function(*args, **kwargs)
        except BaseException as exc:  # noqa: BLE001 it is for who waits for the call
            future.set_exception(exc)
        else:
            future.set_result(value)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End: take no more calls, and *wait* for those that were taken.  Legal twice."""
        with self._lock:
            self._is_closed = True
            while cancel_futures and not self._errands.empty():
                errand = self._errands.get()
                if errand is not None:
                    self._waiting -= 1
                    errand[0].cancel()
            for _ in range(len(self.threads)):
                self._errands.put(None)
        while wait:
            with self._lock:
                left = [thread for thread in self.threads if thread is not threading.current_thread()]
            if not left:
                break
            left[0].join()
