"""The task that looks for the end of a chord, on stores that cannot count members themselves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from celery_clone import Celery, states
from celery_clone.app.builtins import pause_before_look, time_waited
from celery_clone.exceptions import ChordError, Retry


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("tests", broker="memory://", backend="cache+memory://", set_as_current=False) as app:
        app.conf.task_default_queue = "tasks"
        app.task(name="sum")(sum)
        yield app


def messages(app: Celery) -> list[Any]:
    """What was sent: name, retries and arguments."""
    found = []
    with app.connection_for_read() as connection, connection.SimpleQueue("tasks", no_ack=True) as queue:
        while len(queue):
            message = queue.get(block=False)
            found.append((message.headers["task"], message.headers["retries"], message.payload[0]))
    return found


def look(app: Celery, looks: int = 0, **options: Any) -> Any:
    """Run the task on a chord of two members, after so many looks."""
    task = app.tasks["celery.chord_unlock"]
    body = app.signature("sum", task_id="body", app=app)
    header = [app.AsyncResult(name).as_tuple() for name in ("a", "b")]
    request = {"id": "unlock", "retries": looks, "called_directly": False, "delivery_info": {"routing_key": "tasks"}}
    task.push_request(args=("chord", body), kwargs={"result": header, **options}, **request)
    try:
        return task.run("chord", body, result=header, **options)
    finally:
        task.pop_request()


def pause_of(app: Celery, looks: int, **options: Any) -> float:
    """Seconds until the next look."""
    with pytest.raises(Retry) as again:
        look(app, looks, **options)
    assert isinstance(again.value.when, (int, float))
    return again.value.when


def test_pauses_are_a_tenth_of_the_time_that_was_waited_and_never_more_than_a_minute() -> None:
    assert pause_before_look(1.0, 0) == 1.0
    for looks in (5, 10, 30):
        assert pause_before_look(1.0, looks) == pytest.approx(1.0 + time_waited(1.0, looks) / 10)
    assert pause_before_look(1.0, 10_000) == 60.0
    assert pause_before_look(300.0, 50) == 300.0


def test_a_chord_whose_members_run_is_looked_at_again_ever_less_often(app: Celery) -> None:
    assert pause_of(app, 0) == 1.0
    assert pause_of(app, 20) == pytest.approx(1.1**20)
    assert [retries for _, retries, _ in messages(app)] == [1, 21]


def test_with_a_bound_on_the_looks_their_distance_stays(app: Celery) -> None:
    assert pause_of(app, 20, interval=2.0, max_retries=50) == 2.0


@pytest.mark.parametrize("expires", [60, timedelta(minutes=1)])
@pytest.mark.parametrize("setting", ["result_expires", "result_chord_expires"])
def test_a_chord_is_given_up_when_the_results_of_its_members_expire(
    app: Celery, expires: Any, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf[setting] = expires
    pause_of(app, 10)

    look(app, 30)

    with pytest.raises(ChordError, match="not all members have ended after 60 seconds"):
        app.AsyncResult("body").get(timeout=1)
    assert "given up" in caplog.text


def test_a_chord_whose_results_never_expire_is_never_given_up(app: Celery) -> None:
    app.conf.result_expires = None

    assert pause_of(app, 5000) == 60.0


def test_the_body_is_sent_once_when_all_members_have_ended(app: Celery) -> None:
    app.backend.mark_as_done("a", 1)
    app.backend.mark_as_done("b", 2)

    look(app)
    app.backend.store_result("body", {}, states.STARTED)
    look(app)

    assert messages(app) == [("sum", 0, [[1, 2]])]


def test_a_process_that_dies_while_it_looks_leaves_the_message_to_another(app: Celery) -> None:
    task = app.tasks["celery.chord_unlock"]

    assert task.acks_late
    assert task.reject_on_worker_lost
