"""Results as messages: queues, lost connections, threads, and real workers' messages."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from celery_clone import Celery, states
from celery_clone._state import _set_task_join_will_block
from celery_clone.backends.rpc import RPCBackend
from celery_clone.exceptions import OperationalError, TimeoutError
from celery_clone.execution.context import Context
from celery_clone.utils.ids import uuid
from tests.support.rabbitmq import RabbitServer
from tests.support.wait import wait_until
from tests.support.worker import clean_environment


@pytest.fixture
def make_app(rabbitmq_url: str) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(url: str = rabbitmq_url, **conf: Any) -> Celery:
        app = Celery("tests", broker=url, backend="rpc://", set_as_current=False)
        app.conf.update(conf)
        assert isinstance(app.backend, RPCBackend)
        made.append(app)
        return app

    yield make
    for app in made:
        app.backend.close()
        app.close()


def called(app: Celery) -> tuple[Any, Context]:
    """A call as the store sees it: its result, and the request of the worker."""
    task_id = uuid()
    app.backend.on_task_call(None, task_id)
    return app.AsyncResult(task_id), Context(id=task_id, correlation_id=task_id, reply_to=app.thread_oid)


def queues_of(url: str, *names: str) -> list[str]:
    """Those of the queues that are there."""
    there = []
    with Connection(url) as connection:
        for name in names:
            try:
                connection.channel().queue_declare(name, passive=True)
            except connection.channel_errors:
                continue
            there.append(name)
    return there


def test_the_reply_queue_is_there_before_the_task_is_sent(make_app: Callable[..., Celery], rabbitmq_url: str) -> None:
    app = make_app()

    app.backend.on_task_call(None, uuid())

    assert queues_of(rabbitmq_url, app.thread_oid) == [app.thread_oid]


def test_calls_after_the_first_ask_the_broker_for_nothing(
    make_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    app.backend.on_task_call(None, uuid())
    connection = app.backend.result_consumer._connection
    sent: list[bytes] = []
    write = connection.connection.transport.write
    monkeypatch.setattr(connection.connection.transport, "write", lambda data: (sent.append(data), write(data)))

    for _ in range(100):
        app.backend.on_task_call(None, uuid())

    assert sent == []


def test_calls_in_a_process_of_a_worker_have_no_reply_queue(make_app: Callable[..., Celery], rabbitmq_url: str) -> None:
    app = make_app()
    _set_task_join_will_block(True)
    try:
        app.backend.on_task_call(None, uuid())
    finally:
        _set_task_join_will_block(False)

    assert queues_of(rabbitmq_url, app.thread_oid) == []


def test_the_reply_queue_goes_with_its_process(rabbitmq_url: str, tmp_path: Path) -> None:
    program = """
import sys
from celery_clone import Celery
app = Celery("tests", broker=sys.argv[1], backend="rpc://")
app.backend.on_task_call(None, "t")
print(app.thread_oid)
"""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", program, rabbitmq_url],
        capture_output=True,
        text=True,
        env=clean_environment({"PYTHONPATH": root}),
        check=True,
    )

    wait_until(lambda: not queues_of(rabbitmq_url, done.stdout.strip()), 10, "the end of the queue")
    assert done.stderr == ""


def test_a_result_sent_while_the_connection_was_away_arrives(
    make_app: Callable[..., Celery],
    rabbitmq_server: RabbitServer,
    rabbitmq_url: str,
    proxy_to: Callable[[int], Any],
) -> None:
    proxy = proxy_to(rabbitmq_server.port)
    app = make_app(rabbitmq_url.replace(f":{rabbitmq_server.port}/", f":{proxy.port}/"))
    worker = make_app()
    result, request = called(app)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(result.get(timeout=30)))
    thread.start()

    proxy.refuse()
    worker.backend.mark_as_done(result.id, "kept for you", request=request)
    proxy.accept()

    thread.join()
    assert got == ["kept for you"]


def test_a_result_that_was_not_read_when_the_connection_broke_comes_again(
    make_app: Callable[..., Celery],
    rabbitmq_server: RabbitServer,
    rabbitmq_url: str,
    proxy_to: Callable[[int], Any],
) -> None:
    proxy = proxy_to(rabbitmq_server.port)
    app = make_app(rabbitmq_url.replace(f":{rabbitmq_server.port}/", f":{proxy.port}/"))
    result, request = called(app)
    make_app().backend.mark_as_done(result.id, "again", request=request)
    # It lies in the socket of the client by now, or is on its way there.
    proxy.cut()

    assert result.get(timeout=20) == "again"


def test_a_wait_ends_in_time_although_the_broker_is_away(
    make_app: Callable[..., Celery],
    rabbitmq_server: RabbitServer,
    rabbitmq_url: str,
    proxy_to: Callable[[int], Any],
) -> None:
    proxy = proxy_to(rabbitmq_server.port)
    app = make_app(rabbitmq_url.replace(f":{rabbitmq_server.port}/", f":{proxy.port}/"))
    result, _ = called(app)
    proxy.refuse()
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        result.get(timeout=1)

    assert time.monotonic() - began < 5


def test_a_call_without_a_reply_queue_is_refused(make_app: Callable[..., Celery]) -> None:
    app = make_app(
        "amqp://guest:guest@127.0.0.1:1//",
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0},
    )

    with pytest.raises(OperationalError, match="reply queue") as raised:
        app.backend.on_task_call(None, uuid())

    assert "guest:guest" not in str(raised.value)


def test_a_worker_whose_connection_broke_sends_the_result_again(
    make_app: Callable[..., Celery],
    rabbitmq_server: RabbitServer,
    rabbitmq_url: str,
    proxy_to: Callable[[int], Any],
) -> None:
    proxy = proxy_to(rabbitmq_server.port)
    app, worker = make_app(), make_app(rabbitmq_url.replace(f":{rabbitmq_server.port}/", f":{proxy.port}/"))
    first, request = called(app)
    worker.backend.mark_as_done(first.id, 1, request=request)
    second, request = called(app)
    writer = worker.backend.defer_results()
    worker.backend.mark_as_done(second.id, 2, request=request)

    proxy.cut()
    writer.flush()

    assert not writer.pending
    assert (first.get(timeout=10), second.get(timeout=10)) == (1, 2)


def test_a_result_for_a_caller_that_is_gone_is_no_error(make_app: Callable[..., Celery]) -> None:
    worker = make_app()

    worker.backend.mark_as_done("t", 1, request=Context(id="t", correlation_id="t", reply_to="no such queue"))
    worker.backend.mark_as_done("t", 1, request=Context(id="t", correlation_id="t", reply_to=None))


def test_a_result_may_be_read_by_another_thread_than_sent_the_call(make_app: Callable[..., Celery]) -> None:
    app, worker = make_app(), make_app()
    result, request = called(app)
    got: list[Any] = []

    def read() -> None:
        got.append(result.get(timeout=20))

    thread = threading.Thread(target=read)
    thread.start()
    worker.backend.mark_as_done(result.id, "other thread", request=request)

    thread.join()
    assert got == ["other thread"]


def test_results_that_came_before_anybody_asked_are_kept(make_app: Callable[..., Celery]) -> None:
    app, worker = make_app(), make_app()
    calls = [called(app) for _ in range(50)]
    for at, (result, request) in enumerate(calls):
        worker.backend.mark_as_done(result.id, at, request=request)

    assert calls[-1][0].get(timeout=10) == 49

    assert [app.AsyncResult(result.id).get(timeout=10) for result, _ in calls] == list(range(50))


def test_a_result_can_be_had_a_second_time(make_app: Callable[..., Celery]) -> None:
    app, worker = make_app(), make_app()
    result, request = called(app)
    worker.backend.mark_as_done(result.id, "twice", request=request)

    assert app.AsyncResult(result.id).get(timeout=10) == "twice"
    assert app.AsyncResult(result.id).get(timeout=10) == "twice"
    assert app.AsyncResult(result.id).state == states.SUCCESS


def test_a_forked_child_has_a_queue_of_its_own_and_leaves_the_parents_connection_alone(
    make_app: Callable[..., Celery],
) -> None:
    app = make_app()
    result, request = called(app)
    app.backend.mark_as_done(result.id, "parent", request=request)
    connection = app.backend.result_consumer._connection
    name = app.thread_oid

    child = os.fork()
    if child == 0:
        status = 1
        try:
            own, own_request = called(app)
            app.backend.mark_as_done(own.id, "child", request=own_request)
            status = 0 if own.get(timeout=10) == "child" and app.thread_oid != name else 2
        finally:
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert result.get(timeout=10) == "parent"
    assert app.backend.result_consumer._connection is connection
    assert app.thread_oid == name


@pytest.mark.parametrize(("persistent", "mode"), [(None, 1), (True, 2)])
def test_messages_survive_the_broker_if_results_are_persistent(
    persistent: bool | None, mode: int, make_app: Callable[..., Celery], rabbitmq_url: str
) -> None:
    worker = make_app(result_persistent=persistent)
    with Connection(rabbitmq_url) as connection:
        queue = connection.SimpleQueue("replies")
        worker.backend.mark_as_done("t", 1, request=Context(id="t", correlation_id="c", reply_to="replies"))

        message = queue.get(timeout=10)

        assert message.properties["delivery_mode"] == mode
        assert message.properties["correlation_id"] == "c"
        assert message.content_type == "application/json"
        assert message.payload["task_id"] == "t"
        message.ack()
        queue.close()


@pytest.mark.interop
def test_results_of_real_celery_are_read(
    celery_python: Path, make_app: Callable[..., Celery], rabbitmq_url: str
) -> None:
    app = make_app()
    result, request = called(app)
    failed, failed_request = called(app)
    program = f"""
from celery import Celery
from celery.app.task import Context
app = Celery("shop", broker={rabbitmq_url!r}, backend="rpc://")
def request(task_id):
    return Context(id=task_id, correlation_id=task_id, reply_to={request.reply_to!r})
app.backend.mark_as_done({result.id!r}, [1, 2], request=request({result.id!r}))
app.backend.mark_as_failure({failed.id!r}, ValueError("x"), request=request({failed.id!r}))
"""
    subprocess.run([celery_python, "-c", program], env=clean_environment(), check=True)

    assert result.get(timeout=10) == [1, 2]
    with pytest.raises(ValueError, match="x"):
        failed.get(timeout=10)


@pytest.mark.interop
def test_real_celery_reads_our_results(celery_python: Path, make_app: Callable[..., Celery], rabbitmq_url: str) -> None:
    program = f"""
import sys
from celery import Celery
app = Celery("shop", broker={rabbitmq_url!r}, backend="rpc://")
with app.producer_or_acquire() as producer:
    app.backend.on_task_call(producer, "t")
print(app.thread_oid, flush=True)
print(app.AsyncResult("t").get(timeout=20))
"""
    other = subprocess.Popen([celery_python, "-c", program], env=clean_environment(), stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    reply_to = other.stdout.readline().strip()

    make_app().backend.mark_as_done("t", "ours", request=Context(id="t", correlation_id="t", reply_to=reply_to))

    assert other.communicate(timeout=20)[0].strip() == "ours"
