"""Remote commands against a worker that runs, on every broker that can carry them."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from functools import partial
from types import SimpleNamespace

import pytest
from kombu import Consumer

from celery_clone import Celery
from celery_clone.exceptions import TaskRevokedError
from celery_clone.worker.pidbox import Janitor
from tests.support.brokers import EACH, open_arena, start_server
from tests.support.processes import cpu_seconds, is_alive
from tests.support.wait import wait_until

PROJECT = """
import os, time
from celery_clone import Celery
from celery_clone.worker.control import control_command, inspect_command

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
app.conf.worker_prefetch_multiplier = int(os.environ.get("MULTIPLIER", "4"))

@app.task(shared=False)
def add(x, y):
    return x + y

@app.task(shared=False)
def nap(seconds, label=None):
    time.sleep(seconds)
    return label

@app.task(shared=False)
def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)

@app.task(shared=False)
def limits():
    from celery_clone import current_task
    return current_task.request.hostname

@inspect_command()
def where_am_i(state):
    return {"node": state.hostname, "held": len(list(state.tset([])))}

@inspect_command()
def not_json(state):
    return {"when": object}

@control_command()
def blow_up(state, how="ValueError"):
    raise ValueError("as asked")
"""


@pytest.fixture(scope="module", params=EACH)
def served(request):
    """The name of each broker, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return request.param


@pytest.fixture
def broker(request, served, tmp_path):
    with open_arena(served, request.getfixturevalue, tmp_path) as arena:
        yield arena.url


@pytest.fixture
def make_world(tmp_path, start_worker):
    """``make_world(broker)``: a project with its client app, and ``worker(*options)`` to start a worker of it."""
    (tmp_path / "project.py").write_text(PROJECT)
    results = f"sqlite:///{tmp_path}/results.db"
    apps = []

    def make_world(broker):
        app = Celery("client", broker=broker, backend=results, set_as_current=False)
        apps.append(app)

        def worker(*options, name="one@here", **environment):
            environment = {"BROKER": broker, "RESULTS": results, **environment}
            return start_worker("project", "-c", "2", "-n", name, *options, environment=environment)

        def send(task, *args, **options):
            return app.send_task(f"project.{task}", args, **options)

        def ask(command, *args, node="one@here", **kwargs):
            inspect = app.control.inspect(destination=[node], timeout=10)
            return getattr(inspect, command)(*args, **kwargs)[node]

        def tell(command, node="one@here", **arguments):
            reply = app.control.broadcast(command, arguments, destination=[node], reply=True, timeout=10)
            return reply[0][node]

        return SimpleNamespace(app=app, control=app.control, worker=worker, send=send, ask=ask, tell=tell)

    yield make_world
    for app in apps:
        app.close()


@pytest.fixture
def world(broker, make_world):
    return make_world(broker)


def ids(found):
    return {each["id"] for each in found}


def test_a_question_to_all_is_over_with_the_last_answer(world, served):
    begin = time.monotonic()
    if served != "amqp":  # which does not say that nobody heard it
        assert world.control.inspect(timeout=60).ping() is None
    world.worker()
    world.worker("-P", "solo", name="two@here")
    if served == "amqp":
        # The workers say how many they are, once they have had time to hear of each other.
        wait_until(lambda: took(lambda: world.control.ping(timeout=5)) < 5, 30, "workers that know of each other")

    answers = world.control.inspect(timeout=60).ping()

    assert sorted(answers) == ["one@here", "two@here"]
    assert time.monotonic() - begin < 60


def took(call):
    """Seconds."""
    begin = time.monotonic()
    call()
    return time.monotonic() - begin


def test_a_worker_whose_loop_runs_a_task_answers_and_obeys_after_it(world, tmp_path):
    gate = tmp_path / "gate"
    world.worker("-P", "solo")
    running = world.send("wait_for", str(gate))
    wait_until(lambda: ids(world.ask("active")) == {running.id}, describe="the task to run")

    assert world.ask("ping") == {"ok": "pong"}
    assert world.ask("stats")["pool"]["max-concurrency"] == 1
    world.control.add_consumer("more")
    gate.touch()

    assert running.get(timeout=10) is None
    wait_until(lambda: {queue["name"] for queue in world.ask("active_queues")} == {"celery", "more"})


def test_a_worker_says_what_it_is_and_does(world):
    worker = world.worker()
    running = world.send("nap", 60, "x")
    wait_until(
        lambda: [each["id"] for each in world.ask("active") if each["acknowledged"]] == [running.id],
        describe="the task to run",
    )

    (shown,) = world.ask("active")
    assert (shown["name"], shown["args"], shown["kwargs"]) == ("project.nap", [60, "x"], {})
    assert shown["hostname"] == "one@here" and shown["acknowledged"] is True
    assert shown["worker_pid"] in worker.children()
    assert 0 <= time.time() - shown["time_start"] < 30
    assert shown["delivery_info"]["routing_key"] == "celery"
    assert world.ask("active", safe=True)[0]["args"] == "(60, 'x')"
    where, same = world.ask("query_task", running.id)[running.id]
    assert where == "active" and same["id"] == running.id
    assert world.ask("query_task", "nobody") == {}

    stats = world.ask("stats")
    assert stats["pid"] == worker.pid and stats["total"] == {"project.nap": 1}
    assert sorted(stats["pool"]["processes"]) == sorted(worker.children())
    assert stats["pool"]["max-concurrency"] == 2 and stats["broker"]["transport"]
    assert stats["health"] == {"live": True, "ready": True, "reason": "the worker consumes"}
    assert "project.add" in world.ask("registered")
    assert not any(name.startswith("celery.") for name in world.ask("registered"))
    (queue,) = world.ask("active_queues")
    assert (queue["name"], queue["exchange"]["type"]) == ("celery", "direct")
    assert world.ask("conf")["worker_prefetch_multiplier"] == 4
    assert "celery_clone" not in world.ask("report")["ok"].split("loader")[0]
    assert world.ask("ping") == {"ok": "pong"}
    assert world.ask("clock")["clock"] > 0
    assert world.ask("memdump").startswith("- rss")
    world.control.revoke(running.id, terminate=True, signal="SIGKILL")
    wait_until(lambda: world.ask("active") == [], describe="nothing to run")


def test_only_the_nodes_meant_answer(world):
    world.worker()
    world.worker(name="two@here")

    every = world.control.inspect(timeout=10, limit=2).ping()
    assert sorted(every) == ["one@here", "two@here"]
    assert list(world.control.inspect(destination=["two@here"], timeout=10).ping()) == ["two@here"]
    assert list(world.control.inspect(pattern="tw*", timeout=10, limit=1).ping()) == ["two@here"]


def test_a_task_that_waits_is_discarded_when_it_is_revoked(world):
    worker = world.worker("-c", "1")
    busy = world.send("nap", 60)
    wait_until(lambda: ids(world.ask("active")) == {busy.id}, describe="the first task to run")
    waiting = [world.send("nap", 0, str(number)) for number in range(3)]
    wait_until(lambda: ids(world.ask("reserved")) == {each.id for each in waiting}, describe="the others to wait")

    assert "flagged as revoked" in world.tell("revoke", task_id=[waiting[1].id])["ok"]
    assert world.ask("revoked") == [waiting[1].id]
    with pytest.raises(TaskRevokedError):
        waiting[1].get(timeout=10)
    assert world.tell("revoke", task_id=busy.id, terminate=True, signal="SIGKILL") == {"ok": f"terminate: {busy.id}"}

    assert [waiting[0].get(timeout=10), waiting[2].get(timeout=10)] == ["0", "2"]
    with pytest.raises(TaskRevokedError, match="terminated"):
        busy.get(timeout=10)
    assert worker.log().count("Discarding revoked task") == 1
    assert world.tell("terminate", task_id="nobody", signal="TERM") == {"ok": "terminate: tasks unknown"}


def test_tasks_are_revoked_by_the_stamps_they_carry(world):
    world.worker("-c", "1")
    busy = world.send("nap", 60)
    wait_until(lambda: ids(world.ask("active")) == {busy.id}, describe="the first task to run")
    stamped = {"headers": {"stamped_headers": ["tenant"], "stamps": {"tenant": ["blue"]}}}
    marked = world.send("nap", 0, "marked", **stamped)
    plain = world.send("nap", 0, "plain")
    wait_until(lambda: len(world.ask("reserved")) == 2, describe="two tasks to wait")

    told = world.tell("revoke_by_stamped_headers", headers={"tenant": "blue"})
    assert told["ok"].endswith("flagged as revoked, but not terminated")
    told = world.tell("revoke_by_stamped_headers", headers=["tenant=red"], terminate=True)
    assert told["ok"].endswith("were not terminated")
    later = world.send("nap", 0, "later", **stamped)
    world.tell("revoke", task_id=busy.id, terminate=True, signal="SIGKILL")

    assert plain.get(timeout=10) == "plain"
    for each in (marked, later):
        with pytest.raises(TaskRevokedError):
            each.get(timeout=10)


def test_limits_are_changed_while_the_worker_runs(world):
    world.worker()

    assert world.tell("rate_limit", task_name="project.add", rate_limit="1/h") == {
        "ok": "new rate limit set successfully"
    }
    first, second = world.send("add", 1, 1), world.send("add", 2, 2)
    assert first.get(timeout=10) == 2
    wait_until(lambda: ids(world.ask("reserved")) == {second.id}, describe="the second to wait")
    assert "rate_limit=1/h" in next(name for name in world.ask("registered") if "add" in name)
    assert world.tell("rate_limit", task_name="project.add", rate_limit=0) == {"ok": "rate limit disabled successfully"}
    assert second.get(timeout=10) == 4
    assert "Invalid rate limit string" in world.tell("rate_limit", task_name="project.add", rate_limit="fast")["error"]
    assert world.tell("rate_limit", task_name="project.ad", rate_limit=1) == {"error": "unknown task"}

    assert world.tell("time_limit", task_name="project.nap", hard=1) == {"ok": "time limits set successfully"}
    with pytest.raises(Exception, match="TimeLimitExceeded"):
        world.send("nap", 60).get(timeout=10)
    assert world.tell("time_limit", task_name="nobody", hard=1) == {"error": "unknown task"}


def test_the_pool_grows_and_shrinks(world):
    worker = world.worker()

    assert world.tell("pool_grow", n=2) == {"ok": "pool will grow"}
    worker.wait_for_children(4)
    assert world.tell("pool_shrink", n=3) == {"ok": "pool will shrink"}
    worker.wait_for_children(1)
    assert world.send("add", 1, 2).get(timeout=10) == 3
    assert "Autoscale not enabled" in world.tell("autoscale", max=4, min=1)["error"]
    assert "Pool restarts not enabled" in world.tell("pool_restart")["error"]


def test_queues_are_added_and_given_up(world):
    worker = world.worker()

    assert world.tell("add_consumer", queue="more") == {"ok": "add consumer more"}
    worker.wait_for_log("Started consuming from more")
    assert {queue["name"] for queue in world.ask("active_queues")} == {"celery", "more"}
    assert world.send("add", 1, 2, queue="more").get(timeout=10) == 3

    assert world.tell("cancel_consumer", queue="more") == {"ok": "no longer consuming from more"}
    wait_until(
        lambda: {queue["name"] for queue in world.ask("active_queues")} == {"celery"},
        describe="the queue to be given up",
    )
    left = world.send("add", 3, 4, queue="more")
    assert world.send("add", 1, 2).get(timeout=10) == 3
    world.tell("add_consumer", queue="more")
    assert left.get(timeout=10) == 7


def test_events_about_tasks_are_turned_on_and_off(world):
    world.worker()
    seen = []
    with world.app.connection_for_read() as connection, connection.channel() as channel:
        receiver = world.app.events.Receiver(channel, handlers={"task-succeeded": seen.append})
        (consumer,) = receiver.get_consumers(partial(Consumer, channel), channel)

        def hears_of_a_task():
            try:
                connection.drain_events(timeout=0.1)
            except TimeoutError:
                world.send("add", 1, 2)
            return bool(seen)

        with consumer:
            assert world.tell("enable_events") == {"ok": "task events enabled"}
            assert world.tell("enable_events") == {"ok": "task events already enabled"}
            wait_until(hears_of_a_task, describe="an event about a task")
            assert world.tell("disable_events") == {"ok": "task events disabled"}
            assert world.tell("disable_events") == {"ok": "task events already disabled"}


def test_a_project_has_commands_of_its_own_and_mistakes_are_answered(world):
    worker = world.worker()

    assert world.tell("where_am_i") == {"node": "one@here", "held": 0}
    assert world.tell("not_json") == {"when": "<class 'object'>"}
    assert world.tell("blow_up") == {"error": "ValueError('as asked')"}
    assert "Did you mean 'ping'?" in world.tell("pinng")["error"]
    assert "TypeError" in world.tell("rate_limit", wrong=1)["error"]
    assert world.tell("ping") == {"ok": "pong"}
    assert "Traceback" in worker.log()


def test_what_waits_for_its_time_is_shown_wherever_it_waits(world):
    world.worker("-Q", "celery")
    eta = datetime.now(timezone.utc) + timedelta(seconds=60)
    sent = [world.send("add", number, 1, eta=eta + timedelta(seconds=number)) for number in range(3)]
    world.send("add", 3, 1, eta=eta, queue="elsewhere")

    found = wait_until(
        lambda: rows if len(rows := world.ask("scheduled")) >= len(sent) else [], describe="three scheduled tasks"
    )

    assert {row["request"]["id"] for row in found} == {result.id for result in sent}
    assert {"eta", "priority", "request"} == {name for row in found for name in row}
    for row in found:
        number = row["request"]["args"][0]
        assert datetime.fromisoformat(row["eta"]) == eta + timedelta(seconds=number)
        assert row["request"]["name"] == "project.add" and row["request"]["hostname"] == "one@here"
        assert (row["priority"], row["request"]["acknowledged"], row["request"]["worker_pid"]) == (6, False, None)


@pytest.mark.rabbitmq
def test_no_more_than_was_set_wait_for_their_time_in_a_worker(rabbitmq_url, make_world):
    world = make_world(rabbitmq_url)
    world.worker("--", "worker_eta_task_limit=3")
    for _ in range(6):
        world.send("add", 1, 1, countdown=60)
    wait_until(lambda: len(world.ask("scheduled")) == 3, describe="three scheduled tasks")
    last = world.send("add", 1, 1)
    world.tell("ping")
    assert len(world.ask("scheduled")) == 3 and not last.ready()
    world.tell("revoke", task_id=[row["request"]["id"] for row in world.ask("scheduled")])


def test_shutdown_lets_running_tasks_end(world):
    worker = world.worker()
    running = world.send("nap", 1, "done")
    wait_until(lambda: ids(world.ask("active")) == {running.id}, describe="the task to run")

    world.control.shutdown(destination=["one@here"])

    assert worker.wait() == 0
    assert running.get(timeout=5) == "done"
    assert "Got shutdown from remote" in worker.log()


def test_two_workers_of_one_name_are_told_apart_by_one_warning_of_each(world, served):
    first = world.worker()
    second = world.worker()

    second.wait_for_log("Another worker on this broker is named one@here")
    if served != "sqlite":  # where workers do not look for each other at their start
        first.wait_for_log("Another worker named one@here has been started")
        second.wait_for_log("mingle: all alone")
    assert [worker.log().count("named one@here") for worker in (first, second)] == [served != "sqlite", 1]
    assert world.worker(name="other@here").log().count("Another worker on this broker") == 0


def test_a_worker_learns_at_its_start_what_others_know_as_revoked(redis_url, make_world):
    world = make_world(redis_url)
    world.worker()
    world.tell("revoke", task_id=["gone"])

    second = world.worker(name="two@here")

    second.wait_for_log("mingle: sync with 1 nodes")
    assert world.ask("revoked", node="two@here") == ["gone"]


def test_a_killed_worker_leaves_no_binding_behind(redis_url, make_world):
    redis = pytest.importorskip("redis").Redis.from_url(redis_url)
    world = make_world(redis_url)
    world.worker(name="dead@here").kill()
    assert any(b"dead@here" in each for each in redis.smembers("_kombu.binding.celery.pidbox"))

    world.worker(name="two@here")

    wait_until(
        lambda: not any(b"dead@here" in each for each in redis.smembers("_kombu.binding.celery.pidbox")),
        describe="the binding to be removed",
    )
    assert world.ask("ping", node="two@here") == {"ok": "pong"}
    redis.close()


def test_reply_queues_are_forgotten_when_their_client_waits_no_longer(redis_url):
    redis = pytest.importorskip("redis").Redis.from_url(redis_url)
    app = Celery("client", broker=redis_url, set_as_current=False)
    now = [1000.0]
    with app.connection_for_write() as connection:
        mailbox = app.control.mailbox
        channel = connection.channel()
        queues = [mailbox(connection).get_reply_queue()(channel)]
        queues[0].declare()
        key = queues[0].routing_key
        calls = []
        timer = SimpleNamespace(
            call_after=lambda delay, call: calls.append(call) or SimpleNamespace(cancel=bool),
            call_repeatedly=lambda delay, call: calls.append(call) or SimpleNamespace(cancel=bool),
        )
        consumer = SimpleNamespace(app=app, hub=object(), timer=timer, hostname="one@here", gossip=None)
        janitor = Janitor(consumer, mailbox, now=lambda: now[0])
        janitor.start(channel)
        begin, sweep = calls
        begin()
        janitor.note({"reply_to": {"routing_key": key}}, {"expires": 0})
        bound = lambda: key in [found for found, _, _ in channel.get_table("reply.celery.pidbox")]  # noqa: E731

        now[0] += Janitor.UNKNOWN_S
        sweep()
        assert bound()
        now[0] += Janitor.GRACE_S + 1
        sweep()
        assert not bound() and janitor.clients == {}
        janitor.stop()
        channel.close()
    app.close()
    redis.close()


def test_a_worker_with_nothing_to_do_needs_next_to_no_time(world):
    worker = world.worker()
    world.ask("ping")
    before, began = cpu_seconds(worker.tree()), time.monotonic()

    time.sleep(3)  # a measurement needs a duration

    used = (cpu_seconds(worker.tree()) - before) / (time.monotonic() - began)
    assert used < 0.02
    assert is_alive(worker.pid)
