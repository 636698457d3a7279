"""The client of remote control: what it sends, and what it makes of answers."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from celery_clone import Celery
from celery_clone.app.control import Inspect, flatten_reply
from celery_clone.exceptions import DuplicateNodenameWarning, ImproperlyConfigured


class RecordingMailbox:
    """Stands for kombu's mailbox: keeps what would be sent and answers for two nodes."""

    def __init__(self):
        self.sent = []
        self.answers = [{"a@x": {"ok": 1}}, {"b@x": {"ok": 2}}]

    def __call__(self, connection):
        return self

    def _broadcast(
        self, command, arguments, destination, reply, timeout, limit, callback, channel=None, **selection
    ):
        self.sent.append((command, arguments, destination, selection))
        self.waiting = (reply, timeout, limit, callback, channel)
        return self.answers if reply else None


@pytest.fixture
def control():
    app = Celery("control", broker="memory://", set_as_current=False)
    app.control.mailbox = RecordingMailbox()
    return app.control


@pytest.mark.parametrize(
    ("call", "command", "arguments"),
    [
        (
            lambda c, **k: c.revoke("i", **k),
            "revoke",
            {"task_id": "i", "terminate": False, "signal": "SIGTERM"},
        ),
        (
            lambda c, **k: c.revoke(["i", "j"], terminate=True, signal="KILL", **k),
            "revoke",
            {"task_id": ["i", "j"], "terminate": True, "signal": "KILL"},
        ),
        (
            lambda c, **k: c.terminate("i", **k),
            "revoke",
            {"task_id": "i", "terminate": True, "signal": "SIGTERM"},
        ),
        (
            lambda c, **k: c.revoke_by_stamped_headers({"h": "v"}, **k),
            "revoke_by_stamped_headers",
            {"headers": {"h": "v"}, "terminate": False, "signal": "SIGTERM"},
        ),
        (lambda c, **k: c.rate_limit("t", "1/m", **k), "rate_limit", {"task_name": "t", "rate_limit": "1/m"}),
        (lambda c, **k: c.time_limit("t", 1, 2, **k), "time_limit", {"task_name": "t", "soft": 1, "hard": 2}),
        (
            lambda c, **k: c.add_consumer("q", options={"x": 1}, **k),
            "add_consumer",
            {"queue": "q", "exchange": None, "exchange_type": "direct", "routing_key": None, "x": 1},
        ),
        (lambda c, **k: c.cancel_consumer("q", **k), "cancel_consumer", {"queue": "q"}),
        (lambda c, **k: c.enable_events(**k), "enable_events", {}),
        (lambda c, **k: c.disable_events(**k), "disable_events", {}),
        (lambda c, **k: c.pool_grow(2, **k), "pool_grow", {"n": 2}),
        (lambda c, **k: c.pool_shrink(**k), "pool_shrink", {"n": 1}),
        (lambda c, **k: c.autoscale(8, 2, **k), "autoscale", {"max": 8, "min": 2}),
        (
            lambda c, **k: c.pool_restart(["m"], **k),
            "pool_restart",
            {"modules": ["m"], "reload": False, "reloader": None},
        ),
        (lambda c, **k: c.heartbeat(**k), "heartbeat", {}),
        (lambda c, **k: c.shutdown(**k), "shutdown", {}),
        (lambda c, **k: c.broadcast("own", {"a": 1}, b=2, **k), "own", {"a": 1, "b": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_commands_are_sent_with_their_arguments(control, call, command, arguments):
    assert call(control) is None
    assert call(control, destination=["a@x"], reply=True, timeout=3, limit=2) == control.mailbox.answers

    assert control.mailbox.sent == [(command, arguments, None, {}), (command, arguments, ["a@x"], {})]
    assert control.mailbox.waiting[:3] == (True, 3, 2)


def test_a_ping_waits_for_answers(control):
    assert control.ping(timeout=0.5) == control.mailbox.answers
    assert control.mailbox.waiting[:2] == (True, 0.5)


def test_an_election_is_for_all_nodes(control):
    control.election("id", "topic", {"task": "t"})
    assert control.mailbox.sent == [
        ("election", {"id": "id", "topic": "topic", "action": {"task": "t"}}, None, {})
    ]


def test_one_destination_may_be_given_as_text(control):
    control.broadcast("own", destination="a@x")
    assert control.mailbox.sent[0][2] == ["a@x"]


def test_a_pattern_is_compared_as_for_files_unless_said_otherwise(control):
    control.broadcast("own", pattern="a*")
    control.broadcast("own", pattern="a.", matcher="pcre")
    assert [sent[3] for sent in control.mailbox.sent] == [
        {"pattern": "a*", "matcher": "glob"},
        {"pattern": "a.", "matcher": "pcre"},
    ]


# -- questions


@pytest.mark.parametrize(
    ("ask", "command", "arguments"),
    [
        (lambda i: i.active(), "active", {"safe": None}),
        (lambda i: i.active(safe=True), "active", {"safe": True}),
        (lambda i: i.scheduled(), "scheduled", {}),
        (lambda i: i.reserved(), "reserved", {}),
        (lambda i: i.stats(), "stats", {}),
        (lambda i: i.revoked(), "revoked", {}),
        (lambda i: i.registered("rate_limit"), "registered", {"taskinfoitems": ("rate_limit",)}),
        (lambda i: i.registered_tasks(), "registered", {"taskinfoitems": ()}),
        (lambda i: i.ping(), "ping", {}),
        (lambda i: i.active_queues(), "active_queues", {}),
        (lambda i: i.query_task("a", "b"), "query_task", {"ids": ("a", "b")}),
        (lambda i: i.query_task(["a", "b"]), "query_task", {"ids": ["a", "b"]}),
        (lambda i: i.conf(with_defaults=True), "conf", {"with_defaults": True}),
        (lambda i: i.hello("me@x"), "hello", {"from_node": "me@x", "revoked": None}),
        (lambda i: i.clock(), "clock", {}),
        (lambda i: i.report(), "report", {}),
        (lambda i: i.memsample(), "memsample", {}),
        (lambda i: i.memdump(), "memdump", {"samples": 10}),
        (lambda i: i.objgraph("T", 1, 2), "objgraph", {"num": 1, "max_depth": 2, "type": "T"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_questions_are_sent_with_their_arguments_and_answers_merged(control, ask, command, arguments):
    assert ask(control.inspect()) == {"a@x": {"ok": 1}, "b@x": {"ok": 2}}
    assert control.mailbox.sent == [(command, arguments, None, {})]


def test_the_answer_of_a_single_node_is_the_result(control):
    assert control.inspect("b@x").ping() == {"ok": 2}
    assert control.inspect("c@x").ping() is None


def test_nobody_answering_is_none(control):
    control.mailbox.answers = []
    assert control.inspect(["a@x"]).active() is None


def test_nodes_that_do_not_fit_the_pattern_are_left_out(control):
    assert control.inspect(pattern="a@*").stats() == {"a@x": {"ok": 1}}
    assert control.inspect(pattern="b.x", matcher="pcre").stats() == {"b@x": {"ok": 2}}


def test_inspect_is_a_class_bound_to_the_app(control):
    assert issubclass(control.inspect, Inspect)
    assert control.inspect.app is control.app
    assert control.inspect is control.inspect


def test_two_nodes_of_one_name_are_reported():
    with pytest.warns(DuplicateNodenameWarning, match="from node names: a, b.\nPlease make sure"):
        assert flatten_reply([{"a": 1}, {"b": 1}, {"a": 2}, {"b": 3}]) == {"a": 2, "b": 3}
    with pytest.warns(DuplicateNodenameWarning, match="from node name: a."):
        flatten_reply([{"a": 1}, {"a": 2}, {"a": 3}])
    assert flatten_reply([]) == {}


# -- the mailbox


def test_the_mailbox_is_made_from_the_settings():
    app = Celery("control", broker="memory://", set_as_current=False)
    app.conf.update(
        control_exchange="mine", control_queue_ttl=7.0, control_queue_expires=8.0, task_serializer="yaml"
    )
    mailbox = app.control.mailbox

    assert (mailbox.exchange.name, mailbox.exchange.type) == ("mine.pidbox", "fanout")
    assert mailbox.reply_exchange.name == "reply.mine.pidbox"
    assert (mailbox.queue_ttl, mailbox.reply_queue_ttl) == (7.0, 7.0)
    assert (mailbox.queue_expires, mailbox.reply_queue_expires) == (8.0, 8.0)
    assert (mailbox.serializer, mailbox.accept) == ("yaml", ("json",))
    assert (mailbox.queue_exclusive, mailbox.queue_durable) == (True, False)


def test_queues_cannot_be_exclusive_and_durable():
    app = Celery("control", broker="memory://", set_as_current=False)
    app.conf.control_queue_durable = True
    with pytest.raises(ImproperlyConfigured, match="control_queue_exclusive and control_queue_durable"):
        app.control  # noqa: B018


def test_commands_leave_through_the_producers_the_app_has_at_that_moment():
    class Pool:
        def __init__(self, name):
            self.name = name

        @contextmanager
        def acquire(self, block=False):
            yield SimpleNamespace(name=self.name, connection=None)

    app = Celery("control", broker="memory://", set_as_current=False)
    mailbox = app.control.mailbox
    for name in ("of the parent", "of the child"):
        app.amqp._producer_pool = Pool(name)
        with mailbox.producer_or_acquire() as producer:
            assert producer.name == name


def test_purging_counts_the_messages_thrown_away():
    app = Celery("control", broker="memory://purging", set_as_current=False)
    with app.connection_for_write() as connection, connection.SimpleQueue("celery") as queue:
        for number in range(3):
            queue.put(number)
        assert app.control.purge(connection) == 3
        assert app.control.discard_all(connection) == 0
