"""RabbitMQ: a message is taken by a queue, or the caller hears of it in time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from billiard import Process
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.pools import ProducerPool

from celery_clone.exceptions import SoftTimeLimitExceeded
from celery_clone.message import protocol
from celery_clone.transport import open_publisher
from celery_clone.transport.amqp_publisher import AmqpPublisher, Unroutable
from celery_clone.transport.protocols import Destination, SendOptions
from tests.support.proxy import TcpProxy
from tests.support.rabbitmq import RabbitServer

QUEUE = Queue("q", Exchange("q"), routing_key="q")
TO = Destination("", "q", (QUEUE,), "direct")
NOWHERE = Destination("", "nowhere", (), "direct")
QUICK = SendOptions(retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0})


class Desk:
    """Our publisher, and a channel to look with."""

    def __init__(self, url: str, limit: int = 10, **options: Any) -> None:
        self.pool = ProducerPool(Connection(url, transport_options=options).Pool(limit=limit), limit=limit)
        self.publisher: Any = open_publisher(self.pool)
        self.connection = Connection(url)

    def count(self, queue: str = "q") -> int:
        return int(self.connection.default_channel.queue_declare(queue, passive=True).message_count)

    def declare(self, queue: Queue) -> None:
        queue(self.connection.default_channel).declare()

    def close(self) -> None:
        self.pool.connections.force_close_all()
        self.connection.release()


@pytest.fixture
def desk(rabbitmq_url: str) -> Iterator[Desk]:
    opened = Desk(rabbitmq_url)
    yield opened
    opened.close()


def call(task_id: str = "id") -> Any:
    return protocol.task_message_v2(task_id, "t", (1,), origin="gen@host")


def test_a_confirmed_message_is_in_its_queue_when_publish_returns(desk: Desk) -> None:
    assert isinstance(desk.publisher, AmqpPublisher)

    for number in range(5):
        desk.publisher.publish(call(), TO, SendOptions())
        assert desk.count() == number + 1


def test_a_message_that_no_queue_takes_is_an_error_that_says_where_it_went(desk: Desk) -> None:
    with pytest.raises(Unroutable, match="'nowhere'.*task_queues"):
        desk.publisher.publish(call(), NOWHERE, SendOptions())

    desk.publisher.publish(call(), TO, SendOptions())
    assert desk.count() == 1


def test_a_topic_that_nobody_is_bound_to_is_an_error_and_a_broadcast_is_none(desk: Desk) -> None:
    topic, fanout = Exchange("topic", type="topic"), Exchange("fanout", type="fanout")

    with pytest.raises(Unroutable):
        desk.publisher.publish(call(), Destination("topic", "a.b", (topic,), "topic"), SendOptions())  # type: ignore[arg-type]
    desk.publisher.publish(call(), Destination("fanout", "", (fanout,), "fanout"), SendOptions())  # type: ignore[arg-type]


def test_a_message_that_the_broker_refuses_is_an_error(desk: Desk) -> None:
    full = Queue("full", queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    desk.declare(full)
    to = Destination("", "full", (), "direct")
    desk.publisher.publish(call(), to, QUICK)

    with pytest.raises(OperationalError, match="2 attempts"):
        desk.publisher.publish(call(), to, QUICK)
    with pytest.raises(OperationalError, match="refused|Nacked"):
        desk.publisher.publish_many([(call(), to, QUICK)] * 3)
    assert desk.count("full") == 1


def test_an_exchange_that_does_not_exist_is_the_brokers_own_error(desk: Desk) -> None:
    with pytest.raises(desk.connection.channel_errors, match="no exchange"):
        desk.publisher.publish(call(), Destination("missing", "k", (), "direct"), QUICK)

    desk.publisher.publish(call(), TO, SendOptions())
    assert desk.count() == 1


def test_a_confirmation_that_nobody_waits_for_any_more_is_not_taken_for_that_of_the_next_message(
    rabbitmq_server: RabbitServer, rabbitmq_url: str, proxy_to: Callable[[int], TcpProxy], desk: Desk
) -> None:
    desk.declare(Queue("full", queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"}))
    full = Destination("", "full", (), "direct")
    # What goes to no queue is confirmed at once, before the refusal of the next message.
    all_of_none = Destination("fanout", "", (Exchange("fanout", type="fanout"),), "fanout")  # type: ignore[arg-type]
    desk.publisher.publish(call(), full, QUICK)
    proxy = proxy_to(rabbitmq_server.port)
    far = Desk(rabbitmq_url.replace(str(rabbitmq_server.port), str(proxy.port)), limit=1)
    far.publisher.publish(call("first"), all_of_none, QUICK)

    def too_long(*args: Any) -> None:
        raise SoftTimeLimitExceeded

    proxy.hold()
    signal.signal(signal.SIGUSR1, too_long)
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGUSR1)).start()
    with pytest.raises(SoftTimeLimitExceeded):
        far.publisher.publish(call("second"), all_of_none, QUICK)
    threading.Timer(0.3, proxy.release).start()

    with pytest.raises(OperationalError, match="refused|Nacked"):
        far.publisher.publish(call("third"), full, QUICK)
    far.publisher.publish(call("fourth"), TO, QUICK)
    far.close()


def test_a_batch_is_confirmed_whole(desk: Desk) -> None:
    desk.publisher.publish_many([(call(str(number)), TO, SendOptions()) for number in range(1300)])

    assert desk.count() == 1300


def test_a_batch_with_a_message_that_no_queue_takes_is_an_error_and_the_others_arrive(desk: Desk) -> None:
    batch = [(call("1"), TO, SendOptions()), (call("2"), NOWHERE, SendOptions()), (call("3"), TO, SendOptions())]

    with pytest.raises(Unroutable, match="nowhere"):
        desk.publisher.publish_many(batch)

    assert desk.count() == 2


def test_without_confirmation_amqp_is_what_it_was(rabbitmq_url: str) -> None:
    desk = Desk(rabbitmq_url, confirm_publish=False)

    desk.publisher.publish(call(), NOWHERE, SendOptions())
    desk.publisher.publish_many([(call(), TO, SendOptions())] * 3)
    desk.publisher.publish(call(), NOWHERE, SendOptions())

    assert desk.count() >= 0
    desk.close()


def test_batches_leave_no_channels_open(desk: Desk, rabbitmq_server: RabbitServer) -> None:
    for _ in range(3):
        desk.publisher.publish_many([(call(), TO, SendOptions())] * 3)

    with desk.pool.connections.acquire(block=True) as connection:
        assert len(connection.connection.channels) <= 2


def test_a_broker_that_is_away_is_named_without_its_password_and_with_a_remedy() -> None:
    desk = Desk("amqp://me:secret@127.0.0.1:1//")

    started = time.monotonic()
    with pytest.raises(OperationalError) as failed:
        desk.publisher.publish(call(), TO, QUICK)

    assert time.monotonic() - started < 5
    assert "127.0.0.1:1" in str(failed.value) and "secret" not in str(failed.value)
    assert "broker_url" in str(failed.value)


def test_a_broker_that_does_not_answer_costs_the_deadline_and_no_more(
    rabbitmq_url: str, rabbitmq_server: RabbitServer, proxy_to: Callable[[int], TcpProxy]
) -> None:
    proxy = proxy_to(rabbitmq_server.port)
    desk = Desk(rabbitmq_url.replace(str(rabbitmq_server.port), str(proxy.port)))
    desk.publisher.publish(call(), TO, SendOptions())
    how = SendOptions(deadline_s=1.0, retry_policy={"max_retries": None})
    proxy.hold()
    try:
        for publish in (
            lambda: desk.publisher.publish(call(), TO, how),
            lambda: desk.publisher.publish_many([(call(), TO, how)] * 3),
        ):
            started = time.monotonic()
            with pytest.raises(OperationalError):
                publish()
            assert 0.5 < time.monotonic() - started < 4.0
    finally:
        proxy.release()
    desk.publisher.publish(call(), TO, SendOptions())
    desk.close()


def test_a_connection_that_was_cut_is_replaced(
    rabbitmq_url: str, rabbitmq_server: RabbitServer, proxy_to: Callable[[int], TcpProxy]
) -> None:
    proxy = proxy_to(rabbitmq_server.port)
    desk = Desk(rabbitmq_url.replace(str(rabbitmq_server.port), str(proxy.port)))
    desk.publisher.publish(call(), TO, SendOptions())

    proxy.cut()
    desk.publisher.publish(call(), TO, SendOptions())
    proxy.cut()
    desk.publisher.publish_many([(call(), TO, SendOptions())] * 3)

    look = Connection(rabbitmq_url)
    assert look.default_channel.queue_declare("q", passive=True).message_count == 5
    look.release()
    desk.close()


def test_a_pool_that_is_used_up_is_an_error_after_the_deadline(rabbitmq_url: str) -> None:
    desk = Desk(rabbitmq_url, limit=1)

    with desk.pool.connections.acquire(block=True):
        started = time.monotonic()
        with pytest.raises(OperationalError, match="broker_pool_limit"):
            desk.publisher.publish(call(), TO, SendOptions(deadline_s=0.5))
        assert time.monotonic() - started < 3
    desk.publisher.publish(call(), TO, SendOptions())
    desk.close()


def test_a_forked_child_leaves_the_connections_of_its_parent_alone(desk: Desk) -> None:
    desk.publisher.publish(call(), TO, SendOptions())
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for _ in range(5):
                desk.publisher.publish(call(), TO, SendOptions())
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    desk.publisher.publish(call(), TO, SendOptions(retry=False))

    assert status == 0
    assert desk.count() == 7


def test_a_forked_child_leaves_the_connection_of_its_parent_alone(desk: Desk) -> None:
    """kombu shuts it down in every child of billiard, and the parent would send its next message twice."""
    desk.publisher.publish(call("1"), TO, QUICK)
    (used,) = [each for each in desk.pool.connections._resource.queue if getattr(each, "_connection", None)]
    before = used.connection

    child = Process(target=int)
    child.start()
    child.join()
    desk.publisher.publish(call("2"), TO, QUICK)

    assert child.exitcode == 0
    assert used._connection is before and before.connected
    assert desk.count() == 2
