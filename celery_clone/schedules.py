"""When periodic tasks run: at intervals, by the clock, or by the sun.

Called by ``beat`` for every entry at every turn, and by the schedulers other
packages bring.  A schedule owns no clock: :meth:`BaseSchedule.now` asks the app
or the function it was given, and everything below it takes the time as an
argument.

A :class:`crontab` thinks in wall time of its zone, so a change of the clocks
needs rules:

* A repeated hour: what runs every hour, or every few minutes (``*`` or ``*/n``),
  runs in both passes; everything else in the first only.
* A skipped hour: what runs every hour has no runs in it; everything else runs
  as much later as the clock was put forward.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, timedelta, tzinfo
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from celery_clone._state import current_app
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.local import try_import
from celery_clone.utils.time import (
    ffwd,
    humanize_seconds,
    make_aware,
    maybe_make_aware,
    maybe_timedelta,
    occurrences,
    remaining,
    subtract_datetimes,
    timezone,
    weekday,
    yearmonth,
)

if TYPE_CHECKING:
    from celery_clone.app.base import Celery

__all__ = (
    "BaseSchedule",
    "ParseException",
    "crontab",
    "crontab_parser",
    "maybe_schedule",
    "schedstate",
    "schedule",
    "solar",
)

Cronspec: TypeAlias = "int | str | Iterable[int]"

CRON_PATTERN_INVALID = "Invalid crontab pattern. Valid range is {min}-{max}. '{value}' was found."

CRON_INVALID_TYPE = (
    "Argument cronspec needs to be of any of the following types: int, str, or an iterable type. {type!r} was given."
)

CRON_EMPTY = "Invalid crontab: {name} has no value, so it would never run. Use '*' for all values."

CRON_INVALID_DATE = "Invalid crontab: day_of_month {day_of_month!r} never occurs in month_of_year {month_of_year!r}."

#: Days a month can have.
CRON_DAYS_IN_MONTH = {1: 31, 2: 29, 3: 31, 4: 30, 5: 31, 6: 30, 7: 31, 8: 31, 9: 30, 10: 31, 11: 30, 12: 31}

#: Any day of the calendar falls on any day of the week within that many years:
#: 29 February on a given one, across a century without leap day.
YEARS_AHEAD = 40

#: How far back a clock change can still put a skipped run after the last one.
CLOCK_CHANGE_WINDOW = timedelta(hours=3)

NO_TIME = timedelta(0)
ONE_MINUTE = timedelta(minutes=1)

SOLAR_INVALID_LATITUDE = "Argument latitude {lat} is invalid, must be between -90 and 90."
SOLAR_INVALID_LONGITUDE = "Argument longitude {lon} is invalid, must be between -180 and 180."
SOLAR_INVALID_EVENT = 'Argument event "{event}" is invalid, must be one of {all_events}.'
SOLAR_EPHEM_NOT_INSTALLED = (
    "You need to install the ephem library to use solar schedules: pip install celery_clone[solar]"
)


class schedstate(NamedTuple):
    """Whether a task is due, and the seconds until it is worth asking again."""

    is_due: bool
    next: float


class BaseSchedule:
    """What all schedules share: the clock, the zone and the app.

    ``nowfun`` returns the current time; without it the app is asked.
    """

    def __init__(self, nowfun: Callable[[], datetime] | None = None, app: Celery | None = None) -> None:
        self.nowfun = nowfun
        self._app = app

    def now(self) -> datetime:
        """Return the current time."""
        return (self.nowfun or self.app.now)()

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time left until the next run after ``last_run_at``; negative if it is over."""
        raise NotImplementedError(f"{type(self).__name__} must say when it runs: define remaining_estimate().")

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        """Return whether it is time to run, and the seconds until the next question.

        The seconds need not be exact: asking too early only costs time.
        """
        raise NotImplementedError(f"{type(self).__name__} must say when it runs: define is_due().")

    def maybe_make_aware(self, dt: datetime, naive_as_utc: bool = True) -> datetime:
        """Return ``dt`` with a zone; without one it means UTC, or else the schedule's zone."""
        return maybe_make_aware(dt, self.tz, naive_as_utc=naive_as_utc)

    @property
    def app(self) -> Celery:
        """The app this schedule belongs to, the current one by default."""
        return self._app or current_app._get_current_object()

    @app.setter
    def app(self, app: Celery) -> None:
        self._app = app

    @cached_property
    def tz(self) -> tzinfo:
        """The zone whose clocks the schedule follows."""
        return self.app.timezone  # type: ignore[no-any-return]

    @cached_property
    def utc_enabled(self) -> bool:
        """Whether the app counts in UTC."""
        return bool(self.app.conf.enable_utc)

    def to_local(self, dt: datetime) -> datetime:
        """Return ``dt`` in the system's zone, unless the app counts in UTC."""
        return dt if self.utc_enabled else timezone.to_local_fallback(dt)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BaseSchedule):
            return other.nowfun == self.nowfun
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]


# -- intervals -------------------------------------------------------------


class schedule(BaseSchedule):
    """Runs every so often.

    ``run_every`` is a time span or a number of seconds.  With ``relative`` the
    runs are rounded to the unit of the span: every hour means on the hour.
    """

    relative: bool = False

    def __init__(
        self,
        run_every: float | timedelta | None = None,
        relative: bool = False,
        nowfun: Callable[[], datetime] | None = None,
        app: Celery | None = None,
    ) -> None:
        self.run_every: timedelta = maybe_timedelta(run_every)
        self.relative = relative
        super().__init__(nowfun=nowfun, app=app)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time left until the next run; negative if it is over."""
        return remaining(
            self.maybe_make_aware(last_run_at),
            self.run_every,
            self.maybe_make_aware(self.now()),
            self.relative,
        )

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        """Return whether it is time to run, and the seconds until the next question."""
        last_run_at = self.maybe_make_aware(last_run_at)
        seconds_left = self.remaining_estimate(last_run_at).total_seconds()
        if seconds_left > 0:
            return schedstate(is_due=False, next=seconds_left)
        return schedstate(is_due=True, next=self._seconds_to_next(last_run_at.tzinfo))

    def _seconds_to_next(self, zone: tzinfo | None) -> float:
        """Return the seconds from now to the run after the one that is due."""
        if self.relative:
            # A late run does not move the boundaries, and a clock change moves
            # them apart: count to the next one, not the length of the interval.
            now = self.maybe_make_aware(self.now()).astimezone(zone)
            seconds = self.remaining_estimate(now).total_seconds()
            if seconds > 0:
                return seconds
        return self.seconds

    def __repr__(self) -> str:
        return f"<freq: {self.human_seconds}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, schedule):
            return self.run_every == other.run_every
        return self.run_every == other

    __hash__ = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.run_every, self.relative, self.nowfun)

    @property
    def seconds(self) -> float:
        """Length of the interval in seconds."""
        return max(self.run_every.total_seconds(), 0)

    @property
    def human_seconds(self) -> str:
        """Length of the interval in words."""
        return humanize_seconds(self.seconds)


# -- the language of crontab -----------------------------------------------


class ParseException(Exception):
    """A crontab pattern cannot be read."""


class crontab_parser:
    """Reads patterns such as ``*/15``, ``mon-fri``, ``0,8-17/2``.

    ``max_`` is the number of values a field has, ``min_`` the first of them.  A
    range that ends before it begins goes on at the first value.  Months and
    days of the week may be given by their (short) English names.
    """

    ParseException = ParseException

    _part = re.compile(r"(?:(?P<all>\*)|(?P<first>\w+)(?:-(?P<last>\w+))?)(?P<step>/\w*)?")

    def __init__(self, max_: int = 60, min_: int = 0) -> None:
        self.max_ = max_
        self.min_ = min_

    def parse(self, spec: str) -> set[int]:
        """Return the values that ``spec`` stands for.

        Raises :exc:`ParseException` if it is incomplete and :exc:`ValueError`
        if it holds a value this field does not have.
        """
        values: set[int] = set()
        for part in spec.split(","):
            values.update(self._values_of(part))
        return values

    def _values_of(self, part: str) -> list[int]:
        if not part:
            raise self.ParseException("empty part: remove the comma, or write a value beside it.")
        if part.startswith("-"):
            raise self.ParseException(f"negative numbers not supported: {part!r}.")
        match = self._part.fullmatch(part)
        if match is None:
            raise ValueError(f"Invalid crontab pattern {part!r}. Write a value, a-b, * or any of them with /step.")
        values = self._all_values()
        if match["first"]:
            values = self._range(self._number(match["first"]), match["last"])
        if match["step"] is None:
            return values
        if match["first"] and not match["last"]:
            raise ValueError(f"Invalid crontab pattern {part!r}: a step needs a range, such as 0-{self._last}.")
        return values[:: self._step(match["step"][1:])]

    @property
    def _last(self) -> int:
        return self.min_ + self.max_ - 1

    def _all_values(self) -> list[int]:
        return list(range(self.min_, self._last + 1))

    def _range(self, first: int, last_name: str | None) -> list[int]:
        if last_name is None:
            return [first]
        last = self._number(last_name)
        if last >= first:
            return list(range(first, last + 1))
        return [*range(first, self._last + 1), *range(self.min_, last + 1)]

    def _step(self, text: str) -> int:
        if not text:
            raise self.ParseException("empty filter: write a number behind the slash.")
        step = int(text)
        if step < 1:
            raise ValueError(f"Invalid step {text!r}: use 1 or more.")
        return step

    def _number(self, name: str) -> int:
        number = self._named(name)
        if number > self._last:
            raise ValueError(f"Invalid end range: {number} > {self._last}.")
        if number < self.min_:
            raise ValueError(f"Invalid beginning range: {number} < {self.min_}.")
        return number

    def _named(self, name: str) -> int:
        if name.isdecimal():
            return int(name)
        for number_of in (yearmonth, weekday):
            try:
                return number_of(name)
            except KeyError:
                continue
        raise ValueError(f"Invalid weekday literal {name!r}.")


# -- by the clock ----------------------------------------------------------


class _Fields(NamedTuple):
    """The values of a crontab, sorted."""

    minutes: list[int]
    hours: list[int]
    days: list[int]
    months: list[int]
    weekdays: set[int]

    def after(self, wall: datetime) -> Iterator[datetime]:
        """Yield the wall times that match and come later than ``wall``, in order."""
        if self._holds(wall.date()):
            yield from self._on(wall.date(), (wall.hour, wall.minute))
        for day in self._days_after(wall.date()):
            yield from self._on(day, (-1, 0))

    def _on(self, day: date, clock: tuple[int, int]) -> Iterator[datetime]:
        """Yield the matching wall times of one day that are later than ``clock``."""
        for hour in self.hours:
            if hour < clock[0]:
                continue
            first = bisect_right(self.minutes, clock[1]) if hour == clock[0] else 0
            for minute in self.minutes[first:]:
                yield datetime(day.year, day.month, day.day, hour, minute)

    def _days_after(self, day: date) -> Iterator[date]:
        for year in range(day.year, min(day.year + YEARS_AHEAD + 1, 9999)):
            for month in self.months:
                if (year, month) < (day.year, day.month):
                    continue
                for number in self.days:
                    if (year, month, number) <= (day.year, day.month, day.day):
                        continue
                    try:
                        found = date(year, month, number)
                    except ValueError:
                        break  # this month is shorter
                    if self._holds(found):
                        yield found

    def _holds(self, day: date) -> bool:
        return day.month in self.months and day.day in self.days and day.isoweekday() % 7 in self.weekdays


class _ClockRules(NamedTuple):
    """What a change of the clocks does to the runs of a crontab."""

    #: Whether a repeated wall time has a run each time, or the first time only.
    every_pass: bool

    #: Whether a skipped wall time has its run later, or none.
    make_up: bool


def next_moment(fields: _Fields, last: datetime, zone: tzinfo, rules: _ClockRules) -> datetime | None:
    """Return the first moment after ``last``, which must be in ``zone``, that has a run."""
    wall = last.replace(tzinfo=None, fold=0)
    last_utc = _in_utc(last)
    # A run made up for may still be ahead of us although its wall time is not.
    starts = [wall - _put_forward_lately(last, last_utc, zone) if rules.make_up else wall]
    passes = occurrences(wall, zone)
    if rules.every_pass and len(passes) == 2 and passes[0].utcoffset() == last.utcoffset():
        # The second pass begins at an earlier wall time than now.
        start = wall.replace(second=0, microsecond=0) - ONE_MINUTE
        while len(occurrences(start, zone)) == 2:
            start -= ONE_MINUTE
        starts.append(start)
    found = [_earliest_run(fields.after(start), last_utc, zone, rules) for start in starts]
    return min((moment for moment in found if moment is not None), key=_in_utc, default=None)


def _put_forward_lately(last: datetime, last_utc: datetime, zone: tzinfo) -> timedelta:
    """Return by how much the clock was put forward in the hours before ``last``."""
    earlier = (last_utc - CLOCK_CHANGE_WINDOW).astimezone(zone)
    change = (last.utcoffset() or NO_TIME) - (earlier.utcoffset() or NO_TIME)
    return max(change, NO_TIME)


def _earliest_run(walls: Iterable[datetime], last_utc: datetime, zone: tzinfo, rules: _ClockRules) -> datetime | None:
    """Return the first moment after ``last_utc`` at which one of the ``walls``, in order, has a run."""
    chosen: datetime | None = None
    for wall in walls:
        # Made up for, a run comes later than some of the wall times behind it.
        if chosen is not None and wall >= chosen.replace(tzinfo=None):
            break
        for moment in _runs_of(wall, zone, rules):
            if _in_utc(moment) > last_utc and (chosen is None or _in_utc(moment) < _in_utc(chosen)):
                chosen = moment
        if chosen is not None and chosen.replace(tzinfo=None, fold=0) == wall:
            break
    return chosen


def _runs_of(wall: datetime, zone: tzinfo, rules: _ClockRules) -> list[datetime]:
    moments = occurrences(wall, zone)
    if not moments:
        return [make_aware(wall, zone)] if rules.make_up else []
    return moments if rules.every_pass else moments[:1]


def _in_utc(moment: datetime) -> datetime:
    # Dates of the same zone are compared by wall time otherwise.
    return moment.astimezone(timezone.utc)


class crontab(BaseSchedule):
    """Runs when the clock shows certain minutes of certain hours and days.

    Each field is a number, several numbers, or a pattern (see
    :class:`crontab_parser`): ``minute`` 0-59, ``hour`` 0-23, ``day_of_week``
    0-6 from Sunday, ``day_of_month`` 1-31, ``month_of_year`` 1-12.  A day must
    match all three fields of days.  Other options: see :class:`BaseSchedule`.
    Raises :exc:`ValueError` if it would never run.
    """

    def __init__(
        self,
        minute: Cronspec = "*",
        hour: Cronspec = "*",
        day_of_week: Cronspec = "*",
        day_of_month: Cronspec = "*",
        month_of_year: Cronspec = "*",
        **kwargs: Any,
    ) -> None:
        self._orig_minute = cronfield(minute)
        self._orig_hour = cronfield(hour)
        self._orig_day_of_week = cronfield(day_of_week)
        self._orig_day_of_month = cronfield(day_of_month)
        self._orig_month_of_year = cronfield(month_of_year)
        self._orig_kwargs = kwargs
        self.hour = self._expand_cronspec(self._orig_hour, 24)
        self.minute = self._expand_cronspec(self._orig_minute, 60)
        self.day_of_week = self._expand_cronspec(self._orig_day_of_week, 7)
        self.day_of_month = self._expand_cronspec(self._orig_day_of_month, 31, 1)
        self.month_of_year = self._expand_cronspec(self._orig_month_of_year, 12, 1)
        self._check_that_it_runs()
        super().__init__(**kwargs)

    @classmethod
    def from_string(cls, crontab: str) -> crontab:
        """Return the schedule of a line of a crontab, such as ``"30 8 * * 1-5"``.

        The fields are minute, hour, day of month, month and day of week.
        """
        fields = crontab.split()
        if len(fields) != 5:
            raise ValueError(f"A crontab has five fields, {crontab!r} has {len(fields)}. Write * for any value.")
        minute, hour, day_of_month, month_of_year, day_of_week = fields
        return cls(minute, hour, day_of_week, day_of_month, month_of_year)

    @staticmethod
    def _expand_cronspec(cronspec: Cronspec, max_: int, min_: int = 0) -> set[int]:
        """Return the values of a field; ``max_`` and ``min_`` as in :class:`crontab_parser`."""
        values: set[int]
        if isinstance(cronspec, int):
            values = {cronspec}
        elif isinstance(cronspec, str):
            values = crontab_parser(max_, min_).parse(cronspec)
        elif isinstance(cronspec, Iterable):
            values = set(cronspec)
        else:
            raise TypeError(CRON_INVALID_TYPE.format(type=type(cronspec)))
        for value in values:
            if not min_ <= value < min_ + max_:
                raise ValueError(CRON_PATTERN_INVALID.format(min=min_, max=max_ - 1 + min_, value=value))
        return values

    def _check_that_it_runs(self) -> None:
        for name in ("minute", "hour", "day_of_week", "day_of_month", "month_of_year"):
            if not getattr(self, name):
                raise ValueError(CRON_EMPTY.format(name=name))
        if min(self.day_of_month) > max(CRON_DAYS_IN_MONTH[month] for month in self.month_of_year):
            raise ValueError(
                CRON_INVALID_DATE.format(day_of_month=self._orig_day_of_month, month_of_year=self._orig_month_of_year)
            )

    def next_run(self, last_run_at: datetime, zone: tzinfo) -> datetime:
        """Return the first moment after ``last_run_at`` at which this runs, in ``zone``."""
        found = next_moment(self._fields, last_run_at.astimezone(zone), zone, self._clock_rules)
        if found is None:
            raise RuntimeError(f"{self!r} does not run in the next {YEARS_AHEAD} years. Check its days and months.")
        return found

    @cached_property
    def _fields(self) -> _Fields:
        return _Fields(
            sorted(self.minute),
            sorted(self.hour),
            sorted(self.day_of_month),
            sorted(self.month_of_year),
            self.day_of_week,
        )

    @cached_property
    def _clock_rules(self) -> _ClockRules:
        every_hour = len(self.hour) == 24
        every_few_minutes = len(self.minute) == 60 or str(self._orig_minute).startswith("*")
        return _ClockRules(every_pass=every_hour or every_few_minutes, make_up=not every_hour)

    def remaining_delta(self, last_run_at: datetime, tz: str | tzinfo | None = None) -> tuple[datetime, Any, datetime]:
        """Return last run, the jump from there to the next one, and the current time.

        All in the zone ``tz``, the schedule's own by default.
        """
        zone = timezone.get_timezone(tz or self.tz)
        last_run_at = self.maybe_make_aware(last_run_at).astimezone(zone)
        due = self.next_run(last_run_at, zone)
        jump = ffwd(
            year=due.year,
            month=due.month,
            day=due.day,
            hour=due.hour,
            minute=due.minute,
            second=0,
            microsecond=0,
            fold=due.fold,
        )
        return last_run_at, jump, self.maybe_make_aware(self.now()).astimezone(zone)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time left until the next run after ``last_run_at``; negative if it is over."""
        return remaining(*self.remaining_delta(last_run_at))

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        """Return whether it is time to run, and the seconds until the next question.

        A run missed for longer than the setting ``beat_cron_starting_deadline``
        (seconds) is given up.
        """
        seconds_left = self.remaining_estimate(last_run_at).total_seconds()
        if seconds_left > 0:
            return schedstate(is_due=False, next=seconds_left)
        is_due = seconds_left == 0 or self._may_catch_up()
        seconds_to_next = self.remaining_estimate(self.now()).total_seconds()
        return schedstate(is_due=is_due, next=max(seconds_to_next, 0))

    def _may_catch_up(self) -> bool:
        """Tell whether a run was due within the deadline, up to now."""
        deadline_s = self.app.conf.beat_cron_starting_deadline
        if deadline_s is None:
            return True
        now = self.maybe_make_aware(self.now())
        # One microsecond earlier, so that a run exactly at the deadline counts.
        since = _in_utc(now) - timedelta(seconds=deadline_s, microseconds=1)
        return self.remaining_estimate(since.astimezone(now.tzinfo)).total_seconds() <= 0

    def __repr__(self) -> str:
        fields = (
            self._orig_minute,
            self._orig_hour,
            self._orig_day_of_month,
            self._orig_month_of_year,
            self._orig_day_of_week,
        )
        return f"<crontab: {' '.join(map(str, fields))} (m/h/dM/MY/d)>"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (
            self._orig_minute,
            self._orig_hour,
            self._orig_day_of_week,
            self._orig_day_of_month,
            self._orig_month_of_year,
        )
        return type(self), fields, self._orig_kwargs

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__init__(**state)
        self._orig_kwargs = dict(state)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, crontab):
            return NotImplemented
        return (
            other.month_of_year == self.month_of_year
            and other.day_of_month == self.day_of_month
            and other.day_of_week == self.day_of_week
            and other.hour == self.hour
            and other.minute == self.minute
            and super().__eq__(other)
        )

    __hash__ = None


def cronfield(s: Cronspec | None) -> Cronspec:
    """Return a field of a crontab; ``None`` means all values."""
    return "*" if s is None else s


def maybe_schedule(
    s: float | timedelta | BaseSchedule | None, relative: bool = False, app: Celery | None = None
) -> Any:
    """Return a schedule made of a number of seconds or a time span.

    A schedule is returned as it is, but given to ``app``; ``None`` stays ``None``.
    """
    if s is None:
        return None
    if isinstance(s, (int, float)):
        s = timedelta(seconds=s)
    if isinstance(s, timedelta):
        return schedule(s, relative, app=app)
    s.app = app  # type: ignore[assignment]
    return s


# -- by the sun ------------------------------------------------------------


class _SolarEvent(NamedTuple):
    """How an event is asked of ephem."""

    method: str
    horizon: str
    use_center: bool


_SOLAR_EVENTS: dict[str, _SolarEvent] = {
    "dawn_astronomical": _SolarEvent("next_rising", "-18", True),
    "dawn_nautical": _SolarEvent("next_rising", "-12", True),
    "dawn_civil": _SolarEvent("next_rising", "-6", True),
    "sunrise": _SolarEvent("next_rising", "-0:34", False),
    "solar_noon": _SolarEvent("next_transit", "0", False),
    "sunset": _SolarEvent("next_setting", "-0:34", False),
    "dusk_civil": _SolarEvent("next_setting", "-6", True),
    "dusk_nautical": _SolarEvent("next_setting", "-12", True),
    "dusk_astronomical": _SolarEvent("next_setting", "-18", True),
}


class solar(BaseSchedule):
    """Runs at an event of the sun, such as ``sunset``, at a place.

    ``event`` is one of ``dawn_astronomical``, ``dawn_nautical``, ``dawn_civil``,
    ``sunrise``, ``solar_noon``, ``sunset``, ``dusk_civil``, ``dusk_nautical``
    and ``dusk_astronomical``; ``lat`` and ``lon`` are degrees, north and east.
    Needs the package ``ephem``.
    """

    #: How many days ahead to look for an event that does not happen every day.
    max_search_days = 366

    def __init__(self, event: str, lat: float, lon: float, **kwargs: Any) -> None:
        self.ephem: Any = try_import("ephem")
        if self.ephem is None:
            raise ImproperlyConfigured(SOLAR_EPHEM_NOT_INSTALLED)
        if event not in _SOLAR_EVENTS:
            known = ", ".join(sorted(_SOLAR_EVENTS))
            raise ValueError(SOLAR_INVALID_EVENT.format(event=event, all_events=known))
        if not -90 <= lat <= 90:
            raise ValueError(SOLAR_INVALID_LATITUDE.format(lat=lat))
        if not -180 <= lon <= 180:
            raise ValueError(SOLAR_INVALID_LONGITUDE.format(lon=lon))
        self.event = event
        self.lat = lat
        self.lon = lon
        super().__init__(**kwargs)

        self.method, horizon, self.use_center = _SOLAR_EVENTS[event]
        self.cal = self.ephem.Observer()
        self.cal.lat, self.cal.lon, self.cal.elev = str(lat), str(lon), 0
        self.cal.horizon = horizon
        self.cal.pressure = 0

    def _next_event(self, start: Any) -> Any:
        """Return when the event happens next; where the search ended if it does not.

        Near the poles the sun may not rise, set or reach an angle for months.
        """
        sun = self.ephem.Sun()
        options = {"use_center": True} if self.use_center else {}
        for _ in range(self.max_search_days):
            try:
                return getattr(self.cal, self.method)(sun, start=start, **options)
            except self.ephem.CircumpolarError:
                start = self.cal.next_antitransit(sun, start=start)
        return start

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time left until the event after ``last_run_at``; negative if it is over."""
        since = _in_utc(self.maybe_make_aware(last_run_at))
        self.cal.date = since
        event_at = self.maybe_make_aware(self._next_event(self.ephem.Date(since)).datetime())
        return subtract_datetimes(event_at, self.maybe_make_aware(self.now()))

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        """Return whether it is time to run, and the seconds until the next question."""
        seconds_left = self.remaining_estimate(last_run_at).total_seconds()
        if seconds_left > 0:
            return schedstate(is_due=False, next=seconds_left)
        seconds_to_next = self.remaining_estimate(self.now()).total_seconds()
        return schedstate(is_due=True, next=max(seconds_to_next, 0))

    def __repr__(self) -> str:
        return f"<solar: {self.event} at latitude {self.lat}, longitude: {self.lon}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.event, self.lat, self.lon)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, solar):
            return NotImplemented
        return (other.event, other.lat, other.lon) == (self.event, self.lat, self.lon)

    __hash__ = None
