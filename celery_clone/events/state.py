"""What events tell of a cluster: its workers, its tasks, and how far they have come.

Made through ``app.events.State`` by monitors, cameras and the worker's gossip, and fed with events one by
one.  It keeps a bounded number of workers and tasks, the least recently changed are dropped first.  It may
not talk to the broker.

Events of one task may arrive in any order; their logical clocks tell which came first.
"""

from __future__ import annotations

import bisect
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from itertools import islice
from time import time
from typing import Any, ClassVar
from weakref import WeakSet, ref

from kombu.clocks import timetuple

from celery_clone import states
from celery_clone.utils.functional import LRUCache, memoize
from celery_clone.utils.log import get_logger

__all__ = ("State", "Task", "Worker", "heartbeat_expires")

logger = get_logger("celery.events.state")

HEARTBEAT_EXPIRE_WINDOW = 200
"""Percent of the time between two heartbeats after which a silent worker counts as offline."""

HEARTBEAT_DRIFT_MAX = 16
"""Seconds between sending and receiving that are taken for clocks out of step."""

DRIFT_WARNING = (
    "Substantial drift from %s may mean clocks are out of sync.  Current drift is %s seconds.  [orig: %s recv: %s]"
)

TASK_EVENT_TO_STATE = {
    "sent": states.PENDING,
    "received": states.RECEIVED,
    "started": states.STARTED,
    "failed": states.FAILURE,
    "retried": states.RETRY,
    "succeeded": states.SUCCESS,
    "revoked": states.REVOKED,
    "rejected": states.REJECTED,
}


def heartbeat_expires(timestamp: Any, freq: Any = 60, expire_window: float = HEARTBEAT_EXPIRE_WINDOW) -> float:
    """Epoch time at which a worker counts as offline that was heard of at *timestamp*.

    *freq* is in seconds, *expire_window* in percent of it.  Numbers may be decimals, as some readers of
    JSON make them.
    """
    freq, timestamp = (float(value) if isinstance(value, Decimal) else value for value in (freq, timestamp))
    return float(timestamp + freq * (expire_window / 100))


@memoize(maxsize=1000, keyfun=lambda args, kwargs: args[0])
def warn_of_drift(hostname: str, drift: int, local_received: float, timestamp: float) -> None:
    """Say once for each worker that its clock differs from ours."""
    logger.warning(
        DRIFT_WARNING,
        hostname,
        drift,
        datetime.fromtimestamp(local_received),
        datetime.fromtimestamp(timestamp),
    )


class CallableDefaultdict(defaultdict[str, "WeakSet[Task]"]):
    """An index of tasks that can also be called, to give them ordered by time."""

    def __init__(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.fun = fun
        super().__init__(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fun(*args, **kwargs)


class Worker:
    """A worker as its events describe it; every field of an event becomes an attribute."""

    #: How many times of heartbeats are kept.
    heartbeat_max = 4
    expire_window = HEARTBEAT_EXPIRE_WINDOW

    _fields = (
        "hostname",
        "pid",
        "freq",
        "heartbeats",
        "clock",
        "active",
        "processed",
        "loadavg",
        "sw_ident",
        "sw_ver",
        "sw_sys",
    )
    __slots__ = (*_fields, "__dict__", "__weakref__", "event")

    def __init__(
        self,
        hostname: str | None = None,
        pid: int | None = None,
        freq: float = 60,
        heartbeats: list[float] | None = None,
        clock: int = 0,
        active: int | None = None,
        processed: int | None = None,
        loadavg: Any = None,
        sw_ident: str | None = None,
        sw_ver: str | None = None,
        sw_sys: str | None = None,
    ) -> None:
        self.hostname = hostname
        self.pid = pid
        self.freq = freq
        self.heartbeats = [] if heartbeats is None else heartbeats
        self.clock = clock or 0
        self.active = active
        self.processed = processed
        self.loadavg = loadavg
        self.sw_ident = sw_ident
        self.sw_ver = sw_ver
        self.sw_sys = sw_sys
        #: Takes in one event.
        self.event = self._take_in

    def _take_in(
        self,
        type_: str | None,
        timestamp: float | None = None,
        local_received: float | None = None,
        fields: Mapping[str, Any] | None = None,
        max_drift: float = HEARTBEAT_DRIFT_MAX,
    ) -> None:
        for name, value in (fields or {}).items():
            setattr(self, name, value)
        heartbeats = self.heartbeats
        if type_ == "offline":
            heartbeats.clear()
            return
        if not local_received or not timestamp:
            return
        drift = abs(int(local_received) - int(timestamp))
        if drift > max_drift:
            warn_of_drift(self.hostname, drift, local_received, timestamp)
        bisect.insort(heartbeats, local_received)
        del heartbeats[: -self.heartbeat_max]

    def update(self, f: Mapping[str, Any], **kw: Any) -> None:
        """Set attributes."""
        for name, value in {**f, **kw}.items():
            setattr(self, name, value)

    @property
    def heartbeat_expires(self) -> float:
        """Epoch time at which the worker counts as offline."""
        return heartbeat_expires(self.heartbeats[-1], self.freq, self.expire_window)

    @property
    def alive(self) -> bool:
        """Was the worker heard of lately?"""
        return bool(self.heartbeats and time() < self.heartbeat_expires)

    @property
    def status_string(self) -> str:
        """``ONLINE`` or ``OFFLINE``."""
        return "ONLINE" if self.alive else "OFFLINE"

    @property
    def id(self) -> str:
        """Name and process id."""
        return f"{self.hostname}.{self.pid}"

    def __eq__(self, other: object) -> bool:
        return self.hostname == other.hostname if isinstance(other, Worker) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.hostname)

    def __repr__(self) -> str:
        return f"<Worker: {self.hostname} ({self.status_string} clock:{self.clock})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, field) for field in self._fields)


class Task:
    """A task as its events describe it; every field of an event becomes an attribute.

    ``sent``, ``received``, ``started`` and so on are the epoch times of the events, ``timestamp`` is that of
    the one that ``state`` comes from.
    """

    name: Any = None
    received: Any = None
    sent: Any = None
    started: Any = None
    succeeded: Any = None
    failed: Any = None
    retried: Any = None
    revoked: Any = None
    rejected: Any = None
    args: Any = None
    kwargs: Any = None
    eta: Any = None
    expires: Any = None
    retries: Any = None
    worker: Any = None
    result: Any = None
    exception: Any = None
    timestamp: Any = None
    runtime: Any = None
    traceback: Any = None
    exchange: Any = None
    routing_key: Any = None
    root_id: Any = None
    parent_id: Any = None
    client: Any = None
    state: str = states.PENDING
    clock: int = 0

    _fields = (
        "uuid",
        "name",
        "state",
        "received",
        "sent",
        "started",
        "rejected",
        "succeeded",
        "failed",
        "retried",
        "revoked",
        "args",
        "kwargs",
        "eta",
        "expires",
        "retries",
        "worker",
        "result",
        "exception",
        "timestamp",
        "runtime",
        "traceback",
        "exchange",
        "routing_key",
        "clock",
        "client",
        "root",
        "root_id",
        "parent",
        "parent_id",
        "children",
    )
    __slots__ = ("__dict__", "__weakref__")

    #: State to the fields that are taken from its event alone, when events arrive in the wrong order.
    merge_rules: ClassVar[dict[str, tuple[str, ...]]] = {
        states.RECEIVED: (
            "name",
            "args",
            "kwargs",
            "parent_id",
            "root_id",
            "retries",
            "eta",
            "expires",
        ),
    }

    #: What :meth:`info` shows.
    _info_fields = (
        "args",
        "kwargs",
        "retries",
        "result",
        "eta",
        "runtime",
        "expires",
        "exception",
        "exchange",
        "routing_key",
        "root_id",
        "parent_id",
    )

    def __init__(
        self,
        uuid: str | None = None,
        cluster_state: Any = None,
        children: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.uuid = uuid
        self.cluster_state = cluster_state
        known = {} if cluster_state is None else cluster_state.tasks.data
        self.children: WeakSet[Task] = WeakSet(known[child] for child in children or () if child in known)
        self.__dict__.update(kwargs)

    def event(
        self,
        type_: str,
        timestamp: float | None = None,
        local_received: float | None = None,
        fields: Mapping[str, Any] | None = None,
        RETRY: str = states.RETRY,  # noqa: N803 Celery's name
    ) -> None:
        """Take in one event."""
        news = dict(fields or {})
        state = TASK_EVENT_TO_STATE.get(type_)
        if state is None:
            state = type_.upper()
        else:
            setattr(self, type_, timestamp)
        # A retry begins anew, so nothing can be said of the order around it.
        is_late = RETRY not in (state, self.state) and states.precedence(state) > states.precedence(self.state)
        if not is_late:
            news.update(state=state, timestamp=timestamp)
        elif state in self.merge_rules:
            keep = self.merge_rules[state]
            news = {name: value for name, value in news.items() if name in keep}
        self.__dict__.update(news)

    def info(self, fields: Iterable[str] | None = None, extra: Iterable[str] | None = None) -> dict[str, Any]:
        """What is known, to be shown; *fields* and *extra* fields."""
        names = [*(self._info_fields if fields is None else fields), *(extra or ())]
        values = {name: getattr(self, name, None) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """All fields; other tasks by their ids."""
        related = {
            "children": [task.id for task in self.children],
            "root": self.root_id,
            "parent": self.parent_id,
        }
        return {name: related[name] if name in related else getattr(self, name) for name in self._fields}

    @property
    def id(self) -> Any:
        """The task's id."""
        return self.uuid

    @property
    def origin(self) -> Any:
        """Who told of it last: its worker, or the client that sent it."""
        return self.client if self.worker is None else self.worker.id

    @property
    def ready(self) -> bool:
        """Has it ended?"""
        return self.state in states.READY_STATES

    def _other(self, uuid: Any) -> Any:
        if not uuid or self.cluster_state is None:
            return None
        return self.cluster_state.tasks.data.get(uuid)

    @property
    def parent(self) -> Any:
        """The task that sent it, if it is known."""
        return self._other(self.parent_id)

    @property
    def root(self) -> Any:
        """The first task of its workflow, if it is known."""
        return self._other(self.root_id)

    def __eq__(self, other: object) -> bool:
        return self.uuid == other.uuid if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.uuid)

    def __repr__(self) -> str:
        return f"<Task: {self.name}({self.uuid}) {self.state} clock:{self.clock}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return made_again, (type(self), self.as_dict())


def made_again(cls: type[Task], fields: dict[str, Any]) -> Task:
    """A task that was pickled; its children are found by the state that takes it in."""
    children = fields.pop("children", None) or ()
    fields = {name: value for name, value in fields.items() if name not in ("root", "parent")}
    task = cls(**fields)
    task.__dict__["child_ids"] = tuple(children)
    return task


class State:
    """Everything known of a cluster.

    Arguments:
        callback: called with this object and each event, before it is taken in.
        workers, tasks: what is known already, as :class:`LRUCache`.
        max_workers_in_memory, max_tasks_in_memory: how many are kept.
        on_node_join, on_node_leave: called with a worker that comes or says goodbye.
        tasks_by_type, tasks_by_worker: indexes, as names to lists of ids.
    """

    Worker: Any = Worker
    Task: Any = Task
    event_count = 0
    task_count = 0

    #: How many events in the line there may be for each task that is kept.
    heap_multiplier = 4

    def __init__(
        self,
        callback: Callable[[State, dict[str, Any]], Any] | None = None,
        workers: Any = None,
        tasks: Any = None,
        taskheap: Any = None,
        max_workers_in_memory: int = 5000,
        max_tasks_in_memory: int = 10000,
        on_node_join: Callable[[Any], Any] | None = None,
        on_node_leave: Callable[[Any], Any] | None = None,
        tasks_by_type: Mapping[str, Iterable[str]] | None = None,
        tasks_by_worker: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self.event_callback = callback
        self.workers = LRUCache(max_workers_in_memory) if workers is None else workers
        self.tasks = LRUCache(max_tasks_in_memory) if tasks is None else tasks
        self._taskheap: list[Any] = [] if taskheap is None else taskheap
        self.max_workers_in_memory = max_workers_in_memory
        self.max_tasks_in_memory = max_tasks_in_memory
        self.on_node_join = on_node_join
        self.on_node_leave = on_node_leave
        #: Group of events to a function of subject and event, for groups other than worker and task.
        self.handlers: dict[str, Callable[[str, dict[str, Any]], Any]] = {}
        self._mutex = threading.Lock()
        self._seen_types: set[str] = set()
        self._orphans = LRUCache(max_tasks_in_memory)
        self._adopt_tasks()
        self.rebuild_taskheap()
        self.tasks_by_type = CallableDefaultdict(self._tasks_by_type, WeakSet)
        self.tasks_by_worker = CallableDefaultdict(self._tasks_by_worker, WeakSet)
        known = self.tasks.data
        for index, given in ((self.tasks_by_type, tasks_by_type), (self.tasks_by_worker, tasks_by_worker)):
            for name, ids in (given or {}).items():
                index[name].update(known[uuid] for uuid in ids if uuid in known)

    def _adopt_tasks(self) -> None:
        """Tasks that were unpickled belong to this state now."""
        known = self.tasks.data
        for task in self.tasks.values():
            if task.cluster_state is None:
                task.cluster_state = self
                ids = task.__dict__.pop("child_ids", ())
                task.children.update(known[uuid] for uuid in ids if uuid in known)

    # --- taking events in -----------------------------------------------------------

    def event(self, event: dict[str, Any]) -> Any:
        """Take in an event; ``((worker or task, is it new?), what happened)``."""
        with self._mutex:
            return self._event(event)

    @cached_property
    def _event(self) -> Callable[[dict[str, Any]], Any]:
        """What takes in an event while the state is locked."""
        return self._take_in

    def _take_in(self, event: dict[str, Any]) -> Any:
        self.event_count += 1
        if self.event_callback is not None:
            self.event_callback(self, event)
        group, _, subject = event["type"].partition("-")
        handler = self.handlers.get(group)
        if handler is not None:
            return handler(subject, event), subject
        if group == "worker":
            return self._take_in_of_worker(subject, event)
        if group == "task":
            return self._take_in_of_task(subject, event)
        return None

    def _take_in_of_worker(self, subject: str, event: dict[str, Any]) -> Any:
        try:
            hostname, timestamp, received = event["hostname"], event["timestamp"], event["local_received"]
        except KeyError:
            return None
        is_offline = subject == "offline"
        worker = self.workers.data.get(hostname)
        created = worker is None and not is_offline
        if worker is None:
            worker = self.Worker(hostname)
            if created:
                self.workers[hostname] = worker
        worker.event(subject, timestamp, received, event)
        if self.on_node_join and (created or subject == "online"):
            self.on_node_join(worker)
        if is_offline and self.on_node_leave:
            self.on_node_leave(worker)
            self.workers.pop(hostname, None)
        return (worker, created), subject

    def _take_in_of_task(self, subject: str, event: dict[str, Any]) -> Any:
        uuid, hostname, clock = event["uuid"], event["hostname"], event["clock"]
        timestamp, received = event["timestamp"], event["local_received"]
        task = self.tasks.data.get(uuid)
        created = task is None
        if task is None:
            task = self.tasks[uuid] = self.Task(uuid, cluster_state=self)
        if subject == "sent":
            task.client = origin = hostname
        else:
            worker = self._worker_of_task(task, hostname, event.get("pid"))
            worker.event(None, timestamp, received)
            origin = worker.id
        self._line_up(timetuple(clock, timestamp, origin, ref(task)))
        if subject == "received":
            self.task_count += 1
        task.event(subject, timestamp, received, event)
        if task.name is not None and task.__dict__.get("indexed_as") != task.name:
            task.indexed_as = task.name
            self._seen_types.add(task.name)
            self.tasks_by_type[task.name].add(task)
            self.tasks_by_worker[hostname].add(task)
        self._relate(task)
        return (task, created), subject

    def _worker_of_task(self, task: Any, hostname: str, pid: int | None) -> Any:
        worker = self.workers.data.get(hostname)
        if worker is None:
            worker = self.workers[hostname] = self.Worker(hostname, pid=pid)
        if task.worker is not worker:
            task.worker = worker
            self.tasks_by_worker[hostname].add(task)
        return worker

    def _line_up(self, place: Any) -> None:
        """Add a place to the line of events, which is ordered by clock; the oldest makes room."""
        line = self._taskheap
        if len(line) >= self.max_tasks_in_memory * self.heap_multiplier:
            del line[0]
        if line and place > line[-1]:
            line.append(place)
        else:
            bisect.insort(line, place)

    def _relate(self, task: Any) -> None:
        """Connect a task with its parent and its children, whichever came first."""
        if task.parent_id:
            parent = self.tasks.data.get(task.parent_id)
            if parent is not None:
                parent.children.add(task)
            else:
                waiting = self._orphans.data.get(task.parent_id)
                if waiting is None:
                    waiting = self._orphans[task.parent_id] = WeakSet()
                waiting.add(task)
        children = self._orphans.pop(task.uuid, None) if task.uuid in self._orphans.data else None
        if children:
            task.children.update(children)

    def task_event(self, type_: str, fields: Mapping[str, Any]) -> Any:
        """An older way to take in an event of a task."""
        return self._event({**fields, "type": f"task-{type_}"})[0]

    def worker_event(self, type_: str, fields: Mapping[str, Any]) -> Any:
        """An older way to take in an event of a worker."""
        return self._event({**fields, "type": f"worker-{type_}"})[0]

    def get_or_create_worker(self, hostname: str, **kwargs: Any) -> tuple[Any, bool]:
        """``(worker, is it new?)``; *kwargs* are set on it."""
        worker = self.workers.get(hostname)
        if worker is None:
            worker = self.workers[hostname] = self.Worker(hostname, **kwargs)
            return worker, True
        if kwargs:
            worker.update(kwargs)
        return worker, False

    def get_or_create_task(self, uuid: str) -> tuple[Any, bool]:
        """``(task, is it new?)``."""
        task = self.tasks.get(uuid)
        if task is None:
            task = self.tasks[uuid] = self.Task(uuid, cluster_state=self)
            return task, True
        return task, False

    def rebuild_taskheap(self) -> None:
        """Make the line of events anew, with one for each task."""
        self._taskheap[:] = sorted(
            timetuple(task.clock, task.timestamp, task.origin, ref(task)) for task in self.tasks.values()
        )

    # --- forgetting ---------------------------------------------------------------------

    def freeze_while(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call *fun* while no event is taken in; with ``clear_after=True`` forget everything then."""
        clear_after = kwargs.pop("clear_after", False)
        with self._mutex:
            try:
                return fun(*args, **kwargs)
            finally:
                if clear_after:
                    self._clear()

    def clear(self, ready: bool = True) -> None:
        """Forget workers and tasks; tasks that have not ended too unless *ready*."""
        with self._mutex:
            self._clear(ready)

    def clear_tasks(self, ready: bool = True) -> None:
        """Forget tasks that have ended, or all unless *ready*."""
        with self._mutex:
            self._clear_tasks(ready)

    def _clear_tasks(self, ready: bool = True) -> None:
        kept = {}
        if ready:
            kept = {uuid: task for uuid, task in self.itertasks() if task.state not in states.READY_STATES}
        self.tasks.clear()
        self.tasks.update(kept)
        self._taskheap.clear()

    def _clear(self, ready: bool = True) -> None:
        self.workers.clear()
        self._clear_tasks(ready)
        self.event_count = 0
        self.task_count = 0

    # --- looking ------------------------------------------------------------------------

    def itertasks(self, limit: int | None = None) -> Iterator[tuple[str, Any]]:
        """``(id, task)`` of all tasks, or of *limit* of them."""
        return islice(self.tasks.items(), limit or None)

    def tasks_by_time(self, limit: int | None = None, reverse: bool = True) -> Iterator[tuple[str, Any]]:
        """``(id, task)`` of the tasks of the last *limit* events, the newest first, or last unless *reverse*."""
        line = [*self._taskheap]
        seen = set()
        for place in islice(reversed(line) if reverse else line, limit):
            task = place[3]()
            if task is not None and task.uuid not in seen:
                seen.add(task.uuid)
                yield task.uuid, task

    tasks_by_timestamp = tasks_by_time

    def _tasks_by_type(self, name: str, limit: int | None = None, reverse: bool = True) -> Iterator[tuple[str, Any]]:
        """``(id, task)`` of the tasks of one type, by time."""
        found = ((uuid, task) for uuid, task in self.tasks_by_time(reverse=reverse) if task.name == name)
        return islice(found, limit)

    def _tasks_by_worker(
        self, hostname: str, limit: int | None = None, reverse: bool = True
    ) -> Iterator[tuple[str, Any]]:
        """``(id, task)`` of the tasks of one worker, by time."""
        found = (
            (uuid, task)
            for uuid, task in self.tasks_by_time(reverse=reverse)
            if task.worker is not None and task.worker.hostname == hostname
        )
        return islice(found, limit)

    def task_types(self) -> list[str]:
        """The names of all tasks that were seen."""
        return sorted(self._seen_types)

    def alive_workers(self) -> Iterator[Any]:
        """The workers that were heard of lately."""
        return (worker for worker in self.workers.values() if worker.alive)

    def __repr__(self) -> str:
        return f"<State: events={self.event_count} tasks={self.task_count}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.event_callback,
            self.workers,
            self.tasks,
            None,
            self.max_workers_in_memory,
            self.max_tasks_in_memory,
            self.on_node_join,
            self.on_node_leave,
            ids_by_name(self.tasks_by_type),
            ids_by_name(self.tasks_by_worker),
        )


def ids_by_name(index: Mapping[str, Iterable[Any]]) -> dict[str, list[str]]:
    """An index in a form that can be pickled."""
    return {name: [task.id for task in tasks] for name, tasks in index.items()}
