"""The dispatcher's books: what it owes the broker, what it may take, and that nothing ends it."""

from __future__ import annotations

import logging
from datetime import datetime, timezone

import pytest

from celery_clone import Celery, signals, states
from celery_clone.concurrency.solo import TaskPool as SoloPool
from celery_clone.exceptions import NotRegistered, TimeLimitExceeded, WorkerLostError
from celery_clone.message.delivery import Delivery
from celery_clone.message.frames import Ended, Overtime
from celery_clone.worker import state
from celery_clone.worker.dispatch import GATHER_S
from celery_clone.worker.state import Phase
from tests.support.dispatching import Bench, BrokenSource, ListSource


@pytest.fixture(autouse=True)
def clean_state():
    state.reset_state()
    yield
    state.reset_state()


@pytest.fixture
def app():
    app = Celery("dispatching", broker="memory://", backend="cache+memory://", set_as_current=False)
    for number in range(10):
        app.backend.forget(str(number))
    yield app
    app.close()


@pytest.fixture
def early(app):
    @app.task(name="t.early", shared=False)
    def early():
        return "x"

    return early


@pytest.fixture
def late(app):
    @app.task(name="t.late", acks_late=True, shared=False)
    def late():
        return "x"

    return late


@pytest.fixture
def bench(app):
    return Bench(app)


def is_clean(bench):
    """Nothing is held, nothing is lent, and the whole window is open."""
    credit = bench.dispatcher.credit
    return (len(bench.dispatcher.flights), credit.outstanding, credit.lent) == (0, 0, 0)


# -- taking


def test_messages_that_come_fast_one_by_one_are_taken_together(bench, early):
    for _ in range(2):
        bench.source.queue.append(bench.delivery(early))
        bench.dispatcher.stir()
        bench.dispatcher.turn()

    assert bench.pool.waits == [GATHER_S]


def test_a_message_that_comes_to_an_idle_worker_or_some_time_after_another_is_taken_at_once(bench, early):
    flight = bench.receive(early)
    bench.end(flight)
    bench.source.queue.append(bench.delivery(early))
    bench.dispatcher.stir()
    bench.dispatcher.turn()
    bench.now += 2 * GATHER_S
    bench.source.queue.append(bench.delivery(early))
    bench.dispatcher.stir()
    bench.dispatcher.turn()

    assert bench.pool.waits == []
    assert len(bench.dispatcher.flights) == 2


def test_the_record_of_a_received_task_has_what_formatters_may_show(app, early, caplog):
    with caplog.at_level(logging.INFO, "celery.worker.strategy"):
        Bench(app).receive(early, "1")

    (record,) = caplog.records
    assert record.getMessage() == "Task t.early[1] received"
    assert set(record.data) == {"id", "name", "args", "kwargs", "eta"}


def test_the_ids_of_tasks_that_succeeded_are_known_for_a_while(bench, early):
    first, second = bench.receive(early, "1"), bench.receive(early, "2")
    bench.tell(
        Ended(first.seq, (states.SUCCESS, "", 0.1, None, False)),
        Ended(second.seq, (states.FAILURE, "", 0.1, None, False)),
    )

    assert [*state.successful_requests] == ["1"]
    state.reset_state()
    assert not state.successful_requests


# -- rate limits


@pytest.fixture
def limited(app):
    @app.task(name="t.limited", rate_limit="1/s", acks_late=True, shared=False)
    def limited():
        return "x"

    return limited


def test_tasks_that_wait_for_their_rate_run_once_when_the_limits_are_read_anew(bench, limited):
    for number in range(3):
        bench.receive(limited, str(number))
    bench.dispatcher.rebuild_plans()
    for _ in range(10):
        bench.now += 1
        bench.timer.fire()

    assert sorted(job.seq for job in bench.pool.submitted) == [1, 2, 3]


def test_a_rate_limit_that_is_taken_away_gives_the_window_back(bench, limited):
    flights = [bench.receive(limited, str(number)) for number in range(3)]
    limited.rate_limit = None
    bench.dispatcher.rebuild_plans()
    bench.dispatcher._hand_over()
    assert len(bench.pool.submitted) == 3
    for flight in flights:
        bench.begin(flight)
        bench.end(flight)

    assert is_clean(bench)


def test_a_task_held_for_its_time_obeys_the_rate_limit_of_that_time(bench, app, early):
    flights = [bench.receive(early, str(n), eta="1970-01-01T00:16:50+00:00") for n in range(2)]
    assert [flight.phase for flight in flights] == [Phase.HELD] * 2
    early.rate_limit = "1/m"
    bench.dispatcher.rebuild_plans()
    bench.now = 1011.0
    bench.timer.fire()

    assert len(bench.pool.submitted) == 1


def test_tasks_of_a_lost_connection_use_up_nobodys_rate(bench, limited):
    for number in range(5):
        bench.receive(limited, str(number))
    bench.reconnect()
    bench.now += 1
    bench.receive(limited, "again")
    for _ in range(2):
        bench.now += 1
        bench.timer.fire()

    assert bench.submitted == ["t.limited"] * 2


# -- one bad message, one bad report


def test_a_message_of_a_forbidden_content_is_kept_and_the_next_one_runs(bench, early):
    bad = Delivery.of_parts(
        {}, {}, b"\x80\x04.", "application/x-python-serialize", "binary", "bad", "celery", bench.source, accept=["json"]
    )
    good = bench.delivery(early, "good")
    bench.dispatcher.receive([bad, good])

    assert (bench.source.buried, bench.submitted) == (["bad"], ["t.early"])


def test_a_strategy_that_raises_costs_its_own_message_only(bench, early, late):
    def bad(delivery):
        raise LookupError("in the handler")

    bench.owner.handlers["t.late"] = bad
    bench.dispatcher.receive([bench.delivery(late, "1", tag="bad"), bench.delivery(early, "2")])

    assert (bench.source.buried, bench.submitted) == (["bad"], ["t.early"])
    assert bench.dispatcher.credit.outstanding == 1


def test_what_cannot_be_understood_halfway_leaves_nothing_behind(bench, early):
    def look(sender, request, **kwargs):
        pass

    signals.task_received.connect(look, weak=False)
    try:
        # Admission reads a number; the request that the receiver is given does not.
        bench.receive(early, "1", tag="bad", eta=5000.0)
    finally:
        signals.task_received.disconnect(look)

    assert (bench.source.buried == ["bad"] and is_clean(bench)) or len(bench.dispatcher.flights) == 1


def test_reports_behind_one_that_cannot_be_passed_on_are_heard(bench, late):
    bench.source = BrokenSource()
    bench.dispatcher.attach(bench.source)
    first, second = bench.receive(late, "1"), bench.receive(late, "2")
    bench.begin(first)
    bench.begin(second)
    bench.tell(
        Ended(first.seq, (states.REJECTED, "", 0.1, None, True)),
        Ended(second.seq, (states.SUCCESS, "", 0.1, None, False)),
    )

    assert bench.dispatcher.flights == {}
    assert bench.dispatcher.credit.outstanding == 0
    with pytest.raises(ConnectionResetError):
        bench.dispatcher.turn()


# -- lost connections


def test_a_late_task_that_is_given_out_again_while_it_runs_is_not_run_twice(bench, late):
    flight = bench.receive(late, "1", tag="old")
    bench.begin(flight)
    bench.reconnect()
    bench.receive(late, "1", tag="new", redelivered=True)
    bench.end(flight)

    assert (len(bench.pool.submitted), bench.source.acked) == (1, ["new"])
    assert is_clean(bench)


def test_a_late_task_that_ended_while_the_broker_was_away_is_acknowledged_when_it_comes_again(bench, late):
    flight = bench.receive(late, "1", tag="old")
    bench.begin(flight)
    bench.dispatcher.detach()
    bench.end(flight)
    bench.source = ListSource()
    bench.dispatcher.attach(bench.source)
    bench.receive(late, "1", tag="new", redelivered=True)

    assert (len(bench.pool.submitted), bench.source.acked) == (1, ["new"])


def test_a_retry_of_a_task_from_a_lost_connection_is_another_run(bench, late):
    flight = bench.receive(late, "1", tag="old")
    bench.begin(flight)
    bench.reconnect()
    bench.end(flight)
    # Another worker got the message, and sent a retry that has the same id.
    bench.receive(late, "1", tag="retry", redelivered=True, retries=1)

    assert len(bench.pool.submitted) == 2
    assert bench.source.acked == []


def test_an_early_task_is_acknowledged_when_it_begins_and_not_before(bench, early):
    flight = bench.receive(early, "1", tag="old")
    bench.pool.running[flight.seq] = (1, bench.now)  # begun, and not told yet
    bench.reconnect()
    bench.receive(early, "1", tag="new", redelivered=True)
    assert bench.source.acked == []
    bench.begin(flight)

    assert (bench.source.acked, len(bench.pool.submitted)) == (["new"], 1)


def test_a_task_given_up_with_its_connection_runs_again_when_its_message_comes(bench, late):
    flight = bench.receive(late, "1", tag="old")
    bench.begin(flight)
    bench.dispatcher.abandon(flight)
    bench.reconnect()
    bench.lose(flight)
    again = bench.receive(late, "1", tag="new", redelivered=True)

    assert again is not None
    assert bench.app.backend.get_state("1") == states.PENDING
    assert (len(bench.pool.submitted), bench.source.acked) == (2, [])


def test_an_acknowledgement_that_may_not_have_arrived_is_sent_again_and_the_task_not_run(bench, late, early):
    for task, task_id in ((late, "1"), (early, "2")):
        flight = bench.receive(task, task_id, tag=f"old {task_id}")
        bench.begin(flight)
        bench.end(flight)
    bench.reconnect()
    for task, task_id in ((late, "1"), (early, "2")):
        assert bench.receive(task, task_id, tag=f"new {task_id}", redelivered=True) is None
    assert (len(bench.pool.submitted), bench.source.acked) == (2, ["new 1", "new 2"])
    # Once only: who sends it a third time wants it run.
    assert bench.receive(late, "1", tag="third", redelivered=True) is not None


def test_the_books_of_lost_connections_are_bounded(app, late):
    bench = Bench(app, prefetch=0)
    bench.dispatcher.orphans.limit = 3
    flights = [bench.receive(late, str(number)) for number in range(5)]
    for flight in flights:
        bench.begin(flight)
    bench.reconnect()
    for flight in flights:
        bench.end(flight)

    assert len(bench.dispatcher.orphans) == 3


def test_a_worker_stops_although_its_connection_is_gone(bench, late):
    running, waiting = bench.receive(late, "1"), bench.receive(late, "2")
    bench.begin(running)
    bench.dispatcher.source = BrokenSource()
    bench.dispatcher.stop_taking()
    assert [*bench.dispatcher.flights.values()] == [running]
    bench.end(running)

    assert bench.dispatcher.running == 0
    assert waiting.seq not in bench.pool.jobs


def test_what_came_with_a_message_that_broke_the_connection_is_not_forgotten(app, early):
    bench = Bench(app, survives=True)
    parks = iter([ConnectionResetError("gone")])

    def park(delivery, due):
        raise next(parks)

    bench.source.park = park
    held = bench.delivery(early, "1", eta="2100-01-01T00:00:00+00:00")
    with pytest.raises(ConnectionResetError):
        bench.dispatcher.receive([held, bench.delivery(early, "2")])
    assert bench.dispatcher.flights == {}
    bench.reconnect()
    bench.dispatcher.turn()

    assert sorted((each.id, each.phase) for each in bench.dispatcher.flights.values()) == [
        ("1", Phase.HELD),
        ("2", Phase.WAITING),
    ]


# -- over, revoked


def test_a_task_that_expires_while_it_waits_is_not_run(app, early):
    bench = Bench(app)
    bench.pool.depth = 1
    first = bench.receive(early, "1")
    bench.begin(first)
    bench.receive(early, "2", tag="two", expires="1970-01-01T00:16:45+00:00")
    bench.now = 1006.0
    bench.end(first)

    assert bench.submitted == ["t.early"]
    assert bench.app.backend.get_state("2") == states.REVOKED
    assert "two" in bench.source.acked


def test_a_task_that_expires_in_front_of_a_busy_process_is_not_run(bench, early):
    flight = bench.receive(early, "2", expires="1970-01-01T00:16:45+00:00")
    assert flight.seq in bench.pool.jobs
    bench.now = 1006.0
    bench.timer.fire()

    assert flight.seq not in bench.pool.jobs
    assert bench.app.backend.get_state("2") == states.REVOKED
    assert is_clean(bench)


def test_a_task_with_a_revoked_stamp_is_not_run_when_its_time_comes(bench, early):
    bench.receive(early, "1", eta="1970-01-01T00:16:50+00:00", stamps={"tenant": ["a"]}, stamped_headers=["tenant"])
    state.revoked_stamps["tenant"] = ["a"]
    bench.now = 1011.0
    bench.timer.fire()

    assert bench.submitted == []
    assert is_clean(bench)


def test_terminating_reaches_a_task_that_has_just_begun(bench, early):
    flight = bench.receive(early, "1")
    bench.pool.running[flight.seq] = (1, bench.now)  # the report is on its way
    state.revoked.add("1")
    bench.dispatcher.revoke({"1"}, 15)

    assert bench.pool.killed == [(flight.seq, 15)]


# -- endings that the process could not tell


def test_a_message_that_no_process_can_read_fails_its_task_and_is_kept(bench, early):
    failed = []
    signals.task_failure.connect(lambda task_id, **rest: failed.append(task_id), weak=False, dispatch_uid="here")
    try:
        flight = bench.receive(early, "1", tag="bad")
        bench.refuse(flight)
    finally:
        signals.task_failure.disconnect(dispatch_uid="here")

    assert (bench.source.buried, failed) == (["bad"], ["1"])
    assert bench.app.backend.get_state("1") == states.FAILURE
    assert is_clean(bench)


def test_a_task_unknown_to_its_process_fails_as_not_registered(bench, early):
    bench.refuse(bench.receive(early, "1"), "unknown")

    assert isinstance(bench.app.backend.get_result("1"), NotRegistered)


def test_a_task_that_drops_its_own_message_has_failed(bench, late):
    flight = bench.receive(late, "1", tag="one")
    bench.begin(flight)
    bench.end(flight, states.REJECTED)

    assert bench.source.dropped == ["one"]
    assert bench.app.backend.get_state("1") == states.FAILURE


def test_a_lost_task_whose_result_is_stored_has_succeeded(bench, late):
    flight = bench.receive(late, "1", tag="one")
    bench.begin(flight)
    bench.app.backend.mark_as_done("1", 7)
    bench.lose(flight)

    assert bench.app.backend.get_result("1") == 7
    assert bench.source.acked == ["one"]


def test_a_lost_task_that_goes_back_has_not_failed_although_the_broker_is_away(app):
    @app.task(name="t.again", acks_late=True, reject_on_worker_lost=True, shared=False)
    def again():
        return "x"

    bench = Bench(app)
    flight = bench.receive(again, "1", tag="old")
    bench.begin(flight)
    bench.dispatcher.detach()
    bench.lose(flight)
    bench.source = ListSource()
    bench.dispatcher.attach(bench.source)
    bench.receive(again, "1", tag="new", redelivered=True)

    assert bench.app.backend.get_state("1") == states.PENDING
    assert bench.source.requeued == ["new"]


# -- tasks that handle their own messages


def test_messages_of_a_task_with_its_own_strategy_fill_the_window(app, early):
    bench = Bench(app, prefetch=2)
    kept = []
    bench.owner.handlers["t.early"] = kept.append
    bench.source.queue = [bench.delivery(early, str(number)) for number in range(5)]
    for _ in range(3):
        bench.dispatcher.stir()
        bench.dispatcher.turn()
    assert len(kept) == 2
    kept[0].ack()
    bench.dispatcher.turn()

    assert (len(kept), bench.source.acked) == (3, ["tag-0"])


def test_the_window_is_open_again_after_a_lost_connection(app, early):
    bench = Bench(app, prefetch=2)
    kept = []
    bench.owner.handlers["t.early"] = kept.append
    bench.dispatcher.receive([bench.delivery(early, str(number)) for number in range(2)])
    bench.reconnect()
    kept[0].ack()

    assert (bench.dispatcher.credit.available, bench.source.acked) == (2, [])


# -- without a hub, and where tasks run in the loop itself


class Runner:
    """Runs jobs that do nothing."""

    unsent = False

    def __init__(self, during=None):
        self.during = during
        self.ran = []

    def prepare(self):
        pass

    def flush(self):
        pass

    def finish(self):
        pass

    def __call__(self, job, begin):
        begin()
        self.ran.append(job.task)
        if self.during:
            self.during()
        return Ended(job.seq, ("SUCCESS", "'x'", 1.0, None, False))


@pytest.fixture
def solo(app):
    pools = []

    def make(during=None):
        pool = SoloPool(1, app=app)
        runner = Runner(during)
        bench = Bench(app, pool=pool)
        pool.bind(runner, bench.dispatcher.on_reports)
        pool.start()
        pools.append(pool)
        return bench, runner

    yield make
    for pool in pools:
        pool.stop()


def test_a_loop_without_a_hub_runs_a_task_before_its_window_is_full(solo, early):
    bench, runner = solo()
    bench.source.queue = [bench.delivery(early, "1")]
    for _ in range(3):
        bench.dispatcher.wait(0.0)

    assert runner.ran == ["t.early"]


def test_a_task_in_the_loops_own_thread_is_acknowledged_at_the_broker_before_its_body_runs(solo, early):
    seen = []
    bench, runner = solo(lambda: seen.append((list(bench.source.acked), bench.source.flushes)))
    bench.receive(early, "1", tag="one")
    before = bench.source.flushes
    bench.pool.wait(0.0)

    assert seen == [(["one"], before + 1)]


def test_a_failing_result_store_does_not_end_the_worker(bench, early, caplog, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("the store is away")

    flight = bench.receive(early, "1")
    bench.begin(flight)
    monkeypatch.setattr(bench.app.backend, "store_result", refuse)
    with caplog.at_level(logging.ERROR):
        bench.lose(flight)

    assert is_clean(bench)
    assert "could not be stored" in caplog.text


def test_a_task_over_its_hard_limit_has_its_failure_hooks_called(bench, app):
    called = []

    class Hooked(app.Task):
        def on_failure(self, exc, task_id, args, kwargs, einfo):
            called.append(("on_failure", task_id, type(exc)))

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            called.append(("after_return", task_id, status))

    @app.task(name="t.hooked", base=Hooked, acks_late=True, acks_on_timeout=False, shared=False)
    def hooked():
        return "x"

    flight = bench.receive(hooked, "1", tag="one")
    bench.begin(flight)
    bench.tell(Overtime(flight.seq, False, 3.0))

    assert called == [("on_failure", "1", TimeLimitExceeded), ("after_return", "1", states.FAILURE)]
    assert bench.source.requeued == ["one"]


@pytest.mark.parametrize(
    ("retries", "state"), [(0, states.RETRY), (3, states.FAILURE)], ids=["one is left", "none is left"]
)
def test_a_lost_task_is_tried_again_before_its_message_goes_back(bench, app, retries, state):
    @app.task(name="t.stubborn", acks_late=True, reject_on_worker_lost=True, retry_on_worker_lost=True, shared=False)
    def stubborn():
        return "x"

    flight = bench.receive(stubborn, "1", tag="one", retries=retries)
    bench.begin(flight)
    bench.lose(flight)

    assert (bench.source.acked, bench.source.requeued) == (["one"], [])
    assert app.backend.get_state("1") == state


def test_a_message_that_kills_its_readers_fails_as_a_lost_worker_and_is_kept(bench, late):
    flight = bench.receive(late, "1", tag="deadly")
    bench.refuse(flight, "crashed")

    assert isinstance(bench.app.backend.get_result("1"), WorkerLostError)
    assert (bench.source.buried, bench.source.requeued) == (["deadly"], [])


# -- the window


@pytest.mark.parametrize("prefetch", [4, 0], ids=["bounded", "unbounded"])
def test_no_more_than_was_set_is_held_while_tasks_wait_for_their_time(app, early, prefetch):
    app.conf.worker_eta_task_limit = 3
    bench = Bench(app, prefetch=prefetch)
    later = datetime.fromtimestamp(bench.now + 60, timezone.utc).isoformat()
    for _ in range(10):
        bench.source.queue.append(bench.delivery(early, eta=later))
        bench.dispatcher.stir()
        bench.dispatcher.turn()

    assert (len(bench.dispatcher.flights), len(bench.source.queue)) == (3, 7)
    bench.now += 61
    for flight in [*bench.dispatcher.flights.values()]:
        bench.dispatcher._due(flight)
        bench.end(flight)
    assert bench.dispatcher.credit.available > 0


@pytest.mark.parametrize(("reduces", "room"), [(True, 2), (False, 4)])
def test_what_runs_since_before_a_lost_connection_narrows_the_window(app, late, caplog, reduces, room):
    app.conf.worker_enable_prefetch_count_reduction = reduces
    bench = Bench(app, prefetch=4)
    flights = [bench.receive(late) for _ in range(2)]
    for flight in flights:
        bench.begin(flight)
    with caplog.at_level(logging.INFO):
        bench.reconnect()

    assert bench.dispatcher.credit.available == room
    assert ("Temporarily reducing the prefetch count to 2" in caplog.text) == reduces
    for flight in flights:
        bench.end(flight)
    assert bench.dispatcher.credit.available == 4
    assert is_clean(bench) and not bench.dispatcher.uncounted


# -- tasks that kill


@pytest.fixture
def deadly(app):
    @app.task(name="t.deadly", acks_late=True, reject_on_worker_lost=True, shared=False)
    def deadly():
        return "x"

    return deadly


def test_a_lost_task_goes_back_with_the_number_of_its_losses(bench, deadly):
    flight = bench.receive(deadly, "1", losses=2)
    bench.begin(flight)
    bench.lose(flight)

    assert bench.source.put_back_with == {"tag-1": 3}
    assert (bench.source.acked, bench.source.requeued, bench.source.buried) == ([], [], [])
    assert is_clean(bench)


def test_a_task_whose_process_was_lost_too_often_has_failed_and_is_kept(bench, app, deadly):
    flight = bench.receive(deadly, "1", losses=19)
    bench.begin(flight)
    bench.lose(flight)

    assert (bench.source.buried, bench.source.put_back_with) == (["tag-1"], {})
    assert app.AsyncResult("1").state == states.FAILURE
    assert is_clean(bench)


def test_a_task_that_killed_too_many_workers_is_not_run_again(bench, app, deadly):
    assert bench.receive(deadly, "1", losses=20, redelivered=True) is None

    assert (bench.submitted, bench.source.buried) == ([], ["tag-1"])
    assert isinstance(app.AsyncResult("1").result, WorkerLostError)
    assert is_clean(bench)


def test_that_a_task_given_out_again_may_be_lost_with_its_worker_is_noted_before_it_runs(bench, deadly):
    first, again = bench.receive(deadly, "1"), bench.receive(deadly, "2", losses=4, redelivered=True)
    bench.begin(first)
    bench.begin(again)

    assert bench.source.noted == {"tag-2": 5}
    assert bench.source.flushes > 0


def test_without_a_bound_a_task_comes_back_for_ever(app, deadly):
    app.conf.task_max_losses = None
    bench = Bench(app)
    flight = bench.receive(deadly, "1", losses=1000, redelivered=True)
    bench.begin(flight)
    bench.lose(flight)

    assert (bench.source.requeued, bench.source.buried, bench.source.noted) == (["tag-1"], [], {})


def test_where_messages_cannot_be_changed_another_is_sent_in_place_of_a_lost_one(bench, app, deadly):
    bench.source.rewrites = False
    flight = bench.receive(deadly, "1", losses=1)
    bench.begin(flight)
    bench.lose(flight)

    assert (bench.source.acked, bench.source.requeued) == (["tag-1"], [])
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("celery")
    assert message.headers["losses"] == 2
    assert message.headers["id"] == "1"
    assert is_clean(bench)
