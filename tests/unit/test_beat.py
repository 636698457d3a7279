"""When beat sends what, what it remembers, and what it does about things that go wrong."""

from __future__ import annotations

import gc
import pickle
import shelve
import signal
import threading
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from kombu.exceptions import OperationalError

from celery_clone import Celery, beat, signals
from celery_clone.beat import (
    BeatLazyFunc,
    BeatPidbox,
    PersistentScheduler,
    ScheduleEntry,
    Scheduler,
    SchedulingError,
    Service,
    beat_nodename,
)
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.schedules import crontab, schedule

START = datetime(2026, 3, 4, 12, 0, 0, tzinfo=timezone.utc)


class Clock:
    """The time of a test; it passes when the test says so."""

    def __init__(self):
        self.time = START

    def __call__(self):
        return self.time

    def pass_(self, seconds):
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def app(clock):
    app = Celery("beating", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.now = clock

    @app.task(name="beating.known", shared=False)
    def known(*args, **kwargs):
        pass

    return app


class Recording(Scheduler):
    """Keeps what it would send; ``fail`` says with what sending fails."""

    def __init__(self, *args, **kwargs):
        self.sent, self.fail = [], None
        super().__init__(*args, **kwargs)

    def send_task(self, name, args, kwargs, **options):
        if self.fail is not None:
            raise self.fail
        options.pop("producer")
        self.sent.append((name, args, kwargs, options))
        return SimpleNamespace(id=str(len(self.sent)))

    def setup_schedule(self):
        self.merge_inplace(self.app.conf.beat_schedule)

    @property
    def names(self):
        return [name for name, _, _, _ in self.sent]


def every(seconds, clock):
    return schedule(seconds, nowfun=clock)


def run(scheduler, clock, seconds):
    """Let time pass as the loop of beat would, tick by tick; returns the pauses."""
    end, pauses = clock() + timedelta(seconds=seconds), []
    while True:
        pause = scheduler.tick()
        if pause and pause > 0:
            pauses.append(pause)
            if clock() + timedelta(seconds=pause) > end:
                clock.time = end
                return pauses
            clock.pass_(max(pause, 0.001))


# -- entries that are wrong


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"task": "t", "schedule": "*/5 * * * *"}, r"Write crontab.from_string\('\*/5 \* \* \* \*'\)"),
        ({"task": "t"}, "has no schedule"),
        ({"schedule": 1.0}, "names no task"),
        ({"task": "t", "schedule": 1.0, "arg": (1,)}, "'arg'.*Known are task"),
        ({"task": "t", "schedule": -1}, "Give more than nothing"),
        ({"task": "t", "schedule": timedelta(0)}, "Give more than nothing"),
        ("t", "Write a mapping"),
    ],
)
def test_an_entry_that_could_never_be_sent_is_refused_by_its_name(app, given, fault):
    app.conf.beat_schedule = {"mine": given}

    with pytest.raises(ImproperlyConfigured, match=f"entry 'mine' of beat_schedule is wrong: .*{fault}"):
        Scheduler(app)


# -- a clock that is set


def test_what_runs_again_and_again_goes_on_when_the_clock_is_set_back(app, clock, monkeypatch, caplog):
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": every(10, clock)}}
    scheduler = Recording(app)
    run(scheduler, clock, 25)
    assert scheduler.names == ["a", "a"]

    set_clock(scheduler, clock, monkeypatch, -5 * 3600)
    run(scheduler, clock, 25)

    assert scheduler.names == ["a"] * 4
    assert "The clock was set back" in caplog.text


@pytest.mark.parametrize(
    ("entry", "hours", "runs"),
    [
        pytest.param(crontab(0, 12), 1, 0, id="not twice at a time of the day"),
        pytest.param(crontab(0, 12), 4, 1, id="twice if the clock was quite wrong"),
        pytest.param(crontab("*/30"), 1, 3, id="every half hour goes on"),
    ],
)
def test_what_runs_at_a_time_of_the_day_runs_once(app, clock, monkeypatch, entry, hours, runs):
    clock.time = START - timedelta(minutes=1)
    entry.nowfun = clock
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": entry}}
    scheduler = Recording(app)
    run(scheduler, clock, 120)
    assert scheduler.names == ["a"]
    scheduler.sent.clear()

    set_clock(scheduler, clock, monkeypatch, -hours * 3600)
    run(scheduler, clock, hours * 3600 if runs != 3 else 5399)

    assert len(scheduler.sent) == runs


def set_clock(scheduler, clock, monkeypatch, seconds):
    """Set the clock while beat sleeps."""
    scheduler.tick()
    clock.pass_(seconds)
    before = scheduler._times
    scheduler._times = (before[0] - seconds, before[1])


# -- entries


def test_an_entry_counts_its_runs_and_keeps_what_it_sends(app, clock):
    entry = ScheduleEntry("n", "t", schedule=every(10, clock), args=(1,), kwargs={"k": 2}, app=app)
    clock.pass_(30)

    after = next(entry)

    assert (entry.last_run_at, entry.total_run_count) == (START, 0)
    assert (after.last_run_at, after.total_run_count) == (START + timedelta(seconds=30), 1)
    assert after == entry and after.args == (1,) and after.app is app
    assert entry.is_due() == (True, 10.0) and after.is_due() == (False, 10.0)
    assert entry.next(last_run_at=START).last_run_at == START


def test_entries_are_equal_when_they_send_the_same(app, clock):
    one = ScheduleEntry("n", "t", schedule=every(10, clock), app=app)

    assert one == ScheduleEntry("other", "t", START, 7, schedule=every(10, clock), app=app)
    assert one != ScheduleEntry("n", "t", schedule=every(11, clock), app=app)
    assert one != ScheduleEntry("n", "t", schedule=every(10, clock), args=(1,), app=app)
    assert one != "n"
    assert (one < ScheduleEntry("b", "t", schedule=every(1, clock), app=app)) in (True, False)
    assert "n t()" in repr(one)


def test_an_entry_is_pickled_without_its_app(app):
    entry = ScheduleEntry("n", "t", START, 3, crontab(minute=5), (1,), {"k": 2}, {"queue": "q"}, app=app)

    copied = pickle.loads(pickle.dumps(entry))

    assert copied == entry and (copied.name, copied.last_run_at, copied.total_run_count) == ("n", START, 3)
    assert copied.app is None


def test_an_entry_takes_over_what_was_edited_but_not_when_it_ran(app, clock):
    entry = ScheduleEntry("n", "t", START, 3, every(10, clock), app=app)

    entry.update(ScheduleEntry("n", "u", START + timedelta(1), 0, every(20, clock), (1,), app=app))

    assert (entry.task, entry.args, entry.schedule.seconds) == ("u", (1,), 20)
    assert (entry.last_run_at, entry.total_run_count) == (START, 3)


# -- the line


def test_each_entry_is_sent_at_its_times(app, clock):
    app.conf.beat_schedule = {
        "often": {"task": "a", "schedule": every(10, clock)},
        "seldom": {"task": "b", "schedule": every(25, clock), "args": (1,), "options": {"queue": "q"}},
    }
    scheduler = Recording(app)

    run(scheduler, clock, 61)

    assert scheduler.names.count("a") == 6 and scheduler.names.count("b") == 2
    assert scheduler.sent[scheduler.names.index("b")] == (
        "b",
        [1],
        {},
        {"queue": "q", "headers": {"celery_beat_task": True}},
    )
    assert app.conf.beat_schedule["seldom"]["options"] == {"queue": "q"}


def test_beat_sleeps_until_the_next_entry_but_not_too_long(app, clock):
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": every(1000, clock)}}

    assert Recording(app).tick() == 300
    assert Recording(app, max_interval=7).tick() == 7
    app.conf.beat_max_loop_interval = 9
    assert Recording(app).tick() == 9
    app.conf.beat_schedule = {}
    assert Recording(app, max_interval=11).tick() == 11
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": every(5, clock)}}
    assert 4.9 < Recording(app).tick() < 5


def test_what_is_due_together_is_sent_together(app, clock):
    app.conf.beat_schedule = {str(n): {"task": str(n), "schedule": every(60, clock)} for n in range(20)}
    scheduler = Recording(app)
    scheduler.tick()
    clock.pass_(60)

    pauses = [scheduler.tick() for _ in range(20)]

    assert pauses == [0] * 20
    assert sorted(scheduler.names, key=int) == [str(n) for n in range(20)]
    assert scheduler.tick() > 50


def test_an_entry_that_is_added_while_beat_runs_is_sent(app, clock):
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": every(100, clock)}}
    scheduler = Recording(app)
    assert scheduler.tick() > 50

    scheduler.add(name="new", task="new", schedule=every(1, clock))
    clock.pass_(1)

    assert scheduler.tick() == 0 and scheduler.names == ["new"]
    scheduler.merge_inplace({})
    assert scheduler.tick() == 300


def test_the_schedule_follows_the_settings_and_remembers_runs(app, clock):
    app.conf.beat_schedule = {
        "stays": {"task": "a", "schedule": every(10, clock)},
        "goes": {"task": "b", "schedule": every(10, clock)},
    }
    scheduler = Recording(app)
    run(scheduler, clock, 10.5)

    scheduler.merge_inplace(
        {
            "stays": {"task": "c", "schedule": every(10, clock)},
            "comes": ScheduleEntry("comes", "d", schedule=every(10, clock), app=app),
        }
    )

    assert set(scheduler.schedule) == {"stays", "comes"}
    assert scheduler.schedule["stays"].task == "c" and scheduler.schedule["stays"].total_run_count == 1
    assert scheduler.schedule["comes"].app is app


def test_values_are_made_when_the_task_is_sent(app, clock):
    app.conf.beat_schedule = {
        "a": {
            "task": "a",
            "schedule": every(10, clock),
            "args": (BeatLazyFunc(clock), "plain"),
            "kwargs": {"total": BeatLazyFunc(sum, [1, 2], start=3)},
            "options": {"headers": {"mine": 1}},
        }
    }
    scheduler = Recording(app)

    run(scheduler, clock, 10)

    (sent,) = scheduler.sent
    assert sent[1][0] > START and sent[1][1] == "plain" and sent[2] == {"total": 6}
    assert sent[3]["headers"] == {"mine": 1, "celery_beat_task": True}
    assert app.conf.beat_schedule["a"]["options"]["headers"] == {"mine": 1}


def test_a_known_task_is_sent_with_its_own_options(app, clock):
    scheduler = Scheduler(app, lazy=True)
    entry = scheduler.Entry(name="k", task="beating.known", schedule=every(1, clock), args=(1,), app=app)

    with app.connection_for_write() as connection:
        result = scheduler.apply_async(entry, producer=app.amqp.Producer(connection), advance=False)

    assert result.id
    app.close()


# -- what goes wrong


class Broken(schedule):
    """A schedule that cannot tell."""

    def is_due(self, last_run_at):
        raise RuntimeError("no idea")


def test_an_entry_that_cannot_tell_its_time_does_not_stop_the_others(app, clock, caplog):
    app.conf.beat_schedule = {
        "broken": {"task": "a", "schedule": Broken(1, nowfun=clock)},
        "sound": {"task": "b", "schedule": every(10, clock)},
    }
    scheduler = Recording(app)

    run(scheduler, clock, 700)

    assert set(scheduler.names) == {"b"} and len(scheduler.sent) >= 69
    assert caplog.text.count("Cannot calculate the next run of 'broken'") in (2, 3)


def test_an_entry_that_wants_to_wait_lets_the_others_pass(app, clock):
    class Later(schedule):
        def is_due(self, last_run_at):
            return False, 50

        def remaining_estimate(self, last_run_at):
            return timedelta(0)

    app.conf.beat_schedule = {
        "later": {"task": "a", "schedule": Later(1, nowfun=clock)},
        "sound": {"task": "b", "schedule": every(10, clock)},
    }
    scheduler = Recording(app)

    run(scheduler, clock, 100.5)

    assert scheduler.names == ["b"] * 10


def test_a_task_that_cannot_be_sent_for_itself_waits_for_its_next_time(app, clock, caplog):
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": every(60, clock)}}
    scheduler = Recording(app)
    scheduler.fail = ValueError("no such queue")

    run(scheduler, clock, 61)
    scheduler.fail = None
    run(scheduler, clock, 58)
    assert scheduler.sent == []
    run(scheduler, clock, 2)

    assert scheduler.names == ["a"]
    assert "Couldn't apply scheduled task a: no such queue" in caplog.text
    with pytest.raises(SchedulingError) as raised:
        scheduler.fail = ValueError("again")
        scheduler.apply_async(scheduler.schedule["a"])
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_task_that_the_broker_did_not_take_is_tried_again_until_it_does(app, clock):
    app.conf.beat_schedule = {
        "daily": {"task": "daily", "schedule": every(86400, clock)},
        "often": {"task": "often", "schedule": every(10, clock)},
    }
    scheduler = Recording(app)
    run(scheduler, clock, 86390)
    scheduler.sent.clear()
    scheduler.fail = OperationalError("away")
    run(scheduler, clock, 100)
    assert scheduler.schedule["daily"].total_run_count == 0

    scheduler.fail = None
    run(scheduler, clock, 12)

    assert scheduler.names.count("daily") == 1 and scheduler.names.count("often") in (1, 2)
    assert scheduler.schedule["daily"].total_run_count == 1


def test_a_broker_that_cannot_be_reached_costs_no_run(app, clock):
    class Unreachable(Recording):
        reachable = False

        @property
        def producer(self):
            if not self.reachable:
                raise OperationalError("away")
            return None

    app.conf.beat_schedule = {"a": {"task": "a", "schedule": every(60, clock)}}
    scheduler = Unreachable(app)
    scheduler.tick()
    clock.pass_(60)
    with pytest.raises(OperationalError):
        scheduler.tick()
    assert scheduler.schedule["a"].total_run_count == 0

    scheduler.reachable = True
    assert scheduler.tick() == 0
    assert scheduler.names == ["a"]


# -- the nightly removal of results


def test_old_results_are_removed_nightly_where_the_store_does_not_do_it_itself(app):
    app.backend.supports_autoexpire = False
    assert "celery.backend_cleanup" in Scheduler(app).schedule

    app.backend.supports_autoexpire = True
    assert "celery.backend_cleanup" not in Scheduler(app).schedule

    app.backend.supports_autoexpire = False
    app.conf.result_expires = None
    assert "celery.backend_cleanup" not in Scheduler(app).schedule


# -- the file


class InFile(Recording, PersistentScheduler):
    """The persistent scheduler, sending nothing."""

    setup_schedule = PersistentScheduler.setup_schedule


@pytest.fixture
def in_file(app, tmp_path):
    app.conf.result_expires = None

    def in_file(**kwargs):
        return InFile(app, schedule_filename=str(tmp_path / "schedule"), **kwargs)

    return in_file


def test_runs_are_remembered_over_restarts(app, clock, in_file):
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": 100.0}}
    first = in_file()
    run(first, clock, 150)
    first.close()
    first.close()
    clock.pass_(40)

    second = in_file()

    assert second.schedule["a"].total_run_count == 1
    assert 9 < second.tick() < 10
    second.close()


def test_what_ran_is_written_before_beat_sleeps(app, clock, in_file, tmp_path):
    app.conf.beat_schedule = {name: {"task": name, "schedule": 100.0} for name in "abc"}
    scheduler = in_file()
    run(scheduler, clock, 150)

    # As if it had been killed now: nothing is closed.
    with shelve.open(str(tmp_path / "schedule"), flag="r") as written:
        assert [entry.total_run_count for entry in written["entries"].values()] == [1, 1, 1]
    scheduler.close()


@pytest.mark.parametrize(("setting", "value"), [("timezone", "Europe/Paris"), ("enable_utc", False)])
def test_another_zone_makes_what_was_remembered_void(app, clock, in_file, setting, value, caplog):
    app.conf.update(timezone="Europe/Oslo")
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": 100.0}}
    first = in_file()
    run(first, clock, 150)
    first.close()
    app.conf.update({setting: value})

    second = in_file()

    assert second.schedule["a"].total_run_count == 0
    assert "Reset: " in caplog.text
    second.close()


@pytest.mark.parametrize("field", ["__version__", "tz", "utc_enabled", "entries"])
def test_a_file_of_an_older_version_is_begun_anew(app, in_file, tmp_path, field):
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": 100.0}}
    in_file().close()
    with shelve.open(str(tmp_path / "schedule")) as file:
        del file[field]

    scheduler = in_file()

    assert list(scheduler.schedule) == ["a"]
    scheduler.close()


def test_a_file_with_entries_that_cannot_be_read_is_begun_anew(app, in_file, tmp_path, caplog):
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": 100.0}}
    in_file().close()
    with shelve.open(str(tmp_path / "schedule")) as file:
        file.dict[b"entries"] = b"cnowhere\nUnknown\n."

    scheduler = in_file()

    assert list(scheduler.schedule) == ["a"]
    assert "is damaged" in caplog.text
    with shelve.open(str(tmp_path / "schedule.damaged"), flag="r") as kept:
        assert kept["__version__"]
    scheduler.close()


def test_a_corrupt_file_is_kept_aside_and_a_new_one_begun(app, in_file, tmp_path, caplog):
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": 100.0}}
    in_file().close()
    for path in tmp_path.iterdir():
        path.write_bytes(b"rubbish")

    scheduler = in_file()

    assert list(scheduler.schedule) == ["a"]
    assert "schedule.damaged', and a new one is begun" in caplog.text
    assert b"rubbish" in {path.read_bytes() for path in tmp_path.glob("schedule.damaged*")}
    scheduler.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_file_that_was_cut_off_anywhere_is_no_obstacle(app, in_file, tmp_path):
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": 100.0}}
    in_file().close()
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path, content in whole.items():
        for size in range(0, len(content), max(1, len(content) // 20)):
            for other in tmp_path.iterdir():
                other.unlink()
            for other, before in whole.items():
                other.write_bytes(before[:size] if other == path else before)

            scheduler = in_file()

            assert list(scheduler.schedule) == ["a"], (path.name, size)
            scheduler.close()
    # From Python 3.13 such a file is SQLite's, and dbm does not close one that it cannot open.
    gc.collect()


def test_a_file_that_may_not_be_used_is_left_alone(app, in_file, tmp_path, caplog):
    class Held:
        @staticmethod
        def open(*args, **kwargs):
            raise BlockingIOError(11, "Resource temporarily unavailable")

    app.conf.beat_schedule = {"a": {"task": "a", "schedule": 100.0}}
    in_file().close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    held = type("HeldInFile", (InFile,), {"persistence": Held})

    with pytest.raises(BlockingIOError):
        held(app, schedule_filename=str(tmp_path / "schedule"))

    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "Another beat may use it" in caplog.text


def test_writing_is_due_by_time_and_by_number(app):
    scheduler = Recording(app, sync_every_tasks=2)
    assert scheduler.should_sync()
    scheduler._do_sync()
    assert not scheduler.should_sync()
    scheduler._tasks_since_sync = 2
    assert scheduler.should_sync()
    scheduler._do_sync()
    scheduler.sync_every = -1
    assert scheduler.should_sync()


# -- the service


def test_a_service_finds_its_scheduler_by_any_name(app, tmp_path):
    def made_by(name):
        service = Service(app, schedule_filename=str(tmp_path / "s"), scheduler_cls=name)
        return type(service.get_scheduler(lazy=True))

    assert made_by(None) is PersistentScheduler
    assert made_by(Recording) is Recording
    assert made_by("celery_clone.beat:Scheduler") is Scheduler
    assert made_by("celery.beat.Scheduler") is Scheduler


def test_a_service_ticks_until_it_is_stopped_and_writes_down_what_ran(app):
    told = []
    service = Service(app, scheduler_cls=Ticking)
    service.scheduler.on_tick = lambda count: service.stop() if count == 3 else None

    @signals.beat_init.connect(weak=False)
    def begun(sender, **kwargs):
        told.append(sender)

    try:
        service.start()
    finally:
        signals.beat_init.disconnect(begun)
    service.stop(wait=True)

    assert told == [service] and service.scheduler.ticks == 3 and service.scheduler.closed == 1
    assert service._last_tick is not None and service.effective_max_interval == 300


class Ticking(Scheduler):
    """Counts its turns."""

    ticks = closed = 0
    on_tick = staticmethod(lambda count: None)

    def tick(self):
        self.ticks += 1
        self.on_tick(self.ticks)
        return 0.001

    def close(self):
        self.closed += 1
        super().close()


def test_a_service_that_is_interrupted_writes_down_what_ran(app):
    service = Service(app, scheduler_cls=Ticking)

    def interrupt(count):
        raise KeyboardInterrupt

    service.scheduler.on_tick = interrupt
    service.start()

    assert service.scheduler.closed == 1


def test_a_signal_does_not_part_noting_a_run_from_sending_it(app, clock):
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": every(10, clock)}}
    service = Service(app, scheduler_cls=Recording)
    scheduler = service.scheduler

    class AtTheWrongMoment(BeatLazyFunc):
        def __call__(self):
            service.end_soon()
            return 1

    scheduler.schedule["a"].args = (AtTheWrongMoment(None),)
    scheduler.tick()
    clock.pass_(10)
    service.start()

    assert scheduler.names == ["a"]
    with pytest.raises(SystemExit):
        service.end_soon()


def test_a_service_is_pickled_by_what_it_was_made_of(app):
    service = Service(app, max_interval=3, schedule_filename="f", remote_control=True, hostname="n@h")

    make, arguments = service.__reduce__()

    assert make is Service and arguments == (app, 3, "f", PersistentScheduler, True, "n@h")


def test_an_embedded_service_is_a_process_or_a_thread(app):
    in_thread = beat.EmbeddedService(app, thread=True, scheduler_cls=Ticking)
    in_process = beat.EmbeddedService(app, max_interval=7, scheduler_cls=Ticking)

    assert isinstance(in_thread, threading.Thread) and in_thread.service.max_interval == 1
    assert in_process.name == "Beat" and in_process.service.max_interval == 7
    assert not in_process.service.remote_control
    in_process.stop()
    in_thread.stop()


def test_beat_in_a_thread_ends_at_once_however_long_it_sleeps(app):
    class Sleeping(Ticking):
        def tick(self):
            super().tick()
            return 1000

    thread = beat.EmbeddedService(app, thread=True, scheduler_cls=Sleeping)
    ticked = threading.Event()
    thread.service.scheduler.on_tick = lambda count: ticked.set()
    thread.start()
    assert ticked.wait(10)

    thread.stop()

    assert not thread.is_alive() and thread.service.scheduler.closed == 1


# -- remote control


@pytest.mark.parametrize(
    ("given", "name"),
    [("one@here", "one@here"), ("here", "celerybeat@here"), ("one@%%h", "one@%h")],
)
def test_beat_has_a_node_name(given, name):
    assert beat_nodename(given) == name
    assert beat_nodename().startswith("celerybeat@")


def test_a_scheduler_that_does_not_turn_counts_as_stuck(app):
    service = Service(app, max_interval=100, hostname="one@here")
    box = BeatPidbox(service)

    assert box.hostname == "one@here" and box.tick_age() is None and not box.is_stale()
    assert box.max_tick_age == 200
    service.effective_max_interval = 5
    assert box.max_tick_age == 60
    app.conf.beat_remote_control_max_tick_age = 0.5
    service._last_tick = -1e9
    assert box.is_stale() and box.tick_age() > 1000
    app.conf.beat_remote_control_max_tick_age = 0
    assert not box.is_stale()
    box.stop()


def test_signals_of_the_process_end_beat(app):
    program = app.Beat(app=app, quiet=True)
    service = Service(app, scheduler_cls=Ticking)

    program.install_sync_handler(service)

    for name in ("SIGTERM", "SIGINT"):
        with pytest.raises(SystemExit):
            signal.getsignal(getattr(signal, name))(0, None)


def test_the_banner_says_where_things_are(app, tmp_path):
    program = app.Beat(app=app, no_color=True, loglevel="INFO", schedule=str(tmp_path / "s"), max_interval=60)
    service = Service(app, max_interval=60, schedule_filename=program.schedule, hostname="one@here")

    assert program.loglevel == 20
    banner = program.banner(service)
    assert ". db -> " + str(tmp_path / "s") in banner
    assert ". maxinterval -> 1.00 minute (60s)" in banner and ". logfile -> [stderr]@%INFO" in banner
    assert ". broker -> memory://" in banner and "remote control" not in banner
    service.remote_control = True
    assert ". remote control -> one@here" in program.startup_info(service)
