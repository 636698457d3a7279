"""Remote control and gossip between this package and real Celery, in both directions."""

from __future__ import annotations

import pytest

from celery_clone import Celery
from tests.support.two_sides import Client
from tests.support.wait import wait_until

PROJECT = """
import os, time
from {package} import Celery

app = Celery("project", broker=os.environ["BROKER"])

@app.task(name="project.nap")
def nap(seconds):
    time.sleep(seconds)
"""

READ_ONLY = (
    "active",
    "active_queues",
    "clock",
    "conf",
    "ping",
    "registered",
    "report",
    "reserved",
    "revoked",
    "scheduled",
    "stats",
)


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request, redis_server, rabbitmq_server):
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def ours(tmp_path, broker, start_worker):
    """``ours(name)``: a worker of this package."""
    (tmp_path / "ours.py").write_text(PROJECT.format(package="celery_clone"))
    return lambda name: start_worker("ours", "-c", "1", "-n", name, environment={"BROKER": broker})


@pytest.fixture
def theirs(tmp_path, broker, start_worker, celery_python, client):
    """``theirs(name)``: a worker of real Celery, which hears commands a moment after it says that it is ready."""
    (tmp_path / "theirs.py").write_text(PROJECT.format(package="celery"))

    def theirs(name):
        environment = {"BROKER": broker, "PYTHONPATH": str(tmp_path)}
        worker = start_worker(
            "theirs", "-c", "1", "-n", name, environment=environment, python=celery_python, package="celery"
        )
        wait_until(lambda: client.control.ping([name], timeout=0.5), describe=f"an answer of {name}")
        return worker

    return theirs


@pytest.fixture
def real_ask(tmp_path, broker, celery_python):
    """``real_ask(node, command, **arguments)``: the answer as a client of real Celery gets it."""
    with Client(celery_python, "real", broker, "cache+memory://") as real:

        def real_ask(node, command, **arguments):
            answers = real(
                "app.control.broadcast(command, arguments, destination=[node], reply=True, timeout=10)",
                node=node,
                command=command,
                arguments=arguments,
            )
            logs = "\n\n".join(log.read_text() for log in tmp_path.glob("worker-*.out"))
            assert answers, f"{node} did not answer to {command}; the workers' logs:\n{logs}"
            return answers[0][node]

        yield real_ask


@pytest.fixture
def client(broker):
    app = Celery("client", broker=broker, set_as_current=False)
    yield app
    app.close()


def our_ask(client, node, command, **arguments):
    return client.control.broadcast(command, arguments, destination=[node], reply=True, timeout=10)[0][node]


def shape(value):
    """The types and keys of an answer, to the second level."""
    if isinstance(value, dict):
        return {key: type(inner).__name__ for key, inner in value.items()}
    if isinstance(value, list) and value:
        return [shape(value[0])]
    return type(value).__name__


def test_answers_of_both_workers_have_the_same_shape_for_both_clients(ours, theirs, real_ask, client):
    starts = {"ours": ours, "theirs": theirs}
    for who, start in starts.items():
        start(f"{who}@here")
        client.send_task("project.nap", (60,))
        wait_until(lambda who=who: our_ask(client, f"{who}@here", "active"), describe=f"{who} to run a task")
        # What is waiting here would not come to the other one.
        our_ask(client, f"{who}@here", "cancel_consumer", queue="celery")
        wait_until(
            lambda who=who: not our_ask(client, f"{who}@here", "active_queues"),
            describe=f"{who} to consume no more",
        )
    for who in ("ours", "theirs"):
        our_ask(client, f"{who}@here", "add_consumer", queue="celery")
        wait_until(lambda who=who: our_ask(client, f"{who}@here", "active_queues"), describe=f"{who} to consume again")

    for command in READ_ONLY:
        ours_says, theirs_says = (our_ask(client, f"{who}@here", command) for who in ("ours", "theirs"))
        if command in ("conf", "report", "revoked", "reserved", "scheduled"):
            assert type(ours_says) is type(theirs_says), command
        elif command == "stats":
            assert set(theirs_says) <= set(ours_says)
            for part in ("pool", "broker", "rusage"):
                assert shape(ours_says)[part] == shape(theirs_says)[part]
                assert set(theirs_says[part]) <= set(ours_says[part]), part
        else:
            assert shape(ours_says) == shape(theirs_says), command
        if command not in ("active", "clock", "stats"):
            assert real_ask("ours@here", command) == our_ask(client, "ours@here", command), command


def test_a_client_of_real_celery_controls_our_worker(ours, real_ask, client):
    worker = ours("ours@here")
    running = client.send_task("project.nap", (60,))
    wait_until(lambda: our_ask(client, "ours@here", "active"), describe="the task to run")

    assert real_ask("ours@here", "revoke", task_id=running.id, terminate=True, signal="SIGKILL") == {
        "ok": f"terminate: {running.id}"
    }
    wait_until(lambda: not our_ask(client, "ours@here", "active"), describe="the task to end")
    assert real_ask("ours@here", "rate_limit", task_name="project.nap", rate_limit="1/m") == {
        "ok": "new rate limit set successfully"
    }
    assert real_ask("ours@here", "pool_grow", n=1) == {"ok": "pool will grow"}
    worker.wait_for_children(2)


def test_we_control_a_worker_of_real_celery(theirs, client):
    theirs("theirs@here")

    assert our_ask(client, "theirs@here", "ping") == {"ok": "pong"}
    assert our_ask(client, "theirs@here", "revoke", task_id=["x"])["ok"].endswith("flagged as revoked")
    assert our_ask(client, "theirs@here", "revoked") == ["x"]


def test_workers_of_both_kinds_exchange_what_they_know_at_their_start(ours, theirs, client):
    first = ours("first@here")
    our_ask(client, "first@here", "revoke", task_id=["one"])
    second = theirs("second@here")
    assert our_ask(client, "second@here", "revoked") == ["one"]
    our_ask(client, "second@here", "revoke", task_id=["two"])

    third = ours("third@here")

    third.wait_for_log("mingle: sync with 2 nodes")
    assert sorted(our_ask(client, "third@here", "revoked")) == ["one", "two"]
    assert "sync with second@here" in first.log() and "sync with third@here" in second.log()


def test_two_workers_of_one_name_are_noticed_whichever_was_first(request, ours, theirs):
    first = theirs("same@here")
    second = ours("same@here")
    second.wait_for_log("Another worker on this broker is named same@here")
    if "rabbitmq" in request.node.name:
        return  # there the mailbox is exclusive, and the second worker of real Celery does not start
    first.stop()

    theirs("same@here")

    second.wait_for_log("Another worker named same@here has been started")
