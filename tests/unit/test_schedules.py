"""When periodic tasks run."""

from __future__ import annotations

import pickle
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.schedules import (
    BaseSchedule,
    ParseException,
    crontab,
    crontab_parser,
    maybe_schedule,
    schedstate,
    schedule,
    solar,
)

UTC = timezone.utc
NOON = datetime(2024, 5, 15, 12, tzinfo=UTC)  # a Wednesday


def app_at(now: datetime, zone: str = "UTC", **settings):
    """What a schedule asks of an app, at a given time."""
    conf = SimpleNamespace(enable_utc=True, beat_cron_starting_deadline=None, **{})
    for name, value in settings.items():
        setattr(conf, name, value)
    return SimpleNamespace(now=lambda: now, timezone=ZoneInfo(zone), conf=conf)


def next_run(last: datetime, *fields, zone: str = "UTC", **named) -> datetime:
    return crontab(*fields, **named).next_run(last, ZoneInfo(zone))


# -- what all schedules share


def test_a_schedule_asks_its_app_for_the_time_unless_given_a_clock():
    assert BaseSchedule(app=app_at(NOON)).now() == NOON
    assert BaseSchedule(nowfun=lambda: NOON).now() == NOON


def test_a_schedule_follows_the_zone_of_its_app():
    subject = BaseSchedule(app=app_at(NOON, "Europe/Berlin"))
    assert str(subject.tz) == "Europe/Berlin"
    assert subject.maybe_make_aware(datetime(2024, 5, 15, 12)).hour == 14
    assert subject.maybe_make_aware(datetime(2024, 5, 15, 12), naive_as_utc=False).hour == 12


def test_a_schedule_shows_local_time_unless_the_app_counts_in_utc():
    assert BaseSchedule(app=app_at(NOON)).to_local(NOON) is NOON
    assert BaseSchedule(app=app_at(NOON, enable_utc=False)).to_local(NOON) == NOON


def test_a_schedule_can_be_given_to_another_app():
    first, second = app_at(NOON), app_at(NOON)
    subject = BaseSchedule(app=first)
    subject.app = second
    assert subject.app is second


def test_a_schedule_that_does_not_say_when_says_so():
    with pytest.raises(NotImplementedError, match="remaining_estimate"):
        BaseSchedule().remaining_estimate(NOON)
    with pytest.raises(NotImplementedError, match="is_due"):
        BaseSchedule().is_due(NOON)


def test_schedules_are_equal_if_they_mean_the_same():
    assert BaseSchedule() == BaseSchedule()
    assert BaseSchedule() != BaseSchedule(nowfun=lambda: NOON)
    assert BaseSchedule() != 3
    assert crontab(minute="*/30") == crontab(minute="0,30")
    assert crontab(minute="*/30") != crontab(minute="0,31")
    assert crontab() != schedule(60)
    assert schedule(60) == schedule(60) == timedelta(minutes=1)


# -- intervals


def test_an_interval_is_due_when_it_is_over():
    every_minute = schedule(60, app=app_at(NOON))
    assert every_minute.is_due(NOON - timedelta(seconds=20)) == (False, 40)
    assert every_minute.is_due(NOON - timedelta(seconds=60)) == (True, 60)
    assert every_minute.is_due(NOON - timedelta(days=60)) == (True, 60)
    assert every_minute.remaining_estimate(NOON - timedelta(seconds=90)) == timedelta(seconds=-30)


def test_a_date_without_zone_means_utc():
    assert schedule(60, app=app_at(NOON)).is_due(datetime(2024, 5, 15, 11, 59, 30)) == (False, 30)


def test_a_relative_interval_runs_on_the_full_hour():
    hourly = schedule(timedelta(hours=1), relative=True, app=app_at(NOON + timedelta(minutes=10)))
    assert hourly.is_due(NOON - timedelta(minutes=10)) == (True, 50 * 60)
    assert hourly.is_due(NOON) == (False, 50 * 60)


def test_a_relative_interval_of_nothing_is_always_due():
    assert schedule(0, relative=True, app=app_at(NOON)).is_due(NOON) == (True, 0)


def test_an_interval_reads_well_and_travels():
    subject = schedule(90, relative=True)
    assert repr(subject) == "<freq: 1.50 minutes>"
    assert (subject.seconds, subject.human_seconds) == (90, "1.50 minutes")
    copy = pickle.loads(pickle.dumps(subject))
    assert copy == subject
    assert copy.relative is True


def test_numbers_and_time_spans_become_schedules():
    app = app_at(NOON)
    made = maybe_schedule(30, app=app)
    assert made == schedule(30)
    assert made.app is app
    assert maybe_schedule(timedelta(days=1), relative=True).relative
    assert maybe_schedule(None) is None
    given = crontab()
    assert maybe_schedule(given, app=app) is given
    assert given.app is app


# -- the language of crontab


@pytest.mark.parametrize(
    ("field", "pattern", "values"),
    [
        ((60, 0), "*", set(range(60))),
        ((60, 0), "*/15", {0, 15, 30, 45}),
        ((60, 0), "7", {7}),
        ((60, 0), "1,13,30-35,50-59/2", {1, 13, *range(30, 36), 50, 52, 54, 56, 58}),
        ((24, 0), "22-2", {22, 23, 0, 1, 2}),
        ((24, 0), "22-4/2", {22, 0, 2, 4}),
        ((7, 0), "mon-fri", {1, 2, 3, 4, 5}),
        ((7, 0), "sat-sunday", {6, 0}),
        ((7, 0), "Monday", {1}),
        ((31, 1), "*/3", {1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31}),
        ((12, 1), "2-12/2", {2, 4, 6, 8, 10, 12}),
        ((12, 1), "jan,jun-aug", {1, 6, 7, 8}),
    ],
)
def test_patterns(field, pattern, values):
    assert crontab_parser(*field).parse(pattern) == values


@pytest.mark.parametrize("pattern", ["", "1,,2", "*/", "1-5/", "-20", ",1"])
def test_incomplete_patterns(pattern):
    with pytest.raises(ParseException):
        crontab_parser(60).parse(pattern)
    assert crontab_parser.ParseException is ParseException


@pytest.mark.parametrize("pattern", ["60", "1-60", "someday", "*/0", "*/x", "5/2", "1-2-3", "*5", "1 2", "0x10", "mon"])
def test_patterns_that_make_no_sense(pattern):
    with pytest.raises(ValueError, match=r"Invalid|invalid literal"):
        crontab_parser(60 if pattern != "mon" else 1).parse(pattern)


def test_values_below_the_first_are_refused():
    with pytest.raises(ValueError, match="beginning range: 0 < 1"):
        crontab_parser(31, 1).parse("0")


# -- fields


def test_fields_are_numbers_collections_or_patterns():
    subject = crontab(5, [1, 2], {3}, (4, 5), "6-7")
    assert subject.minute == {5}
    assert subject.hour == {1, 2}
    assert subject.day_of_week == {3}
    assert subject.day_of_month == {4, 5}
    assert subject.month_of_year == {6, 7}
    assert crontab(None, hour=None).hour == set(range(24))


def test_fields_of_another_type_are_refused():
    with pytest.raises(TypeError, match=r"<class 'float'>"):
        crontab(minute=1.5)


@pytest.mark.parametrize("fields", [{"minute": 60}, {"hour": [24]}, {"day_of_week": 7}, {"day_of_month": 0}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match="Valid range is"):
        crontab(**fields)


def test_a_crontab_that_never_runs_is_refused():
    with pytest.raises(ValueError, match="day_of_month 30 never occurs in month_of_year 2"):
        crontab(0, 0, day_of_month=30, month_of_year=2)
    with pytest.raises(ValueError, match="hour has no value"):
        crontab(hour=[])


def test_a_line_of_a_crontab_can_be_read():
    assert crontab.from_string("30  8 1-7 * mon") == crontab(30, 8, "mon", "1-7", "*")
    with pytest.raises(ValueError, match="has 4"):
        crontab.from_string("* * * *")


def test_a_crontab_reads_well_and_travels():
    subject = crontab("*/5", [1, 2], "mon", "1-7", None)
    assert repr(subject) == "<crontab: */5 [1, 2] 1-7 * mon (m/h/dM/MY/d)>"
    copy = pickle.loads(pickle.dumps(subject))
    assert copy == subject
    assert repr(copy) == repr(subject)


def test_the_clock_of_a_crontab_travels_too():
    copy = pickle.loads(pickle.dumps(crontab(nowfun=noon)))
    assert copy.now() == NOON


def noon() -> datetime:
    return NOON


# -- when a crontab runs


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, datetime(2024, 5, 15, 12, 1)),
        ({"minute": 0}, datetime(2024, 5, 15, 13)),
        ({"minute": 30}, datetime(2024, 5, 15, 12, 30)),
        ({"minute": 0, "hour": 12}, datetime(2024, 5, 16, 12)),
        ({"minute": 0, "hour": "1,18"}, datetime(2024, 5, 15, 18)),
        ({"minute": 0, "hour": 8, "day_of_week": "wed"}, datetime(2024, 5, 22, 8)),
        ({"minute": 0, "hour": 8, "day_of_week": "sun"}, datetime(2024, 5, 19, 8)),
        ({"minute": 0, "hour": 0, "day_of_month": 31}, datetime(2024, 5, 31)),
        ({"minute": 0, "hour": 0, "day_of_month": 31, "month_of_year": "6-8"}, datetime(2024, 7, 31)),
        ({"minute": 0, "hour": 0, "day_of_month": 29, "month_of_year": 2}, datetime(2028, 2, 29)),
        ({"minute": 0, "hour": 0, "day_of_month": "1-7", "day_of_week": "mon"}, datetime(2024, 6, 3)),
        (
            {"minute": 0, "hour": 0, "day_of_month": 29, "month_of_year": 2, "day_of_week": "sat"},
            datetime(2048, 2, 29),
        ),
    ],
    ids=str,
)
def test_the_next_run(fields, expected):
    assert next_run(NOON, **fields) == expected.replace(tzinfo=UTC)


def test_the_last_leap_day_before_a_century_without_one_is_no_end():
    last = datetime(2096, 3, 1, tzinfo=UTC)
    assert next_run(last, 0, 0, day_of_month=29, month_of_year=2) == datetime(2104, 2, 29, tzinfo=UTC)
    assert next_run(last, 0, 0, day_of_month=29, month_of_year=2, day_of_week="mon").year == 2112


def test_the_end_of_the_calendar_is_told():
    with pytest.raises(RuntimeError, match="does not run in the next"):
        next_run(datetime(9998, 12, 31, 23, 59, tzinfo=UTC), 0, 0)


def test_seconds_of_the_last_run_do_not_matter():
    assert next_run(NOON + timedelta(seconds=59), "*") == NOON + timedelta(minutes=1)


def test_wall_time_is_that_of_the_schedule_whatever_zone_the_last_run_has():
    last = NOON.astimezone(ZoneInfo("Asia/Tokyo"))
    assert next_run(last, 30, 14, zone="Europe/Berlin") == datetime(2024, 5, 15, 12, 30, tzinfo=UTC)


def test_what_remains_is_counted_from_now():
    subject = crontab(30, app=app_at(NOON))
    assert subject.remaining_estimate(NOON) == timedelta(minutes=30)
    assert subject.remaining_estimate(NOON - timedelta(hours=1)) == timedelta(minutes=-30)
    last, jump, now = subject.remaining_delta(NOON)
    assert (last, last + jump, now) == (NOON, NOON + timedelta(minutes=30), NOON)


def test_the_zone_of_what_remains_can_be_given():
    last, jump, _ = crontab(0, 20, app=app_at(NOON)).remaining_delta(NOON, tz="Europe/Berlin")
    assert (last + jump).astimezone(UTC) == datetime(2024, 5, 15, 18, tzinfo=UTC)


def test_a_crontab_is_due_when_its_time_has_come():
    on_the_hour = crontab(0, app=app_at(NOON + timedelta(minutes=10)))
    assert on_the_hour.is_due(NOON) == schedstate(is_due=False, next=50 * 60)
    assert on_the_hour.is_due(NOON - timedelta(minutes=1)) == schedstate(is_due=True, next=50 * 60)


def test_a_crontab_is_due_on_the_second():
    assert crontab(0, app=app_at(NOON)).is_due(NOON - timedelta(minutes=1)) == (True, 3600)


@pytest.mark.parametrize(("deadline_s", "is_due"), [(None, True), (600, True), (599, False), (3600, True), (1, False)])
def test_a_run_missed_for_too_long_is_given_up(deadline_s, is_due):
    app = app_at(NOON + timedelta(minutes=10), beat_cron_starting_deadline=deadline_s)
    assert crontab(0, app=app).is_due(NOON - timedelta(hours=9)) == (is_due, 50 * 60)


# -- the sun


def test_the_sun_needs_a_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ephem", None)
    with pytest.raises(ImproperlyConfigured, match=r"pip install celery_clone\[solar\]"):
        solar("sunset", 52, 13)


@pytest.fixture
def ephem():
    return pytest.importorskip("ephem")


@pytest.mark.parametrize(
    ("event", "lat", "lon", "what"),
    [("lunch", 1, 1, "sunset"), ("sunset", 91, 1, "-90 and 90"), ("sunset", 1, -181, "-180 and 180")],
)
def test_places_and_events_that_do_not_exist(ephem, event, lat, lon, what):
    with pytest.raises(ValueError, match=what):
        solar(event, lat, lon)


def test_the_events_of_a_day_come_in_order(ephem):
    start = datetime(2024, 3, 20, tzinfo=UTC)
    events = ["dawn_astronomical", "dawn_nautical", "dawn_civil", "sunrise", "solar_noon"]
    events += ["sunset", "dusk_civil", "dusk_nautical", "dusk_astronomical"]
    times = [solar(event, 51.48, 0, app=app_at(start)).remaining_estimate(start) for event in events]
    assert times == sorted(times)
    assert abs(times[3] - timedelta(hours=6, minutes=4)) < timedelta(minutes=4)
    assert abs(times[4] - timedelta(hours=12, minutes=7)) < timedelta(minutes=4)


def test_the_zone_of_the_last_run_does_not_move_the_sun(ephem):
    sunset = solar("sunset", 51.48, 0, app=app_at(NOON))
    assert sunset.remaining_estimate(NOON.astimezone(ZoneInfo("Asia/Tokyo"))) == sunset.remaining_estimate(NOON)


def test_an_event_of_the_sun_is_due_once(ephem):
    evening = datetime(2024, 3, 20, 20, tzinfo=UTC)
    sunset = solar("sunset", 51.48, 0, app=app_at(evening))
    is_due, seconds = sunset.is_due(NOON.replace(month=3, day=20))
    assert is_due
    assert 20 * 3600 < seconds < 24 * 3600
    assert not sunset.is_due(evening).is_due


def test_where_the_sun_does_not_set_the_next_sunset_is_looked_for(ephem):
    midsummer = datetime(2024, 6, 21, tzinfo=UTC)
    sunset = solar("sunset", 70, 25, app=app_at(midsummer))
    assert timedelta(days=30) < sunset.remaining_estimate(midsummer) < timedelta(days=60)
    sunset.max_search_days = 3
    assert timedelta(days=2) < sunset.remaining_estimate(midsummer) < timedelta(days=5)


def test_an_event_of_the_sun_reads_well_and_travels(ephem):
    subject = solar("sunset", 51.48, 0.5)
    assert repr(subject) == "<solar: sunset at latitude 51.48, longitude: 0.5>"
    assert pickle.loads(pickle.dumps(subject)) == subject
    assert subject != solar("sunrise", 51.48, 0.5)
    assert subject != crontab()
