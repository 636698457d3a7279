"""Apps, workers and messages for tests."""

from __future__ import annotations

from datetime import datetime, timezone
from io import StringIO
from unittest.mock import Mock

import pytest

from celery_clone import Celery, _state, uuid
from celery_clone.app.log import Logging
from celery_clone.contrib.testing.app import TestApp, Trap, UnitLogging, set_trap, setup_default_app
from celery_clone.contrib.testing.manager import Manager, Sentinel
from celery_clone.contrib.testing.mocks import ContextMock, TaskMessage, TaskMessage1, task_message_from_sig
from celery_clone.contrib.testing.worker import start_worker, test_worker_started, test_worker_stopped
from tests.support.loggers import loggers_restored


@pytest.fixture
def app():
    """An app for tests, gone after the test."""
    app = TestApp()
    was_set_up = Logging._setup
    with loggers_restored(), setup_default_app(app):
        yield app
    Logging._setup = was_set_up


# -- apps


def test_an_app_for_tests_is_in_memory_and_knows_how_to_answer_a_ping(app):
    assert app.conf.broker_url == "memory://"
    assert app.conf.timezone == "UTC"
    assert app.tasks["celery.ping"]() == "pong"
    assert isinstance(app.log, UnitLogging)
    assert _state._tls.current_app is not app


def test_settings_and_urls_win_over_the_defaults():
    app = TestApp("mine", {"timezone": "Europe/Oslo"}, broker="memory://b", backend="cache+memory://c", log=None)
    assert app.main == "mine"
    assert app.conf.timezone == "Europe/Oslo"
    assert app.conf.broker_url == "memory://b"
    assert app.conf.result_backend == "cache+memory://c"
    assert type(app.log) is Logging
    assert TestApp(enable_logging=True).log_cls != UnitLogging


def test_what_is_declared_and_made_current_is_undone():
    outer = Celery("outer", set_as_current=True)
    app = TestApp()
    before = set(_state._on_app_finalizers)
    with setup_default_app(app):
        app.set_current()
        app.set_default()

        @app.task
        def declared():
            return None

        other = Celery("other", set_as_current=False)
    assert _state.get_current_app() is outer
    assert _state._on_app_finalizers == before
    assert other not in _state._get_active_apps()


def test_a_trap_catches_who_uses_the_current_app():
    app = TestApp()
    outer = _state._tls
    with setup_default_app(app, use_trap=True):
        assert isinstance(_state.get_current_app(), Trap)
        with pytest.raises(RuntimeError, match="'send_task'"):
            _state.get_current_app().send_task("x")
        assert app.send_task("x").id
    assert _state._tls is outer
    with set_trap(app):
        assert isinstance(_state.default_app, Trap)


# -- workers


def test_a_worker_in_a_thread_runs_tasks_until_the_end_of_its_context(app):
    told = []

    @app.task
    def add(x, y):
        return x + y

    def started(sender, worker, consumer, **_):
        told.append(("started", sender, worker))

    def stopped(sender, worker, **_):
        told.append(("stopped", sender, worker))

    test_worker_started.connect(started)
    test_worker_stopped.connect(stopped)
    try:
        with start_worker(app) as worker:
            assert add.delay(2, 2).get(timeout=10) == 4
            with start_worker(app, hostname="second@here") as second:
                assert second.hostname == "second@here"
            # The end of the second one is not that of the first.
            assert add.delay(3, 3).get(timeout=10) == 6
    finally:
        test_worker_started.disconnect(started)
        test_worker_stopped.disconnect(stopped)
    kinds = ["started", "started", "stopped", "stopped"]
    assert told == list(zip(kinds, [app] * 4, [worker, second, second, worker], strict=True))


def test_a_worker_that_cannot_start_is_an_error_and_no_endless_wait(app):
    def broken(*args, **kwargs):
        raise ValueError("no pool today")

    class BrokenPool:
        is_green = False
        __init__ = broken

    with pytest.raises((RuntimeError, ValueError)), start_worker(app, pool=BrokenPool):
        raise AssertionError("it started")


# -- messages


def test_messages_look_like_those_that_workers_get():
    message = TaskMessage("proj.add", id="1", args=(2,), kwargs={"y": 3}, retries=1)
    assert message.headers == {"id": "1", "task": "proj.add", "shadow": None, "retries": 1}
    assert message.payload == ((2,), {"y": 3}, {"callbacks": None, "errbacks": None, "chain": None})
    assert message.body == '[[2], {"y": 3}, {"callbacks": null, "errbacks": null, "chain": null}]'
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")

    old = TaskMessage1("proj.add", id="1", expires=None)
    assert old.headers == {}
    assert old.payload["task"] == "proj.add"
    assert "expires" in old.payload


def test_the_message_of_a_signature(app):
    @app.task(name="proj.add")
    def add(x, y):
        return x + y

    when = datetime(2030, 1, 1, tzinfo=timezone.utc)
    signature = add.s(2, 2).set(eta=when, expires=60, link=add.s(4), queue="x")
    message = task_message_from_sig(app, signature)
    assert message.headers["eta"] == when.isoformat()
    assert datetime.fromisoformat(message.headers["expires"]) > app.now()
    assert message.headers["queue"] == "x"
    assert message.payload[2]["callbacks"][0]["task"] == "proj.add"
    assert message.headers["id"] == signature.id


def test_a_mock_for_with_statements():
    mock = ContextMock(name="lock")
    with mock as entered:
        assert entered is mock
    with pytest.raises(ValueError, match="out"), mock:
        raise ValueError("out")
    assert mock.__enter__.call_count == 2
    assert mock.__exit__.call_count == 2


# -- waiting


@pytest.fixture
def manager(app):
    """Prints to where it can be read."""
    return Manager(app, stdout=StringIO(), stderr=StringIO())


def test_waiting_ends_when_the_exception_does(manager):
    tries = Mock(side_effect=[Sentinel(), Sentinel(), "here"])
    told = []
    found = manager.wait_for(
        tries, Sentinel, interval_start=0, interval_step=0, errback=lambda *args: told.append(args)
    )
    assert found == "here"
    assert [(pause, tries) for _, pause, tries in told] == [(0, 0), (0, 1)]


def test_waiting_is_told_and_has_an_end(manager):
    tries = Mock(side_effect=Sentinel())
    with pytest.raises(Sentinel):
        manager.wait_for(tries, Sentinel, "godot", interval_start=0, interval_step=0, max_retries=2, emit_warning=True)
    assert "Still waiting for godot" in manager.stderr.getvalue()


def test_what_must_not_happen_is_an_error_if_it_does(manager):
    quick = {"interval_start": 0, "interval_step": 0, "max_retries": 2}
    manager.ensure_not_for_a_while(Mock(side_effect=Sentinel()), Sentinel, **quick)
    with pytest.raises(AssertionError, match="rain"):
        manager.ensure_not_for_a_while(lambda: True, Sentinel, desc="rain", **quick)


def test_results_are_joined_and_missing_ones_told(manager, app):
    result = app.AsyncResult(uuid())
    app.backend.store_result(result.id, 42, "SUCCESS")
    assert manager.join(result) == [42]
    missing = app.AsyncResult(uuid())
    with pytest.raises(AssertionError, match="Missing task results"):
        manager.join(missing, max_retries=1, timeout=0.01)
    assert f"Still waiting for 1/1: [{missing.id}]" in manager.stdout.getvalue()
    assert manager.missing_results([result, missing]) == [missing.id]


def test_tasks_are_looked_for_in_the_answers_of_all_workers(manager, monkeypatch):
    answers = {"a@h": {"1": ["active", {}]}, "b@h": {"2": ["reserved", {}]}}
    monkeypatch.setattr(manager, "inspect", lambda timeout=3.0: Mock(query_task=lambda *ids: answers))
    assert manager.is_received(["1", "2"])
    assert not manager.is_accepted(["1", "2"])
    assert manager.is_accepted(["1"])
    manager.assert_received(["2"], interval=0)
