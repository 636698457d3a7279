"""Zones, rates, ISO 8601 and the arithmetic of due times."""

from __future__ import annotations

import pickle
import time as clock
from datetime import date, datetime, timedelta, tzinfo
from datetime import timezone as offset
from zoneinfo import ZoneInfo

import pytest
import pytz
from dateutil import tz as dateutil_zones
from dateutil.parser import isoparse

from celery_clone.utils import time as subject
from celery_clone.utils.time import (
    LocalTimezone,
    add_seconds_to_datetime,
    adjust_timestamp,
    delta_resolution,
    ffwd,
    get_exponential_backoff_interval,
    humanize_seconds,
    is_naive,
    localize,
    make_aware,
    maybe_iso8601,
    maybe_make_aware,
    maybe_timedelta,
    occurrences,
    parse_iso8601,
    rate,
    remaining,
    subtract_datetimes,
    timezone,
    to_utc,
    utcoffset,
    weekday,
    yearmonth,
)

BERLIN = ZoneInfo("Europe/Berlin")
UTC = offset.utc
SKIPPED = datetime(2024, 3, 31, 2, 30)  # clocks go from 02:00 to 03:00
REPEATED = datetime(2024, 10, 27, 2, 30)  # clocks go from 03:00 to 02:00

all_kinds_of_zones = pytest.mark.parametrize(
    "berlin",
    [BERLIN, pytz.timezone("Europe/Berlin"), dateutil_zones.gettz("Europe/Berlin")],
    ids=["zoneinfo", "pytz", "dateutil"],
)


def in_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


@pytest.fixture
def system_zone(monkeypatch):
    """Set the zone of the system, for Python and for the C library."""

    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        clock.tzset()

    yield set_zone
    monkeypatch.undo()
    clock.tzset()


# -- wall times and moments


@all_kinds_of_zones
def test_an_ordinary_wall_time_means_one_moment(berlin):
    wall = datetime(2024, 7, 1, 12)
    assert in_utc(make_aware(wall, berlin)) == datetime(2024, 7, 1, 10, tzinfo=UTC)
    assert [in_utc(moment) for moment in occurrences(wall, berlin)] == [datetime(2024, 7, 1, 10, tzinfo=UTC)]


@all_kinds_of_zones
def test_a_repeated_wall_time_means_its_first_moment(berlin):
    assert in_utc(make_aware(REPEATED, berlin)) == datetime(2024, 10, 27, 0, 30, tzinfo=UTC)
    assert [in_utc(moment).hour for moment in occurrences(REPEATED, berlin)] == [0, 1]


@all_kinds_of_zones
def test_a_skipped_wall_time_moves_on_by_the_gap(berlin):
    moved = make_aware(SKIPPED, berlin)
    assert in_utc(moved) == datetime(2024, 3, 31, 1, 30, tzinfo=UTC)
    assert moved.replace(tzinfo=None) == datetime(2024, 3, 31, 3, 30)
    assert occurrences(SKIPPED, berlin) == []


def test_a_zone_without_clock_changes_takes_every_wall_time():
    assert make_aware(SKIPPED, UTC) == SKIPPED.replace(tzinfo=UTC)
    assert len(occurrences(REPEATED, UTC)) == 1


def test_the_ends_of_the_calendar_are_no_error():
    assert make_aware(datetime.max, BERLIN).year == 9999
    assert make_aware(datetime.min, BERLIN).year == 1


def test_naive_means_no_zone_or_a_zone_without_offset():
    class Nowhere(tzinfo):
        def utcoffset(self, dt):
            return None

    assert is_naive(datetime(2024, 1, 1))
    assert is_naive(datetime(2024, 1, 1, tzinfo=Nowhere()))
    assert not is_naive(datetime(2024, 1, 1, tzinfo=UTC))


def test_only_utc_is_shown_in_another_zone():
    noon = datetime(2024, 7, 1, 12, tzinfo=UTC)
    assert localize(noon, BERLIN).hour == 14
    assert localize(noon.replace(tzinfo=ZoneInfo("UTC")), BERLIN).hour == 14
    tokyo = noon.replace(tzinfo=ZoneInfo("Asia/Tokyo"))
    assert localize(tokyo, BERLIN) is tokyo
    assert localize(datetime(2024, 7, 1, 12), BERLIN) == datetime(2024, 7, 1, 12, tzinfo=BERLIN)


def test_a_date_without_zone_means_utc_unless_told_otherwise():
    noon = datetime(2024, 7, 1, 12)
    assert to_utc(noon) == noon.replace(tzinfo=UTC)
    assert maybe_make_aware(noon) == noon.replace(tzinfo=UTC)
    assert maybe_make_aware(noon, BERLIN).hour == 14
    assert maybe_make_aware(noon, "Europe/Berlin").hour == 14
    assert maybe_make_aware(noon, BERLIN, naive_as_utc=False) == noon.replace(tzinfo=BERLIN)
    aware = noon.replace(tzinfo=BERLIN)
    assert maybe_make_aware(aware, UTC) is aware


def test_elapsed_seconds_pass_over_a_clock_change():
    before = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN)
    after = add_seconds_to_datetime(before, 3600)
    assert (after.hour, after.fold) == (2, 1)
    assert subtract_datetimes(after, before) == timedelta(hours=1)
    assert add_seconds_to_datetime(datetime(2024, 1, 1), 60) == datetime(2024, 1, 1, 0, 1)
    assert subtract_datetimes(datetime(2024, 1, 2), datetime(2024, 1, 1)) == timedelta(days=1)


# -- the zones of an app


def test_zones_by_name_and_by_themselves():
    assert timezone.get_timezone("Europe/Berlin") == BERLIN
    assert timezone.tz_or_local(BERLIN) is BERLIN
    assert timezone.tz_or_local() is timezone.local
    assert str(timezone.utc) == "UTC"


def test_dates_are_shown_where_asked():
    noon = datetime(2024, 7, 1, 12)
    assert timezone.to_local(noon, "Europe/Berlin").hour == 14
    assert timezone.to_local(noon, BERLIN, orig=BERLIN).hour == 12
    assert timezone.to_system(noon.replace(tzinfo=UTC)) == noon.replace(tzinfo=UTC)
    assert timezone.to_local_fallback(noon).hour == 12
    assert timezone.to_local_fallback(noon.replace(tzinfo=UTC)) == noon.replace(tzinfo=UTC)


@pytest.mark.parametrize("name", ["Asia/Kolkata", ":Asia/Kolkata", "/usr/share/zoneinfo/Asia/Kolkata"])
def test_the_zone_of_the_system_is_that_of_the_environment(system_zone, name):
    system_zone(name)
    assert str(subject._Zone().local) == "Asia/Kolkata"


def test_the_zone_of_the_system_is_where_its_link_points(monkeypatch, tmp_path):
    monkeypatch.delenv("TZ", raising=False)
    target = tmp_path / "zoneinfo" / "Asia" / "Tokyo"
    target.parent.mkdir(parents=True)
    target.touch()
    link = tmp_path / "localtime"
    link.symlink_to(target)
    monkeypatch.setattr(subject, "SYSTEM_LOCALTIME", str(link))
    assert str(subject._Zone().local) == "Asia/Tokyo"


def test_the_zone_of_the_system_is_in_its_file_of_names(monkeypatch, tmp_path):
    monkeypatch.delenv("TZ", raising=False)
    names = tmp_path / "timezone"
    names.write_text("America/Lima # here\n")
    monkeypatch.setattr(subject, "SYSTEM_LOCALTIME", str(tmp_path / "none"))
    monkeypatch.setattr(subject, "SYSTEM_ZONE_NAME", str(names))
    assert str(subject._Zone().local) == "America/Lima"


def test_a_system_that_does_not_tell_is_asked_through_the_c_library(monkeypatch, tmp_path):
    monkeypatch.delenv("TZ", raising=False)
    monkeypatch.setattr(subject, "SYSTEM_LOCALTIME", str(tmp_path / "none"))
    monkeypatch.setattr(subject, "SYSTEM_ZONE_NAME", str(tmp_path / "neither"))
    assert isinstance(subject._Zone().local, LocalTimezone)


def test_a_zone_that_cannot_be_read_is_a_warning(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("TZ", str(tmp_path / "missing"))
    assert isinstance(subject._Zone().local, LocalTimezone)
    assert "Failed to retrieve local timezone" in caplog.text


def test_the_c_library_is_asked_for_rules_only_it_can_read(system_zone):
    system_zone("XYZ-3:30")
    zone = subject._Zone().local
    assert isinstance(zone, LocalTimezone)
    assert datetime(2024, 1, 1, tzinfo=zone).utcoffset() == timedelta(hours=3, minutes=30)


def test_local_time_follows_the_clock_through_its_changes(system_zone):
    system_zone("Europe/Berlin")
    zone = LocalTimezone()
    for hours in range(24 * 366):
        moment = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=hours)
        here = moment.astimezone(zone)
        assert here.replace(tzinfo=None) == moment.astimezone(BERLIN).replace(tzinfo=None)
        assert in_utc(here) == moment
    summer = datetime(2024, 7, 1, tzinfo=zone)
    assert (summer.dst(), summer.tzname()) == (timedelta(hours=1), "CEST")
    assert datetime(2024, 1, 1, tzinfo=zone).dst() == timedelta(0)
    assert repr(zone) == "<LocalTimezone: UTC+02>"
    assert zone.utcoffset(None) == timedelta(hours=1)
    assert zone.tzname(None) == "CET"


def test_local_time_travels():
    assert isinstance(pickle.loads(pickle.dumps(LocalTimezone())), LocalTimezone)


# -- what is left of an interval


def test_the_rest_of_an_interval():
    start = datetime(2024, 1, 1, tzinfo=UTC)
    assert remaining(start, timedelta(hours=1), start + timedelta(minutes=20)) == timedelta(minutes=40)
    assert remaining(start, timedelta(hours=1), start + timedelta(hours=2)) == timedelta(hours=-1)


def test_the_current_time_is_the_default():
    start = datetime.now(UTC)
    assert timedelta(0) < remaining(start, timedelta(hours=1)) <= timedelta(hours=1)


@pytest.mark.parametrize(
    ("interval", "left"),
    [
        (timedelta(seconds=30), timedelta(seconds=30)),
        (timedelta(minutes=5), timedelta(minutes=4, seconds=20)),
        (timedelta(hours=1), timedelta(minutes=24, seconds=20)),
        (timedelta(days=1), timedelta(hours=13, minutes=24, seconds=20)),
    ],
    ids=str,
)
def test_relative_intervals_end_on_the_full_unit(interval, left):
    start = datetime(2024, 1, 1, 10, 35, 40, tzinfo=UTC)
    assert remaining(start, interval, start, relative=True) == left


def test_a_relative_hour_counts_both_passes_of_a_repeated_hour():
    start = datetime(2024, 10, 27, 2, 0, tzinfo=BERLIN)
    assert remaining(start, timedelta(hours=1), start, relative=True) == timedelta(hours=1)


def test_a_relative_day_has_as_many_hours_as_the_calendar_says():
    evening = datetime(2024, 10, 26, 23, 30, tzinfo=BERLIN)
    midnight = datetime(2024, 10, 27, tzinfo=BERLIN)
    assert remaining(evening, timedelta(days=1), evening, relative=True) == timedelta(minutes=30)
    assert remaining(midnight, timedelta(days=1), midnight, relative=True) == timedelta(hours=25)


def test_rounding_keeps_the_unit_of_the_interval():
    moment = datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=UTC)
    assert delta_resolution(moment, timedelta(days=2)) == datetime(2024, 5, 6, tzinfo=UTC)
    assert delta_resolution(moment, timedelta(hours=2)) == datetime(2024, 5, 6, 7, tzinfo=UTC)
    assert delta_resolution(moment, timedelta(minutes=2)) == datetime(2024, 5, 6, 7, 8, tzinfo=UTC)
    assert delta_resolution(moment, timedelta(seconds=2)) is moment


def test_numbers_are_seconds():
    assert maybe_timedelta(30) == timedelta(seconds=30)
    assert maybe_timedelta(1.5) == timedelta(seconds=1.5)
    assert maybe_timedelta(None) is None


# -- jumps


def test_a_jump_sets_fields_and_adds_weeks():
    assert datetime(2024, 1, 31, 5) + ffwd(month=2, hour=1) == datetime(2024, 2, 29, 1)
    assert date(2024, 1, 1) + ffwd(weekday=2) == date(2024, 1, 3)
    assert datetime(2024, 1, 1) + ffwd(weeks=2) == datetime(2024, 1, 15)


def test_a_jump_finds_the_second_pass_of_a_repeated_hour():
    landed = datetime(2024, 10, 1, tzinfo=BERLIN) + ffwd(day=27, hour=2, minute=30, fold=1)
    assert in_utc(landed) == datetime(2024, 10, 27, 1, 30, tzinfo=UTC)


def test_a_jump_takes_the_offset_of_where_it_lands():
    berlin = pytz.timezone("Europe/Berlin")
    winter = berlin.localize(datetime(2024, 1, 1, 12))
    assert in_utc(winter + ffwd(month=7)) == datetime(2024, 7, 1, 10, tzinfo=UTC)
    assert in_utc(winter + ffwd(month=3, day=31, hour=2, minute=30)).hour == 1


def test_a_jump_says_where_to():
    assert repr(ffwd(day=1, hour=2)) == "ffwd(day=1, hour=2, weeks=0)"
    assert repr(ffwd(weekday=3)) == "ffwd(weeks=0, weekday=3)"


def test_a_jump_knows_only_the_fields_of_a_date():
    with pytest.raises(TypeError, match="no field dya"):
        ffwd(dya=1)
    with pytest.raises(TypeError):
        3 + ffwd(day=1)


# -- texts


@pytest.mark.parametrize(
    ("text", "per_second"),
    [
        ("1/s", 1.0),
        ("100/m", 100 / 60),
        ("2/h", 2 / 3600),
        ("0.5/s", 0.5),
        ("3", 3.0),
        (3, 3),
        (None, 0),
        ("", 0),
        ("0/s", 0),
    ],
)
def test_rates(text, per_second):
    assert rate(text) == per_second


def test_rates_that_make_no_sense():
    with pytest.raises(KeyError):
        rate("1/year")
    with pytest.raises(ValueError, match="many"):
        rate("many/s")


def test_names_of_days_and_months():
    assert [weekday(name) for name in ("sunday", "Mon", "SAT")] == [0, 1, 6]
    assert [yearmonth(name) for name in ("January", "may", "DEC")] == [1, 5, 12]
    with pytest.raises(KeyError, match="someday"):
        weekday("someday")
    with pytest.raises(KeyError, match="sometime"):
        yearmonth("sometime")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4 * 86400, "4.00 days"),
        (86400, "1.00 day"),
        (4 * 3600, "4.00 hours"),
        (60, "1.00 minute"),
        (2, "2.00 seconds"),
        (0, "now"),
        (0.3, "now"),
    ],
)
def test_time_spans_in_words(seconds, text):
    assert humanize_seconds(seconds) == text


def test_time_spans_with_something_before_them():
    assert humanize_seconds(60, prefix="in ") == "in 1.00 minute"
    assert humanize_seconds(0, prefix="in ", now="right now") == "right now"
    assert humanize_seconds(0.3, prefix="in", sep=" ", microseconds=True) == "in 0.30 seconds"


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-17T08:30:00",
        "2024-05-17T08:30:00.123456+02:00",
        "2024-05-17T08:30:00Z",
        "2024-05-17T08:30:00.5Z",
        "2024-05-17T08:30:00,25+0530",
        "2024-05-17 08:30",
        "2024-05-17T08",
        "2024-05-17",
        "20240517T083000Z",
        "20240517",
        "2024-05",
        "2024",
        "2024-W20-5",
        "2024W205T10",
        "2024-138",
        "2024-05-17T24:00:00",
        "2024-05-17T08:30:00-03",
    ],
)
def test_iso_8601_means_what_dateutil_says(text):
    assert parse_iso8601(text) == isoparse(text)


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2024-13-01", "2024-02-30", "2024-05-17T25:00", "2024-05-17T10:61", "2023-366", "24"],
)
def test_what_is_no_date_is_refused(text):
    with pytest.raises(ValueError):
        parse_iso8601(text)


def test_dates_may_come_as_dates():
    now = datetime.now(UTC)
    assert maybe_iso8601(now) is now
    assert maybe_iso8601(None) is None
    assert maybe_iso8601("2024-05-17") == datetime(2024, 5, 17)


# -- offsets and back-off


@pytest.mark.parametrize(("zone", "hours"), [("Asia/Kolkata", -5.5), ("America/Lima", 5.0)])
def test_the_offset_of_this_system_is_exact(system_zone, zone, hours):
    system_zone(zone)
    assert utcoffset() == hours


def test_the_offset_of_this_system_knows_summer(system_zone):
    system_zone("Europe/Berlin")
    assert utcoffset(localtime=lambda: clock.localtime(1720000000)) == -2
    assert utcoffset(localtime=lambda: clock.localtime(1704100000)) == -1


def test_timestamps_of_another_system_are_moved():
    assert adjust_timestamp(10_000, 2, here=lambda: 3) == 13_600


def test_waiting_doubles_up_to_a_maximum():
    waits = [get_exponential_backoff_interval(4, retries, 100) for retries in range(7)]
    assert waits == [4, 8, 16, 32, 64, 100, 100]
    assert get_exponential_backoff_interval(0, 5, 100) == 0
    assert get_exponential_backoff_interval(-1, 5, 100) == 0
    assert get_exponential_backoff_interval(1, 1_000_000, 600) == 600


def test_full_jitter_waits_anything_up_to_that():
    waits = {get_exponential_backoff_interval(1, 2, 100, full_jitter=True) for _ in range(300)}
    assert waits == {0, 1, 2, 3, 4}
