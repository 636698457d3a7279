"""Tasks that can be aborted, and messages that are moved."""

from __future__ import annotations

import pytest
from kombu import Queue

from celery_clone import Celery, uuid
from celery_clone.contrib import migrate
from celery_clone.contrib.abortable import ABORTED, AbortableAsyncResult, AbortableTask


@pytest.fixture
def app():
    app = Celery("proj", broker="memory://", backend="cache+memory://", set_as_current=False)
    yield app
    app.close()


# -- abortable


def test_a_task_learns_that_it_was_aborted(app):
    seen = []

    @app.task(bind=True, base=AbortableTask, shared=False)
    def work(self):
        seen.append(self.is_aborted())
        self.AsyncResult(self.request.id).abort()
        seen.append(self.is_aborted())
        return "aborted"

    result = work.AsyncResult(uuid())
    assert isinstance(result, AbortableAsyncResult)
    assert not result.is_aborted()
    work.apply(task_id=result.id)
    assert seen == [False, True]
    assert result.state == ABORTED
    assert work.is_aborted(task_id=result.id)
    app.backend.store_result(result.id, "aborted", "SUCCESS")
    assert result.get() == "aborted"


# -- moving messages


def waiting(app, queue):
    """The ids of what waits in a queue; it is empty afterwards."""
    with app.connection() as connection:
        found = []
        while (message := connection.default_channel.basic_get(queue, no_ack=True)) is not None:
            found.append(message.headers["id"])
        return found


QUICK = {"timeout": 0.05}


def test_tasks_are_moved_by_their_names(app):
    add, mul = app.send_task("proj.add").id, app.send_task("proj.mul").id
    told = []
    state = migrate.move_by_taskmap(
        {"proj.add": Queue("slow", routing_key="slow")},
        app=app,
        callback=lambda state, body, message: told.append((state.filtered, message.headers["id"])),
        **QUICK,
    )
    assert told == [(1, add)]
    assert (state.filtered, state.count, repr(state)) == (1, 2, "^1")
    assert waiting(app, "slow") == [add]
    assert waiting(app, "celery") == [mul]


def test_a_task_is_moved_by_its_id_and_the_search_ends_there(app):
    ids = [app.send_task("proj.add").id for _ in range(3)]
    state = migrate.move_task_by_id(ids[0], Queue("slow", routing_key="slow"), app=app, **QUICK)
    assert state.filtered == 1
    assert waiting(app, "slow") == ids[:1]
    assert sorted(waiting(app, "celery")) == sorted(ids[1:])


def test_tasks_are_moved_to_a_worker_of_its_own(app):
    id = app.send_task("proj.add").id
    migrate.move_direct_by_id(id, "w1@here", app=app, **QUICK)
    assert waiting(app, "w1@here.dq2") == [id]


def test_a_predicate_says_where_to_as_it_likes(app):
    with app.connection() as connection:
        for name in ("a", "b"):
            Queue(name, routing_key=name)(connection.default_channel).declare()
    first, second = app.send_task("proj.add").id, app.send_task("proj.mul").id

    def where(body, message):
        return ("", "a") if message.headers["task"] == "proj.add" else True

    migrate.move(where, app=app, exchange="", routing_key="b", source=["celery"], **QUICK)
    assert (waiting(app, "a"), waiting(app, "b"), waiting(app, "celery")) == ([first], [second], [])


def test_a_message_that_cannot_be_read_stays(app, caplog):
    with app.connection() as connection:
        producer = connection.Producer(serializer="pickle")
        producer.publish({"x": 1}, routing_key="celery", headers={"id": "p"}, declare=[app.amqp.queues["celery"]])
    migrate.move(lambda body, message: True, app=app, routing_key="x", **QUICK)
    assert "cannot be read and stays" in caplog.text
    assert waiting(app, "celery") == ["p"]


def test_messages_keep_what_they_carry(app):
    app.send_task("proj.add", ("x" * 100,), compression="zlib", priority=3, expires=600, headers={"tenant": "t"})
    seen = []
    with app.connection() as connection:
        queue = app.amqp.queues["celery"](connection.default_channel)
        before = queue.get(no_ack=False)
        before.ack()
        migrate.republish(app.amqp.Producer(connection), before, exchange="", routing_key="celery")
        after = queue.get(no_ack=True)
        seen = [before, after]
    assert seen[0].payload == seen[1].payload
    assert seen[0].headers == seen[1].headers
    for name in ("correlation_id", "reply_to", "priority", "delivery_mode"):
        assert seen[0].properties[name] == seen[1].properties[name]


def test_the_time_to_live_of_a_message_is_in_milliseconds_on_the_wire(app):
    with app.connection() as connection:
        queue = app.amqp.queues["celery"](connection.default_channel)
        producer = app.amqp.Producer(connection)
        producer.publish({}, routing_key="celery", expiration=60, declare=[queue])
        message = queue.get(no_ack=True)
        assert message.properties["expiration"] == "60000"
        migrate.republish(producer, message, exchange="", routing_key="celery")
        assert queue.get(no_ack=True).properties["expiration"] == "60000"


def test_ids_are_found_in_both_protocols():
    class Message:
        headers = {"id": "1"}

    class Older:
        headers = {}

    assert migrate.task_id_eq("1", [], Message())
    assert migrate.task_id_in({"1", "2"}, {"id": "2"}, Older())
    assert not migrate.task_id_eq("1", [], Older())


@pytest.mark.parametrize("given", ["a:b,c", ["a:b", "c"], {"a": "b", "c": "c"}])
def test_queues_and_their_new_names(given):
    assert migrate.prepare_queues(given) == {"a": "b", "c": "c"}
