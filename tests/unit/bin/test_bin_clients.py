"""Commands that speak to the broker and the result backend: call, purge, list, amqp, result, report."""

from __future__ import annotations

import click_repl
import pytest
from click.testing import CliRunner

from celery_clone import Celery, _state
from celery_clone.bin.amqp import AMQPContext, amqp
from celery_clone.bin.base import CLIContext
from celery_clone.bin.call import call
from celery_clone.bin.list import list_
from celery_clone.bin.purge import purge
from celery_clone.bin.report import report
from celery_clone.bin.result import result


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setattr(_state, "_task_join_will_block", False)
    app = Celery("clients", broker=f"sqlite:///{tmp_path}/broker.db", set_as_current=False)
    app.conf.task_queues = []
    app.conf.task_create_missing_queues = True
    app.amqp.queues.add("celery")

    @app.task(name="clients.add", shared=False)
    def add(x, y):
        return x + y

    return app


@pytest.fixture
def run(app):
    def run(command, *words, **kwargs):
        return CliRunner().invoke(
            command, words, obj=CLIContext(app, no_color=True, workdir=None), prog_name=command.name, **kwargs
        )

    return run


def waiting(app, queue="celery"):
    """What waits in a queue: (arguments, keyword arguments, headers, delivery information)."""
    found = []
    with app.connection_for_read() as connection:
        while (message := connection.default_channel.basic_get(queue, no_ack=True)) is not None:
            args, kwargs, _ = message.decode()
            found.append((args, kwargs, message.headers, message.delivery_info))
    return found


# -- call


def test_a_task_is_called_by_its_name(app, run):
    given = run(call, "clients.add", "-a", "[2, 2]", "-k", '{"z": 1}')
    [(args, kwargs, headers, info)] = waiting(app)
    assert given.exit_code == 0
    assert given.output == f"{headers['id']}\n"
    assert (args, kwargs, headers["task"]) == ([2, 2], {"z": 1}, "clients.add")


def test_a_call_takes_times_and_a_queue(app, run):
    run(call, "x", "--queue", "other", "--eta", "2040-01-01T12:00:00Z", "--expires", "2040-01-02T12:00:00Z")
    [(_, _, headers, info)] = waiting(app, "other")
    assert headers["eta"].startswith("2040-01-01T12:00:00")
    assert headers["expires"].startswith("2040-01-02T12:00:00")
    assert info["routing_key"] == "other"


@pytest.mark.parametrize("words", [("-a", "{}"), ("-k", "[]"), ("--eta", "soon"), ("--countdown", "long")])
def test_a_wrong_argument_ends_with_2_and_calls_nothing(app, run, words):
    assert run(call, "x", *words).exit_code == 2
    assert not waiting(app)


# -- purge


def test_the_known_queues_are_purged_when_that_was_confirmed(app, run):
    for _ in range(3):
        app.send_task("x")
    given = run(purge, input="y\n")
    assert "This will remove all tasks from queue: celery." in given.output
    assert given.output.endswith("Purged 3 messages from 1 known task queue.\n")
    assert not waiting(app)


def test_nothing_is_purged_without_a_yes(app, run):
    app.send_task("x")
    given = run(purge, input="n\n")
    assert given.exit_code == 1
    assert len(waiting(app)) == 1


def test_queues_are_chosen_by_name(app, run):
    for queue in ("one", "two", "three"):
        app.send_task("x", queue=queue)
    given = run(purge, "-f", "-Q", "one,two,three", "-X", "two")
    assert given.output == "Purged 2 messages from 2 known task queues.\n"
    assert len(waiting(app, "two")) == 1


def test_an_empty_queue_is_no_news(run, app):
    app.send_task("x")
    run(purge, "-f")
    assert run(purge, "-f").output == "No messages purged from 1 queue.\n"
    assert run(purge, "-f", "-X", "celery").output == "No messages purged from 0 queues.\n"


def test_queues_need_the_option(app, run):
    given = run(purge, "-f", "celery")
    assert given.exit_code == 2
    assert "Name queues with -Q." in given.output


# -- list


def test_bindings_are_listed(app, run):
    given = run(list_, "bindings")
    assert given.exit_code == 0, given.output
    assert given.output.splitlines()[0].split() == ["Queue", "Exchange", "Routing", "Key"]
    assert ["celery", "celery", "celery"] in [line.split() for line in given.output.splitlines()]


# -- amqp


def test_queues_are_declared_filled_read_and_emptied_by_hand(run):
    assert "queue:q messages:0 consumers:0\nOK\n" in run(amqp, "queue.declare", "q").output
    assert run(amqp, "exchange.declare", "e", "direct").output.endswith("-> connected.\nOK\n")
    assert run(amqp, "queue.bind", "q", "e", "k").output.endswith("OK\n")
    assert run(amqp, "basic.publish", "hello", "e", "k").output.endswith("OK\n")
    assert "messages:1" in run(amqp, "queue.declare", "q").output
    assert "'body': " in run(amqp, "basic.get", "q", "true").output
    assert "No messages in queue. basic.publish something." in run(amqp, "basic.get", "q").output
    run(amqp, "basic.publish", "hello", "e", "k")
    assert "1 messages deleted." in run(amqp, "queue.purge", "q").output
    assert run(amqp, "queue.delete", "q").exit_code == 0


def test_the_broker_to_use_is_named(app, run):
    assert run(amqp).output.startswith(f"-> connecting to {app.connection().as_uri()}.\n")


def test_an_error_of_the_broker_is_shown_and_ends_with_69(run):
    given = run(amqp, "queue.declare", "nosuchqueue", "true")
    assert given.exit_code == 69
    assert "ERROR: " in given.output
    assert given.output.count("-> connecting to") == 2


def test_commands_can_be_given_one_after_the_other():
    assert amqp.commands["repl"].callback.__module__.startswith(click_repl.__name__)


def test_one_connection_serves_a_whole_prompt(app):
    context = AMQPContext(CLIContext(app, no_color=True, workdir=None))
    for word in ("q", "r"):
        given = CliRunner().invoke(amqp, ["queue.declare", word], obj=context)
        assert given.output == f"queue:{word} messages:0 consumers:0\nOK\n"
    context.close()
    context.close()


# -- result


class Stored:
    """A result that has come."""

    def __init__(self, value, traceback=None):
        self.value, self.traceback = value, traceback

    def get(self, propagate=True):
        return self.value

    def failed(self):
        return self.traceback is not None


@pytest.mark.parametrize(
    ("stored", "words", "code", "text"),
    [
        (Stored(4), (), 0, "4\n"),
        (Stored(ValueError("no"), "Traceback: no"), (), 1, "Error: Traceback: no\n"),
        (Stored(ValueError("no"), "Traceback: no"), ("--traceback",), 0, "Traceback: no\n"),
    ],
    ids=["success", "failure", "the traceback asked for"],
)
def test_a_result_is_printed(app, run, stored, words, code, text):
    app.AsyncResult = lambda task_id: stored
    given = run(result, "some-id", *words)
    assert (given.exit_code, given.output) == (code, text)


def test_the_result_of_a_task_with_its_own_backend_is_asked_from_the_task(app, run):
    app.tasks["clients.add"].AsyncResult = lambda task_id: Stored(f"of {task_id}")
    assert run(result, "-t", "clients.add", "some-id").output == "of some-id\n"


def test_an_unknown_task_ends_with_2_and_names_the_nearest(run):
    given = run(result, "-t", "clients.ad", "some-id")
    assert given.exit_code == 2
    assert "Did you mean 'clients.add'?" in given.output


def test_without_a_result_backend_it_is_said(run):
    given = run(result, "some-id")
    assert given.exit_code == 1
    assert "backend" in given.output
    assert isinstance(given.exception, SystemExit)


# -- report


def test_the_report_tells_versions_and_settings_without_secrets(app, run):
    app.conf.broker_password = "very secret"
    given = run(report)
    assert given.exit_code == 0
    assert "software -> celery:5.7.0 (collider)" in given.output
    assert "transport:sqlite" in given.output
    assert "very secret" not in given.output
