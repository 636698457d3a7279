"""All periodic tasks: a line of entries, of which the first is sent when its time has come.

Made by ``beat.service`` and asked to :meth:`~Scheduler.tick` by it.  Schedulers of other packages subclass it and
override what is inside, so methods keep Celery's names and are called where Celery calls them.  When an entry is
due is the business of ``schedules``.

A run is noted before it is sent.  One that cannot be sent because the broker is away is tried again; one
that fails in another way is logged and left to its next time.
"""

from __future__ import annotations

import copy
import heapq
import time
import traceback
from calendar import timegm
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from kombu.common import ignore_errors
from kombu.exceptions import OperationalError
from kombu.utils.functional import maybe_evaluate

from celery_clone.beat.entries import ScheduleEntry, called, event_t, fault_of
from celery_clone.beat.lease import FencedProducer, Lease, RunRefused, remember
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.schedules import crontab
from celery_clone.utils.functional import is_numeric_value
from celery_clone.utils.log import get_logger
from celery_clone.utils.time import humanize_seconds, maybe_make_aware

__all__ = ("DEFAULT_MAX_INTERVAL", "Scheduler", "SchedulingError")

logger = get_logger("celery.beat")


DEFAULT_MAX_INTERVAL = 300
"""Seconds that a scheduler sleeps at most, unless it says something else."""

EARLIER_S = -0.010
"""Beat wakes up this much before something is due, as getting there takes time too."""

PRIORITY = 5
"""Entries of the same time are equal."""

UNSENT_RETRY_S = 5.0
"""When a task that could not be sent, because the broker is away, is tried again."""

SET_BACK_S = 1.0
"""A clock that lost this much was set."""

AHEAD_S = 60.0
"""Clocks of machines may differ by so much."""

AT_A_TIME_S = 3 * 3600.0
"""A clock that is set back by more was wrong before; one that is set back by less, people may just have corrected."""


class SchedulingError(Exception):
    """A periodic task could not be sent."""


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
    _times: tuple[float, float] | None = None

    #: What has to agree with every run, where several beats may send for one schedule.
    lease: Lease | None = None
    _following: Any = None
    _refused: RunRefused | None = None

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
        self._unsure: dict[str, str] = {}
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
        return self._made(name, entry)

    def _made(self, name: str, given: Any) -> Any:
        """The entry that is described so.

        Raises:
            ImproperlyConfigured: it could never be sent.
        """
        fault = fault_of(given)
        if fault is None:
            try:
                return self.Entry(**{**dict(given), "name": name, "app": self.app})
            except TypeError as exc:
                fault = f"{exc}. Known are task, schedule, args, kwargs, options and relative."
        raise ImproperlyConfigured(f"The entry {name!r} of beat_schedule is wrong: {fault}")

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Add entries, given as such or as mappings."""
        self.schedule.update({name: self._maybe_entry(name, entry) for name, entry in dict_.items()})

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        """Make the entries those of *b*; entries that stay remember when they ran."""
        schedule = self.schedule
        for name in [name for name in schedule if name not in b]:
            schedule.pop(name, None)
        for name, given in b.items():
            entry = self._made(name, given)
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

    def _correct(self, entry: Any) -> None:
        """Have an entry that ran in the future, by a clock that was set back since, go on from now.

        What runs at a time of the day does not run twice because of it, unless the clock was set back by hours.
        """
        now = entry.default_now()
        ahead_s = (maybe_make_aware(entry.last_run_at) - maybe_make_aware(now)).total_seconds()
        if ahead_s > (AT_A_TIME_S if is_at_a_time(entry.schedule) else AHEAD_S):
            logger.warning(
                "beat: The clock was set back: %s ran %s from now. It goes on from the time it is now.",
                entry.name,
                humanize_seconds(ahead_s),
            )
            entry.last_run_at = now

    def _was_set_back(self) -> bool:
        """Was the clock set back since this was asked last?"""
        times = time.time(), time.monotonic()
        before, self._times = self._times, times
        return before is not None and (times[0] - before[0]) - (times[1] - before[1]) < -SET_BACK_S

    def populate_heap(self) -> None:
        """Line up all entries by their next time."""
        heap = []
        for entry in self.schedule.values():
            try:
                self._correct(entry)
            except Exception:
                # Entries of other packages may keep the time of their last run elsewhere.
                logger.debug("beat: %r does not tell when it ran.", entry.name, exc_info=True)
            is_due, seconds = self._asked(entry.is_due, entry)
            heap.append(event_t(self._when(entry, 0 if is_due else seconds) or 0, PRIORITY, entry))
        heapq.heapify(heap)
        self._heap = heap

    def tick(self) -> float:
        """Send one task, if one is due; the seconds until the next turn."""
        if self._was_set_back() or self._heap is None or not self.schedules_equal(self.old_schedulers, self.schedule):
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
            following = self._following = self.reserve(entry)
            self._unsent = self._refused = None
            self.apply_entry(entry, producer=producer)
        finally:
            self._sending = False
            self._following = None
        heapq.heappush(heap, self._place_after(entry, following, seconds, first))
        return 0

    def _place_after(self, entry: Any, following: Any, seconds: float, place: event_t) -> event_t:
        """The next place of an entry; one that was not sent is tried again until its next run is due."""
        priority = place.priority
        if self._refused is not None:
            self._unsure.pop(entry.name, None)
            if not self._refused.record:
                self.schedule[entry.name] = entry
                return place
            remember(following, self._refused.record)
            is_due, seconds = self._asked(following.is_due, following)
            return event_t(self._when(following, 0 if is_due else seconds), priority, following)
        next_time = self._when(following, seconds)
        if self._unsent is entry:
            give_up_at = self._given_up_at.setdefault(entry.name, next_time)
            again = self._when(entry, UNSENT_RETRY_S)
            if again < give_up_at:
                self.schedule[entry.name] = entry
                return event_t(again, priority, entry)
            logger.error("beat: %s is given up until its next run.", entry.name)
        self._given_up_at.pop(entry.name, None)
        self._unsure.pop(entry.name, None)
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
            if isinstance(exc.__cause__, RunRefused):
                self._refused = exc.__cause__
                logger.warning("beat: Did not send %s: %s.", entry.name, exc.__cause__)
                return
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
            # A new run: what sends this way plans for itself, and does not come back with one that it is unsure of.
            self._unsure.pop(entry.name, None)
        producer = self._fenced(producer, entry, self.reserve(entry) if advance else self._following)
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

    def _fenced(self, producer: Any, entry: Any, following: Any) -> Any:
        """A producer that sends one run of an entry, if this beat may."""
        if self.lease is None or following is None:
            return producer
        run = self.lease.run_of(entry, following, self._unsure.get(entry.name))
        self._unsure[entry.name] = run.record
        return FencedProducer(producer or self.producer, self.lease, run)

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
            Scheduler.abandon(self)

    def abandon(self) -> None:
        """Let go of the broker, and write nothing: another beat has gone on from what was written."""
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


def is_at_a_time(schedule: Any) -> bool:
    """Does it run when the clock shows certain times, rather than again and again?"""
    return isinstance(schedule, crontab) and not schedule._clock_rules.every_pass
