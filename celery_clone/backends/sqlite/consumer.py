"""Waiting for results in an SQLite file: one doorbell for all threads of a process.

Made by the backend.  It watches the tasks somebody waits for, sleeps until one of them is stored, and
hands on what came.  It decides nothing about results.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Any

from celery_clone import states
from celery_clone.backends.asynchronous import BaseResultConsumer
from celery_clone.transport.sqlite import doorbell
from celery_clone.transport.sqlite.database import DatabaseUnavailable, file_mode

__all__ = ("ResultConsumer",)

MOST_ENDED = 64
"""How many watches that are over may wait for the next transaction."""
POLL_WITHOUT_BELL_S = 0.05


class ResultConsumer(BaseResultConsumer):
    """Learns of results by a doorbell.  One of the waiting threads listens for all."""

    _connection_errors = (DatabaseUnavailable,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_after_fork()
        ours = weakref.ref(self)

        def forget_in_child() -> None:
            consumer = ours()
            if consumer is not None:
                consumer._pending_results.clear()
                consumer._after_fork()

        os.register_at_fork(after_in_child=forget_in_child)

    def on_after_fork(self) -> None:
        """In a forked child: the bell was closed already, the watches are the parent's."""
        self._lock = threading.Lock()
        self._bell: doorbell.Doorbell | None = None
        self._seen: dict[str, int] = {}
        self._over: set[str] = set()

    def start(self, initial_task_id: str, **kwargs: Any) -> None:
        """Watch this task."""
        self.consume_from(initial_task_id)

    def stop(self) -> None:
        """End all watches."""
        bell, self._bell = self._bell, None
        if bell is not None and bell.fileno() != -1:
            try:
                self.backend.store.forget_bells([bell.address])
            finally:
                bell.close()

    def consume_from(self, task_id: str) -> None:
        """Watch a task."""
        self.consume_from_all([task_id])

    def consume_from_all(self, task_ids: Iterable[str]) -> None:
        """Watch tasks; a result that is there already is news."""
        bell = self._listen()
        if bell is None:
            return
        keys = [self._key(task_id) for task_id in task_ids]
        with self._lock:
            for key in keys:
                self._seen.pop(key, None)
            over, self._over = self._over.difference(keys), set()
        self.backend.store.watch(keys, bell.address, over)

    def cancel_for(self, task_id: str) -> None:
        """Watch a task no longer; the file learns it with the next transaction."""
        key = self._key(task_id)
        with self._lock:
            self._over.add(key)
            self._seen.pop(key, None)

    def drain_events(self, timeout: float | None = None) -> None:
        """Hand on what came, waiting at most *timeout* seconds for it.

        Raises:
            socket.timeout: nothing came.
        """
        with self.reconnect_on_error():
            bell = self._listen(renew=True)
            if self._collect(bell):
                return
            longest_s = 1.0 if timeout is None else timeout
            if bell is None:
                time.sleep(min(longest_s, POLL_WITHOUT_BELL_S))
            else:
                bell.wait(longest_s)
            if not self._collect(bell):
                raise socket.timeout()  # noqa: UP041 the name callers catch

    def _collect(self, bell: doorbell.Doorbell | None) -> bool:
        """Hand on what was stored since the last look; was there anything?"""
        store = self.backend.store
        if bell is None:
            fresh = [self._key(task_id) for task_id in self._pending_results.ids()]
        else:
            news = store.news(bell.address)
            with self._lock:
                fresh = [key for key, count in news.items() if key not in self._over and self._seen.get(key, 0) < count]
                self._seen.update((key, news[key]) for key in fresh)
        came = False
        if not fresh:
            return came
        for key, value in zip(fresh, store.get(fresh, time.time()), strict=True):
            if value is not None:
                meta = self.backend.decode_result(value)
                came = came or bell is not None or meta["status"] in states.READY_STATES
                if meta["status"] in states.READY_STATES:
                    with self._lock:
                        self._over.add(key)
                        self._seen.pop(key, None)
                self.on_state_change(meta, None)
        self._end_watches(bell)
        return came

    def _end_watches(self, bell: doorbell.Doorbell | None) -> None:
        with self._lock:
            if len(self._over) < MOST_ENDED:
                return
            over, self._over = self._over, set()
        if bell is not None:
            self.backend.store.watch((), bell.address, over)

    def _listen(self, *, renew: bool = False) -> doorbell.Doorbell | None:
        """The doorbell, made on first use; with *renew* made anew if its socket was removed.

        Only the thread that reads may renew: no other can be waiting at the old one.
        """
        with self._lock:
            bell = self._bell
            if bell is not None and not (renew and not bell.is_in_place()):
                return bell
            path = self.backend.store.database.path
            self._bell = doorbell.listen(path, file_mode(path))
            self._seen.clear()
            self._over.clear()
        if bell is not None:
            bell.close()
            if self._bell is not None:
                keys = [self._key(task_id) for task_id in self._pending_results.ids()]
                self.backend.store.watch(keys, self._bell.address, ())
        return self._bell

    def _key(self, task_id: str) -> str:
        key: str = self.backend.get_key_for_task(task_id)
        return key
