"""Beat: sends tasks when their schedules say so.

Run by ``apps.beat`` as a program and by ``worker.components`` inside a worker (``-B``).  Schedulers of
other packages subclass :class:`Scheduler` and :class:`ScheduleEntry` and override what is inside, so
methods keep Celery's names and are called where Celery calls them.  When a schedule is due is the
business of ``schedules``; beat runs nothing itself.

A run is noted before it is sent.  One that cannot be sent because the broker is away is tried again; one
that fails in another way is logged and left to its next time.
"""

from __future__ import annotations

import copy
import dbm
import errno
import heapq
import os
import shelve
import sys
import time
import traceback
from calendar import timegm
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, total_ordering
from pickle import UnpicklingError
from threading import Event, Thread
from typing import Any, NamedTuple

from billiard.context import Process
from kombu import pidbox
from kombu.common import ignore_errors
from kombu.exceptions import OperationalError
from kombu.utils.encoding import safe_str
from kombu.utils.functional import maybe_evaluate, reprcall

from celery_clone import platforms, signals
from celery_clone._version import __version__
from celery_clone.schedules import crontab, maybe_schedule
from celery_clone.utils.collections import AttributeDict
from celery_clone.utils.functional import is_numeric_value
from celery_clone.utils.imports import load_extension_class_names, symbol_by_name
from celery_clone.utils.log import get_logger, iter_open_logger_fds
from celery_clone.utils.nodenames import default_nodename, host_format
from celery_clone.utils.time import humanize_seconds, maybe_make_aware

__all__ = (
    "BeatLazyFunc",
    "BeatPidbox",
    "EmbeddedService",
    "PersistentScheduler",
    "ScheduleEntry",
    "Scheduler",
    "SchedulingError",
    "Service",
    "beat_nodename",
    "event_t",
)

logger = get_logger("celery.beat")

DEFAULT_MAX_INTERVAL = 300
"""Seconds that a scheduler sleeps at most, unless it says something else."""

EARLIER_S = -0.010
"""Beat wakes up this much before something is due, as getting there takes time too."""

PRIORITY = 5
"""Entries of the same time are equal."""

UNSENT_RETRY_S = 5.0
"""When a task that could not be sent, because the broker is away, is tried again."""

AWAKE_S = 1.0
"""A sleep that is not worth writing the file before it."""

NODENAME_DEFAULT = "celerybeat"

STOP_S = 10.0
"""What an embedded beat gets to end by itself."""


class SchedulingError(Exception):
    """A periodic task could not be sent."""


class BeatLazyFunc:
    """A function in the arguments of an entry, called when the task is sent.

    For instance ``"kwargs": {"at": BeatLazyFunc(datetime.now)}``.
    """

    def __init__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._func = func
        self._func_params: dict[str, Any] = {"args": args, "kwargs": kwargs}

    def __call__(self) -> Any:
        return self.delay()

    def delay(self) -> Any:
        """Call the function now."""
        return self._func(*self._func_params["args"], **self._func_params["kwargs"])


def called(value: Any) -> Any:
    """A value of an entry's arguments as it is sent."""
    return value() if isinstance(value, BeatLazyFunc) else value


class event_t(NamedTuple):
    """A place in the line: epoch time, priority, entry."""

    time: float
    priority: int
    entry: Any


# --- one periodic task ----------------------------------------------------------------


@total_ordering
class ScheduleEntry:
    """One periodic task: what to send, when, and when that happened last.

    Arguments:
        name: tells it from other entries.
        task: name of the task.
        last_run_at: aware time of the last run; now for an entry that never ran.
        total_run_count: how often it ran.
        schedule: a schedule, seconds, or a time span.
        args, kwargs, options: as for ``apply_async``.
        relative: round the times of an interval to its unit?
        app: the app.
    """

    name: Any = None
    schedule: Any = None
    args: Any = None
    kwargs: Any = None
    options: Any = None
    last_run_at: Any = None
    total_run_count: int = 0

    def __init__(
        self,
        name: str | None = None,
        task: str | None = None,
        last_run_at: Any = None,
        total_run_count: int | None = None,
        schedule: Any = None,
        args: Any = (),
        kwargs: Any = None,
        options: Any = None,
        relative: bool = False,
        app: Any = None,
    ) -> None:
        self.app = app
        self.name = name
        self.task = task
        self.args = args
        self.kwargs = kwargs or {}
        self.options = options or {}
        self.schedule = maybe_schedule(schedule, relative, app=app)
        self.last_run_at = last_run_at or self.default_now()
        self.total_run_count = total_run_count or 0

    def default_now(self) -> Any:
        """The time now, by the clock of the schedule."""
        return self.schedule.now() if self.schedule else self.app.now()

    _default_now = default_now

    def _next_instance(self, last_run_at: Any = None) -> ScheduleEntry:
        """This entry after one more run."""
        values = {
            **dict(self),
            "last_run_at": last_run_at or self.default_now(),
            "total_run_count": self.total_run_count + 1,
        }
        return type(self)(**values)

    __next__ = next = _next_instance

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.name,
            self.task,
            self.last_run_at,
            self.total_run_count,
            self.schedule,
            self.args,
            self.kwargs,
            self.options,
        )

    def update(self, other: ScheduleEntry) -> None:
        """Take over from *other* what people edit, not what happened."""
        for field in EDITABLE:
            setattr(self, field, getattr(other, field))

    def is_due(self) -> Any:
        """(is it time?, seconds until the next question), see :meth:`schedules.BaseSchedule.is_due`."""
        return self.schedule.is_due(self.last_run_at)

    def editable_fields_equal(self, other: ScheduleEntry) -> bool:
        """Do two entries send the same at the same times?"""
        return all(getattr(self, field) == getattr(other, field) for field in EDITABLE)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(vars(self).items())

    def __repr__(self) -> str:
        call = reprcall(self.task, self.args or (), self.kwargs or {})
        return f"<{type(self).__name__}: {self.name} {call} {self.schedule}>"

    def __lt__(self, other: object) -> bool:
        # Asked only for entries of the same time and priority: any order will do.
        return id(self) < id(other) if isinstance(other, ScheduleEntry) else NotImplemented

    def __eq__(self, other: object) -> bool:
        return self.editable_fields_equal(other) if isinstance(other, ScheduleEntry) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


EDITABLE = ("task", "args", "kwargs", "options", "schedule")


# --- all periodic tasks ---------------------------------------------------------------


class Scheduler:
    """Knows the entries and sends those that are due; forgets everything when it ends.

    Arguments:
        app: the app.
        schedule: entries by name, instead of an empty mapping.
        max_interval: seconds to sleep at most.
        Producer: class of producers.
        lazy: leave the schedule unread?  For looking at the scheduler only.
        sync_every_tasks: write down after so many tasks; ``beat_sync_every`` by default.
    """

    Entry: Any = ScheduleEntry
    max_interval: float = DEFAULT_MAX_INTERVAL

    #: Seconds between two :meth:`sync`.
    sync_every: float = 3 * 60
    sync_every_tasks: int | None = None

    _last_sync: float | None = None
    _tasks_since_sync = 0
    _unsent: Any = None

    #: Has a run been noted, and is on its way to the broker?
    _sending = False

    logger = logger

    def __init__(
        self,
        app: Any,
        schedule: Any = None,
        max_interval: float | None = None,
        Producer: Any = None,  # noqa: N803 Celery's name
        lazy: bool = False,
        sync_every_tasks: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.app = app
        self.data = maybe_evaluate({} if schedule is None else schedule)
        self.max_interval = max_interval or app.conf.beat_max_loop_interval or self.max_interval
        self.Producer = Producer or app.amqp.Producer
        self._heap: list[event_t] | None = None
        self._given_up_at: dict[str, float] = {}
        self.old_schedulers: Any = None
        self.sync_every_tasks = app.conf.beat_sync_every if sync_every_tasks is None else sync_every_tasks
        if not lazy:
            self.setup_schedule()

    # -- the entries

    def setup_schedule(self) -> None:
        """Read the schedule."""
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.data)

    def install_default_entries(self, data: Any) -> None:
        """Add the entries that the app needs: the nightly removal of old results, for stores that need it."""
        wanted = self.app.conf.result_expires and not self.app.backend.supports_autoexpire
        entries: dict[str, Any] = {}
        if wanted and "celery.backend_cleanup" not in data:
            entries["celery.backend_cleanup"] = {
                "task": "celery.backend_cleanup",
                "schedule": crontab("0", "4", "*"),
                "options": {"expires": 12 * 3600},
            }
        self.update_from_dict(entries)

    def get_schedule(self) -> Any:
        """The entries by name."""
        return self.data

    def set_schedule(self, schedule: Any) -> None:
        """Use other entries."""
        self.data = schedule

    @property
    def schedule(self) -> Any:
        """The entries by name."""
        return self.get_schedule()

    @schedule.setter
    def schedule(self, schedule: Any) -> None:
        self.set_schedule(schedule)

    def add(self, **kwargs: Any) -> Any:
        """Add an entry; arguments as for :class:`ScheduleEntry`."""
        entry = self.Entry(app=self.app, **kwargs)
        self.schedule[entry.name] = entry
        return entry

    def _maybe_entry(self, name: str, entry: Any) -> Any:
        if isinstance(entry, self.Entry):
            entry.app = self.app
            return entry
        return self.Entry(**{**entry, "name": name, "app": self.app})

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Add entries, given as such or as mappings."""
        self.schedule.update({name: self._maybe_entry(name, entry) for name, entry in dict_.items()})

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        """Make the entries those of *b*; entries that stay remember when they ran."""
        schedule = self.schedule
        for name in [name for name in schedule if name not in b]:
            schedule.pop(name, None)
        for name, given in b.items():
            entry = self.Entry(**{**dict(given), "name": name, "app": self.app})
            known = schedule.get(name)
            if known:
                known.update(entry)
            else:
                schedule[name] = entry

    def schedules_equal(self, old_schedules: Any, new_schedules: Any) -> bool:
        """Are these the same entries, whenever they ran?"""
        if old_schedules is None or new_schedules is None:
            return old_schedules is new_schedules
        if set(old_schedules) != set(new_schedules):
            return False
        return all(new_schedules.get(name) == entry for name, entry in old_schedules.items())

    # -- when

    def adjust(self, n: Any, drift: float = EARLIER_S) -> Any:
        """Seconds to wait, a little less than *n*; the last moments are waited for in full."""
        return n + drift if n and n > -drift else n

    def is_due(self, entry: Any) -> Any:
        """As :meth:`ScheduleEntry.is_due`."""
        return entry.is_due()

    def _asked(self, ask: Callable[[], Any], entry: Any) -> tuple[bool, Any]:
        """(is it time?, seconds until the next question); an entry that cannot tell is asked again later."""
        try:
            is_due, seconds = ask()
        except Exception:
            # One entry that is broken must not stop all the others.
            logger.exception(
                "beat: Cannot calculate the next run of %r, trying again in %s.",
                entry.name,
                humanize_seconds(self.max_interval),
            )
            return False, self.max_interval
        return is_due, seconds

    def _when(self, entry: Any, next_time_to_run: Any, mktime: Callable[[Any], float] = timegm) -> float:
        """Epoch time that lies so many seconds from now."""
        now = maybe_make_aware(entry.default_now())
        return float(mktime(now.utctimetuple()) + now.microsecond / 1e6 + (self.adjust(next_time_to_run) or 0))

    def populate_heap(self) -> None:
        """Line up all entries by their next time."""
        heap = []
        for entry in self.schedule.values():
            is_due, seconds = self._asked(entry.is_due, entry)
            heap.append(event_t(self._when(entry, 0 if is_due else seconds) or 0, PRIORITY, entry))
        heapq.heapify(heap)
        self._heap = heap

    def tick(self) -> float:
        """Send one task, if one is due; the seconds until the next turn."""
        if self._heap is None or not self.schedules_equal(self.old_schedulers, self.schedule):
            self.old_schedulers = copy.copy(self.schedule)
            self.populate_heap()
        heap: list[event_t] = self._heap or []
        if not heap:
            return self.max_interval
        first = heap[0]
        entry = first.entry
        now = self._when(entry, 0)
        if first.time > now:
            return min(first.time - now, self.max_interval)
        is_due, seconds = self._asked(lambda: self.is_due(entry), entry)
        if heap is not self._heap or not heap or heap[0] is not first:
            return 0  # asking changed the line: look at it anew
        if not is_due:
            seconds = seconds if is_numeric_value(seconds) else self.max_interval
            heapq.heapreplace(heap, event_t(self._when(entry, seconds), first.priority, entry))
            return 0 if heap[0].entry is not entry else min(self.adjust(seconds), self.max_interval)
        # First of all: a broker that cannot be reached must not cost the run.
        producer = self.producer
        heapq.heappop(heap)
        self._sending = True
        try:
            following = self.reserve(entry)
            self._unsent = None
            self.apply_entry(entry, producer=producer)
        finally:
            self._sending = False
        heapq.heappush(heap, self._place_after(entry, following, seconds, first.priority))
        return 0

    def _place_after(self, entry: Any, following: Any, seconds: float, priority: int) -> event_t:
        """The next place of an entry; one that was not sent is tried again until its next run is due."""
        next_time = self._when(following, seconds)
        if self._unsent is entry:
            give_up_at = self._given_up_at.setdefault(entry.name, next_time)
            again = self._when(entry, UNSENT_RETRY_S)
            if again < give_up_at:
                self.schedule[entry.name] = entry
                return event_t(again, priority, entry)
            logger.error("beat: %s is given up until its next run.", entry.name)
        self._given_up_at.pop(entry.name, None)
        return event_t(next_time, priority, following)

    # -- sending

    def reserve(self, entry: Any) -> Any:
        """Note that an entry runs now; returns the entry as it is afterwards."""
        following = self.schedule[entry.name] = next(entry)
        return following

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send the task of an entry; failures are logged."""
        logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        try:
            result = self.apply_async(entry, producer=producer, advance=False)
        except Exception as exc:
            if isinstance(exc.__cause__, (OperationalError, ConnectionError, TimeoutError)):
                self._unsent = entry
                logger.error(  # noqa: TRY400 one line each time, as this goes on until the broker is back
                    "beat: The broker did not take %s, it will be tried again: %s", entry.name, exc
                )
                return
            logger.exception("Message Error: %s\n%s", exc, traceback.format_stack())
            return
        if result is not None and hasattr(result, "id"):
            logger.debug("%s sent. id->%s", entry.task, result.id)
        else:
            logger.debug("%s sent.", entry.task)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send the task of an entry.

        Arguments:
            advance: note the run first?

        Raises:
            SchedulingError: it could not be sent; the reason is its cause.
        """
        if advance:
            entry = self.reserve(entry)
        task = self.app.tasks.get(entry.task)
        try:
            args = [called(value) for value in entry.args or ()]
            kwargs = {name: called(value) for name, value in (entry.kwargs or {}).items()}
            options = {**(entry.options or {})}
            options["headers"] = {**(options.get("headers") or {}), "celery_beat_task": True}
            if task:
                return task.apply_async(args, kwargs, producer=producer, **options)
            return self.send_task(entry.task, args, kwargs, producer=producer, **options)
        except Exception as exc:
            raise SchedulingError(f"Couldn't apply scheduled task {entry.name}: {exc}") from exc
        finally:
            self._tasks_since_sync += 1
            if self.should_sync():
                self._do_sync()

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        """Send a task that is not registered here."""
        return self.app.send_task(*args, **kwargs)

    # -- writing down

    def should_sync(self) -> bool:
        """Is it time for :meth:`sync`?"""
        if not self._last_sync or time.monotonic() - self._last_sync > self.sync_every:
            return True
        return bool(self.sync_every_tasks and self._tasks_since_sync >= self.sync_every_tasks)

    def _do_sync(self) -> None:
        try:
            logger.debug("beat: Synchronizing schedule...")
            self.sync()
        finally:
            self._last_sync = time.monotonic()
            self._tasks_since_sync = 0

    def sync(self) -> None:
        """Write down when entries ran; for schedulers that can."""

    def close(self) -> None:
        """Write down, and let go of the broker.  Legal twice."""
        try:
            self.sync()
        finally:
            self.__dict__.pop("producer", None)
            connection = self.__dict__.pop("connection", None)
            if connection is not None:
                ignore_errors(connection, connection.release)

    # -- the broker

    def _ensure_connected(self) -> Any:
        def report(exc: BaseException, interval: float) -> None:
            logger.error("beat: Connection error: %s. Trying again in %s seconds...", exc, interval)

        return self.connection.ensure_connection(report, self.app.conf.broker_connection_max_retries)

    @cached_property
    def connection(self) -> Any:
        """The connection that tasks are sent over."""
        return self.app.connection_for_write()

    @cached_property
    def producer(self) -> Any:
        """What sends them."""
        return self.Producer(self._ensure_connected(), auto_declare=False)

    @property
    def info(self) -> str:
        """Lines for the program's banner."""
        return ""


# --- remembering in a file ------------------------------------------------------------

NOT_CORRUPT = frozenset({errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EROFS, errno.ENOSPC, errno.ENOENT})
"""What keeps a file from being opened and is no reason to delete it."""

UNREADABLE = (KeyError, UnicodeDecodeError, TypeError, UnpicklingError, ValueError, ImportError, AttributeError)
"""What reading entries of another version may raise."""

ACCOUNTED = {"__version__": "__version__ field", "tz": "tz field", "utc_enabled": "utc_enabled field"}


class PersistentScheduler(Scheduler):
    """Remembers in a file (``beat_schedule_filename``) when entries ran."""

    persistence: Any = shelve
    known_suffixes = ("", ".db", ".dat", ".bak", ".dir")

    _store: Any = None

    #: The entries that know their app.
    _adopted: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.schedule_filename = kwargs.get("schedule_filename")
        super().__init__(*args, **kwargs)

    # -- the file

    def _open_schedule(self) -> Any:
        return self.persistence.open(self.schedule_filename, writeback=True)

    def _remove_db(self) -> None:
        for suffix in self.known_suffixes:
            with platforms.ignore_errno(errno.ENOENT):
                os.remove(f"{self.schedule_filename}{suffix}")

    def _destroy_open_corrupted_schedule(self, exc: BaseException) -> Any:
        """Begin with a new file, unless the old one is sound and cannot be used for another reason."""
        if isinstance(exc, OSError) and exc.errno in NOT_CORRUPT:
            logger.critical(
                "The schedule file %r cannot be used: %s. Another beat may use it, or it may belong to another "
                "user; end that beat, or choose another file with --schedule.",
                self.schedule_filename,
                exc,
            )
            raise exc
        logger.error("Removing corrupted schedule file %r: %r", self.schedule_filename, exc, exc_info=exc)
        self._remove_db()
        return self._open_schedule()

    def setup_schedule(self) -> None:
        """Open the file and bring its entries in line with the settings."""
        try:
            self._store = self._open_schedule()
            # Some kinds of file only notice now that they are broken.
            self._store.keys()
        except Exception as exc:  # noqa: BLE001 every kind of file has errors of its own
            self._store = self._destroy_open_corrupted_schedule(exc)
        self._create_schedule()
        conf, store = self.app.conf, self._store
        self._reset_if_changed("tz", "Timezone", conf.timezone)
        self._reset_if_changed("utc_enabled", "UTC", conf.enable_utc)
        entries = store.setdefault("entries", {})
        self.merge_inplace(conf.beat_schedule)
        self.install_default_entries(self.schedule)
        store.update({"__version__": __version__, "tz": conf.timezone, "utc_enabled": conf.enable_utc})
        self.sync()
        logger.debug("Current schedule:\n%s", "\n".join(repr(entry) for entry in entries.values()))

    def _reset_if_changed(self, key: str, what: str, now: Any) -> None:
        """Times noted in another zone mean nothing."""
        before = self._store.get(key)
        if before is not None and before != now:
            logger.warning("Reset: %s changed from %r to %r", what, before, now)
            self._store.clear()

    def _create_schedule(self) -> None:
        """Make sure that there are entries that can be read."""
        for _ in (1, 2):
            try:
                self._store["entries"]
            except UNREADABLE as exc:
                if not isinstance(exc, KeyError):
                    logger.warning(
                        "DB Reset: Cannot load the stored entries, recreating them from beat_schedule: %r", exc
                    )
                try:
                    self._store["entries"] = {}
                except (*UNREADABLE, *dbm.error) as unwritable:
                    self._store = self._destroy_open_corrupted_schedule(unwritable)
                    continue
            else:
                missing = next((field for field in ACCOUNTED if field not in self._store), None)
                if missing is not None:
                    logger.warning("DB Reset: Account for new %s", ACCOUNTED[missing])
                    self._store.clear()
            break

    # -- the entries

    def get_schedule(self) -> Any:
        """The entries by name, kept in the file."""
        entries = self._store["entries"]
        if entries is not self._adopted:
            # Read from the file (again): an app is not written there.
            for entry in entries.values():
                entry.app = entry.app or self.app
                if getattr(entry.schedule, "_app", self.app) is None:
                    entry.schedule.app = self.app
            self._adopted = entries
        return entries

    def set_schedule(self, schedule: Any) -> None:
        """Use other entries."""
        self._store["entries"] = schedule

    schedule = property(get_schedule, set_schedule)

    def tick(self) -> float:
        """As :meth:`Scheduler.tick`; what ran is written down before a longer sleep."""
        seconds = super().tick()
        if self._tasks_since_sync and seconds > AWAKE_S:
            # Killed later, beat would send it again when it comes back.
            self._do_sync()
        return seconds

    def sync(self) -> None:
        """Write the file."""
        if self._store is not None:
            self._store.sync()

    def close(self) -> None:
        """Write and close the file, and let go of the broker.  Legal twice."""
        try:
            super().close()
        finally:
            if self._store is not None:
                self._store.close()
                self._store = None

    @property
    def info(self) -> str:
        """Lines for the program's banner."""
        return f"    . db -> {self.schedule_filename}"


# --- answering `inspect ping` ---------------------------------------------------------


def beat_nodename(hostname: str | None = None) -> str:
    """The node name of a beat: ``celerybeat@<host>``, with the parts that are given and ``%h`` filled in."""
    return host_format(default_nodename(hostname, NODENAME_DEFAULT))


class Ending(BaseException):
    """Beat ends while its mailbox waits for the broker."""


class BeatNode(pidbox.Node):
    """Answers only while the scheduler turns, so that a probe sees one that hangs."""

    owner: Any = None

    def dispatch(
        self, method: str, arguments: Any = None, reply_to: Any = None, ticket: Any = None, **kwargs: Any
    ) -> Any:
        """Obey a command."""
        owner = self.owner
        if owner is not None and owner.is_stale():
            logger.warning(
                "beat pidbox: not answering %s, the scheduler has not ticked for %.1fs (over the %ss limit).",
                method,
                owner.tick_age(),
                owner.max_tick_age,
            )
            return None
        answer: Callable[..., Any] = super().dispatch
        return answer(method, arguments, reply_to, ticket, **kwargs)


class BeatPidbox:
    """Has beat answer ``celery inspect ping``, from a thread with a connection of its own.

    Arguments:
        service: the :class:`Service` that is watched.
    """

    #: Seconds before a connection that was lost is opened again.
    retry_interval = 5.0

    #: Seconds that :meth:`stop` waits for the thread.
    join_timeout = 3.0

    #: The least :attr:`max_tick_age` that is derived: a single slow turn is no fault.
    min_tick_age = 60.0

    def __init__(self, service: Any) -> None:
        self.service = service
        self.app = service.app
        self.hostname = beat_nodename(service.hostname)
        make_node: Callable[..., Any] = BeatNode
        self.node = make_node(
            safe_str(self.hostname),
            AttributeDict(app=self.app, service=service),
            handlers={"ping": lambda state, **kwargs: {"ok": "pong"}},
            mailbox=self.app.control.mailbox,
        )
        self.node.owner = self
        self.thread: Thread | None = None
        self._ending = Event()

    # -- is the scheduler well?

    @property
    def max_tick_age(self) -> float:
        """Seconds since the last turn after which beat counts as stuck; 0 for never."""
        configured = self.app.conf.beat_remote_control_max_tick_age
        if configured is not None:
            return float(configured)
        service = self.service
        interval = service.effective_max_interval or service.max_interval or DEFAULT_MAX_INTERVAL
        return float(max(interval * 2, self.min_tick_age))

    def tick_age(self) -> float | None:
        """Seconds since the last turn; ``None`` before the first."""
        last = self.service._last_tick
        return None if last is None else time.monotonic() - last

    def is_stale(self) -> bool:
        """Is the scheduler stuck?"""
        age, longest = self.tick_age(), self.max_tick_age
        return bool(longest and age is not None and age > longest)

    # -- life

    def fanout_support(self) -> tuple[bool, Any]:
        """(can this broker send one message to all?, its transport)."""
        connection = self.app.connection_for_read()
        try:
            return connection.supports_exchange_type("fanout"), connection.transport_cls
        finally:
            ignore_errors(connection, connection.release)

    def start(self) -> None:
        """Begin to answer.  Legal twice."""
        if self.thread is not None and self.thread.is_alive():
            return
        supported, transport = self.fanout_support()
        if not supported:
            logger.warning(
                "beat pidbox: the %s transport has no fanout exchanges, so remote control is unavailable.",
                transport,
            )
            return
        self._ending.clear()
        self.thread = Thread(target=self._run, name="BeatPidbox", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Answer no more.  Legal early and twice."""
        self._ending.set()
        thread = self.thread
        if thread is None:
            return
        thread.join(self.join_timeout)
        if thread.is_alive():
            logger.warning(
                "beat pidbox: the thread did not end within %s seconds; it ends with the process.",
                self.join_timeout,
            )
        else:
            self.thread = None

    def on_message(self, body: Any, message: Any) -> None:
        """A command came; all but ``ping`` are for workers."""
        if isinstance(body, dict) and body.get("method") in self.node.handlers:
            try:
                self.node.handle_message(body, message)
            except Exception as exc:
                logger.exception("beat pidbox command error: %r", exc)

    def _run(self) -> None:
        conf, ending = self.app.conf, self._ending
        setting = "broker_connection_retry"
        if conf.broker_connection_retry_on_startup is not None:
            setting = "broker_connection_retry_on_startup"
        while not ending.is_set():
            try:
                connection = self._connect(conf[setting])
            except Ending:
                return
            except Exception as exc:
                if not ending.is_set():
                    logger.exception(
                        "beat pidbox: could not connect to the broker, so beat will not answer remote control "
                        "commands for the life of this process. See broker_connection_retry, "
                        "broker_connection_retry_on_startup and broker_connection_max_retries: %r",
                        exc,
                    )
                return
            setting = "broker_connection_retry"
            try:
                with connection:
                    self._answer(connection)
            except Exception as exc:
                if ending.is_set():
                    return
                logger.exception("beat pidbox connection error: %r", exc)
                if not conf[setting]:
                    logger.warning("beat pidbox: beat will no longer answer remote control commands.")
                    return
                ending.wait(self.retry_interval)

    def _connect(self, retry: bool) -> Any:
        connection = self.app.connection_for_read()

        def report(exc: BaseException, interval: float) -> None:
            logger.error("beat pidbox: Connection error: %s. Trying again in %s seconds...", exc, interval)

        def stop_waiting() -> None:
            if self._ending.is_set():
                raise Ending

        retries = self.app.conf.broker_connection_max_retries if retry else 0
        try:
            connection.ensure_connection(report, retries, callback=stop_waiting)
        except BaseException:
            ignore_errors(connection, connection.release)
            raise
        return connection

    def _answer(self, connection: Any) -> None:
        logger.info("beat pidbox: Connected to %s.", connection.as_uri())
        self.node.channel = connection.channel()
        consumer = self.node.listen(callback=self.on_message)
        try:
            while not self._ending.is_set():
                try:
                    connection.drain_events(timeout=1.0)
                except TimeoutError:
                    continue
        finally:
            ignore_errors(connection, consumer.cancel)


# --- the loop -------------------------------------------------------------------------


class Service:
    """Has a scheduler tick until it is told to stop.

    Arguments:
        app: the app.
        max_interval: seconds to sleep at most; ``beat_max_loop_interval`` by default.
        schedule_filename: file of the persistent scheduler; ``beat_schedule_filename`` by default.
        scheduler_cls: scheduler, by itself, as ``"module:name"``, or by the name of an entry point.
        remote_control: answer ``inspect ping``?  ``beat_enable_remote_control`` by default.
        hostname: node name for that.
    """

    scheduler_cls: Any = PersistentScheduler

    def __init__(
        self,
        app: Any,
        max_interval: float | None = None,
        schedule_filename: str | None = None,
        scheduler_cls: Any = None,
        remote_control: bool | None = None,
        hostname: str | None = None,
    ) -> None:
        conf = app.conf
        self.app = app
        self.max_interval = max_interval or conf.beat_max_loop_interval
        self.scheduler_cls = scheduler_cls or self.scheduler_cls
        self.schedule_filename = schedule_filename or conf.beat_schedule_filename
        self.remote_control = conf.beat_enable_remote_control if remote_control is None else remote_control
        self.hostname = hostname
        #: What the scheduler chose; noted here, as the mailbox' thread must not make the scheduler.
        self.effective_max_interval: float | None = None
        self._last_tick: float | None = None
        self._pidbox: BeatPidbox | None = None
        self._asked_to_end = False
        self._is_shutdown = Event()
        self._is_stopped = Event()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.app,
            self.max_interval,
            self.schedule_filename,
            self.scheduler_cls,
            self.remote_control,
            self.hostname,
        )

    def start(self, embedded_process: bool = False) -> None:
        """Tick until :meth:`stop`, an interrupt or ``SystemExit``; then write down what ran."""
        logger.info("beat: Starting...")
        scheduler = self.scheduler
        logger.debug("beat: Ticking with max interval->%s", humanize_seconds(scheduler.max_interval))
        signals.beat_init.send(sender=self)
        if embedded_process:
            signals.beat_embedded_init.send(sender=self)
            platforms.set_process_title("celery beat")
        self.effective_max_interval = scheduler.max_interval
        if self.remote_control:
            self._pidbox = BeatPidbox(self)
            self._pidbox.start()
        # A beat that hangs in its first turn is stuck, too.
        self._last_tick = time.monotonic()
        try:
            while not (self._is_shutdown.is_set() or self._asked_to_end):
                interval = scheduler.tick()
                self._last_tick = time.monotonic()
                if interval and interval > 0.0 and not self._asked_to_end:
                    logger.debug("beat: Waking up %s.", humanize_seconds(interval, prefix="in "))
                    self._is_shutdown.wait(interval)
                    if scheduler.should_sync():
                        scheduler._do_sync()
        except (KeyboardInterrupt, SystemExit):
            self._is_shutdown.set()
        finally:
            # What ran is worth more than a proper goodbye: whoever ended us may not wait long.
            self.sync()
            if self._pidbox is not None:
                self._pidbox.stop()

    def sync(self) -> None:
        """Write down what ran, and let go of the broker."""
        self.scheduler.close()
        self._is_stopped.set()

    def stop(self, wait: bool = False) -> None:
        """Have :meth:`start` return; *wait* until it has written everything down."""
        logger.info("beat: Shutting down...")
        self._is_shutdown.set()
        if wait:
            self._is_stopped.wait()

    def end_soon(self) -> None:
        """For signal handlers: end, but not between noting a run and sending it, unless asked again.

        Raises:
            SystemExit: there is nothing to wait for.
        """
        asked_before, self._asked_to_end = self._asked_to_end, True
        if asked_before or not getattr(self.__dict__.get("scheduler"), "_sending", False):
            raise SystemExit(0)

    def get_scheduler(self, lazy: bool = False, extension_namespace: str = "celery.beat_schedulers") -> Any:
        """Make the scheduler; *lazy* for one to look at."""
        name = self.scheduler_cls
        if isinstance(name, str) and name.startswith("celery.beat"):
            name = f"{__name__}{name.removeprefix('celery.beat')}"
        aliases = dict(load_extension_class_names(extension_namespace))
        return symbol_by_name(name, aliases=aliases)(
            app=self.app,
            schedule_filename=self.schedule_filename,
            max_interval=self.max_interval,
            lazy=lazy,
        )

    @cached_property
    def scheduler(self) -> Any:
        """The scheduler, made when it is first asked for."""
        return self.get_scheduler()


# --- inside a worker ------------------------------------------------------------------


class ThreadedService(Thread):
    """Beat in a thread."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(name="Beat", daemon=True)
        self.app = app
        self.service = Service(app, **kwargs)

    def run(self) -> None:
        """Tick until stopped."""
        self.app.set_current()
        self.service.start()

    def stop(self) -> None:
        """End, and wait until what ran is written down.  Legal early and twice."""
        self.service.stop(wait=False)
        if self.is_alive():
            self.join(STOP_S)


class ProcessService(Process):
    """Beat in a process of its own, which ends with its parent."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(name="Beat")
        self.app = app
        self.service = Service(app, **kwargs)

    def run(self) -> None:
        """Tick until told to stop by TERM."""
        platforms.set_pdeathsig("SIGTERM")
        platforms.signals.reset("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT")
        # Ctrl-C is sent to all processes of a terminal; the worker tells us when it is our turn.
        platforms.signals.ignore("SIGINT")
        platforms.signals["SIGTERM"] = lambda signum, frame: self.service.end_soon()
        platforms.close_open_fds([*standard_streams(), *iter_open_logger_fds()])
        self.app.set_default()
        self.app.set_current()
        self.service.start(embedded_process=True)

    def stop(self) -> None:
        """End it; one that does not react is killed.  Legal early and twice."""
        self.service.stop()
        if self._popen is None or not self.is_alive():
            return
        self.terminate()
        self.join(STOP_S)
        if self.is_alive():
            logger.error("beat: The embedded scheduler did not end within %s seconds and is killed.", STOP_S)
            os.kill(self.pid, platforms.signals.signum("SIGKILL"))
            self.join(STOP_S)


def standard_streams() -> Iterable[Any]:
    """The streams that the process was started with."""
    return [stream for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__) if stream is not None]


def EmbeddedService(app: Any, max_interval: float | None = None, **kwargs: Any) -> Any:  # noqa: N802 Celery's name
    """A beat for use inside a worker: a process, or with ``thread=True`` a thread.

    Other arguments are those of :class:`Service`.  It does not answer pings unless asked to: the worker does.
    """
    kwargs.setdefault("remote_control", False)
    if kwargs.pop("thread", False):
        return ThreadedService(app, max_interval=max_interval or 1, **kwargs)
    return ProcessService(app, max_interval=max_interval, **kwargs)
