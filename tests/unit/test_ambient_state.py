"""The current app, the current task and what goes with them (``celery_clone._state``)."""

from __future__ import annotations

import asyncio
import threading
import weakref
from types import SimpleNamespace

import pytest

from celery_clone import _state


class App:
    def __init__(self, name="app"):
        self.name = name


class Recorded:
    """Remembers what it was made with."""

    def __init__(self, *args, **options):
        self.args = args
        self.options = options


@pytest.fixture(autouse=True)
def nothing_current(monkeypatch):
    monkeypatch.setattr(_state, "default_app", None)
    monkeypatch.setattr(_state, "default_app_factory", lambda: App("made"))
    monkeypatch.setattr(_state, "_on_app_finalizers", set())
    before = _state._tls.current_app
    _state._set_current_app(None)
    yield
    _state._set_current_app(before)
    _state._set_task_join_will_block(False)


def in_another_thread(function):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join(10)
    return answers[0]


# -- apps


def test_without_an_app_a_default_one_is_made_once():
    made = _state.get_current_app()
    assert made.name == "made"
    assert _state.get_current_app() is made
    assert _state.default_app is made


def test_threads_that_ask_for_the_default_app_at_once_get_the_same(monkeypatch):
    both_ask = threading.Barrier(2, timeout=10)
    made = []

    def make():
        made.append(App())
        return made[-1]

    def ask():
        both_ask.wait()
        return _state.get_current_app()

    monkeypatch.setattr(_state, "default_app_factory", make)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert answers == [made[0], made[0]]


@pytest.mark.parametrize(("asked", "loader"), [(None, "default"), ("proj:Loader", "proj:Loader")])
def test_the_default_app_is_a_bare_one_with_the_loader_of_the_environment(monkeypatch, asked, loader):
    monkeypatch.undo()
    monkeypatch.setattr(_state, "DEFAULT_APP_CLASS", f"{__name__}:Recorded")
    if asked:
        monkeypatch.setenv("CELERY_LOADER", asked)
    made = _state.default_app_factory()
    assert made.args == ("default",)
    assert made.options == {"fixups": [], "set_as_current": False, "loader": loader}


def test_the_current_app_belongs_to_its_thread_and_the_default_app_to_all():
    default, current = App("default"), App("current")
    _state.set_default_app(default)
    _state._set_current_app(current)
    assert _state.get_current_app() is current
    assert in_another_thread(_state.get_current_app) is default


def test_current_app_stands_for_the_current_app():
    _state._set_current_app(App("mine"))
    assert _state.current_app.name == "mine"


def test_app_or_default_prefers_its_argument():
    given, current = App(), App()
    _state._set_current_app(current)
    assert _state.app_or_default(given) is given
    assert _state.app_or_default() is current


def test_tracing_says_who_relies_on_the_current_app(capsys):
    _state.enable_trace()
    try:
        given = App()
        assert _state.app_or_default(given) is given
        assert capsys.readouterr().err == ""
        assert _state.app_or_default().name == "made"
        assert "RETURNING TO DEFAULT APP" in capsys.readouterr().err
        _state._set_current_app(given)
        assert _state.app_or_default() is given
        said = capsys.readouterr().err
        assert "RETURNING TO CURRENT APP" in said
        assert "test_tracing_says_who_relies_on_the_current_app" in said
    finally:
        _state.disable_trace()
    _state.app_or_default()
    assert capsys.readouterr().err == ""


def test_active_apps_are_those_somebody_holds():
    kept, dropped, gone = App(), App(), App()
    for app in (kept, dropped, gone):
        _state._register_app(app)
    _state._deregister_app(dropped)
    reference = weakref.ref(gone)
    del app, gone
    assert reference() is None
    active = set(_state._get_active_apps())
    assert kept in active
    assert dropped not in active


def test_finalizing_an_app_is_announced_to_all_who_asked_even_to_those_who_ask_meanwhile():
    told = []

    @_state.connect_on_app_finalize
    def first(app):
        told.append(app)
        _state.connect_on_app_finalize(told.append)

    app = App()
    _state._announce_app_finalized(app)
    assert told == [app]
    _state._announce_app_finalized(app)
    assert told == [app, app, app]


# -- tasks


def test_the_current_task_is_the_innermost_one():
    assert _state.get_current_task() is None
    _state._task_stack.push("outer")
    _state.push_current_task("inner")
    try:
        assert _state.get_current_task() == "inner"
        assert _state.current_task == "inner"
    finally:
        assert _state.pop_current_task() == "inner"
        assert _state._task_stack.pop() == "outer"
    assert not _state.current_task


def test_the_current_task_is_that_of_this_thread():
    _state.push_current_task("mine")
    try:
        assert in_another_thread(_state.get_current_task) is None
    finally:
        _state.pop_current_task()


def test_each_coroutine_has_its_own_current_task():
    async def run(name, others_turn, my_turn):
        _state.push_current_task(name)
        others_turn.set()
        await my_turn.wait()
        seen = _state.get_current_task()
        _state.pop_current_task()
        return seen

    async def both():
        one, two = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(run("one", one, two), run("two", two, one))

    assert asyncio.run(both()) == ["one", "two"]
    assert _state.get_current_task() is None


def test_the_worker_task_is_the_innermost_that_was_not_called_like_a_function():
    def task(called_directly):
        return SimpleNamespace(request=SimpleNamespace(called_directly=called_directly))

    assert _state.get_current_worker_task() is None
    from_worker, called = task(False), task(True)
    for each in (from_worker, called):
        _state.push_current_task(each)
    try:
        assert _state.get_current_worker_task() is from_worker
    finally:
        _state.pop_current_task()
        _state.pop_current_task()


def test_whether_waiting_blocks_is_remembered():
    assert _state.task_join_will_block() is False
    _state._set_task_join_will_block(True)
    assert _state.task_join_will_block() is True
