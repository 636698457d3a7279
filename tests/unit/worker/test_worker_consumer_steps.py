"""Steps of the consumer as far as they need no broker: elections, settings of delayed delivery, agents."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_clone import Celery
from celery_clone.bootsteps import boot_order
from celery_clone.worker.consumer import Agent, Consumer, Gossip, Mingle
from celery_clone.worker.consumer import gossip as gossip_module
from celery_clone.worker.consumer.delayed_delivery import DelayedDelivery, broker_urls, checked_queue_type


def test_the_steps_start_in_their_order():
    steps = [step.name.rpartition(".")[2] for step in boot_order(_steps())]

    assert steps == [
        "Connection",
        "Events",
        "Mingle",
        "Gossip",
        "Heart",
        "Tasks",
        "Control",
        "DelayedDelivery",
        "Agent",
        "Evloop",
    ]


def _steps():
    from celery_clone.bootsteps import resolve_step

    return [resolve_step(step) for step in Consumer.Blueprint.default_steps]


class Timer:
    """Remembers what is to be called."""

    def __init__(self):
        self.calls = []

    def call_repeatedly(self, seconds, call):
        self.calls.append(call)
        return SimpleNamespace(cancel=lambda: self.calls.remove(call))


@pytest.fixture
def room():
    """``room(*names)``: workers that hear each other's events, each with its own clock."""

    def room(*names):
        workers = {}

        def hear(type, sender, fields):
            clock = sender.clock.forward()
            event = {**fields, "hostname": sender.hostname, "pid": 1, "clock": clock}
            return [(worker, type, event) for worker in workers.values()]

        post = []
        for name in names:
            app = Celery(name, broker="redis://", set_as_current=False)
            c = SimpleNamespace(app=app, hostname=name, pid=1, timer=Timer(), hub=None, event_dispatcher=None)
            worker = Gossip(c)
            worker.dispatcher = SimpleNamespace(
                send=lambda type, worker=worker, **fields: post.extend(hear(type, worker, fields))
            )
            worker.done = []
            worker.election_handlers["note"] = worker.done.append
            workers[name] = worker
        for worker in workers.values():
            for name in names:
                if name != worker.hostname:
                    worker.state.get_or_create_worker(name, heartbeats=[1e12])

        def deliver():
            while post:
                worker, type, event = post.pop(0)
                worker.event_handlers[type.replace("-", ".")](event)

        return workers, deliver

    return room


def winners(workers):
    return [name for name, worker in workers.items() if worker.done]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_exactly_one_worker_wins_an_election(room, number):
    names = [f"w{n}@here" for n in range(number)]
    workers, deliver = room(*names)

    for worker in workers.values():
        worker.election("e", "note", {"do": "it"})
    deliver()

    assert len(winners(workers)) == 1
    assert workers[winners(workers)[0]].done == [{"do": "it"}]
    assert not any(worker.consensus_replies for worker in workers.values())
    assert not any(worker.consensus_requests for worker in workers.values())


def test_a_worker_that_hears_of_the_election_late_does_not_win_it_too(room):
    workers, deliver = room("a@here", "b@here")

    workers["b@here"].clock.value = 50
    workers["b@here"].election("e", "note", 1)
    deliver()
    workers["a@here"].election("e", "note", 1)
    deliver()

    assert winners(workers) == ["b@here"]


def test_an_election_does_not_wait_for_the_dead(room):
    workers, deliver = room("a@here", "b@here")
    workers["a@here"].state.get_or_create_worker("dead@here", heartbeats=[1e12])

    for worker in workers.values():
        worker.election("e", "note", 1)
    deliver()
    assert winners(workers) == [] or winners(workers) == ["b@here"]
    workers["a@here"].state.workers["dead@here"].heartbeats.clear()
    workers["a@here"].periodic()

    assert winners(workers) == ["a@here"]


def test_elections_that_nobody_finishes_are_forgotten(room, monkeypatch):
    monkeypatch.setattr(gossip_module, "MOST_ELECTIONS", 3)
    workers, _ = room("a@here")
    worker = workers["a@here"]

    for number in range(10):
        worker.on_elect({"id": number, "clock": 1, "hostname": "h", "pid": 1, "topic": "t", "action": None, "cver": 1})

    assert [*worker.consensus_requests] == [7, 8, 9]


def test_elections_that_make_no_sense_are_logged(room, caplog):
    workers, deliver = room("a@here")
    worker = workers["a@here"]

    worker.on_elect({"id": 1})
    worker.on_elect_ack({"id": "unknown", "hostname": "b@here"})
    worker.election("e", "nobody knows", 1)
    deliver()

    assert "missing field clock, hostname, pid, topic, action, cver" in caplog.text
    assert "Unknown election topic 'nobody knows'; known are: task, note" in caplog.text


def test_who_comes_and_goes_is_told_to_those_who_asked(room, caplog):
    workers, _ = room("a@here")
    worker, seen = workers["a@here"], []

    def broken(other):
        raise ValueError("oops")

    worker.on.node_join.update({broken, lambda other: seen.append(("join", other.hostname))})
    worker.on.node_leave.add(lambda other: seen.append(("leave", other.hostname)))
    worker.on.node_lost.add(lambda other: seen.append(("lost", other.hostname)))

    def comes(type, hostname):
        event = {"type": f"worker-{type}", "hostname": hostname, "timestamp": 1e9, "local_received": 1e9, "freq": 2}
        message = SimpleNamespace(
            delivery_info={"routing_key": f"worker.{type}"}, headers={"hostname": hostname}, payload=event
        )
        worker.on_message(lambda event: (event["type"], event), message)

    before = worker.clock.value
    comes("heartbeat", "a@here")
    assert worker.clock.value == before + 1 and seen == []
    comes("online", "b@here")
    comes("online", "c@here")
    comes("offline", "b@here")
    worker.periodic()

    assert seen == [("join", "b@here"), ("join", "c@here"), ("leave", "b@here"), ("lost", "c@here")]
    assert "Ignored error from handler" in caplog.text and len(worker.state.workers) == 0


def test_an_event_that_cannot_be_used_is_passed_over(room, caplog):
    workers, _ = room("a@here")
    worker = workers["a@here"]
    for type, headers in (("worker.heartbeat", {}), ("task.received", {}), ("worker.elect.ack", {})):
        message = SimpleNamespace(delivery_info={"routing_key": type}, headers=headers, payload={})
        worker.on_message(lambda event: (None, event), message)
    assert caplog.text.count("was passed over") == 2


@pytest.mark.parametrize(
    ("broker", "gossips", "mingles"),
    [("redis://", True, True), ("pyamqp://", True, True), ("memory://", False, False), ("sqlite://", False, False)],
)
def test_workers_only_speak_to_each_other_where_that_works(broker, gossips, mingles):
    app = Celery("steps", broker=broker, set_as_current=False)
    c = SimpleNamespace(app=app, hostname="a@here", pid=1, timer=Timer(), hub=None)

    assert Gossip(c).enabled is gossips and Mingle(c).enabled is mingles
    assert not Gossip(c, without_gossip=True).enabled and not Mingle(c, without_mingle=True).enabled


def test_brokers_are_named_in_one_text_or_in_a_list():
    assert broker_urls("amqp://a;amqp://b;amqp://a") == ["amqp://a", "amqp://b"]
    assert broker_urls(["amqp://a", "amqp://b"]) == ["amqp://a", "amqp://b"]
    for given, text in (("", "empty"), (None, "empty"), (7, "string or list"), (["amqp://a", 7], "must be strings")):
        with pytest.raises(ValueError, match=text):
            broker_urls(given)


def test_delayed_messages_wait_in_queues_of_a_known_type():
    assert checked_queue_type("quorum") == "quorum" and checked_queue_type("classic") == "classic"
    with pytest.raises(ValueError, match="not configured"):
        checked_queue_type(None)
    with pytest.raises(ValueError, match="Must be one of: classic, quorum"):
        checked_queue_type("stream")


def test_delayed_delivery_is_prepared_for_quorum_queues_only():
    app = Celery("delayed", broker="pyamqp://", set_as_current=False)
    c = SimpleNamespace(app=app)

    assert not DelayedDelivery(c).include_if(c)
    app.conf.task_create_missing_queue_type = "quorum"
    app.amqp.queues.add(app.amqp.queues.new_missing("q"))
    app.amqp.queues["q"].queue_arguments = {"x-queue-type": "quorum"}
    assert DelayedDelivery(c).include_if(c)


class Agency:
    """An agent that notes what happens to it."""

    def __init__(self, connection):
        self.connections = [connection]

    def start(self):
        self.connections.append(self.connection)

    def stop(self):
        self.connections.append("stopped")


def test_an_agent_lives_as_long_as_the_connection():
    app = Celery("agent", set_as_current=False)
    c = SimpleNamespace(app=app, steps=[], connection=None)
    assert not Agent(c).include(c)

    app.conf.worker_agent = Agency
    step = Agent(c)
    assert step.include(c)
    c.connection = "connection"
    step.start(c)
    step.stop(c)

    assert c.agent.connections == [None, "connection", "stopped"]
