"""inspect, control and status: what is asked of workers, and how replies are shown."""

from __future__ import annotations

import json

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from celery_clone import Celery
from celery_clone.bin.base import CLIContext
from celery_clone.bin.control import commands_of_type, control, inspect, status


class Workers:
    """Stands where workers would answer; notes what they are asked."""

    def __init__(self, replies):
        self.replies = replies
        self.asked = []

    def inspect(self, **how):
        self.how = how
        return self

    def _request(self, command, **arguments):
        self.asked.append((command, arguments))
        return self._answer(self.how["callback"])

    def ping(self):
        return self._request("ping")

    def broadcast(self, command, *, callback, arguments, **how):
        self.how = how
        self.asked.append((command, arguments))
        self._answer(callback)
        return [{node: reply} for node, reply in self.replies.items()]

    def _answer(self, callback):
        if isinstance(self.replies, Exception):
            raise self.replies
        for node, reply in self.replies.items():
            if callback is not None:
                callback({node: reply})
        return self.replies


@pytest.fixture
def workers():
    return Workers({"w1@h": {"ok": "pong"}, "w2@h": {"error": "busy"}})


def run(command, workers, *words, quiet=False):
    app = Celery("controlled", broker="memory://", set_as_current=False)
    app.control = workers
    context = CLIContext(app, no_color=True, workdir=None, quiet=quiet)
    return CliRunner().invoke(command, words, obj=context)


def test_status_lists_the_nodes_and_counts_them(workers):
    given = run(status, workers, "-t", "0.5", "-d", "w1@h,w2@h")
    assert given.output == "->  w1@h: OK\n->  w2@h: ERROR\n\n2 nodes online.\n"
    assert (workers.how["timeout"], workers.how["destination"]) == (0.5, ["w1@h", "w2@h"])


def test_inspect_shows_the_replies(workers):
    given = run(inspect, workers, "ping")
    assert given.output == "->  w1@h: OK\n        pong\n->  w2@h: ERROR\n        busy\n\n2 nodes online.\n"
    assert workers.asked == [("ping", {})]
    assert workers.how["timeout"] == 1.0


def test_control_shows_the_replies(workers):
    given = run(control, workers, "enable_events")
    assert given.output == "->  w1@h: OK\n        pong\n->  w2@h: ERROR\n        busy\n"
    assert workers.how["reply"] is True


@pytest.mark.parametrize(("command", "word"), [(status, None), (inspect, "ping"), (control, "heartbeat")])
def test_json_is_all_that_is_printed_on_request(workers, command, word):
    given = run(command, workers, *([word] if word else []), "--json")
    replies = json.loads(given.output)
    assert replies == workers.replies or replies == [{node: reply} for node, reply in workers.replies.items()]


def test_nodes_are_not_counted_when_quiet(workers):
    assert "online" not in run(status, workers, quiet=True).output


@pytest.mark.parametrize(("command", "words"), [(status, ()), (inspect, ("ping",)), (control, ("heartbeat",))])
def test_no_reply_ends_with_69(command, words):
    given = run(command, Workers({}), *words)
    assert given.exit_code == 69
    assert given.output == "Error: No nodes replied within time constraint\n"


@pytest.mark.parametrize(("command", "words"), [(status, ()), (inspect, ("ping",)), (control, ("heartbeat",))])
def test_an_error_ends_with_69_and_names_the_command(command, words):
    given = run(command, Workers(OSError("down")), *words)
    assert given.exit_code == 69
    assert "Reason: down" in given.output


@pytest.mark.parametrize(
    ("command", "words", "arguments"),
    [
        (control, ("rate_limit", "add", "5/m"), {"task_name": "add", "rate_limit": "5/m"}),
        (control, ("pool_grow", "3"), {"n": 3}),
        (control, ("revoke", "a", "b"), {"task_id": ["a", "b"]}),
        (control, ("terminate", "KILL", "a", "b"), {"signal": "KILL", "task_id": ["a", "b"]}),
        (control, ("time_limit", "add", "1.5"), {"task_name": "add", "soft": 1.5}),
        (inspect, ("conf", "true"), {"with_defaults": True}),
        (inspect, ("query_task", "a"), {"ids": ["a"]}),
        (inspect, ("query_task",), {"ids": []}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_words_behind_a_command_become_its_arguments(workers, command, words, arguments):
    assert run(command, workers, *words).exit_code == 0
    assert workers.asked == [(words[0], arguments)]


@pytest.mark.parametrize(
    ("command", "words", "text"),
    [
        (inspect, ("pin",), "Command pin not recognized. Did you mean 'ping'? Available inspect commands: active,"),
        (inspect, ("shutdown",), "Command shutdown not recognized."),
        (control, ("ping",), "Command ping not recognized."),
        (inspect, ("ping", "me"), "Command 'ping' takes arguments: none"),
        (control, ("pool_grow", "many"), "n cannot be 'many'"),
        (control, ("pool_grow", "1", "2"), "Command 'pool_grow' takes arguments: [N=1]"),
        (control, (), "Missing argument 'COMMAND'"),
    ],
)
def test_a_command_that_does_not_fit_ends_with_2_and_is_not_sent(workers, command, words, text):
    given = run(command, workers, *words)
    assert given.exit_code == 2
    assert text in given.output
    assert not workers.asked


@pytest.mark.parametrize(("command", "kind"), [(inspect, "inspect"), (control, "control")])
def test_the_commands_can_be_listed(workers, command, kind):
    given = run(command, workers, "--list")
    assert given.exit_code == 0
    assert given.output.startswith(f"{kind.capitalize()} Commands:\n")
    assert all(f"\n  {name}" in given.output for name in commands_of_type(kind))


@pytest.mark.parametrize(
    ("command", "begun", "completed"),
    [(inspect, "act", ["active", "active_queues"]), (control, "pool_g", ["pool_grow"])],
)
def test_a_shell_completes_the_commands_of_workers(command, begun, completed):
    words = ShellComplete(command, {}, "celery", "_CELERY_COMPLETE").get_completions([], begun)
    assert [word.value for word in words] == completed
    assert all(word.help for word in words)
