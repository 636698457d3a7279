"""One periodic task: what to send, when, and when that happened last.

Kept in line by ``beat.scheduler``, written to its file by ``beat.persistent``, and subclassed by schedulers of
other packages.  It sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import total_ordering
from typing import Any, NamedTuple

from kombu.utils.functional import reprcall

from celery_clone.schedules import maybe_schedule

__all__ = ("BeatLazyFunc", "ScheduleEntry", "event_t")


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


def fault_of(given: Any) -> str | None:
    """What is wrong with the description of an entry, if anything is."""
    if not isinstance(given, (Mapping, ScheduleEntry)):
        return f"it is {given!r}. Write a mapping with at least 'task' and 'schedule'."
    described = dict(given)
    if not described.get("task"):
        return "it names no task. Give the task's name as 'task'."
    schedule = described.get("schedule")
    if schedule is None:
        return "it has no schedule. Give seconds, a timedelta, a crontab or another schedule as 'schedule'."
    if isinstance(schedule, str):
        return (
            f"its schedule is the text {schedule!r}. Write crontab.from_string({schedule!r}), or a number of seconds."
        )
    seconds = schedule.total_seconds() if isinstance(schedule, timedelta) else schedule
    if isinstance(seconds, (int, float)) and seconds <= 0:
        return f"its schedule is {schedule!r}. Give more than nothing, or beat does nothing but send it."
    return None
