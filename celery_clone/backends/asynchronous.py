"""Waiting for results that a store sends by itself: who waits for what, and who reads the connection.

Used by the stores that push (redis, rpc, sqlite) and by third-party stores that subclass these
classes.  Any number of threads may wait at once over one connection: one of them reads for all, the
others sleep until their result is there or it is their turn to read.  Green threads are the same,
since ``threading`` is theirs once it was patched.  It may not know how a store is read.
"""

from __future__ import annotations

import select
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Lock, RLock, get_ident
from typing import Any, TypeVar

from kombu.utils.compat import detect_environment

from celery_clone import states
from celery_clone.backends.ahead import ReadAhead
from celery_clone.exceptions import TimeoutError as ResultTimeout
from celery_clone.utils.log import get_logger

__all__ = ("AsyncBackendMixin", "BaseResultConsumer", "Drainer", "PendingResults", "register_drainer")

logger = get_logger(__name__)

E_RETRY_LIMIT_EXCEEDED = (
    "Retry limit exceeded while trying to reconnect to the Celery result store backend. The results that "
    "were waited for may be read later, with get() again, once the store answers."
)

Meta = dict[str, Any]
DrainerClass = TypeVar("DrainerClass", bound=type)

drainers: dict[str, Any] = {}
"""Classes of drainers by the environment they are for: ``default``, ``gevent``, ``eventlet``."""


def register_drainer(name: str) -> Callable[[DrainerClass], DrainerClass]:
    """Decorator: use the class for waiting in the environment *name*."""

    def register(cls: DrainerClass) -> DrainerClass:
        drainers[name] = cls
        return cls

    return register


class _Turn:
    """One thread's wait: what it waits for, and what wakes it."""

    __slots__ = ("event", "p")

    def __init__(self, p: Any) -> None:
        self.p = p
        self.event = Event()


@register_drainer("eventlet")
@register_drainer("gevent")
@register_drainer("default")
class Drainer:
    """Lets one of the waiting threads read at a time."""

    def __init__(self, result_consumer: Any) -> None:
        self.result_consumer = result_consumer
        self.reset()

    def reset(self) -> None:
        """Forget who waits; in a forked child nobody does."""
        self._lock = Lock()
        self._reader: _Turn | None = None
        self._reading_thread: int | None = None
        self._line: list[_Turn] = []

    def start(self) -> None:
        """Prepare for waiting.  Nothing to do: the waiting threads read themselves."""

    def stop(self) -> None:
        """Undo :meth:`start`."""

    def drain_events_until(
        self,
        p: Any,
        timeout: float | None = None,
        interval: float = 1,
        on_interval: Callable[[], Any] | None = None,
        wait: Callable[..., Any] | None = None,
    ) -> Iterator[Any]:
        """Wait until ``p.ready``, looking around every *interval* seconds.

        Yields each time something may have happened.  Raises the built-in :exc:`TimeoutError` after
        *timeout* seconds.
        """
        wait = wait or self.result_consumer.drain_events
        end = None if timeout is None else time.monotonic() + timeout
        while not p.ready:
            nap = interval
            if end is not None:
                nap = min(interval, end - time.monotonic())
                if nap <= 0:
                    raise TimeoutError()
            try:
                self.wait_for(p, wait, timeout=nap)
                yield
            except TimeoutError:
                pass  # nothing came; the loop looks at the time
            except OSError:
                logger.warning("Waiting for results: the connection broke; trying again.", exc_info=True)
                time.sleep(nap)
            if on_interval is not None:
                on_interval()

    def wait_for(self, p: Any, wait: Callable[..., Any], timeout: float | None = None) -> None:
        """Read, or let another thread read, until something came or *timeout* seconds have passed."""
        if self._reading_thread == get_ident():
            # A callback of a result that was just read waits for another one.
            wait(timeout=timeout)
            return
        turn = _Turn(p)
        with self._lock:
            if self._reader is None:
                self._reader = turn
            else:
                self._line.append(turn)
        if self._reader is not turn:
            began, woken = time.monotonic(), False
            try:
                turn.event.wait(timeout)
                woken = True
            finally:
                with self._lock:
                    if turn in self._line:
                        self._line.remove(turn)
                    must_read = self._reader is turn
                if must_read and (p.ready or not woken):
                    self._pass_on()
            if not must_read or self._reader is not turn:
                return
            if timeout is not None:
                timeout = max(0.0, timeout - (time.monotonic() - began))
        self._reading_thread = get_ident()
        try:
            if not p.ready:
                wait(timeout=timeout)
        finally:
            self._reading_thread = None
            self._pass_on()

    def _pass_on(self) -> None:
        """Wake those whose wait is over, and have one of the others read."""
        with self._lock:
            still: list[_Turn] = []
            for turn in self._line:
                if turn.p.ready:
                    turn.event.set()
                else:
                    still.append(turn)
            self._reader = still.pop(0) if still else None
            self._line = still
            if self._reader is not None:
                self._reader.event.set()


class _Waiter:
    """One result object that waits.  *find* gives it, or ``None`` once nobody holds it any more."""

    __slots__ = ("bucket", "find")

    def __init__(self, find: Callable[[], Any], bucket: deque[Any] | None) -> None:
        self.find = find
        self.bucket = bucket


class PendingResults:
    """Which result objects wait for which task.  Safe to use from several threads."""

    def __init__(self) -> None:
        self.abandoned: deque[str] = deque()
        """Ids of which a waiter was garbage collected, and no other thread has looked at them since."""
        self.clear()

    def clear(self) -> None:
        """Forget all; in a forked child, whose parent waits for them."""
        self.lock = RLock()
        self._waiters: dict[str, list[_Waiter]] = {}

    def add(self, result: Any, *, weak: bool = False, bucket: deque[Any] | None = None) -> bool:
        """Have *result* wait; with *weak* without keeping it alive.  Is it the first for its task?"""
        task_id = result.id
        if weak:
            # Runs in whatever thread collects garbage, between any two instructions: no lock, no I/O.
            find: Callable[[], Any] = weakref.ref(result, lambda _: self.abandoned.append(task_id))
        else:

            def find() -> Any:
                return result

        with self.lock:
            waiters = self._waiters.get(task_id)
            if waiters is None:
                self._waiters[task_id] = [_Waiter(find, bucket)]
                return True
            if not any(waiter.find() is result and waiter.bucket is bucket for waiter in waiters):
                waiters.append(_Waiter(find, bucket))
            return False

    def remove(self, result: Any, bucket: deque[Any] | None = None) -> bool:
        """End the wait of *result*.  Was it the last one for its task?"""
        with self.lock:
            return self._keep(result.id, lambda waiter, found: found is not result or waiter.bucket is not bucket)

    def _keep(self, task_id: str, wanted: Callable[[_Waiter, Any], bool]) -> bool:
        waiters = self._waiters.get(task_id)
        if waiters is None:
            return False
        left = []
        for waiter in waiters:
            found = waiter.find()
            if found is not None and wanted(waiter, found):
                left.append(waiter)
        if left:
            self._waiters[task_id] = left
            return False
        del self._waiters[task_id]
        return True

    def take(self, task_id: str) -> list[tuple[Any, deque[Any] | None]]:
        """End the wait of all results of a task: each with the bucket it goes into."""
        with self.lock:
            waiters = self._waiters.pop(task_id, ())
        alive = ((waiter.find(), waiter.bucket) for waiter in waiters)
        return [(result, bucket) for result, bucket in alive if result is not None]

    def sweep(self) -> list[str]:
        """Ids whose last waiter was garbage collected since the last call."""
        gone = []
        while self.abandoned:
            task_id = self.abandoned.popleft()
            with self.lock:
                if self._keep(task_id, lambda waiter, found: True):
                    gone.append(task_id)
        return gone

    def ids(self) -> list[str]:
        """The tasks that are waited for."""
        with self.lock:
            return list(self._waiters)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._waiters

    def __len__(self) -> int:
        return len(self._waiters)


class _Arrival:
    """Ready when a result has its end."""

    __slots__ = ("result",)

    def __init__(self, result: Any) -> None:
        self.result = result

    @property
    def ready(self) -> bool:
        return self.result._cache is not None


class _Filled:
    """Ready when something lies in a bucket."""

    __slots__ = ("bucket",)

    def __init__(self, bucket: deque[Any]) -> None:
        self.bucket = bucket

    @property
    def ready(self) -> bool:
        return bool(self.bucket)


class AsyncBackendMixin:
    """For stores whose ``result_consumer`` is told of results."""

    result_consumer: Any
    _pending_results: Any
    _pending_messages: Any
    _ensure_not_eager: Callable[[], None]
    _flush_deferred: Callable[..., None]

    keeps_unexpected = True
    """Does the store hand out each result once, so that one nobody waits for yet must be kept?"""

    read_ahead: ReadAhead | None = None
    """Of a store that reads many results for the price of one."""

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:
        """Have *result* filled when its task has ended; with *weak* only as long as somebody holds it."""
        if start_drainer:
            self.result_consumer.drainer.start()
        ahead = self.read_ahead.after(result) if self.read_ahead is not None else ()
        self._wait_together((result,), weak, ahead=ahead)
        return result

    def add_pending_results(self, results: Iterable[Any], weak: bool = False) -> list[Any]:
        """As :meth:`add_pending_result`, for many in one go."""
        self.result_consumer.drainer.start()
        results = list(results)
        self._wait_together(results, weak)
        return results

    def _wait_together(
        self,
        results: Sequence[Any],
        weak: bool = False,
        bucket: deque[Any] | None = None,
        ahead: Sequence[Any] = (),
    ) -> None:
        pending = self._pending_results
        wanted: list[str] = []
        for result in results:
            with pending.lock:
                kept = self._take_kept(result.id) if self.keeps_unexpected else None
                if kept is None:
                    pending.add(result, weak=weak, bucket=bucket)
                    wanted.append(result.id)
            if kept is not None:
                result._maybe_set_cache(kept)
                if bucket is not None:
                    bucket.append(result)
        self._let_go_of_abandoned()
        if wanted:
            wanted += [result.id for result in ahead if pending.add(result, weak=True)]
            try:
                self.result_consumer.consume_from_all(wanted)
            except BaseException:
                for result in (*results, *ahead):
                    pending.remove(result, bucket)
                raise

    def _take_kept(self, task_id: str) -> Meta | None:
        """A result that came before anybody waited for it."""
        kept = self._pending_messages
        meta: Meta | None = kept.take(task_id, None)
        if not kept.get(task_id, True):
            del kept[task_id]  # an empty buffer
        return meta

    def _let_go_of_abandoned(self) -> None:
        if self._pending_results.abandoned:
            for task_id in self._pending_results.sweep():
                self.result_consumer.cancel_for(task_id)

    def remove_pending_result(self, result: Any) -> Any:
        """End what :meth:`add_pending_result` began."""
        if self._pending_results.remove(result):
            self.on_result_fulfilled(result)
        return result

    def on_result_fulfilled(self, result: Any) -> None:
        """Called when no object waits for this task any more."""
        self.result_consumer.cancel_for(result.id)

    def wait_for_pending(
        self,
        result: Any,
        callback: Callable[[str, Any], Any] | None = None,
        propagate: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Wait for the end of a task; its value, or its error raised.

        Raises:
            celery_clone.exceptions.TimeoutError: it took longer than ``timeout`` seconds.
        """
        self._ensure_not_eager()
        self._flush_deferred()  # what is waited for may wait here itself
        for _ in self._wait_for_pending(result, **kwargs):
            pass
        return result.maybe_throw(callback=callback, propagate=propagate)

    def _wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        on_interval: Callable[[], Any] | None = None,
        on_message: Callable[[Meta], Any] | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        return self.result_consumer._wait_for_pending(  # type: ignore[no-any-return]
            result, timeout=timeout, on_interval=on_interval, on_message=on_message, **kwargs
        )

    def iter_native(
        self,
        result: Any,
        no_ack: bool = True,
        timeout: float | None = None,
        on_interval: Callable[[], Any] | None = None,
        on_message: Callable[[Meta], Any] | None = None,
        **kwargs: Any,
    ) -> Iterator[tuple[str, Any]]:
        """Yield ``(id, meta)`` of the members of *result* as they end; of a group ``(id, its results)``."""
        self._ensure_not_eager()
        self._flush_deferred()
        bucket: deque[Any] = deque()
        waiting = []
        for node in result.results:
            if hasattr(node, "_cache") and node._cache is None:
                waiting.append(node)
            else:
                bucket.append(node)
        # Of equal ids one waits for all.
        first = {node.id: node for node in waiting}
        end = None if timeout is None else time.monotonic() + timeout
        try:
            if first:
                self.result_consumer.drainer.start()
                self._wait_together(list(first.values()), bucket=bucket)
            left = len(result.results) - len(waiting) + len(first)
            read = not first
            while left:
                while bucket:
                    node = bucket.popleft()
                    first.pop(node.id, None)
                    left -= 1
                    yield node.id, node._cache if hasattr(node, "_cache") else node.children
                if left:
                    remaining = None if end is None else max(0.0, end - time.monotonic())
                    self.result_consumer.wait_for_any(
                        None if read else list(first), bucket, remaining, on_interval, on_message, result
                    )
                    read = True
        finally:
            for node in first.values():
                if self._pending_results.remove(node, bucket):
                    self.on_result_fulfilled(node)

    @property
    def is_async(self) -> bool:
        """Does the store tell of results by itself?"""
        return True


class BaseResultConsumer:
    """What reads the connection on which a store tells of results.

    A subclass starts, subscribes and reads; it calls :meth:`on_state_change` with each state that
    came.  ``drain_events`` is called by one thread at a time, everything else by any.
    """

    #: Errors that mean that the connection is lost.
    _connection_errors: tuple[type[BaseException], ...] = ()

    def __init__(self, backend: Any, app: Any, accept: Any, pending_results: Any, pending_messages: Any) -> None:
        self.backend = backend
        self.app = app
        self.accept = accept
        self._pending_results = pending_results
        self._pending_messages = pending_messages
        self.on_message: Callable[[Meta], Any] | None = None
        self._listeners: list[tuple[set[str], Callable[[Meta], Any]]] = []
        self.drainer = drainers[detect_environment()](self)

    # -- for subclasses

    def start(self, initial_task_id: str, **kwargs: Any) -> None:
        """Connect, and consume for this task."""
        raise NotImplementedError(f"{type(self).__name__} must define start().")

    def stop(self) -> None:
        """Disconnect."""

    def drain_events(self, timeout: float | None = None) -> Any:
        """Read what came, waiting at most *timeout* seconds for it."""
        raise NotImplementedError(f"{type(self).__name__} must define drain_events().")

    def consume_from(self, task_id: str) -> Any:
        """Have states of this task sent."""
        raise NotImplementedError(f"{type(self).__name__} must define consume_from().")

    def cancel_for(self, task_id: str) -> Any:
        """Have no more states of this task sent."""
        raise NotImplementedError(f"{type(self).__name__} must define cancel_for().")

    def consume_from_all(self, task_ids: Iterable[str]) -> None:
        """Have states of several tasks sent."""
        for task_id in task_ids:
            self.consume_from(task_id)

    def _reconnect(self) -> None:
        """Connect again after the connection was lost."""

    @contextmanager
    def reconnect_on_error(self) -> Iterator[None]:
        """Within it a lost connection is made again; :exc:`RuntimeError` if it cannot be."""
        try:
            yield
        except TimeoutError:
            raise  # the end of a wait, not of the connection
        except self._connection_errors:
            try:
                self._reconnect()
            except self._connection_errors as exc:
                logger.critical(E_RETRY_LIMIT_EXCEEDED)
                raise RuntimeError(E_RETRY_LIMIT_EXCEEDED) from exc

    def _after_fork(self) -> None:
        """In a forked child: nobody waits here, and the connection is the parent's."""
        self.on_message = None
        self._listeners = []
        self.drainer.reset()
        self.on_after_fork()

    def on_after_fork(self) -> None:
        """Let go of the connection without closing it for the parent."""

    # -- waiting

    def drain_events_until(
        self, p: Any, timeout: float | None = None, on_interval: Callable[[], Any] | None = None
    ) -> Iterator[Any]:
        """Wait until ``p.ready``; see :meth:`Drainer.drain_events_until`."""
        return self.drainer.drain_events_until(  # type: ignore[no-any-return]
            p, timeout=timeout, on_interval=on_interval
        )

    def _wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        on_interval: Callable[[], Any] | None = None,
        on_message: Callable[[Meta], Any] | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        end = None if timeout is None else time.monotonic() + timeout
        self.on_wait_for_pending(result, timeout=timeout, **kwargs)
        p = _Arrival(result) if hasattr(result, "_cache") else result.on_ready
        left = None if end is None else max(0.0, end - time.monotonic())
        with self._listening(on_message, result):
            if not left and left is not None:
                self._look_once(p)
            try:
                yield from self.drain_events_until(p, left, on_interval)
            except TimeoutError:
                raise ResultTimeout("The operation timed out.") from None

    def wait_for_any(
        self,
        unread: Sequence[str] | None,
        bucket: deque[Any],
        timeout: float | None,
        on_interval: Callable[[], Any] | None,
        on_message: Callable[[Meta], Any] | None,
        result: Any,
    ) -> None:
        """Wait until something lies in *bucket*; read the states of *unread* first."""
        if unread:
            self.read(unread)
        with self._listening(on_message, result):
            if not timeout and timeout is not None:
                self._look_once(_Filled(bucket))
            try:
                for _ in self.drain_events_until(_Filled(bucket), timeout, on_interval):
                    pass
            except TimeoutError:
                raise ResultTimeout("The operation timed out.") from None

    def _look_once(self, p: Any) -> None:
        """Read what is there, for a wait without time."""
        try:
            if not p.ready:
                self.drainer.wait_for(p, self.drain_events, timeout=0)
        except TimeoutError:
            pass  # nothing was there

    def on_wait_for_pending(self, result: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Called before a wait: the place to read what ended before it was subscribed to."""

    def read(self, task_ids: Sequence[str]) -> None:
        """As :meth:`on_wait_for_pending`, for several tasks."""

    @contextmanager
    def _listening(self, on_message: Callable[[Meta], Any] | None, result: Any) -> Iterator[None]:
        """Within it *on_message* is called with the states that come for *result*."""
        if on_message is None:
            yield
            return
        members = getattr(result, "results", None)
        listener = ({result.id} if members is None else {member.id for member in members}, on_message)
        self._listeners = [*self._listeners, listener]
        try:
            yield
        finally:
            self._listeners = [other for other in self._listeners if other is not listener]

    # -- being told

    def on_out_of_band_result(self, message: Any) -> None:
        """A message came on another way than this one's."""
        self.on_state_change(message.payload, message)

    def on_state_change(self, meta: Mapping[str, Any], message: Any) -> None:
        """A state of a task came: give it to those who wait for it."""
        task_id = meta["task_id"]
        if self.on_message is not None:
            self.on_message(dict(meta))
        for ids, listener in self._listeners:
            if task_id in ids:
                listener(dict(meta))
        if meta["status"] not in states.READY_STATES:
            return
        pending = self._pending_results
        with pending.lock:
            waiting = pending.take(task_id)
            if not waiting and self.backend.keeps_unexpected:
                self._pending_messages.put(task_id, meta)
        for result, bucket in waiting:
            result._maybe_set_cache(meta)
            if bucket is not None:
                bucket.append(result)


class ReconnectingConsumer(BaseResultConsumer):
    """A consumer that owns its connection and makes it again while somebody waits.

    A subclass defines :meth:`_connect`, :meth:`_disconnect` and :meth:`_read_there`, and names the
    :attr:`_connection_errors`.  Its lock is held to write and to read what is there already, never
    while waiting.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._forget()

    def _forget(self) -> None:
        """Begin without a connection, without closing one that may be there."""
        self._lock = RLock()
        self._connection: Any = None
        self._failures = 0

    def on_after_fork(self) -> None:
        """Let go of the parent's connection."""
        self._forget()

    def _connect(self) -> None:
        """Connect and subscribe; called with the lock held."""
        raise NotImplementedError(f"{type(self).__name__} must define _connect().")

    def _disconnect(self) -> None:
        """Close the connection if there is one; called with the lock held."""
        raise NotImplementedError(f"{type(self).__name__} must define _disconnect().")

    def _read_there(self) -> list[Meta] | None:
        """The states that have arrived; ``None`` if nothing was heard."""
        raise NotImplementedError(f"{type(self).__name__} must define _read_there().")

    def _wait_readable(self, connection: Any, timeout: float) -> bool:
        """Wait until something can be read; called without the lock."""
        raise NotImplementedError(f"{type(self).__name__} must define _wait_readable().")

    def _on_silence(self) -> None:
        """Nothing came in the time that was given."""

    def _lost(self, exc: BaseException) -> None:
        """The connection does not work; called with the lock held."""
        self._failures += 1
        most = self.backend.retry_policy.get("max_retries") or "Inf"
        logger.error("Connection to the result store lost: Retry (%s/%s) after %r.", self._failures, most, exc)
        self._disconnect()

    def _reconnected(self) -> bool:
        """Connect if need be; :exc:`RuntimeError` after too many failures in a row."""
        if self._connection is not None:
            return True
        try:
            self._connect()
        except self._connection_errors as exc:
            self._lost(exc)
            most = self.backend.retry_policy.get("max_retries")
            if most and self._failures > most:
                self._failures = 0
                logger.critical(E_RETRY_LIMIT_EXCEEDED)
                raise RuntimeError(E_RETRY_LIMIT_EXCEEDED) from exc
            return False
        self._failures = 0
        return True

    def _pause(self, timeout: float) -> None:
        """Wait before the next attempt to connect."""
        policy = self.backend.retry_policy
        pause = policy.get("interval_start", 0) + policy.get("interval_step", 1) * (self._failures - 1)
        time.sleep(max(0.0, min(pause, policy.get("interval_max", 1), timeout)))

    def drain_events(self, timeout: float | None = None) -> None:
        """Read what came, waiting at most *timeout* seconds for it."""
        timeout = 1.0 if timeout is None else timeout
        with self._lock:
            there = self._reconnected()
            connection = self._connection
        if not there:
            self._pause(timeout)
            return
        metas = self._read_there()
        if metas is None and self._wait_readable(connection, timeout):
            metas = self._read_there()
        for meta in metas or ():
            self.on_state_change(meta, None)
        if metas is None:
            self._on_silence()


def wait_readable(descriptors: Sequence[Any], timeout: float) -> bool:
    """Wait until one of these sockets can be read; true as well if one was closed meanwhile."""
    try:
        # Looked up for each call: gevent and eventlet put their own in its place, or take it away.
        make_poll = getattr(select, "poll", None)
        if make_poll is None:
            return bool(select.select(descriptors, (), (), timeout)[0])
        poll = make_poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    except (AttributeError, OSError, TypeError, ValueError):
        return True
