"""What a monitor knows after a stream of events."""

from __future__ import annotations

import io
import itertools
import pickle
import random
from datetime import datetime, timezone
from decimal import Decimal
from time import time
from types import SimpleNamespace

import pytest

from celery_clone import Celery, states
from celery_clone.events.dumper import Dumper, humanize_type
from celery_clone.events.snapshot import Polaroid
from celery_clone.events.state import State, Task, Worker, heartbeat_expires, warn_of_drift


@pytest.fixture
def clock():
    """A logical clock."""
    return itertools.count(1)


@pytest.fixture
def told(clock):
    """``told(state, "task-sent", ...)``: an event that has just come."""

    def told(state, type, at=None, hostname="one@here", **fields):
        at = time() if at is None else at
        given = {
            "type": type,
            "hostname": hostname,
            "timestamp": at,
            "local_received": at,
            "clock": next(clock),
            "pid": 7,
            "utcoffset": 0,
        }
        return state.event({**given, **fields})

    return told


# -- workers


def test_a_worker_is_online_while_it_is_heard_of(told):
    state = State()

    (worker, created), subject = told(state, "worker-online", freq=2, sw_ident="py-celery", active=0)
    assert created and subject == "online" and worker.alive and worker.status_string == "ONLINE"
    assert (worker.hostname, worker.pid, worker.sw_ident, worker.id) == (
        "one@here",
        7,
        "py-celery",
        "one@here.7",
    )
    (same, created), _ = told(state, "worker-heartbeat", freq=2, active=3, processed=9)
    assert same is worker and not created and (worker.active, worker.processed) == (3, 9)
    assert [*state.alive_workers()] == [worker]

    told(state, "worker-offline")
    assert not worker.alive and worker.heartbeats == [] and [*state.alive_workers()] == []


def test_a_worker_that_was_silent_for_too_long_is_offline(told):
    state = State()
    (worker, _), _ = told(state, "worker-online", at=time() - 100, freq=60)
    assert worker.alive
    (worker, _), _ = told(state, "worker-online", at=time() - 130, hostname="two@here", freq=60)
    assert not worker.alive and worker.status_string == "OFFLINE"
    assert heartbeat_expires(10, 60) == 130 and heartbeat_expires(10, 60, 100) == 70
    assert heartbeat_expires(Decimal(10), Decimal(60)) == 130


def test_the_last_heartbeats_are_kept_in_order():
    worker = Worker("one@here")

    for at in (5, 3, 4, 6, 9, 8, 7):
        worker.event("heartbeat", at, at, {})

    assert worker.heartbeats == [6, 7, 8, 9]
    worker.event("heartbeat", None, None, {"freq": 11})
    assert worker.freq == 11 and worker.heartbeats == [6, 7, 8, 9]


def test_clocks_out_of_step_are_noted_once(caplog):
    warn_of_drift.clear()
    worker = Worker("drifting@here")

    for _ in range(3):
        worker.event("heartbeat", 1000.0, 1030.0, {})

    assert caplog.text.count("Substantial drift from drifting@here") == 1


def test_joining_and_leaving_is_told(told):
    came, left = [], []
    state = State(on_node_join=came.append, on_node_leave=left.append)

    told(state, "worker-heartbeat")
    told(state, "worker-heartbeat")
    told(state, "worker-online")
    told(state, "worker-offline", hostname="never@seen")
    told(state, "worker-offline")

    assert [worker.hostname for worker in came] == ["one@here", "one@here"]
    assert [worker.hostname for worker in left] == ["never@seen", "one@here"]
    assert "one@here" not in state.workers


def test_events_that_lack_something_are_passed_over():
    state = State()

    assert state.event({"type": "worker-heartbeat", "hostname": "h"}) is None
    assert state.event({"type": "custom-thing"}) is None
    state.handlers["custom"] = lambda subject, event: event["value"]
    assert state.event({"type": "custom-thing", "value": 3}) == (3, "thing")
    assert state.event_count == 3 and len(state.workers) == 0


def test_workers_are_made_by_name_and_changed():
    state = State()

    worker, created = state.get_or_create_worker("one@here", pid=1)
    again, created_again = state.get_or_create_worker("one@here", pid=2)

    assert created and not created_again and worker is again and worker.pid == 2
    assert state.get_or_create_task("1")[1] and not state.get_or_create_task("1")[1]
    assert worker == Worker("one@here") and worker != Worker("two@here") and worker != "one@here"
    assert len({worker, Worker("one@here")}) == 1
    assert repr(worker).startswith("<Worker: one@here (OFFLINE")


# -- tasks


def test_a_task_goes_its_way(told):
    state = State()

    (task, created), _ = told(state, "task-sent", uuid="1", name="add", args="(1,)", hostname="client", at=1)
    assert created and (task.state, task.client, task.worker, task.origin) == (
        states.PENDING,
        "client",
        None,
        "client",
    )
    told(state, "task-received", uuid="1", name="add", args="(1,)", at=2)
    assert (task.state, task.worker.hostname, task.origin) == (states.RECEIVED, "one@here", "one@here.7")
    told(state, "task-started", uuid="1", at=3)
    assert task.state == states.STARTED and not task.ready
    told(state, "task-succeeded", uuid="1", result="3", runtime=0.5, at=4)

    assert task.ready and (task.state, task.result, task.runtime) == (states.SUCCESS, "3", 0.5)
    assert (task.sent, task.received, task.started, task.succeeded, task.timestamp) == (1, 2, 3, 4, 4)
    assert task.info() == {"args": "(1,)", "result": "3", "runtime": 0.5}
    assert task.info(["name"], ["state"]) == {"name": "add", "state": "SUCCESS"}
    assert (state.task_count, state.event_count, state.task_types()) == (1, 4, ["add"])
    assert set(state.tasks_by_type["add"]) == set(state.tasks_by_worker["one@here"]) == {task}
    assert repr(task) == f"<Task: add(1) SUCCESS clock:{task.clock}>" and task.id == "1"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("failed", states.FAILURE),
        ("retried", states.RETRY),
        ("revoked", states.REVOKED),
        ("rejected", states.REJECTED),
        ("progress", "PROGRESS"),
    ],
)
def test_a_task_ends_in_other_ways_too(told, kind, expected):
    state = State()
    told(state, "task-received", uuid="1", name="add")
    (task, _), _ = told(state, f"task-{kind}", uuid="1")
    assert task.state == (expected if expected != states.REJECTED else states.RECEIVED)


EVENTS = (
    ("task-received", {"name": "add", "args": "(1,)"}),
    ("task-started", {}),
    ("task-succeeded", {"result": "3"}),
)


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))], ids=str)
def test_the_order_of_arrival_does_not_matter(told, order):
    state = State()

    for number in order:
        type, fields = EVENTS[number]
        told(state, type, uuid="1", at=number + 1.0, **fields)

    task = state.tasks["1"]
    assert (task.state, task.name, task.args, task.result) == (states.SUCCESS, "add", "(1,)", "3")
    assert (task.received, task.started, task.succeeded) == (1.0, 2.0, 3.0)


def test_a_retried_task_begins_anew(told):
    state = State()

    for type in ("received", "started", "retried", "received", "started"):
        told(state, f"task-{type}", uuid="1", name="add")

    assert state.tasks["1"].state == states.STARTED


def test_the_event_itself_is_left_as_it_was(told):
    event = {
        "type": "task-received",
        "uuid": "1",
        "hostname": "h",
        "timestamp": 1.0,
        "local_received": 1.0,
        "clock": 1,
    }
    before = dict(event)

    State().event(event)

    assert event == before


def test_families_of_tasks_are_known_in_any_order(told):
    state = State()

    told(state, "task-received", uuid="child", name="c", root_id="root", parent_id="root")
    assert state.tasks["child"].parent is None and state.tasks["child"].root is None
    told(state, "task-received", uuid="root", name="r", root_id="root", parent_id=None)
    told(state, "task-received", uuid="other", name="c", root_id="root", parent_id="root")

    root = state.tasks["root"]
    assert {task.id for task in root.children} == {"child", "other"}
    assert state.tasks["child"].parent is root and state.tasks["child"].root is root
    assert sorted(root.as_dict()["children"]) == ["child", "other"]
    assert state.tasks["child"].as_dict()["parent"] == "root"


def test_tasks_are_given_by_time(told):
    state = State()
    for number in range(4):
        told(state, "task-received", uuid=str(number), name=f"n{number % 2}", hostname=f"w{number // 2}")
    told(state, "task-succeeded", uuid="0", hostname="w0")

    assert [uuid for uuid, _ in state.tasks_by_time()] == ["0", "3", "2", "1"]
    assert [uuid for uuid, _ in state.tasks_by_timestamp(reverse=False)] == ["0", "1", "2", "3"]
    assert [uuid for uuid, _ in state.tasks_by_time(limit=2)] == ["0", "3"]
    assert [uuid for uuid, _ in state.tasks_by_type("n1")] == ["3", "1"]
    assert [uuid for uuid, _ in state.tasks_by_worker("w0", limit=1)] == ["0"]
    assert [uuid for uuid, _ in state.itertasks(limit=2)] == ["0", "1"]
    assert len([*state.itertasks()]) == 4


def test_the_line_is_ordered_by_clock_however_events_come(told):
    state = State()
    clocks = list(range(1, 201))
    random.Random(7).shuffle(clocks)

    for number in clocks:
        told(state, "task-received", uuid=str(number), name="n", clock=number, at=1.0)

    assert [uuid for uuid, _ in state.tasks_by_time(reverse=False)] == [str(number) for number in range(1, 201)]
    state.rebuild_taskheap()
    assert [uuid for uuid, _ in state.tasks_by_time(reverse=False)] == [str(number) for number in range(1, 201)]


def test_only_so_much_is_kept(told):
    state = State(max_tasks_in_memory=10, max_workers_in_memory=3)

    for number in range(100):
        told(state, "task-received", uuid=str(number), name="n", hostname=f"w{number}")

    assert [*state.tasks] == [str(number) for number in range(90, 100)]
    assert len(state.workers) == 3 and len(state._taskheap) <= 40
    assert len(state.tasks_by_type["n"]) == 10


def test_a_state_forgets_what_it_is_told_to(told):
    state = State()
    told(state, "task-received", uuid="open", name="n")
    told(state, "task-succeeded", uuid="done", name="n")

    state.clear_tasks()
    assert [*state.tasks] == ["open"]
    state.clear_tasks(ready=False)
    assert [*state.tasks] == [] and len(state.workers) == 1
    told(state, "task-received", uuid="open", name="n")
    state.clear()
    assert [*state.tasks] == ["open"] and len(state.workers) == state.event_count == 0
    assert state.freeze_while(lambda: len(state.tasks), clear_after=True) == 1


def test_a_state_is_pickled_with_everything_it_knows(told):
    state = State(max_tasks_in_memory=50)
    told(state, "task-received", uuid="root", name="r", root_id="root", parent_id=None)
    told(state, "task-succeeded", uuid="child", name="c", root_id="root", parent_id="root", result="1")

    copy = pickle.loads(pickle.dumps(state))

    assert [*copy.tasks] == ["root", "child"] and copy.max_tasks_in_memory == 50
    assert copy.tasks["child"].result == "1" and copy.tasks["child"].parent is copy.tasks["root"]
    assert set(copy.tasks["root"].children) == {copy.tasks["child"]}
    assert copy.workers["one@here"].alive and set(copy.tasks_by_type["c"]) == {copy.tasks["child"]}
    told(copy, "task-succeeded", uuid="root")
    assert copy.tasks["root"].ready and repr(copy).startswith("<State: events=1")
    assert pickle.loads(pickle.dumps(Task("1", name="n"))).name == "n"


def test_the_callback_sees_each_event_before_it_is_taken_in(told):
    seen = []
    state = State(callback=lambda state, event: seen.append((event["type"], len(state.tasks))))

    told(state, "task-received", uuid="1", name="n")
    told(state, "worker-online")

    assert seen == [("task-received", 0), ("worker-online", 1)]


def test_older_names_still_work():
    state = State()
    fields = {"hostname": "h", "timestamp": 1.0, "local_received": 1.0, "clock": 1}

    assert state.task_event("received", {**fields, "uuid": "1"})[0].id == "1"
    assert state.worker_event("online", fields)[0].hostname == "h"


# -- printing and pictures


def test_events_are_printed_one_a_line():
    out = io.StringIO()
    dumper = Dumper(out)
    at = datetime(2026, 3, 4, 12, tzinfo=timezone.utc).timestamp()
    base = {"hostname": "one@here", "timestamp": at}

    dumper.on_event({**base, "type": "worker-online", "freq": 2, "active": 0})
    dumper.on_event({**base, "type": "task-received", "uuid": "1", "name": "add", "args": "(1,)", "kwargs": "{}"})
    dumper.on_event({**base, "type": "task-succeeded", "uuid": "1", "result": "3"})
    dumper.on_event({**base, "type": "task-started", "uuid": "unknown"})

    when = "one@here [2026-03-04 12:00:00+00:00]"
    assert out.getvalue().splitlines() == [
        f"{when} started: active=0, freq=2",
        f"{when} task received: add(1) args=(1,) kwargs={{}} ",
        f"{when} task succeeded: add(1) args=(1,) kwargs={{}} result=3",
        f"{when} task started: (unknown) ",
    ]
    assert humanize_type("worker-heartbeat") == "heartbeat" and humanize_type("TASK-sent") == "task sent"


class Timer:
    """Calls when the test says so."""

    def __init__(self):
        self.calls = []

    def call_repeatedly(self, seconds, call):
        entry = SimpleNamespace(seconds=seconds, call=call, cancelled=False)
        self.calls.append(entry)

        class Entry:
            def __call__(self):
                entry.call()

            def cancel(self):
                entry.cancelled = True

        return Entry()


class Camera(Polaroid):
    """Keeps its pictures."""

    clear_after = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pictures, self.cleaned = [], 0

    def on_shutter(self, state):
        self.pictures.append(state.event_count)

    def on_cleanup(self):
        self.cleaned += 1


def test_a_camera_takes_pictures_of_a_state_that_stands_still(told):
    app = Celery("camera", broker="memory://", set_as_current=False)
    state, timer, signalled = State(), Timer(), []
    told(state, "worker-online")

    def on_picture(sender, **kwargs):
        signalled.append(sender)

    Camera.shutter_signal.connect(on_picture)
    with Camera(state, freq=3, timer=timer, app=app, cleanup_freq=7) as camera:
        take, clean = timer.calls
        assert (take.seconds, clean.seconds) == (3, 7)
        take.call()
        take.call()
        clean.call()
    Camera.shutter_signal.disconnect(on_picture)

    assert camera.pictures == [1, 0, 0] and camera.cleaned == 1 and signalled == [state] * 3
    assert take.cancelled and clean.cancelled
    camera.cancel()


def test_a_camera_takes_no_more_pictures_than_it_may():
    app = Celery("camera", broker="memory://", set_as_current=False)
    camera = Camera(State(), maxrate="1/h", timer=Timer(), app=app)

    for _ in range(3):
        camera.capture()

    assert len(camera.pictures) == 1
