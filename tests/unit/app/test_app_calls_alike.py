"""Calls that differ only in their arguments are made like one before, and look as if they were not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from kombu.exceptions import EncodeError

from celery_clone import Celery, chord, group, signals
from celery_clone._state import _task_stack
from celery_clone.app.amqp import AMQP
from celery_clone.app.stencils import Stencil


class Watching(Celery):
    """An app that sees every call."""

    names: list[str]

    def send_task(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.names.append(name)
        return super().send_task(name, *args, **kwargs)


def make(kind: type[Celery] = Celery) -> Celery:
    app = kind("proj", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(shared=False, name="add")
    def add(x: Any, y: Any, *, z: Any = 0) -> Any:
        return x + y + z

    @app.task(shared=False, name="other", ignore_result=True, serializer="json", time_limit=9)
    def other(values: Any) -> Any:
        return values

    return app


@pytest.fixture
def app() -> Iterator[Celery]:
    app = make()
    yield app
    app.close()


@pytest.fixture
def made_alike(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the calls that were made like another."""
    ids: list[str] = []
    filled = Stencil.filled

    def counted(stencil: Stencil, task_id: str, *args: Any) -> Any:
        ids.append(task_id)
        return filled(stencil, task_id, *args)

    monkeypatch.setattr(Stencil, "filled", counted)
    return ids


def rows_of(app: Celery, send: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """What *send* gives, and what would have left, message by message."""
    rows: list[Any] = []
    publisher = app.amqp.publisher
    before, before_one = publisher.publish_many, publisher.publish
    publisher.publish_many = rows.extend  # type: ignore[method-assign]
    publisher.publish = lambda *row: rows.append(row)  # type: ignore[method-assign]
    try:
        return send(), rows
    finally:
        publisher.publish_many = before  # type: ignore[method-assign]
        publisher.publish = before_one  # type: ignore[method-assign]


def written(rows: list[Any]) -> list[Any]:
    """Messages as text, with ids in the order of their first appearance."""
    ids = [row[0].headers["id"] for row in rows] + [row[0].headers["group"] for row in rows]
    text = [repr((message.headers, message.properties, message.body, to, how)) for message, to, how in rows]
    for number, task_id in enumerate(dict.fromkeys(ids)):
        text = [line.replace(str(task_id), f"id-{number}") for line in text]
    return text


@contextmanager
def each_made_by_itself() -> Iterator[None]:
    """Inside, somebody sees each message before it leaves."""

    def receiver(**_: Any) -> None:
        """Might change it."""

    signals.before_task_publish.connect(receiver)
    yield
    signals.before_task_publish.disconnect(receiver)


CANVASES: dict[str, Callable[[Celery], Any]] = {
    "plain": lambda app: group(app.tasks["add"].s(number, 1) for number in range(4)),
    "keywords": lambda app: group(app.tasks["add"].s(1, 1, z=number) for number in range(4)),
    "ignored": lambda app: group(app.tasks[name].s([1]) for name in ("other", "other")),
    "priority": lambda app: group([app.tasks["other"].s(n).set(priority=5) for n in range(4)]),
    "queue": lambda app: group([app.tasks["other"].s(n).set(queue="images") for n in range(3)]),
    "header": lambda app: chord([app.tasks["add"].s(n, 1) for n in range(4)], app.tasks["other"].s().set(task_id="b")),
}


@pytest.mark.parametrize("canvas", CANVASES.values(), ids=CANVASES)
def test_no_message_shows_how_it_was_made(app: Celery, canvas: Callable[[Celery], Any], made_alike: list[str]) -> None:
    _, short = rows_of(app, canvas(app).apply_async)
    assert len(made_alike) == len(short) - 1

    with each_made_by_itself():
        _, long = rows_of(app, canvas(app).apply_async)
    assert len(made_alike) == len(short) - 1
    assert written(short) == written(long)


def test_results_are_those_of_the_messages_in_order(app: Celery, made_alike: list[str]) -> None:
    result, rows = rows_of(app, CANVASES["plain"](app).apply_async)

    assert [member.id for member in result] == [row[0].headers["id"] for row in rows]
    assert [row[0].body[0] for row in rows] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert {member.ignored for member in result} == {app.tasks["add"].ignore_result}


@pytest.mark.parametrize(
    "option", [{"countdown": 5}, {"expires": 60}, {"headers": {"a": 1}}, {"link": "other"}, {"shadow": "name"}]
)
def test_a_call_with_options_of_its_own_is_made_by_itself(
    app: Celery, made_alike: list[str], option: dict[str, Any]
) -> None:
    if "link" in option:
        option = {"link": app.tasks["other"].s()}
    add = app.tasks["add"]
    _, rows = rows_of(app, group([add.s(1, 1).set(**option), add.s(2, 1).set(**option)]).apply_async)

    assert len(rows) == 2
    assert made_alike == []


def test_arguments_are_checked_for_every_member(app: Celery) -> None:
    add = app.tasks["add"]

    with pytest.raises(TypeError, match="missing"):
        rows_of(app, group([add.s(1, 1), add.s(2, 1), add.s(3)]).apply_async)


def test_a_router_is_asked_for_every_member(app: Celery) -> None:
    asked: list[Any] = []
    app.conf.task_routes = [lambda name, args, kwargs, options, task=None, **_: asked.append(args)]

    rows_of(app, CANVASES["plain"](app).apply_async)

    assert asked == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_functions_put_in_the_place_of_ours_see_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    watching = make(Watching)
    watching.names = []
    rows_of(watching, CANVASES["plain"](watching).apply_async)
    assert watching.names == ["add"] * 4
    watching.close()

    app, seen = make(), []
    make_message = app.amqp.as_task_v2
    app.amqp.task_protocols[2] = lambda *args, **kwargs: seen.append(args) or make_message(*args, **kwargs)
    rows_of(app, CANVASES["plain"](app).apply_async)
    assert len(seen) == 4
    app.close()

    seen.clear()
    shipped = AMQP.as_task_v2
    monkeypatch.setattr(AMQP, "as_task_v2", lambda *args, **kwargs: seen.append(args) or shipped(*args, **kwargs))
    app = make()
    rows_of(app, CANVASES["plain"](app).apply_async)
    assert len(seen) == 4
    app.close()


def test_somebody_who_listens_after_the_sending_hears_of_every_call(app: Celery) -> None:
    heard: list[Any] = []

    def receiver(headers: Any = None, **_: Any) -> None:
        heard.append(headers["id"])

    signals.after_task_publish.connect(receiver)
    result, _ = rows_of(app, CANVASES["plain"](app).apply_async)
    signals.after_task_publish.disconnect(receiver)

    assert heard == [member.id for member in result]


# --- calls without options -------------------------------------------------------------------------------


def calls(app: Celery, name: str = "add", count: int = 3) -> list[Any]:
    """The messages of some calls without options."""
    return rows_of(app, lambda: [app.tasks[name].delay(number, z=1) for number in range(count)])[1]


@pytest.fixture
def lenient(app: Celery) -> Celery:
    """The app, with a task that takes what :func:`calls` gives."""

    @app.task(shared=False, name="any", soft_time_limit=4)
    def anything(*args: Any, **kwargs: Any) -> None:
        """Takes what it is given."""

    app.tasks["add"].typing = app.tasks["other"].typing = False
    return app


@pytest.mark.parametrize("name", ["add", "other", "any"])
@pytest.mark.parametrize("routes", [None, {"o*": {"queue": "videos"}}], ids=["no-routes", "routes"])
def test_no_call_without_options_shows_how_it_was_made(
    lenient: Celery, made_alike: list[str], name: str, routes: Any
) -> None:
    lenient.conf.task_routes = routes
    short = calls(lenient, name)
    assert made_alike == [row[0].headers["id"] for row in short[1:]]

    with each_made_by_itself():
        long = calls(lenient, name)

    assert len(made_alike) == 2
    assert written(short) == written(long)


CHANGES: dict[str, Callable[[Celery], Any]] = {
    "serializer": lambda app: setattr(app.conf, "task_serializer", "yaml"),
    "default queue": lambda app: app.conf.update(task_default_queue="elsewhere"),
    "routes": lambda app: setattr(app.conf, "task_routes", {"add": "routed"}),
    "task": lambda app: setattr(app.tasks["add"], "ignore_result", True),
    "queues": lambda app: setattr(app.amqp, "queues", {"celery": {"exchange": "media", "exchange_type": "topic"}}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_between_two_calls_holds_for_the_second(
    lenient: Celery, made_alike: list[str], change: Callable[[Celery], Any]
) -> None:
    calls(lenient, count=2)
    assert len(made_alike) == 1
    change(lenient)
    changed = calls(lenient, count=1)
    assert len(made_alike) == 1

    with each_made_by_itself():
        assert written(changed) == written(calls(lenient, count=1))


def test_a_call_of_another_protocol_is_made_anew(lenient: Celery) -> None:
    calls(lenient, count=2)
    lenient.conf.task_protocol = 1

    assert [row[0].body["args"] for row in calls(lenient, count=2)] == [(0,), (1,)]


def test_an_eager_app_runs_what_it_would_have_sent(lenient: Celery) -> None:
    calls(lenient, count=2)
    lenient.conf.task_always_eager = True

    assert lenient.tasks["add"].delay(1, 1).get() == 2


def test_each_thread_gives_the_address_of_its_own_replies(lenient: Celery, made_alike: list[str]) -> None:
    mine = calls(lenient, count=2)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(calls, lenient, count=2).result()

    assert len(made_alike) == 3
    assert {row[0].properties["reply_to"] for row in mine} == {lenient.thread_oid}
    assert {row[0].properties["reply_to"] for row in mine}.isdisjoint(row[0].properties["reply_to"] for row in others)


def test_a_call_from_within_a_task_names_its_parent(lenient: Celery, made_alike: list[str]) -> None:
    calls(lenient, count=2)
    made_alike.clear()
    parent = lenient.tasks["any"]
    _task_stack.push(parent)
    parent.push_request(id="parent", called_directly=False)
    try:
        (row,) = calls(lenient, count=1)
    finally:
        parent.pop_request()
        _task_stack.pop()

    assert row[0].headers["parent_id"] == "parent"
    assert made_alike == []


def test_a_call_that_could_not_be_sent_leaves_nothing_behind(lenient: Celery, made_alike: list[str]) -> None:
    add = lenient.tasks["add"]

    with pytest.raises(EncodeError):
        add.delay(object(), 1)
    rows = calls(lenient)

    assert [row[0].body[0] for row in rows] == [(0,), (1,), (2,)]
    assert len(made_alike) == 2
