"""A crontab on the days on which the clocks change, in zones that do it differently."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from random import Random
from zoneinfo import ZoneInfo, available_timezones

import pytest
import pytz

from celery_clone.schedules import crontab

UTC = timezone.utc
MINUTE = timedelta(minutes=1)
BERLIN = ZoneInfo("Europe/Berlin")

# Moments (UTC) at which clocks are put forward or back: by one hour, half an hour, two hours, at midnight,
# and off the full hour.
CHANGES = {
    "Europe/Berlin": [datetime(2024, 3, 31, 1), datetime(2024, 10, 27, 1)],
    "US/Pacific": [datetime(2026, 3, 8, 10), datetime(2026, 11, 1, 9)],
    "Australia/Lord_Howe": [datetime(2024, 10, 5, 15, 30), datetime(2024, 4, 6, 15)],
    "Antarctica/Troll": [datetime(2026, 3, 29, 1), datetime(2026, 10, 25, 1)],
    "America/Santiago": [datetime(2024, 9, 8, 4), datetime(2024, 4, 7, 3)],
    "Pacific/Chatham": [datetime(2026, 9, 26, 14), datetime(2026, 4, 4, 14)],
    "Asia/Kolkata": [datetime(2024, 3, 31, 1)],
}


def runs(subject: crontab, first: datetime, last: datetime, zone: tzinfo = BERLIN) -> list[str]:
    """Local times and offsets at which a beat that never sleeps would run it."""
    found, moment = [], first.astimezone(zone)
    while True:
        moment = subject.next_run(moment, zone)
        if moment.astimezone(UTC) > last.astimezone(UTC):
            return found
        found.append(moment.strftime("%H:%M%z"))


def night(month: int, day: int) -> tuple[datetime, datetime]:
    return datetime(2024, month, day, 0, 30, tzinfo=BERLIN), datetime(2024, month, day, 4, 30, tzinfo=BERLIN)


SPRING, AUTUMN = night(3, 31), night(10, 27)


# -- the rules, in Berlin


def test_what_runs_every_hour_has_no_run_in_a_skipped_hour():
    assert runs(crontab(minute=0), *SPRING) == ["01:00+0100", "03:00+0200", "04:00+0200"]


def test_what_runs_every_hour_runs_in_both_passes_of_a_repeated_hour():
    assert runs(crontab(minute=0), *AUTUMN) == [
        "01:00+0200",
        "02:00+0200",
        "02:00+0100",
        "03:00+0100",
        "04:00+0100",
    ]


def test_what_runs_every_few_minutes_never_pauses():
    assert len(runs(crontab("*/15"), *AUTUMN)) == 5 * 4
    assert len(runs(crontab("*/15"), *SPRING)) == 3 * 4
    assert len(runs(crontab("*/15", hour="1-3"), *AUTUMN)) == 4 * 4


def test_what_runs_daily_runs_once_although_its_time_is_skipped():
    assert runs(crontab(30, 2), *SPRING) == ["03:30+0200"]


def test_what_runs_daily_runs_once_although_its_time_is_repeated():
    assert runs(crontab(30, 2), *AUTUMN) == ["02:30+0200"]


def test_a_skipped_and_an_ordinary_run_at_the_same_moment_are_one():
    assert runs(crontab(30, "2,3"), *SPRING) == ["03:30+0200"]


def test_what_has_nothing_to_do_at_night_keeps_its_wall_time():
    before, after = datetime(2024, 3, 30, 12, tzinfo=BERLIN), datetime(2024, 4, 1, 12, tzinfo=BERLIN)
    assert runs(crontab(0, 12), before, after) == ["12:00+0200", "12:00+0200"]


def test_hourly_runs_one_hour_of_real_time_apart_whatever_the_clock_says():
    """The report that led to the rule for repeated hours: the second one o'clock was left out."""
    pacific = ZoneInfo("US/Pacific")
    hourly = crontab(minute=0, hour="*", nowfun=lambda: datetime(2026, 11, 1, 9))
    hourly.tz = pacific
    assert hourly.is_due(datetime(2026, 11, 1, 8)) == (True, 3600)


@pytest.mark.parametrize(
    ("zone", "hour", "minute", "last", "expected"),
    [
        ("Pacific/Chatham", 3, 50, "2026-09-26T03:50+12:45", "2026-09-27T03:50+13:45"),
        ("Pacific/Chatham", 3, 50, "2026-04-04T03:50+13:45", "2026-04-05T03:50+12:45"),
        ("Antarctica/Troll", 23, 0, "2026-10-24T23:00+02:00", "2026-10-25T23:00+00:00"),
        ("Australia/Lord_Howe", 2, 15, "2024-10-05T02:15+10:30", "2024-10-06T02:45+11:00"),
    ],
)
def test_unusual_changes(zone, hour, minute, last, expected):
    found = crontab(minute, hour).next_run(datetime.fromisoformat(last), ZoneInfo(zone))
    assert found.isoformat(timespec="minutes") == expected


def test_a_whole_day_that_was_skipped_is_made_up_for_by_the_next():
    apia = ZoneInfo("Pacific/Apia")  # there was no 30 December 2011
    last = datetime(2011, 12, 29, 3, tzinfo=apia)
    first = crontab(0, 3).next_run(last, apia)
    second = crontab(0, 3).next_run(first, apia)
    assert (first.day, second.day) == (31, 1)


# -- against an account of every minute


def every_run(subject: crontab, start: datetime, zone: tzinfo, minutes: int) -> Iterator[datetime]:
    """All runs between two moments, found by looking at a clock every minute."""
    rules = subject._clock_rules
    shown: set[datetime] = set()
    before: datetime | None = None
    for passed in range(minutes):
        moment = start + passed * MINUTE
        wall = moment.astimezone(zone).replace(tzinfo=None, fold=0)
        if matches(subject, wall) and (rules.every_pass or wall not in shown):
            yield moment
        if before is not None and rules.make_up:
            for gap in range(1, round((wall - before) / MINUTE)):
                skipped = before + gap * MINUTE
                if matches(subject, skipped):
                    # Made up for as much later as the clock was put forward.
                    yield moment + (gap - 1) * MINUTE
        shown.add(wall)
        before = wall


def matches(subject: crontab, wall: datetime) -> bool:
    return wall.minute in subject.minute and wall.hour in subject.hour


def some_field(chance: Random, size: int):
    kind = chance.randrange(5)
    if kind < 2:
        return "*"
    if kind == 2:
        return chance.randrange(size)
    if kind == 3:
        return f"*/{chance.randrange(1, size)}"
    return sorted({chance.randrange(size) for _ in range(4)})


@pytest.mark.parametrize("library", [ZoneInfo, pytz.timezone], ids=["zoneinfo", "pytz"])
@pytest.mark.parametrize("name", CHANGES)
def test_the_next_run_is_the_one_a_patient_watcher_would_see(name, library):
    chance = Random(name)
    zone = library(name)
    for change in CHANGES[name]:
        start = change.replace(tzinfo=UTC) - timedelta(hours=26)
        for _ in range(6):
            subject = crontab(some_field(chance, 60), some_field(chance, 24))
            seen = sorted(every_run(subject, start, ZoneInfo(name), 60 * 24 * 3))
            for _ in range(12):
                last = start + timedelta(seconds=chance.randrange(20 * 3600, 30 * 3600))
                expected = min(moment for moment in seen if moment > last)
                found = subject.next_run(last.astimezone(zone), zone)
                assert found.astimezone(UTC) == expected, f"{subject!r} after {last.astimezone(zone)}"


# -- all zones, ten years

FIRST_YEAR, LAST_YEAR = 2020, 2030
EVERY_ZONE = sorted(available_timezones())
ZONES = EVERY_ZONE if os.environ.get("TEST_EVERY_ZONE") else Random("zones").sample(EVERY_ZONE, 9)
"""Zones looked at: a sample, or all of them, where the environment says so, which takes minutes."""

HOUR_S = 3600


def offset_at(zone: tzinfo, moment: int) -> timedelta | None:
    return datetime.fromtimestamp(moment, zone).utcoffset()


def changes_of(zone: tzinfo) -> Iterator[int]:
    """Epoch times at which the clocks of a zone are changed, to the minute."""
    start = int(datetime(FIRST_YEAR, 1, 1, tzinfo=UTC).timestamp())
    end = int(datetime(LAST_YEAR, 1, 1, tzinfo=UTC).timestamp())
    for before in range(start, end, 24 * HOUR_S):
        low, high = before, before + 24 * HOUR_S
        if offset_at(zone, low) == offset_at(zone, high):
            continue
        while high - low > 60:
            middle = (low + high) // 2 // 60 * 60
            if offset_at(zone, middle) == offset_at(zone, low):
                low = middle
            else:
                high = middle
        yield high


def all_changes() -> dict[str, tuple[str, int]]:
    """(zone, change) of each change that is unlike any other: many zones change their clocks alike."""
    found: dict[str, tuple[str, int]] = {}
    for name in ZONES:
        zone = ZoneInfo(name)
        for change in changes_of(zone):
            found.setdefault(f"{change} {offset_at(zone, change - 60)} {offset_at(zone, change)}", (name, change))
    return found


def test_no_run_is_lost_or_doubled_by_a_change_of_any_zone_in_ten_years():
    changes = all_changes().values()
    assert changes
    for name, change in changes:
        zone = ZoneInfo(name)
        start = datetime.fromtimestamp(change - 26 * HOUR_S, UTC)
        chance = Random(f"{name} {change}")
        for _ in range(3):
            subject = crontab(some_field(chance, 60), some_field(chance, 24))
            seen = sorted(every_run(subject, start, zone, 60 * 24 * 3))
            for _ in range(8):
                last = start + timedelta(seconds=chance.randrange(20 * HOUR_S, 30 * HOUR_S))
                expected = min(moment for moment in seen if moment > last)
                found = subject.next_run(last.astimezone(zone), zone)
                assert found.astimezone(UTC) == expected, f"{subject!r} after {last.astimezone(zone)} in {name}"


def test_what_runs_daily_runs_once_on_each_day_of_ten_years():
    for name in ZONES if ZONES is EVERY_ZONE else ZONES[:2]:
        zone = ZoneInfo(name)
        daily = crontab(30, 2)
        moment = datetime(FIRST_YEAR, 1, 1, 12, tzinfo=zone)
        days = []
        while moment.year < LAST_YEAR:
            moment = daily.next_run(moment, zone)
            days.append(moment.date())
        assert len(days) == len(set(days)), name
        assert all((after - before).days == 1 for before, after in pairwise(days)), name
