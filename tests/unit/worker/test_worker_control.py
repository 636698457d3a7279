"""Remote commands as functions: what they answer, and what they leave in the worker's state."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_clone import Celery
from celery_clone.exceptions import WorkerShutdown
from celery_clone.utils.collections import AttributeDict
from celery_clone.worker import control, held
from celery_clone.worker import state as worker_state
from celery_clone.worker.control import Panel, nok, ok
from celery_clone.worker.state import InFlight, Phase


@pytest.fixture(autouse=True)
def clean_state():
    worker_state.reset_state()
    yield
    worker_state.reset_state()


@pytest.fixture
def app():
    app = Celery("commands", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(broker_password="secret", task_always_eager=False)

    @app.task(name="commands.add", rate_limit="10/m", shared=False)
    def add(x, y):
        return x + y

    return app


@pytest.fixture
def state(app):
    """What commands are given, as far as these tests need it."""
    consumer = SimpleNamespace(gossip=None, event_dispatcher=None, task_consumer=None, controller=None)
    return AttributeDict(app=app, hostname="one@here", consumer=consumer, tset=set)


@pytest.fixture
def own_panel():
    """The table of commands, put back after the test."""
    data, meta = dict(Panel.data), dict(Panel.meta)
    yield Panel
    Panel.data.clear()
    Panel.data.update(data)
    Panel.meta.clear()
    Panel.meta.update(meta)


def flight(seq, phase, due=None):
    made = InFlight(seq, delivery=None, plan=None, name="t", task_id=str(seq), make_request=lambda each: each)
    made.phase, made.due = phase, due
    return made


def test_commands_are_registered_with_and_without_options(own_panel):
    @own_panel.register
    def plain(state):
        """Say nothing.

        More.
        """

    @own_panel.register(name="other", alias="another", type="inspect", args=[("n", int)], variadic="rest")
    def with_options(state):
        return 1

    assert own_panel.data["plain"] is plain
    assert own_panel.meta["plain"]._replace(args=None) == (
        None,
        "control",
        True,
        1.0,
        "Say nothing.",
        None,
        None,
        None,
    )
    assert own_panel.data["other"] is own_panel.data["another"] is with_options
    assert own_panel.meta["other"].type == "inspect" and own_panel.meta["other"].variadic == "rest"
    assert "another" not in own_panel.meta


def test_every_command_says_in_one_line_what_it_does():
    lines = {name: meta.help for name, meta in Panel.meta.items()}

    assert [name for name, line in lines.items() if not line.endswith(".")] == []
    assert len({*lines.values()}) == len(lines)


def test_answers_are_marked_as_good_or_bad():
    assert (ok(1), nok("why")) == ({"ok": 1}, {"error": "why"})


@pytest.mark.parametrize(
    ("phase", "due", "running", "where"),
    [
        (Phase.BEGUN, None, (), "active"),
        (Phase.WAITING, None, (7,), "active"),
        (Phase.WAITING, None, (), "reserved"),
        (Phase.HELD, None, (), "reserved"),
        (Phase.HELD, 1.0, (), "scheduled"),
    ],
    ids=["begun", "begun and not told", "waiting", "held by a rate", "held for its time"],
)
def test_a_task_is_somewhere(phase, due, running, where):
    assert held.standing(flight(7, phase, due), running) == where


def test_stamps_match_by_name_and_value():
    request = SimpleNamespace(stamps={"tenant": ["a", "b"], "run": "7"})

    assert control.matching_stamps(request, {"tenant": ["b", "c"], "run": "7", "user": "x"}) == {
        "tenant": {"b"},
        "run": {"7"},
    }
    assert control.matching_stamps(request, {"tenant": "c"}) == {}


def test_settings_are_shown_without_secrets(state):
    shown = Panel.data["conf"](state)

    assert shown["broker_password"] != "secret" and set(shown["broker_password"]) == {"*"}
    assert "task_acks_late" not in shown
    assert Panel.data["dump_conf"](state, with_defaults=True)["task_acks_late"] is False


def test_registered_tasks_are_shown_with_what_was_asked_for(state):
    assert Panel.data["registered"](state) == ["commands.add [rate_limit=10/m]"]
    assert Panel.data["registered"](state, taskinfoitems=["max_retries", "_private", "nothing"]) == [
        "commands.add [max_retries=3]"
    ]
    assert "celery.chord_unlock" in str(Panel.data["registered"](state, builtins=True))


def test_a_worker_that_says_hello_gets_clock_and_revoked_ids_and_gives_its_own(state):
    worker_state.revoked.add("mine")
    before = state.app.clock.value

    answer = Panel.data["hello"](state, from_node="two@here", revoked=["theirs"])

    assert answer == {"revoked": ["mine", "theirs"], "clock": before + 1}
    assert "theirs" in worker_state.revoked


def test_a_hello_from_our_own_name_is_another_worker(state, caplog):
    assert Panel.data["hello"](state, from_node="one@here", revoked=["theirs"]) is None
    assert "theirs" not in worker_state.revoked
    assert "Give each worker a name of its own" in caplog.text


def test_shutdown_ends_the_worker_with_success(state):
    with pytest.raises(WorkerShutdown) as raised:
        Panel.data["shutdown"](state)
    assert raised.value.code == 0


def test_what_is_not_there_is_said(state):
    assert Panel.data["enable_events"](state) == nok("event dispatcher unavailable")
    assert Panel.data["disable_events"](state) == nok("event dispatcher unavailable")
    assert Panel.data["heartbeat"](state) is None
    assert Panel.data["election"](state, id="1", topic="task") is None
    assert Panel.data["active_queues"](state) == []
    with pytest.raises(ValueError, match="Autoscale not enabled"):
        Panel.data["autoscale"](state, max=3, min=1)
    with pytest.raises(ValueError, match="Pool restarts not enabled"):
        Panel.data["pool_restart"](state)


def test_events_of_all_groups_are_narrowed_when_those_about_tasks_are_turned_off(state):
    state.consumer.event_dispatcher = SimpleNamespace(groups=set())

    assert Panel.data["enable_events"](state) == ok("task events already enabled")
    assert Panel.data["disable_events"](state) == ok("task events disabled")
    assert state.consumer.event_dispatcher.groups == {"worker"}
    assert Panel.data["enable_events"](state) == ok("task events enabled")
