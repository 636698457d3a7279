"""What a caller holds of a task that was sent: its id, its state and, in time, its return value.

Made by ``app.task`` for every call, by ``canvas`` for groups and chains, by ``backends`` when a
stored group or the children of a task are read back.  Talks to its ``backend`` alone, and only
when something is asked of it: making a result costs no I/O and subscribes to nothing.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from threading import Lock
from types import GenericAlias, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, cast
from weakref import proxy

from vine import Thenable, barrier, promise

from celery_clone import _state, states
from celery_clone.exceptions import ImproperlyConfigured, IncompleteStream, TaskRevokedError, TimeoutError
from celery_clone.utils.graph import DependencyGraph, GraphFormatter
from celery_clone.utils.time import maybe_iso8601

try:
    import tblib
except ImportError:  # the extra "tblib": frames of the remote side in raised errors
    tblib = None

if TYPE_CHECKING:
    from celery_clone.app.base import Celery

__all__ = (
    "AsyncResult",
    "EagerResult",
    "GroupResult",
    "ResultBase",
    "ResultSet",
    "allow_join_result",
    "assert_will_not_block",
    "denied_join_result",
    "result_from_tuple",
)

Meta = dict[str, Any]
"""A stored result as the backend gives it: ``status``, ``result``, ``traceback``, ``children``…"""

ResultTuple = tuple[tuple[str | None, Any], "list[Any] | None"]
"""``((id, parent), children)``: how a result is written down inside stored metas."""

WOULD_BLOCK = (
    "Never call result.get() within a task! The task would hold its process while it waits for one that "
    "may need the same process, and with all of them waiting the worker stands still. Let the second task "
    "follow the first one instead: chain(first, second), a callback (link=...), or chord(tasks, body) when "
    "all results of a group are needed. If you are sure that other processes will run what you wait for, "
    "call get(disable_sync_subtasks=False), or wait inside 'with allow_join_result():'."
)


def assert_will_not_block() -> None:
    """Raise :exc:`RuntimeError` inside a running task, where waiting for a result could block for ever."""
    if _state.task_join_will_block():
        raise RuntimeError(WOULD_BLOCK)


@contextmanager
def _join_will_block(value: bool) -> Iterator[None]:
    before = _state.task_join_will_block()
    _state._set_task_join_will_block(value)
    try:
        yield
    finally:
        _state._set_task_join_will_block(before)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Within this context a task may wait for the results of others."""
    with _join_will_block(False):
        yield


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Within this context waiting for a result raises :exc:`RuntimeError`."""
    with _join_will_block(True):
        yield


def _raise_stored(value: Any, traceback: TracebackType | None = None) -> NoReturn:
    """Raise *value*, which a backend read back as the error of a task."""
    if isinstance(value, BaseException):
        raise value.with_traceback(traceback)
    raise Exception(value)


def _read_ends(results: Iterable[Any]) -> set[str]:
    """Read what is not known yet of several results at once; give the ids of those that have not ended.

    Without a store that can read many at once nothing is read and nothing is known: an empty set.
    """
    unknown = {result.id: result for result in results if isinstance(result, AsyncResult) and not result._cache}
    if len(unknown) < 2:
        return set()
    backend = next(iter(unknown.values())).backend
    read_many = getattr(backend, "get_many", None)
    if read_many is None or not (backend.supports_native_join or getattr(backend, "reads_many", False)):
        return set()
    asked = {task_id for task_id, result in unknown.items() if result.backend is backend}
    for task_id, meta in read_many(set(asked), max_iterations=1, interval=0):
        unknown[task_id]._maybe_set_cache(meta)
        asked.discard(task_id)
    return asked


class ResultBase:
    """What all results share."""

    parent: Any = None
    """Result of the step before this one in a chain, if there was one."""

    def _parents(self) -> Iterator[Any]:
        node = self.parent
        while node:
            yield node
            node = node.parent

    def _maybe_reraise_parent_error(self) -> None:
        """Raise the error of the earliest step before this one that failed."""
        parents = list(self._parents())
        unfinished = _read_ends(parents)
        for node in reversed(parents):
            if node.id not in unfinished:
                node._raise_cause()

    def _raise_cause(self) -> None:
        """Raise the error of this result if it has failed, or the earlier one that it only tells of."""
        raise NotImplementedError

    def _may_have_parents(self) -> bool:
        """Is there a step before this one, or one of its members?"""
        return bool(self.parent)

    def _watch_parents(self, on_interval: Callable[[], Any] | None) -> Callable[[], None]:
        """Look at the steps before this one now; give what looks again each time a wait looks around.

        A step that failed means that this one is never sent; without this the wait had no end.
        """
        self._maybe_reraise_parent_error()

        def look_around() -> None:
            self._maybe_reraise_parent_error()
            if on_interval is not None:
                on_interval()

        return look_around


def _awaiting() -> Any:
    from celery_clone.utils import awaiting  # noqa: PLC0415 brings asyncio, 30 ms that only who awaits should pay

    return awaiting


async def _awaited(result: Any) -> Any:
    """Wait for *result* in asyncio; its value, or its error raised."""
    assert_will_not_block()
    awaiting = _awaiting()
    await awaiting.until_ended(result, result._maybe_reraise_parent_error if result._may_have_parents() else None)
    # All is known by now, but that of steps before; so this may read, and does not wait.
    return await awaiting.in_thread(result.get, disable_sync_subtasks=False)


class _BackendOfApp:
    """The app's backend, looked up when it is needed; ``None`` on the class.

    Looking up late makes a result cheap and lets it be used in another thread or in a forked child,
    where the app gives a backend with connections of its own.
    """

    def __get__(self, result: Any, owner: type | None = None) -> Any:
        if result is None or result.app is None:
            return None
        return result.app.backend


class _Waiters:
    """How many threads of one process wait for a result; the last one ends the subscription."""

    __slots__ = ("count", "lock", "pid")

    def __init__(self) -> None:
        self.lock = Lock()
        self.count = 0
        self.pid = os.getpid()


@Thenable.register
class AsyncResult(ResultBase):
    """Asks for the state and the return value of one task.

    *id* is the id of the task, *backend* the store to ask (default: the app's), *parent* the result
    of the step before it in a chain, *task_name* the name to show until the store knows it.
    """

    app: Any = None

    #: Raised by :meth:`get` when the time is over.
    TimeoutError = TimeoutError

    #: Id of the task.
    id: str = cast(str, None)

    #: The result store that is asked.
    backend: Any = _BackendOfApp()

    # Defaults on the class keep the constructor, which runs once per call sent, down to one assignment.
    _cache: Meta | None = None
    _ignored: bool = False
    _listened: bool = False
    _task_name: str | None = None

    def __init__(
        self,
        id: str,
        backend: Any = None,
        task_name: str | None = None,
        app: Celery | None = None,
        parent: ResultBase | None = None,
    ) -> None:
        if id is None:
            raise ValueError("AsyncResult needs the id of a task, but got None.")
        self.id = id
        if app is not None:
            self.app = app
        elif self.app is None:
            self.app = _state.app_or_default(None)
        if backend is not None:
            self.backend = backend
        if parent is not None:
            self.parent = parent
        if task_name is not None:
            self._task_name = task_name

    # -- listening

    @property
    def on_ready(self) -> Any:
        """A promise that is fulfilled with this result when the task has ended."""
        attributes = self.__dict__
        found = attributes.get("_on_ready")
        if found is None:
            # setdefault is atomic: of two threads that come first together, both get the same promise.
            found = attributes.setdefault("_on_ready", promise(self._on_fulfilled, weak=True))
            self._announce()
        return found

    def _on_fulfilled(self, result: AsyncResult) -> AsyncResult:
        self.backend.remove_pending_result(self)
        return result

    def _announce(self) -> None:
        """Fulfil the promise, once, if there is one and the task has ended."""
        attributes = self.__dict__
        ready = attributes.get("_on_ready")
        if ready is not None and self._cache is not None:
            turn = object()
            if attributes.setdefault("_announced", turn) is turn:
                ready(self)

    def then(self, callback: Callable[..., Any], on_error: Callable[..., Any] | None = None, weak: bool = False) -> Any:
        """Call ``callback(result)`` when the task has ended; give the promise of that call.

        *on_error* gets the error when one is raised by way of this result.  With *weak* the backend
        does not keep the result alive while it waits.
        """
        if self._cache is None:
            self._listened = True
            self.backend.add_pending_result(self, weak=weak)
        return self.on_ready.then(callback, on_error)

    def throw(self, *args: Any, **kwargs: Any) -> Any:
        """Tell the listeners of an error, and raise it unless one of them handles it."""
        return self.on_ready.throw(*args, **kwargs)

    # -- waiting

    @property
    def ignored(self) -> bool:
        """Was the task told to keep no result?  :meth:`get` then gives ``None`` at once."""
        return self._ignored

    @ignored.setter
    def ignored(self, value: bool) -> None:
        self._ignored = value

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[Meta], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> Any:
        """Wait until the task has ended and give its return value.

        :param timeout: seconds to wait before ``celery_clone.exceptions.TimeoutError``; ``None``: for ever.
            The task itself is not stopped.
        :param propagate: raise the error of a failed task; else it is given as the value.
        :param interval: seconds between two looks at a store that must be polled.
        :param no_ack: let result messages be acknowledged as they are fetched (rpc).
        :param follow_parents: raise the error of an earlier step of the chain too.
        :param callback: called as ``callback(task_id, value)`` when the value is there.
        :param on_message: called with each stored state that arrives (only stores that push).
        :param on_interval: called each time the wait looks around.
        :param disable_sync_subtasks: refuse to wait inside a running task.

        Gives ``None`` at once when the task keeps no result.
        """
        if self._ignored:
            return None
        if disable_sync_subtasks:
            assert_will_not_block()
        follow_parents = follow_parents and propagate and bool(self.parent)
        if follow_parents:
            on_interval = self._watch_parents(on_interval)
        if self._cache is not None:
            return self.maybe_throw(propagate=propagate, callback=callback)

        waiters = self._join_waiters()
        try:
            return self.backend.wait_for_pending(
                self,
                timeout=timeout,
                interval=interval,
                on_interval=on_interval,
                no_ack=no_ack,
                propagate=propagate,
                callback=callback,
                on_message=on_message,
            )
        except TimeoutError:
            raise
        except Exception:
            if follow_parents:
                # The error stored here may only tell of the first one (ChordError): raise that itself.
                self._maybe_reraise_parent_error()
            raise
        finally:
            self._leave_waiters(waiters)

    wait = get

    def __await__(self) -> Generator[Any, None, Any]:
        """``await result``: the return value, as :meth:`get` gives it, without holding the event loop.

        The time is bounded by asyncio's own means: ``await asyncio.wait_for(result, timeout)``.
        """
        return _awaited(self).__await__()

    def _join_waiters(self) -> _Waiters:
        attributes = self.__dict__
        waiters: _Waiters = attributes.setdefault("_waiters", _Waiters())
        if waiters.pid != os.getpid():
            # Forked meanwhile: nobody of the parent waits here, and its lock may have been held.
            waiters = attributes["_waiters"] = _Waiters()
        with waiters.lock:
            waiters.count += 1
            self.backend.add_pending_result(self)
        return waiters

    def _leave_waiters(self, waiters: _Waiters) -> None:
        with waiters.lock:
            waiters.count -= 1
            if not waiters.count and not self._listened and "_announced" not in self.__dict__:
                self.backend.remove_pending_result(self)

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> Any:
        """Raise the error of the task if it failed; else give the value known so far, without waiting."""
        meta = self._get_task_meta()
        value = meta["result"]
        if propagate and meta["status"] in states.PROPAGATE_STATES:
            traceback = self._to_remote_traceback(meta.get("traceback"))
            if "_on_ready" in self.__dict__ and isinstance(value, BaseException):
                self.throw(value, traceback)
            else:
                _raise_stored(value, traceback)
        if callback is not None:
            callback(self.id, value)
        return value

    maybe_reraise = maybe_throw

    def _raise_cause(self) -> None:
        if self.state in states.PROPAGATE_STATES:
            self._maybe_reraise_parent_error()
            self.maybe_throw()

    def _to_remote_traceback(self, text: str | None) -> TracebackType | None:
        if text and tblib is not None and self.app is not None and self.app.conf.task_remote_tracebacks:
            return cast("TracebackType", tblib.Traceback.from_string(text).as_traceback())
        return None

    # -- ending

    def forget(self) -> None:
        """Remove the stored result of the task and of the steps before it."""
        for name in ("_cache", "_on_ready", "_announced"):
            self.__dict__.pop(name, None)
        if self.parent:
            self.parent.forget()
        self.backend.remove_pending_result(self)
        self.backend.forget(self.id)

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Tell all workers not to run the task.

        With *terminate* the process that runs it already gets *signal* (default ``TERM``).  With *wait*
        the replies of the workers are awaited for *timeout* seconds.
        """
        self.app.control.revoke(
            self.id, connection=connection, terminate=terminate, signal=signal, reply=wait, timeout=timeout
        )

    def revoke_by_stamped_headers(
        self,
        headers: Mapping[str, Any],
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Tell all workers not to run any task whose stamps match all of *headers*.

        The other arguments are those of :meth:`revoke`.
        """
        self.app.control.revoke_by_stamped_headers(
            headers, connection=connection, terminate=terminate, signal=signal, reply=wait, timeout=timeout
        )

    # -- the tree

    def collect(self, intermediate: bool = False, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        """Yield ``(result, value)`` of this task and of all tasks it has sent, waiting for each.

        Tasks are known as children if their parent has ``trail`` set, which is the default.  With
        *intermediate* the walk goes on below tasks that have not ended.  *kwargs* go to :meth:`get`.
        """
        for _, result in self.iterdeps(intermediate=intermediate):
            yield result, result.get(**kwargs)

    def get_leaf(self) -> Any:
        """Wait for the whole tree and give the value of the last result in it."""
        value = None
        for _, result in self.iterdeps():
            value = result.get()
        return value

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[Any, Any]]:
        """Yield ``(parent, result)`` for this result and all below it, level by level.

        :exc:`IncompleteStream` is raised at a task that has not ended, unless *intermediate* is true.
        """
        waiting: deque[tuple[Any, Any]] = deque([(None, self)])
        while waiting:
            parent, node = waiting.popleft()
            yield parent, node
            if node.ready():
                waiting.extend((node, child) for child in node.children or ())
            elif not intermediate:
                raise IncompleteStream(
                    f"Task {node.id} has not ended, so the tasks it sends are not known yet: wait for it "
                    "with get(), or pass intermediate=True."
                )

    def build_graph(self, intermediate: bool = False, formatter: Any = None) -> DependencyGraph:
        """Give the tree below this result as a graph that can be drawn."""
        graph = DependencyGraph(formatter=formatter or GraphFormatter(root=self.id, shape="oval"))
        for parent, node in self.iterdeps(intermediate=intermediate):
            graph.add_arc(node)
            if parent:
                graph.add_edge(parent, node)
        return graph

    @property
    def graph(self) -> DependencyGraph:
        """The tree below this result as a graph, built once."""
        attributes = self.__dict__
        if "_graph" not in attributes:
            attributes["_graph"] = self.build_graph()
        return cast(DependencyGraph, attributes["_graph"])

    def as_tuple(self) -> ResultTuple:
        """``((id, parent), None)``, to be stored; :func:`result_from_tuple` reads it."""
        parent = self.parent
        return (self.id, parent and parent.as_tuple()), None

    def as_list(self) -> list[str]:
        """The ids of this result and of the steps before it."""
        parent = self.parent
        return [self.id, *(parent.as_list() if parent is not None else ())]

    # -- the stored meta

    def _get_task_meta(self) -> Meta:
        cached = self._cache
        if cached is None:
            return cast(Meta, self._maybe_set_cache(self.backend.get_task_meta(self.id)))
        return cached

    def _maybe_set_cache(self, meta: Meta | None) -> Meta | None:
        """Take in a state that was read or pushed; called by backends, from any thread."""
        if meta and meta["status"] in states.READY_STATES:
            meta = self._set_cache(self.backend.meta_from_decoded(meta))
            self._announce()
        return meta

    def _set_cache(self, meta: Meta) -> Meta:
        children = meta.get("children")
        if children:
            meta = {**meta, "children": [result_from_tuple(child, self.app) for child in children]}
        attributes = self.__dict__
        if attributes.get("_cache") is None:
            attributes.pop("_cache", None)
        # The first end that is seen stays: threads that read at once agree on one value.
        return cast(Meta, attributes.setdefault("_cache", meta))

    def _iter_meta(self, **kwargs: Any) -> Iterator[Meta]:
        return iter([self._get_task_meta()])

    def exists(self) -> bool:
        """Does the store know this task?  Tells a task that waits from an id that never was, or expired."""
        return bool(self.backend.task_result_exists(self.id))

    def ready(self) -> bool:
        """Has the task ended, well or not?"""
        return self.state in self.backend.READY_STATES

    def successful(self) -> bool:
        """Has the task returned a value?"""
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        """Has the task raised an error?"""
        return self.state == states.FAILURE

    @property
    def supports_native_join(self) -> bool:
        """Can the store wait for many results at once?"""
        return cast(bool, self.backend.supports_native_join)

    @property
    def result(self) -> Any:
        """The return value; of a failed task the error; of a running one what it last told."""
        return self._get_task_meta()["result"]

    info = result

    @property
    def state(self) -> str:
        """``PENDING`` (waits, or unknown), ``STARTED``, ``RETRY``, ``FAILURE``, ``SUCCESS``, ``REVOKED``…"""
        return cast(str, self._get_task_meta()["status"])

    status = state

    @property
    def traceback(self) -> str | None:
        """The traceback of a failed task, as text."""
        return self._get_task_meta().get("traceback")

    @property
    def children(self) -> Any:
        """Results of the tasks that this task has sent."""
        return self._get_task_meta().get("children")

    @property
    def date_done(self) -> datetime | None:
        """When the task ended, in UTC."""
        return maybe_iso8601(self._get_task_meta().get("date_done"))

    @property
    def name(self) -> str | None:
        """Name of the task.  This and the five below need ``result_extended`` to be stored."""
        return self._get_task_meta().get("name") or self._task_name

    @property
    def args(self) -> Any:
        """Positional arguments of the call."""
        return self._get_task_meta().get("args")

    @property
    def kwargs(self) -> Any:
        """Keyword arguments of the call."""
        return self._get_task_meta().get("kwargs")

    @property
    def worker(self) -> str | None:
        """Name of the worker that ran the task."""
        return self._get_task_meta().get("worker")

    @property
    def retries(self) -> int | None:
        """How often the task was retried."""
        return self._get_task_meta().get("retries")

    @property
    def queue(self) -> str | None:
        """Queue the task was fetched from."""
        return self._get_task_meta().get("queue")

    @property
    def task_id(self) -> str:
        """Old name of :attr:`id`."""
        return self.id

    @task_id.setter
    def task_id(self, id: str) -> None:
        self.id = id

    # -- as a value

    __class_getitem__: classmethod[Any, Any, GenericAlias] = classmethod(GenericAlias)

    def __str__(self) -> str:
        return str(self.id)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return other.id == self.id
        if isinstance(other, str):
            return other == self.id
        return NotImplemented

    def __copy__(self) -> AsyncResult:
        return self.__class__(self.id, self.__dict__.get("backend"), self._task_name, self.app, self.parent)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.__class__, self.__reduce_args__()

    def __reduce_args__(self) -> tuple[Any, ...]:
        return self.id, self.__dict__.get("backend"), None, None, self.parent


@Thenable.register
class ResultSet(ResultBase):
    """Several results as one.

    *results* is the sequence of its members, kept in order.  *ready_barrier* is a vine barrier that the
    caller fulfils; without it one is made when somebody listens.
    """

    _app: Any = None

    #: The members.
    results: Any = None

    _on_full: Any = None
    _ready: Any = None

    def __init__(self, results: Any, app: Celery | None = None, ready_barrier: Any = None, **kwargs: Any) -> None:
        self._app = app
        self.results = results
        if ready_barrier is not None:
            self._listen_to(ready_barrier)

    # -- listening

    @property
    def on_ready(self) -> Any:
        """A promise that is fulfilled with this set when all members have ended."""
        if self._ready is None:
            full = barrier()
            ready = self._listen_to(full)
            self._subscribe()
            for member in self.results:
                full.add(_Weakly(member))
            full.finalize()
            return ready
        return self._ready

    def _listen_to(self, full: Any) -> Any:
        self._ready = ready = promise(args=(proxy(self),))
        self._on_full = full
        full.then(promise(self._on_ready, weak=True))
        return ready

    def _subscribe(self) -> None:
        """Tell a store that pushes of all members at once, where it can take them at once."""
        subscribe_all = getattr(self.backend, "add_pending_results", None)
        waiting = [
            member
            for member in self.results
            if isinstance(member, AsyncResult) and member._cache is None and member.backend is self.backend
        ]
        if subscribe_all is not None and waiting:
            subscribe_all(waiting, weak=True)

    def _on_ready(self) -> None:
        self._ready()

    def then(self, callback: Callable[..., Any], on_error: Callable[..., Any] | None = None, weak: bool = False) -> Any:
        """Call ``callback(self)`` when all members have ended; give the promise of that call.

        A store never keeps a set alive, whatever *weak* says: hold it until then.
        """
        return self.on_ready.then(callback, on_error)

    # -- members

    def add(self, result: Any) -> None:
        """Add a member, unless it is one already."""
        if result in self.results:
            return
        self.results.append(result)
        if self._on_full is None:
            return
        if self._on_full.p.ready:
            # What listened before was told already; who listens from now on waits for the new member too.
            self._on_full = self._ready = None
        else:
            self._on_full.add(_Weakly(result))

    def remove(self, result: Any) -> None:
        """Remove a member, given as result or id; :exc:`KeyError` if it is none."""
        if isinstance(result, str):
            result = self.app.AsyncResult(result)
        try:
            self.results.remove(result)
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: Any) -> None:
        """Remove a member if it is one."""
        try:
            self.remove(result)
        except KeyError:
            pass  # not being there is what was asked for

    def update(self, results: Iterable[Any]) -> None:
        """Add several members."""
        for result in results:
            self.add(result)

    def clear(self) -> None:
        """Remove all members."""
        self.results[:] = []

    # -- state

    def successful(self) -> bool:
        """Have all members returned a value?"""
        return not _read_ends(self.results) and all(result.successful() for result in self.results)

    def failed(self) -> bool:
        """Has any member failed?"""
        return any(result.failed() for result in self._ended())

    def waiting(self) -> bool:
        """Has any member not ended yet?"""
        return not self.ready()

    def ready(self) -> bool:
        """Have all members ended, well or not?"""
        return not _read_ends(self.results) and all(result.ready() for result in self.results)

    def completed_count(self) -> int:
        """How many members have returned a value."""
        return sum(1 for result in self._ended() if result.successful())

    def _ended(self) -> Iterator[Any]:
        """The members, without those that are known not to have ended."""
        unfinished = _read_ends(self.results)
        return (result for result in self.results if result.id not in unfinished)

    def maybe_throw(self, callback: Callable[[str, Any], Any] | None = None, propagate: bool = True) -> None:
        """Raise the error of the first member that failed, without waiting for any."""
        for result in self._ended() if callback is None else self.results:
            result.maybe_throw(callback=callback, propagate=propagate)

    maybe_reraise = maybe_throw

    def _raise_cause(self) -> None:
        for inner in self._sets_inside():
            inner._maybe_reraise_parent_error()
        for result in self._ended():
            result._raise_cause()

    def _sets_inside(self) -> list[ResultSet]:
        """The members that are sets.  Their members are never sent if a step before them failed."""
        return [result for result in self.results if isinstance(result, ResultSet)]

    def _may_have_parents(self) -> bool:
        return bool(self.parent or self._sets_inside())

    def _maybe_reraise_parent_error(self) -> None:
        super()._maybe_reraise_parent_error()
        for inner in self._sets_inside():
            inner._maybe_reraise_parent_error()

    # -- waiting

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callable[[str, Any], Any] | None = None,
        no_ack: bool = True,
        on_message: Callable[[Meta], Any] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None,
    ) -> Any:
        """Wait for all members: :meth:`join_native` where the store can, else :meth:`join`."""
        join = self.join_native if self.supports_native_join else self.join
        return join(
            timeout=timeout,
            propagate=propagate,
            interval=interval,
            callback=callback,
            no_ack=no_ack,
            on_message=on_message,
            disable_sync_subtasks=disable_sync_subtasks,
            on_interval=on_interval,
        )

    def join(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callable[[str, Any], Any] | None = None,
        no_ack: bool = True,
        on_message: Callable[[Meta], Any] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None,
    ) -> list[Any]:
        """Wait for one member after the other; give their values in order.

        Arguments as for :meth:`AsyncResult.get`; *timeout* counts for all members together, and 0 means
        to look once.  With *callback* each value goes to ``callback(task_id, value)`` and the list given
        is empty.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        if on_message is not None:
            raise ImproperlyConfigured(
                "Backend does not support on_message callback: this result store is asked, it does not tell. "
                "Use a store that pushes results, such as redis:// or rpc://, or leave on_message out."
            )
        if propagate and (self.parent or self._sets_inside()):
            on_interval = self._watch_parents(on_interval)
        deadline = _Deadline(timeout)
        values: list[Any] = []
        for place, result in enumerate(self.results):
            if isinstance(result, AsyncResult) and result._cache is None:
                # One question for all that have ended meanwhile, where the store can answer it.
                _read_ends(self.results[place:])
            value = result.get(
                timeout=deadline.remaining(),
                propagate=propagate,
                interval=interval,
                no_ack=no_ack,
                on_interval=on_interval,
                disable_sync_subtasks=disable_sync_subtasks,
            )
            if callback:
                callback(result.id, value)
            else:
                values.append(value)
        return values

    def __await__(self) -> Generator[Any, None, Any]:
        """``await results``: the values of all members in order, as :meth:`get` gives them."""
        return _awaited(self).__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        """``async for result in results``: the members as they end; ``await`` them for their values."""
        assert_will_not_block()
        look_around = self._maybe_reraise_parent_error if self._may_have_parents() else None
        async for result in _awaiting().as_ended(self.results, look_around):
            yield result

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[Meta], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Yield ``(task_id, meta)`` as the members end, in the order of their ends.

        For a member that is a group its id and its list of results are given.  Needs a store with
        ``supports_native_join``, the same for all members.
        """
        return cast(
            "Iterator[tuple[str, Any]]",
            self.backend.iter_native(
                self, timeout=timeout, interval=interval, no_ack=no_ack, on_message=on_message, on_interval=on_interval
            ),
        )

    def join_native(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callable[[str, Any], Any] | None = None,
        no_ack: bool = True,
        on_message: Callable[[Meta], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> list[Any] | None:
        """Wait for all members together; give their values in order.

        Arguments as for :meth:`join`.  With *callback* nothing is given back.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        if propagate and (self.parent or self._sets_inside()):
            on_interval = self._watch_parents(on_interval)
        deadline = _Deadline(timeout)
        places: dict[str, list[int]] = {}
        for place, result in enumerate(self.results):
            places.setdefault(result.id, []).append(place)
        values: list[Any] = [None] * len(self)
        for task_id, meta in self.iter_native(timeout, interval, no_ack, on_message, on_interval):
            if isinstance(meta, list):
                value: Any = [
                    child.get(
                        timeout=deadline.remaining(),
                        propagate=propagate,
                        on_interval=on_interval,
                        disable_sync_subtasks=disable_sync_subtasks,
                    )
                    for child in meta
                ]
            else:
                value = meta["result"]
                if propagate and meta["status"] in states.PROPAGATE_STATES:
                    # What is stored here may only tell of the error of a step before: raise that itself.
                    self.results[places[task_id][0]]._raise_cause()
                    _raise_stored(value)
            if callback:
                callback(task_id, value)
            else:
                for place in places[task_id]:
                    values[place] = value
        return None if callback else values

    def _iter_meta(self, **kwargs: Any) -> Iterator[Meta]:
        ids = {result.id for result in self.results}
        return (meta for _, meta in self.backend.get_many(ids, max_iterations=1, **kwargs))

    def _failed_join_report(self) -> Iterator[Any]:
        """Members known to have failed, without asking the store again."""
        return (
            result
            for result in self.results
            if (getattr(result, "_cache", None) is not None or result.backend.is_cached(result.id))
            and result.state in states.PROPAGATE_STATES
        )

    # -- ending

    def forget(self) -> None:
        """Remove the stored results of all members."""
        for result in self.results:
            result.forget()

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Tell all workers not to run any member; arguments as for :meth:`AsyncResult.revoke`."""
        self.app.control.revoke(
            [result.id for result in self.results],
            connection=connection,
            timeout=timeout,
            terminate=terminate,
            signal=signal,
            reply=wait,
        )

    # -- where

    @property
    def supports_native_join(self) -> bool | None:
        """Can the store wait for all members at once?  ``None`` for a set without members."""
        return self.results[0].supports_native_join if self.results else None

    @property
    def app(self) -> Any:
        """The app of the members."""
        if self._app is None:
            self._app = self.results[0].app if self.results else None
            if self._app is None:
                self._app = _state.get_current_app()
        return self._app

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    @property
    def backend(self) -> Any:
        """The result store that is asked."""
        return self.app.backend if self.app else self.results[0].backend

    # -- as a value

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.results[index]
        except IndexError:
            size = len(self.results)
            numbered = f"they are numbered from 0 to {size - 1}" if size else "there is none to ask for"
            raise IndexError(f"{self._shown_id()} has {size} members, so there is no {index}: {numbered}.") from None

    def _shown_id(self) -> str:
        """What an error calls this set."""
        return type(self).__name__

    def __len__(self) -> int:
        return len(self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ResultSet):
            return bool(other.results == self.results)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # a set changes

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(result.id for result in self.results)}]>"


class _Deadline:
    """A number of seconds from now, shared by several waits."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Seconds left, never below 0, or ``None`` when there is no end."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)


@Thenable.register
class _Weakly:
    """A member of a set as its barrier wants it: being listened to does not keep the member alive."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def then(self, callback: Callable[..., Any], on_error: Callable[..., Any] | None = None) -> Any:
        return self._result.then(callback, on_error, weak=True)


@Thenable.register
class GroupResult(ResultSet):
    """The results of one group, under the group's id.

    *results* is the sequence of the members' results, *parent* the result of the step before the group.
    """

    #: Id of the group.
    id: str | None = None

    #: The members' results, in the order of the group.
    results: Any = None

    def _shown_id(self) -> str:
        return f"{type(self).__name__} {self.id}"

    def __init__(
        self,
        id: str | None = None,
        results: Sequence[Any] | None = None,
        parent: ResultBase | None = None,
        **kwargs: Any,
    ) -> None:
        self.id = id
        self.parent = parent
        super().__init__(results, **kwargs)

    def _on_ready(self) -> None:
        self.backend.remove_pending_result(self)
        super()._on_ready()

    def save(self, backend: Any = None) -> Any:
        """Store this group, so that :meth:`restore` finds it by its id."""
        return (backend or self.app.backend).save_group(self.id, self)

    def delete(self, backend: Any = None) -> None:
        """Remove the stored group, if it was saved."""
        (backend or self.app.backend).delete_group(self.id)

    @classmethod
    def restore(cls, id: str, backend: Any = None, app: Any = None) -> Any:
        """Give the group saved under *id*, or ``None``."""
        if backend is None:
            if app is None:
                # A class made by an app carries the app in the place of the property.
                app = _state.get_current_app() if isinstance(cls.app, property) else cls.app
            backend = app.backend
        return backend.restore_group(id)

    def as_tuple(self) -> ResultTuple:
        """``((id, parent), members)``, to be stored; :func:`result_from_tuple` reads it."""
        parent = self.parent
        return (self.id, parent and parent.as_tuple()), [result.as_tuple() for result in self.results]

    def as_list(self) -> list[str]:
        """The ids of this group and of the steps before it."""
        parent = self.parent
        return [cast(str, self.id), *(parent.as_list() if parent is not None else ())]

    @property
    def children(self) -> Any:
        """The members' results."""
        return self.results

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return bool(other.id == self.id and other.results == self.results and other.parent == self.parent)
        if isinstance(other, str):
            return other == self.id
        return NotImplemented

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.id)

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id} [{', '.join(result.id for result in self.results)}]>"

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.__class__, self.__reduce_args__()

    def __reduce_args__(self) -> tuple[Any, ...]:
        return self.id, self.results


@Thenable.register
class EagerResult(AsyncResult):
    """The result of a task that ran here and now; its end is known from the start."""

    def __init__(self, id: str, ret_value: Any, state: str, traceback: Any = None, name: str | None = None) -> None:
        # Not AsyncResult's: there is neither an app nor a store behind this one.
        self.id = id
        self._result = ret_value
        self._state = state
        self._traceback = traceback
        self._name = name

    @property
    def on_ready(self) -> Any:
        """A promise that is fulfilled already."""
        attributes = self.__dict__
        if "_on_ready" not in attributes:
            ready = promise()
            ready(self)
            attributes.setdefault("_on_ready", ready)
        return attributes["_on_ready"]

    def then(self, callback: Callable[..., Any], on_error: Callable[..., Any] | None = None, weak: bool = False) -> Any:
        """Call ``callback(result)`` at once."""
        return self.on_ready.then(callback, on_error)

    @property
    def _cache(self) -> Meta:  # type: ignore[override]
        return {
            "task_id": self.id,
            "result": self._result,
            "status": self._state,
            "traceback": self._traceback,
            "name": self._name,
        }

    def _get_task_meta(self) -> Meta:
        return self._cache

    def ready(self) -> bool:
        """Always true."""
        return True

    def get(  # type: ignore[override]
        self, timeout: float | None = None, propagate: bool = True, disable_sync_subtasks: bool = True, **kwargs: Any
    ) -> Any:
        """Give the value, or raise the error, at once; ``None`` if the task neither returned nor failed.

        ``callback`` is called as by :meth:`AsyncResult.get`; the other arguments of that method, which
        say how to wait, are accepted, since there is nothing to wait for.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        if self._state in states.PROPAGATE_STATES:
            if propagate:
                raise self._result if isinstance(self._result, Exception) else Exception(self._result)
        elif self._state != states.SUCCESS:
            return None
        callback = kwargs.get("callback")
        if callback is not None:
            callback(self.id, self._result)
        return self._result

    wait = get  # type: ignore[assignment]

    def forget(self) -> None:
        """Nothing is stored, so nothing is removed."""

    def revoke(self, *args: Any, **kwargs: Any) -> None:
        """Mark the result as revoked.

        The task has run, so nothing is stopped; but the value is replaced by the
        :exc:`TaskRevokedError` that a store would hold, and :meth:`get` raises it.
        """
        self._state = states.REVOKED
        self._result = TaskRevokedError("revoked")
        self._traceback = None

    @property
    def result(self) -> Any:
        """The return value or the error."""
        return self._result

    @property
    def state(self) -> str:
        """How the task ended."""
        return self._state

    status = state

    @property
    def traceback(self) -> Any:
        """The traceback if the task failed."""
        return self._traceback

    @property
    def supports_native_join(self) -> bool:
        """Always false: there is no store to wait for."""
        return False

    def __repr__(self) -> str:
        return f"<EagerResult: {self.id}>"

    def __copy__(self) -> EagerResult:
        return self.__class__(*self.__reduce_args__())

    def __reduce_args__(self) -> tuple[Any, ...]:
        return self.id, self._result, self._state, self._traceback, self._name


def result_from_tuple(r: Any, app: Any = None) -> Any:
    """Give the result that *r*, made by ``as_tuple()``, stands for; a result is given back as it is."""
    if isinstance(r, ResultBase):
        return r
    app = _state.app_or_default(app)
    own, members = r
    id, parent = own if isinstance(own, (list, tuple)) else (own, None)
    if parent:
        parent = result_from_tuple(parent, app)
    if members is None:
        return app.AsyncResult(id, parent=parent)
    return app.GroupResult(id, [result_from_tuple(member, app) for member in members], parent=parent)
