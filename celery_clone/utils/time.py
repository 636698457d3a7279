"""Zones, rates, ISO 8601 and the arithmetic of due times.

Called wherever a date meets the wire (``eta``, ``expires``, events), by the
schedules, by rate limits and by retry back-off.
Arithmetic that must be right across a clock change is done in UTC or on wall
time deliberately; each function says which.
It may not read settings: zones and the current time are arguments, and only the
defaults of the public functions ask the system.
"""

from __future__ import annotations

import logging
import numbers
import os
import random
import re
import time as _time
from calendar import monthrange
from collections.abc import Callable
from datetime import date, datetime, timedelta, tzinfo
from datetime import timezone as _fixed_offset
from functools import cache, cached_property
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery_clone.utils.text import pluralize

__all__ = (
    "LocalTimezone",
    "timezone",
    "maybe_timedelta",
    "delta_resolution",
    "remaining",
    "rate",
    "weekday",
    "yearmonth",
    "humanize_seconds",
    "maybe_iso8601",
    "parse_iso8601",
    "is_naive",
    "add_seconds_to_datetime",
    "subtract_datetimes",
    "make_aware",
    "occurrences",
    "localize",
    "to_utc",
    "maybe_make_aware",
    "ffwd",
    "utcoffset",
    "adjust_timestamp",
    "get_exponential_backoff_interval",
)

logger = logging.getLogger("celery.utils.time")

DAYNAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
WEEKDAYS = {name: number for number, name in enumerate(DAYNAMES)}

MONTHNAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
YEARMONTHS = {name: number for number, name in enumerate(MONTHNAMES, 1)}

#: Seconds of the unit that follows the slash of a rate such as ``100/m``.
RATE_UNITS: dict[str, float] = {"s": 1.0, "m": 60.0, "h": 3600.0}

TIME_UNITS: tuple[tuple[str, float], ...] = (
    ("day", 86400.0),
    ("hour", 3600.0),
    ("minute", 60.0),
    ("second", 1.0),
)

ZERO = timedelta(0)
ONE_DAY = timedelta(days=1)
ONE_HOUR = timedelta(hours=1)
ONE_MINUTE = timedelta(minutes=1)

ZONEINFO_PATH_MARK = "zoneinfo/"
SYSTEM_LOCALTIME = "/etc/localtime"
SYSTEM_ZONE_NAME = "/etc/timezone"


# -- zones -----------------------------------------------------------------


class LocalTimezone(tzinfo):
    """Local time as the C library knows it.

    Used where the system does not say which named zone it is in.
    """

    def __init__(self) -> None:
        self.STDOFFSET = timedelta(seconds=-_time.timezone)
        self.DSTOFFSET = timedelta(seconds=-_time.altzone) if _time.daylight else self.STDOFFSET
        self.DSTDIFF = self.DSTOFFSET - self.STDOFFSET
        super().__init__()

    def __repr__(self) -> str:
        return f"<LocalTimezone: UTC{int(self.DSTOFFSET.total_seconds() / 3600):+03d}>"

    def __reduce__(self) -> tuple[type[LocalTimezone], tuple[()]]:
        return type(self), ()

    def utcoffset(self, dt: datetime | None) -> timedelta:
        return self.STDOFFSET if dt is None else timedelta(seconds=self._at(dt).tm_gmtoff)

    def dst(self, dt: datetime | None) -> timedelta:
        return self.DSTDIFF if dt is not None and self._at(dt).tm_isdst > 0 else ZERO

    def tzname(self, dt: datetime | None) -> str:
        return _time.tzname[0] if dt is None else self._at(dt).tm_zone

    def fromutc(self, dt: datetime) -> datetime:
        """Return the local wall time of ``dt``, a UTC wall time.

        The base class guesses with the offset of the standard time; the C
        library knows, and tells which of two equal wall times is meant.
        """
        stamp = dt.replace(tzinfo=_fixed_offset.utc).timestamp()
        return datetime.fromtimestamp(stamp).replace(tzinfo=self)

    def _at(self, dt: datetime) -> _time.struct_time:
        # A date without zone is a wall time of this system, fold included.
        return _time.localtime(dt.replace(tzinfo=None).timestamp())


def _zone_of_system() -> tzinfo | None:
    """Return the zone this system is set to, or ``None`` if it does not say.

    Asked in order: the environment variable ``TZ``, the link behind
    ``/etc/localtime``, the name in ``/etc/timezone``, the content of
    ``/etc/localtime``.
    """
    asked = os.environ.get("TZ")
    if asked:
        return _zone_of_setting(asked.removeprefix(":"))
    if os.path.exists(SYSTEM_LOCALTIME):
        name = _zone_name_in(os.path.realpath(SYSTEM_LOCALTIME))
        if name is not None:
            return ZoneInfo(name)
    if os.path.exists(SYSTEM_ZONE_NAME):
        with open(SYSTEM_ZONE_NAME, encoding="utf-8") as file:
            name = file.readline().partition("#")[0].strip()
        if name:
            return ZoneInfo(name)
    if os.path.exists(SYSTEM_LOCALTIME):
        with open(SYSTEM_LOCALTIME, "rb") as content:
            return ZoneInfo.from_file(content, key="local")
    return None


def _zone_of_setting(text: str) -> tzinfo | None:
    """Return the zone named by ``TZ``, or ``None`` where only the C library can read it."""
    if os.path.isabs(text):
        name = _zone_name_in(text)
        if name is not None:
            return ZoneInfo(name)
        with open(text, "rb") as content:
            return ZoneInfo.from_file(content, key="local")
    try:
        return ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError):
        return None


def _zone_name_in(path: str) -> str | None:
    _, mark, name = path.partition(ZONEINFO_PATH_MARK)
    return name if mark else None


class _Zone:
    """The zones an app deals with: UTC, the system's, and any by name."""

    def tz_or_local(self, tzinfo: tzinfo | str | None = None) -> tzinfo:
        """Return the given zone, or the system's if there is none."""
        return self.local if tzinfo is None else self.get_timezone(tzinfo)

    def to_local(self, dt: datetime, local: tzinfo | str | None = None, orig: tzinfo | None = None) -> datetime:
        """Return ``dt`` in the zone ``local``; without zone it is taken to be in ``orig`` (UTC)."""
        if is_naive(dt):
            dt = make_aware(dt, orig or self.utc)
        return localize(dt, self.tz_or_local(local))

    def to_system(self, dt: datetime) -> datetime:
        """Return ``dt`` in the zone of this system."""
        return dt.astimezone(tz=None)

    def to_local_fallback(self, dt: datetime) -> datetime:
        """Return ``dt`` in the system's zone; without zone it is taken to be in it already."""
        if is_naive(dt):
            return make_aware(dt, self.local)
        return localize(dt, self.local)

    def get_timezone(self, zone: str | tzinfo) -> tzinfo:
        """Return the zone called ``zone``; zones are returned as they are."""
        return ZoneInfo(zone) if isinstance(zone, str) else zone

    @cached_property
    def local(self) -> tzinfo:
        """The zone of this system."""
        try:
            found = _zone_of_system()
        except (OSError, ValueError, ZoneInfoNotFoundError) as error:
            logger.warning("Failed to retrieve local timezone (%s): %s", type(error).__name__, error)
            found = None
        return LocalTimezone() if found is None else found

    @cached_property
    def utc(self) -> tzinfo:
        """UTC."""
        return ZoneInfo("UTC")


timezone = _Zone()


# -- wall clocks and clock changes -----------------------------------------


def is_naive(dt: datetime) -> bool:
    """Return true if ``dt`` does not say in which zone it is."""
    return dt.tzinfo is None or dt.tzinfo.utcoffset(dt) is None


def _in_utc(dt: datetime) -> datetime:
    return dt.astimezone(_fixed_offset.utc)


def _changes_clock(tz: tzinfo | None) -> bool:
    """Tell whether ``tz`` follows the rules of ``fold`` (PEP 495)."""
    return isinstance(tz, (ZoneInfo, LocalTimezone)) or hasattr(tz, "is_ambiguous")


def _has_two_offsets(dt: datetime) -> bool:
    """Tell whether the wall time of ``dt`` falls into a clock change."""
    return dt.replace(fold=0).utcoffset() != dt.replace(fold=1).utcoffset()


def _is_imaginary(dt: datetime, tz: tzinfo | None) -> bool:
    """Tell whether the wall time of ``dt`` is skipped by a clock change in ``tz``."""
    if tz is None or not _changes_clock(tz):
        return False
    here = dt.replace(tzinfo=tz, fold=0)
    try:
        return _in_utc(here).astimezone(tz).replace(tzinfo=None) != dt.replace(tzinfo=None, fold=0)
    except (OverflowError, ValueError):
        return False


def _is_ambiguous(dt: datetime, tz: tzinfo | None) -> bool:
    """Tell whether the wall time of ``dt`` happens twice in ``tz``."""
    if tz is None or not _changes_clock(tz):
        return False
    here = dt.replace(tzinfo=tz)
    return _has_two_offsets(here) and not _is_imaginary(here, tz)


def _past_gap(dt: datetime) -> datetime:
    """Return a skipped wall time moved forward by as much as the clock was."""
    wall = dt.replace(tzinfo=None, fold=0)
    moved = _in_utc(dt.replace(fold=0)).astimezone(dt.tzinfo)
    if moved.replace(tzinfo=None) < wall:
        # Zones of dateutil before 3.0 read it by the offset after the change; PEP 495 has it read by that before.
        before = _fixed_offset(moved.utcoffset() or timedelta())
        moved = wall.replace(tzinfo=before).astimezone(dt.tzinfo)
    return moved


def make_aware(dt: datetime, tz: tzinfo) -> datetime:
    """Return ``dt``, a wall time, as the moment it stands for in ``tz``.

    A wall time that happens twice means its first occurrence; one that is
    skipped moves forward by the size of the gap.
    """
    attach = getattr(tz, "localize", None)
    if attach is not None:  # zones of pytz are wrong when merely attached
        return _attach_pytz(dt.replace(tzinfo=None), tz)
    dt = dt.replace(tzinfo=tz)
    if not _changes_clock(tz):
        return dt
    if _is_imaginary(dt, tz):
        return _past_gap(dt)
    return dt.replace(fold=0) if _has_two_offsets(dt) else dt


def _pytz_readings(wall: datetime, tz: Any) -> tuple[datetime, datetime]:
    """Return what a zone of pytz makes of a wall time, taken for summer and for winter time."""
    naive = wall.replace(tzinfo=None)
    return tz.normalize(tz.localize(naive, is_dst=True)), tz.normalize(tz.localize(naive, is_dst=False))


def _attach_pytz(dt: datetime, tz: tzinfo) -> datetime:
    """Return ``dt`` in a zone of pytz, the first or the later moment as for all others."""
    summer, winter = _pytz_readings(dt, tz)
    skipped = winter.replace(tzinfo=None) != dt
    return winter if skipped else min(summer, winter)


def occurrences(wall: datetime, tz: tzinfo) -> list[datetime]:
    """Return the moments at which clocks in ``tz`` show a wall time, in order.

    None if a clock change skips it, two if one repeats it.
    """
    if hasattr(tz, "localize"):
        summer, winter = _pytz_readings(wall, tz)
        if winter.replace(tzinfo=None) != wall:
            return []
        if summer == winter:
            return [winter]
        # Those zones do not tell the two apart themselves.
        first, second = sorted((summer, winter))
        return [first, second.replace(fold=1)]
    here = wall.replace(tzinfo=tz, fold=0)
    if _is_imaginary(here, tz):
        return []
    return [here, here.replace(fold=1)] if _changes_clock(tz) and _has_two_offsets(here) else [here]


def localize(dt: datetime, tz: tzinfo) -> datetime:
    """Return ``dt`` in ``tz`` if it is in UTC or without zone, else unchanged."""
    if is_naive(dt):
        dt = make_aware(dt, tz)
    if dt.tzinfo is _fixed_offset.utc or getattr(dt.tzinfo, "key", None) == "UTC":
        return dt.astimezone(tz)
    return dt


def to_utc(dt: datetime) -> datetime:
    """Return ``dt``, a UTC wall time, with its zone attached."""
    return make_aware(dt, timezone.utc)


def maybe_make_aware(dt: datetime, tz: tzinfo | str | None = None, naive_as_utc: bool = True) -> datetime:
    """Return ``dt`` with a zone; one that has a zone is returned unchanged.

    Without zone it means UTC, or the zone ``tz`` if ``naive_as_utc`` is false,
    and is then shown in ``tz`` (UTC by default).
    """
    if not is_naive(dt):
        return dt
    if naive_as_utc:
        dt = to_utc(dt)
    return localize(dt, timezone.utc if tz is None else timezone.tz_or_local(tz))


def add_seconds_to_datetime(dt: datetime, seconds: float) -> datetime:
    """Return the moment that many elapsed seconds after ``dt``, in the same zone."""
    delta = timedelta(seconds=seconds)
    if is_naive(dt):
        return dt + delta
    return (_in_utc(dt) + delta).astimezone(dt.tzinfo)


def subtract_datetimes(end: datetime, start: datetime) -> timedelta:
    """Return the time that really passes from ``start`` to ``end``; without zone they mean UTC."""
    return _in_utc(maybe_make_aware(end)) - _in_utc(maybe_make_aware(start))


# -- intervals -------------------------------------------------------------


def maybe_timedelta(delta: float | timedelta | None) -> Any:
    """Return a number of seconds as a time span; everything else is returned as it is."""
    return timedelta(seconds=float(delta)) if isinstance(delta, numbers.Real) else delta


#: How many fields of a date survive rounding to a span of at least that many seconds.
_RESOLUTIONS: tuple[tuple[float, int], ...] = ((86400.0, 3), (3600.0, 4), (60.0, 5))


def delta_resolution(dt: datetime, delta: timedelta) -> datetime:
    """Round ``dt`` down to the largest unit of ``delta``: day, hour or minute.

    Below a minute ``dt`` is returned unchanged.
    """
    seconds = delta.total_seconds()
    fields = (dt.year, dt.month, dt.day, dt.hour, dt.minute)
    for at_least, kept in _RESOLUTIONS:
        if seconds >= at_least:
            # The same occurrence of a repeated hour stays meant.
            return datetime(*fields[:kept], tzinfo=dt.tzinfo, fold=dt.fold)  # type: ignore[arg-type,misc]
    return dt


def _moments_of_wall_time(dt: datetime) -> list[datetime]:
    """Return, in UTC, the first and the second moment at which clocks show ``dt``."""
    moments = []
    for fold in (0, 1):
        wall = dt.replace(fold=fold, microsecond=0)
        moments.append(_in_utc(_past_gap(wall) if _is_imaginary(wall, wall.tzinfo) else wall))
    return moments


def _rounded_calendar_end(start: datetime, end: datetime, span: timedelta) -> datetime:
    """Return the first midnight after ``start`` that ``end`` rounds to."""
    after = _in_utc(start)
    return min(
        (moment for moment in _moments_of_wall_time(delta_resolution(end, span)) if moment > after),
        default=_in_utc(end),
    )


def _rounded_clock_end(start: datetime, end: datetime, span: timedelta) -> datetime:
    """Return the last rounded boundary up to ``span`` of real time after ``start``."""
    after = _in_utc(start)
    deadline = after + span
    moments = _moments_of_wall_time(delta_resolution(end, span))
    chosen = max((moment for moment in moments if moment <= deadline), default=min(moments))
    if span < ONE_MINUTE or chosen > after:
        return chosen
    # Clocks that went back by part of the unit can put the boundary before the
    # start: the next boundary and the one by wall time are candidates too.
    unit = ONE_HOUR if span >= ONE_HOUR else ONE_MINUTE
    for candidate in (end + unit, start + span):
        moments += _moments_of_wall_time(delta_resolution(candidate, span))
    later = [moment for moment in moments if moment > after]
    return max(
        (moment for moment in later if moment <= deadline),
        default=min(later, default=deadline),
    )


def remaining(
    start: datetime, ends_in: timedelta | ffwd, now: datetime | None = None, relative: bool = False
) -> timedelta:
    """Return the real time left until ``ends_in`` after ``start``; negative if it is over.

    With ``relative`` the end is rounded down to the unit of ``ends_in``
    (see :func:`delta_resolution`), but never to ``start`` or before it, and
    whole days are counted by the calendar.  ``now`` defaults to the current time.
    """
    now = now or datetime.now(_fixed_offset.utc)
    if isinstance(ends_in, ffwd):
        end = start + ends_in
    elif relative and ends_in >= ONE_DAY:
        end = _rounded_calendar_end(start, start + ends_in, ends_in)
    else:
        end = add_seconds_to_datetime(start, ends_in.total_seconds())
        if relative:
            end = _rounded_clock_end(start, end, ends_in)
    return _in_utc(end) - _in_utc(now)


class ffwd:
    """A jump to the next date with the given fields; can only be added to a date.

    Fields that are ``None`` stay as they are, ``weekday`` counts from Monday (0),
    ``weeks`` are added at the end.  ``fold=1`` means the second occurrence of a
    wall time that a clock change repeats.
    """

    def __init__(
        self,
        year: int | None = None,
        month: int | None = None,
        weeks: int = 0,
        weekday: int | None = None,
        day: int | None = None,
        hour: int | None = None,
        minute: int | None = None,
        second: int | None = None,
        microsecond: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.fold: int | None = kwargs.pop("fold", None)
        if kwargs:
            raise TypeError(f"ffwd() has no field {', '.join(sorted(kwargs))}. Use those of a date, or weeks.")
        self.year = year
        self.month = month
        self.weeks = weeks
        self.weekday = weekday
        self.day = day
        self.hour = hour
        self.minute = minute
        self.second = second
        self.microsecond = microsecond
        self.days = weeks * 7
        self._has_time = hour is not None or minute is not None

    def __repr__(self) -> str:
        shown = {**self._fields(), "weeks": self.weeks}
        if self.weekday is not None:
            shown["weekday"] = self.weekday
        return f"ffwd({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __radd__(self, other: Any) -> Any:
        if not isinstance(other, date):
            return NotImplemented
        year = self.year or other.year
        month = self.month or other.month
        day = min(monthrange(year, month)[1], self.day or other.day)
        target = other.replace(**{**self._fields(), "year": year, "month": month, "day": day})
        if self.weekday is not None:
            target += timedelta(days=(7 - target.weekday() + self.weekday) % 7)
        target += timedelta(days=self.days)
        if not isinstance(target, datetime):
            return target
        zone: Any = target.tzinfo
        if hasattr(zone, "localize"):
            # A date of pytz carries one offset, which the jump may have outlived.
            moments = occurrences(target.replace(tzinfo=None), zone)
            return moments[-1 if self.fold else 0] if moments else make_aware(target, zone)
        return target if self.fold is None else target.replace(fold=self.fold)

    def _fields(self) -> dict[str, int]:
        names = ("year", "month", "day", "hour", "minute", "second", "microsecond")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


# -- rates, names, texts ---------------------------------------------------


def rate(r: str | float | None) -> float:
    """Return how many times a second ``r`` allows; ``0`` means no limit.

    ``r`` is a number or a text such as ``"100/m"``, ``"2/h"`` or ``"0.5/s"``.
    Raises :exc:`ValueError` for a number that cannot be read and
    :exc:`KeyError` for an unknown unit.
    """
    if not r:
        return 0
    if isinstance(r, str):
        times, _, unit = r.partition("/")
        return float(times) / RATE_UNITS[unit or "s"] or 0
    return r


def _number_of(name: str, numbers_by_name: dict[str, int]) -> int:
    try:
        return numbers_by_name[name[:3].lower()]
    except KeyError:
        raise KeyError(name) from None


def weekday(name: str) -> int:
    """Return the number of a day given by its (short) English name; Sunday is 0.

    Raises :exc:`KeyError` with the name if there is no such day.
    """
    return _number_of(name, WEEKDAYS)


def yearmonth(name: str) -> int:
    """Return the number of a month given by its (short) English name; January is 1.

    Raises :exc:`KeyError` with the name if there is no such month.
    """
    return _number_of(name, YEARMONTHS)


def humanize_seconds(secs: float, prefix: str = "", sep: str = "", now: str = "now", microseconds: bool = False) -> str:
    """Return a time span in words, such as ``1.00 minute`` for 60 seconds.

    ``prefix`` and ``sep`` stand before it, ``now`` is the text for nothing (and,
    unless ``microseconds`` is set, for less than a second).
    """
    seconds = round(float(secs), 2)
    for unit, length in TIME_UNITS:
        if seconds >= length:
            count = seconds / length
            return f"{prefix}{sep}{count:.2f} {pluralize(count, unit)}"
    if microseconds and seconds > 0.0:
        return f"{prefix}{sep}{seconds:.2f} seconds"
    return now


# -- ISO 8601 --------------------------------------------------------------

_ISO_8601 = r"""
    (?P<year>\d{4})
    (?: -?W(?P<week>\d{2}) (?: -?(?P<weekday>[1-7]) )?
      | -(?P<month>\d{2}) (?: -(?P<day>\d{2}) )?
      | (?P<month_>\d{2})(?P<day_>\d{2})
      | -?(?P<yearday>\d{3})
    )?
    (?: [T ] (?P<hour>\d{2})
        (?: :?(?P<minute>\d{2}) (?: :?(?P<second>\d{2}) (?: [.,](?P<fraction>\d+) )? )? )?
        \s* (?P<zone> Z | [+-]\d{2} (?: :?\d{2} )? )?
    )?
"""


@cache
def _iso_8601_pattern() -> re.Pattern[str]:
    # Made on first need: from Python 3.11 on hardly any date gets this far.
    return re.compile(_ISO_8601, re.VERBOSE | re.ASCII | re.IGNORECASE)


def parse_iso8601(text: str) -> datetime:
    """Return the moment an ISO 8601 text stands for; dates mean midnight.

    Raises :exc:`ValueError` if it is not one.
    """
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass  # older Pythons read only what isoformat() writes
    match = _iso_8601_pattern().fullmatch(text.strip())
    if match is None:
        raise ValueError(f"Not an ISO 8601 date: {text!r}. Use a form such as 2024-05-17T08:30:00+00:00.")
    part = match.groupdict()
    hour = int(part["hour"] or 0)
    clock = timedelta(
        hours=hour,
        minutes=int(part["minute"] or 0),
        seconds=int(part["second"] or 0),
        microseconds=int((part["fraction"] or "0")[:6].ljust(6, "0")),
    )
    if hour > 24 or clock > ONE_DAY or int(part["minute"] or 0) > 59 or int(part["second"] or 0) > 59:
        raise ValueError(f"Not a time of day: {text!r}. Hours end at 24:00, minutes and seconds at 59.")
    moment = datetime.combine(_iso_day(part), datetime.min.time()) + clock
    return moment.replace(tzinfo=_iso_offset(part["zone"]))


def _iso_day(part: dict[str, Any]) -> date:
    year = int(part["year"])
    if part["week"]:
        return date.fromisocalendar(year, int(part["week"]), int(part["weekday"] or 1))
    if part["yearday"]:
        day = date(year, 1, 1) + timedelta(days=int(part["yearday"]) - 1)
        if day.year != year:
            raise ValueError(f"Year {year} has no day {part['yearday']}.")
        return day
    return date(year, int(part["month"] or part["month_"] or 1), int(part["day"] or part["day_"] or 1))


def _iso_offset(text: str | None) -> tzinfo | None:
    if text is None:
        return None
    if text in "Zz":
        return _fixed_offset.utc
    digits = text[1:].replace(":", "")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:] or 0))
    return _fixed_offset(-offset if text[0] == "-" else offset)


def maybe_iso8601(dt: datetime | str | None) -> datetime | None:
    """Return the moment of an ISO 8601 text; dates are returned as they are, nothing as ``None``."""
    if not dt:
        return None
    return dt if isinstance(dt, datetime) else parse_iso8601(dt)


# -- offsets and back-off --------------------------------------------------


def utcoffset(time: ModuleType = _time, localtime: Callable[..., _time.struct_time] = _time.localtime) -> float:
    """Return how many hours UTC is ahead of this system now (negative east of Greenwich)."""
    west_of_utc: float = time.altzone if localtime().tm_isdst else time.timezone
    return west_of_utc / 3600


def adjust_timestamp(ts: float, offset: float, here: Callable[..., float] = utcoffset) -> float:
    """Return a timestamp of a system ``offset`` hours behind UTC as one of this system."""
    return ts - (offset - here()) * 3600


def get_exponential_backoff_interval(factor: int, retries: int, maximum: int, full_jitter: bool = False) -> int:
    """Return the seconds to wait before the next attempt, at most ``maximum``.

    Doubles with each attempt; with ``full_jitter`` a random number between zero
    and that.
    """
    # 2 ** retries of a task that is retried for ever would not fit anywhere.
    countdown: int = min(maximum, factor * 2 ** min(retries, 1024))
    if full_jitter:
        countdown = random.randrange(int(countdown) + 1)
    return max(0, countdown)
