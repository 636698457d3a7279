"""Several beats, one schedule: each run is sent once, whatever happens to the beat that sends."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
import redis

from celery_clone import Celery
from celery_clone.beat import Scheduler, Service
from celery_clone.beat.lease import is_gone, open_lease, schedule_names, this_machine
from celery_clone.schedules import crontab
from celery_clone.transport.beat_lease import Answer, DueRun, Verdict
from tests.support.brokers import REDIS, start_server
from tests.support.processes import dies_with_its_parent, end
from tests.support.wait import wait_until
from tests.support.worker import clean_environment

PROJECT = """
import os
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"])
app.conf.beat_lease_expires = 2.0
app.conf.beat_schedule = {f"e{number}": {"task": "project.note", "schedule": 0.2} for number in range(4)}
"""


@pytest.fixture(scope="module", params=["sqlite", REDIS])
def server(request):
    """The name of a broker that keeps leases, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return request.param


@pytest.fixture
def broker(server, request):
    """The URL of that broker, empty."""
    return request.getfixturevalue(f"{server}_url")


@pytest.fixture
def app(broker):
    app = Celery("leased", broker=broker, set_as_current=False)
    app.conf.beat_schedule = {"a": {"task": "t", "schedule": 30.0}}
    yield app
    app.close()


@pytest.fixture
def lease(app):
    """``lease(node)``: the lease of the app's schedule, for one of its beats."""
    made = []

    def lease(node, **settings):
        app.conf.update(settings)
        made.append(open_lease(app, Scheduler, node))
        return made[-1]

    yield lease
    for one in made:
        one.store.close()


def messages(url):
    """How many messages the default queue holds."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            return client.llen("celery")
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db:
        return db.execute("SELECT count(*) FROM celery_messages").fetchone()[0]


def runs_written_down(url, app="project"):
    """How many runs the book of the app knows of."""
    book = f"celery.beat.{app}.celery.runs"
    if url.startswith("redis"):
        with redis.Redis.from_url(url, decode_responses=True) as client:
            records = client.hvals(book)
    else:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db:
            records = [row[0] for row in db.execute("SELECT record FROM celery_beat_runs WHERE book = ?", (book,))]
    return sum(int(record.split(" ")[1]) for record in records)


# -- the lease


def test_only_one_has_the_lease_until_it_lets_go(lease):
    first, second = lease("first"), lease("second")

    assert first.take() and first.take()
    assert not second.take() and second.holder == first.owner
    first.let_go()
    assert second.take() and not first.take()


def test_a_lease_that_is_not_renewed_expires(lease):
    first, second = lease("first", beat_lease_expires=0.3), lease("second")
    assert first.take()

    wait_until(second.take, timeout=3, describe="the end of the lease")

    assert not first.keep() and first.holder == second.owner


def test_the_lease_of_a_process_that_is_dead_is_free(lease):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(20)
    first, second = lease("first"), lease("second")
    first.owner = f"first (pid {dead.pid} on {this_machine()}) x"
    assert first.take()

    assert second.take()
    assert is_gone(first.owner)
    assert not is_gone(f"other (pid {dead.pid} on another/1) x") and not is_gone(second.owner)


# -- one run


def run_of(lease, record="200.000000 1 ", known_at=100.0):
    return DueRun(lease.name, lease.owner, lease.book, "a", known_at, f"{record}{lease.owner}")


def test_a_run_is_sent_once_however_often_it_is_tried(app, lease, broker):
    first = lease("first")
    assert first.take()
    scheduler = Scheduler(app)
    scheduler.lease = first
    entry = scheduler.schedule["a"]

    for _ in range(3):
        # As after a connection that broke before the answer came.
        scheduler._following = next(entry)
        scheduler.apply_entry(entry, producer=scheduler.producer)

    assert messages(broker) == 1
    scheduler.close()


def test_a_beat_that_lost_its_lease_sends_nothing(app, lease, broker):
    first, second = lease("first"), lease("second")
    assert first.take()
    scheduler = Scheduler(app)
    scheduler.lease = first
    scheduler.schedule["a"].last_run_at -= scheduler.schedule["a"].schedule.run_every * 2
    before = scheduler.schedule["a"].last_run_at
    first.store.let_go(first.name, first.owner)  # as when it expires
    assert second.take()

    scheduler.tick()

    assert messages(broker) == 0
    assert not first.held and scheduler.schedule["a"].last_run_at == before
    scheduler.close()


def test_what_another_beat_sent_is_not_sent_again_and_learnt_from(lease):
    first, second = lease("first"), lease("second")
    assert first.take() and first.store.claim(run_of(first)) == Answer(Verdict.SENT)
    first.let_go()
    assert second.take()

    assert second.store.claim(run_of(second)).verdict is Verdict.ELSEWHERE
    assert second.store.claim(run_of(second)).record == run_of(first).record
    assert second.store.claim(run_of(second, "300.000000 2 ", known_at=200.0)) == Answer(Verdict.SENT)
    assert second.store.claim(run_of(second, "300.000000 2 ", known_at=200.0)) == Answer(Verdict.AGAIN)
    assert first.store.claim(run_of(first, "400.000000 3 ", known_at=300.0)) == Answer(Verdict.LOST)


def test_the_next_beat_sends_what_came_due_in_between(app, lease, broker):
    """Also where it has no file of its own that would tell."""
    first, second = lease("first"), lease("second")
    earlier, later = Scheduler(app), Scheduler(app)
    assert first.take()
    entry = earlier.schedule["a"]
    entry.last_run_at -= entry.schedule.run_every * 2
    first.adopt(earlier.schedule)
    first.let_go()

    assert second.take()
    later.lease = second
    second.adopt(later.schedule)
    later.tick()

    assert messages(broker) == 1
    assert later.schedule["a"].total_run_count == 1
    later.close()


def test_a_scheduler_that_plans_its_runs_itself_sends_each_of_them(app, lease, broker):
    """As celery-redbeat does: it calls ``apply_async`` for what it found to be due."""
    own = lease("own")
    assert own.take()
    scheduler = Scheduler(app)
    scheduler.lease = own
    for _ in range(3):
        scheduler.apply_async(scheduler.schedule["a"])
    assert messages(broker) == 3
    scheduler.close()


# -- what one schedule is


def test_beats_with_the_same_to_send_have_one_lease_and_others_have_others():
    def names(main="shop", queue="celery", settings=(), **entry):
        app = Celery(main, broker="memory://", set_as_current=False)
        app.conf.update(task_default_queue=queue, **dict(settings))
        app.conf.beat_schedule = {"a": {"task": "t", "schedule": 10.0, **entry}}
        return schedule_names(app, "celery.beat:PersistentScheduler")

    same = names()
    assert names(schedule=crontab(minute=5)) == same
    others = [
        names("bank"),
        names(queue="bank"),
        names(args=("customer",)),
        names(task="u"),
        names(options={"queue": "q"}),
    ]
    assert len({lease for lease, _ in [same, *others]}) == 6
    assert names(args=("customer",))[1] == same[1]
    given = names(settings={"beat_lease_name": "mine"}.items())
    assert given == ("celery.beat.mine", "celery.beat.mine.runs")


def test_a_broker_that_keeps_no_lease_and_a_lease_that_is_switched_off():
    app = Celery("leased", broker="memory://", set_as_current=False)
    assert open_lease(app, Scheduler, "beat") is None
    app.conf.beat_lease_url = "sqlite:///elsewhere.db"
    assert open_lease(app, Scheduler, "beat").sends is False
    app.conf.beat_lease = False
    assert open_lease(app, Scheduler, "beat") is None


def test_a_run_is_written_down_elsewhere_where_the_broker_cannot(tmp_path):
    app = Celery("leased", broker="memory://", set_as_current=False)
    app.conf.update(
        beat_lease_url=f"sqlite:///{tmp_path / 'lease.db'}", beat_schedule={"a": {"task": "t", "schedule": 30.0}}
    )
    service = Service(app, scheduler_cls=Scheduler)
    lease = open_lease(app, Scheduler, "beat")
    assert lease.take()
    scheduler = service.scheduler
    scheduler.lease = lease
    scheduler.schedule["a"].last_run_at -= scheduler.schedule["a"].schedule.run_every * 2

    scheduler.tick()

    with app.connection() as connection:
        assert connection.default_channel.basic_get("celery", no_ack=True).headers["task"] == "t"
    assert [record.split()[1] for record in lease.store.runs(lease.book).values()] == ["1"]
    service.sync()
    lease.let_go()


# -- processes


@pytest.fixture
def beat(tmp_path, broker):
    """``beat()``: a beat with a folder of its own; returns the process and a function that reads its log."""
    started = []

    def beat():
        folder = tmp_path / f"beat-{len(started)}"
        folder.mkdir()
        (folder / "project.py").write_text(PROJECT)
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                dies_with_its_parent([sys.executable, "-m", "celery_clone", "-A", "project", "beat", "-l", "INFO"]),
                cwd=folder,
                env=clean_environment({"BROKER": broker}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process, log.read_text

    yield beat
    for process in started:
        end(process)


SENDING = "Scheduler: Sending due task"


def test_the_second_takes_over_when_the_first_dies_or_freezes_and_nothing_is_sent_twice(beat, broker):
    first, log_of_first = beat()
    wait_until(lambda: SENDING in log_of_first(), describe=log_of_first)
    second, log_of_second = beat()
    wait_until(lambda: "Waiting, as another beat sends" in log_of_second(), describe=log_of_second)

    first.send_signal(signal.SIGSTOP)
    frozen_at = time.monotonic()
    wait_until(lambda: SENDING in log_of_second(), describe=log_of_second)
    assert time.monotonic() - frozen_at < 6
    before = log_of_first().count(SENDING)
    first.send_signal(signal.SIGCONT)
    wait_until(lambda: log_of_first().count("Waiting, as another beat sends") == 1, describe=log_of_first)
    assert "The lease of the schedule was lost" in log_of_first()
    assert log_of_first().count(SENDING) == before

    second.kill()
    wait_until(lambda: log_of_first().count(SENDING) > before, describe=log_of_first)
    first.send_signal(signal.SIGTERM)
    assert first.wait(10) == 0

    assert messages(broker) == runs_written_down(broker) > 8
