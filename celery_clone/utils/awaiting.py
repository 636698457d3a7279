"""Waiting for results in asyncio: any number of them at once, with one thread for each result store.

Called by ``result`` when somebody awaits a result.  It asks the store by the names that every result
and every store has, in threads; it may not hold the event loop, and knows of no store how it is read.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from .log import get_logger

__all__ = ("as_ended", "in_thread", "until_ended")

logger = get_logger(__name__)

LOOK_AROUND_S = 1.0
"""How often it is looked whether a step before has failed."""

NAP_FIRST_S, NAP_GROWTH, NAP_MAX_S = 0.005, 1.5, 0.5
"""Pauses between two looks at a store that must be asked: they grow, and begin anew with each new wait."""

Tell = Callable[[Any], None]
"""Told of a result that has ended, or of the error because of which nobody will know."""


class Watcher:
    """One thread that waits for the results of one store, as long as there are any to wait for."""

    def __init__(self, backend: Any) -> None:
        # A store that only some threads may use has others in theirs; so each asks for what it needs.
        self._listens = bool(getattr(backend, "is_async", False) and getattr(backend, "thread_safe", False))
        self._backend = weakref.ref(backend)
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._waiting: dict[int, tuple[Any, Tell]] = {}
        self._thread: threading.Thread | None = None
        self.pid = os.getpid()

    @property
    def ready(self) -> bool:
        """Is there nobody to wait for?  What a store that pushes asks between two messages."""
        return not self._waiting

    def add(self, result: Any, tell: Tell) -> None:
        """Call ``tell(result)`` in some thread when *result* has ended."""
        with self._lock:
            self._waiting[id(result)] = (result, tell)
            if self._thread is None:
                backend = self._backend()
                name = f"celery-results-{type(backend).__name__}"
                self._thread = threading.Thread(target=self._run, args=(backend,), name=name, daemon=True)
                self._thread.start()
        self._changed.set()
        # Told by whatever thread reads the result, which need not be this watcher's.
        result.on_ready.then(lambda _: self._over(result))

    def discard(self, result: Any) -> bool:
        """Wait for *result* no more.  Was it waited for?"""
        with self._lock:
            found = self._waiting.pop(id(result), None) is not None
            nobody = not self._waiting
        if nobody:
            self._changed.set()  # the thread need not sleep to its end
        return found

    def _over(self, result: Any) -> None:
        with self._lock:
            _, tell = self._waiting.pop(id(result), (None, None))
        if tell is not None:
            tell(result)

    def _run(self, backend: Any) -> None:
        while True:
            try:
                if self._listens:
                    self._listen(backend)
                else:
                    self._ask()
            except Exception as exc:  # noqa: BLE001 each who waits is told of it
                logger.warning("Results that are awaited cannot be read: %r", exc)
                with self._lock:
                    tells = [tell for _, tell in self._waiting.values()]
                    self._waiting.clear()
                for tell in tells:
                    tell(exc)
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return

    def _listen(self, backend: Any) -> None:
        """Wait for a store that tells."""
        for _ in backend.result_consumer.drain_events_until(self):
            pass

    def _ask(self) -> None:
        """Wait for a store that must be asked."""
        nap = NAP_FIRST_S
        while not self.ready:
            if self._changed.is_set():
                self._changed.clear()
                nap = NAP_FIRST_S
            with self._lock:
                results = [result for result, _ in self._waiting.values()]
            look(results)
            self._changed.wait(nap)
            nap = min(nap * NAP_GROWTH, NAP_MAX_S)


_watchers: weakref.WeakKeyDictionary[Any, Watcher] = weakref.WeakKeyDictionary()
_watchers_lock = threading.Lock()


def watcher_of(backend: Any) -> Watcher:
    """The watcher of a store in this process."""
    with _watchers_lock:
        found = _watchers.get(backend)
        if found is None or found.pid != os.getpid():
            found = _watchers[backend] = Watcher(backend)
        return found


def look(results: Sequence[Any]) -> None:
    """Read the states of *results*, which are in one store; all at once where it can."""
    if not results:
        return
    backend = results[0].backend
    at_once = backend.supports_native_join or getattr(backend, "reads_many", False)
    if len(results) > 1 and at_once and hasattr(backend, "get_many"):
        by_id: dict[str, list[Any]] = {}
        for result in results:
            by_id.setdefault(result.id, []).append(result)
        for task_id, meta in backend.get_many(set(by_id), max_iterations=1, interval=0):
            for result in by_id[task_id]:
                result._maybe_set_cache(meta)
    else:
        for result in results:
            result.ready()


def leaves(result: Any) -> Iterator[Any]:
    """The results of single tasks in *result*: itself, or its members'."""
    members = getattr(result, "results", None)
    if members is None:
        yield result
    else:
        for member in members:
            yield from leaves(member)


def has_ended(result: Any) -> bool:
    """Is the end of this task known?  One that keeps no result is not waited for."""
    return result._cache is not None or getattr(result, "_ignored", False)


def begin(results: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Subscribe to *results* and read what has ended already; what must be given to :func:`finish`."""
    subscribe_all = getattr(results[0].backend, "add_pending_results", None)
    if subscribe_all is not None and len(results) > 1:
        subscribe_all(results)
    joined = [(result, result._join_waiters()) for result in results]
    look(results)
    return joined


def finish(joined: Iterable[tuple[Any, Any]]) -> None:
    """End what :func:`begin` began."""
    for result, waiters in joined:
        result._leave_waiters(waiters)


async def as_ended(results: Iterable[Any], look_around: Callable[[], Any] | None = None) -> AsyncIterator[Any]:
    """Yield *results* as they end; a result that has members ends with the last of them.

    *look_around* is called every second in another thread; an error of it ends the wait.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[Any] = asyncio.Queue()

    def tell(news: Any) -> None:
        try:
            loop.call_soon_threadsafe(told.put_nowait, news)
        except RuntimeError:
            pass  # the loop was closed: nobody waits any more

    left: dict[int, int] = {}
    whole: dict[int, list[Any]] = {}
    waiting: dict[int, Any] = {}
    for result in results:
        open_leaves = [leaf for leaf in leaves(result) if not has_ended(leaf)]
        if not open_leaves:
            yield result
            continue
        left[id(result)] = len(open_leaves)
        for leaf in open_leaves:
            whole.setdefault(id(leaf), []).append(result)
            waiting[id(leaf)] = leaf
    by_backend: dict[int, list[Any]] = {}
    for leaf in waiting.values():
        by_backend.setdefault(id(leaf.backend), []).append(leaf)
    joined: list[tuple[Any, Any]] = []
    try:
        for members in by_backend.values():
            joined += await loop.run_in_executor(None, begin, members)
            watcher = watcher_of(members[0].backend)
            for leaf in members:
                watcher.add(leaf, tell)
        while waiting:
            try:
                news = await asyncio.wait_for(told.get(), LOOK_AROUND_S if look_around else None)
            except asyncio.TimeoutError:
                assert look_around is not None
                await loop.run_in_executor(None, look_around)
                continue
            if isinstance(news, BaseException):
                raise news
            waiting.pop(id(news), None)
            for result in whole.pop(id(news), ()):
                left[id(result)] -= 1
                if not left[id(result)]:
                    yield result
    finally:
        for leaf in waiting.values():
            watcher_of(leaf.backend).discard(leaf)
        if joined:
            # Not awaited: this may be the end of a cancelled wait.
            loop.run_in_executor(None, finish, joined)


async def until_ended(result: Any, look_around: Callable[[], Any] | None = None) -> None:
    """Return when *result* has ended; *look_around* as for :func:`as_ended`."""
    async for _ in as_ended([result], look_around):
        pass


async def in_thread(call: Callable[..., Any], **arguments: Any) -> Any:
    """Call something that may read from a store."""
    return await asyncio.get_running_loop().run_in_executor(None, partial(call, **arguments))
