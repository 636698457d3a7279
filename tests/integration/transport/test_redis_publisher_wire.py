"""Redis: what we publish is what kombu would have published, and failures end in time."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Queue
from kombu.exceptions import EncodeError, OperationalError
from kombu.pools import ProducerPool

from celery_clone.message import protocol
from celery_clone.transport import open_publisher
from celery_clone.transport.protocols import Destination, SendOptions
from celery_clone.transport.publisher import publish_arguments
from celery_clone.transport.redis_publisher import RedisPublisher
from tests.support.proxy import TcpProxy
from tests.support.redis import RedisServer
from tests.support.wait import wait_until

QUEUE = Queue("q", Exchange("q"), routing_key="q")


class Desk:
    """A database, our publisher, and a kombu producer beside it."""

    def __init__(self, url: str, limit: int = 10, **options: Any) -> None:
        self.url, self.options = url, options
        self.pool = ProducerPool(Connection(url, transport_options=options).Pool(limit=limit), limit=limit)
        self.publisher: Any = open_publisher(self.pool)
        self.store = redis.Redis.from_url(url)

    def by_kombu(self, message: Any, to: Destination, how: SendOptions) -> None:
        with Connection(self.url, transport_options=self.options) as connection:
            connection.Producer().publish(message.body, declare=list(to.declare), **publish_arguments(message, to, how))

    def texts(self) -> dict[str, list[Any]]:
        """Every list and set of the database, emptied; tags are made equal."""
        found: dict[str, list[Any]] = {}
        for key in sorted(self.store.scan_iter()):
            if self.store.type(key) == b"list":
                rows = self.store.lrange(key, 0, -1)
            else:
                rows = sorted(self.store.smembers(key))
            found[key.decode()] = [
                re.sub(rb'"delivery_tag": "[0-9a-f-]{36}"', b'"delivery_tag": "*"', row) for row in rows
            ]
        self.store.flushdb()
        return found

    def close(self) -> None:
        self.publisher.close()
        self.pool.connections.force_close_all()
        self.store.close()


@pytest.fixture
def desk(redis_url: str) -> Iterator[Desk]:
    opened = Desk(redis_url)
    yield opened
    opened.close()


def call(task_id: str = "c1f0d7d5-0000-4000-8000-000000000001", **options: Any) -> Any:
    return protocol.task_message_v2(task_id, "proj.add", (2, "ü"), {"k": [1]}, origin="gen@host", **options)


QUEUES = {
    "anonymous": Destination("", "q", (QUEUE,), "direct"),
    "named": Destination("q", "q", (QUEUE,), "direct"),
    "exchange object": Destination(Exchange("q", delivery_mode=1), "q", (QUEUE,), None),  # type: ignore[arg-type]
    "two queues": Destination(
        "e", "k", (Queue("a", Exchange("e"), routing_key="k"), Queue("b", Exchange("e"), routing_key="k")), "direct"
    ),
    "topic": Destination("t", "a.b", (Queue("a", Exchange("t", type="topic"), routing_key="a.#"),), "topic"),
    "bound nowhere": Destination("e", "other", (Queue("a", Exchange("e"), routing_key="k"),), "direct"),
    "expiring": Destination("", "x", (Queue("x", expires=30),), "direct"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "transient": {"extra": {"delivery_mode": 1}},
    "transient by name": {"extra": {"delivery_mode": "transient"}},
    "priority": {"extra": {"priority": 6}},
    "expiration": {"extra": {"expiration": 1.5}},
    "timeouts": {"extra": {"timeout": 3, "confirm_timeout": 4}},
    "pickle": {"serializer": "pickle"},
    "yaml": {"serializer": "yaml"},
    "compressed": {"compression": "zlib"},
    "own properties": {"extra": {"message_id": "m", "app_id": "a"}},
    "content type": {"serializer": None, "extra": {"content_type": "application/x-own", "content_encoding": "binary"}},
}


@pytest.mark.parametrize("to", QUEUES.values(), ids=QUEUES)
def test_every_key_and_text_is_as_kombu_writes_it_wherever_it_goes(desk: Desk, to: Destination) -> None:
    desk.by_kombu(call(), to, SendOptions())
    expected = desk.texts()

    desk.publisher.publish(call(), to, SendOptions())

    assert desk.texts() == expected


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_text_is_as_kombu_writes_it_whatever_the_options(desk: Desk, options: dict[str, Any]) -> None:
    to, how = QUEUES["anonymous"], SendOptions(**options)
    message = call()
    if "content_type" in how.extra:
        message = message._replace(body=b"own bytes")
    desk.by_kombu(message, to, how)
    expected = desk.texts()

    desk.publisher.publish(call()._replace(body=message.body), to, how)
    desk.publisher.publish_many([(call()._replace(body=message.body), to, how)] * 2)

    found = desk.texts()
    for key, rows in expected.items():
        assert found[key] == rows * (3 if rows[0].startswith(b"{") else 1)


@pytest.mark.parametrize(
    "options", [{"reply_to": "r"}, {"eta": "2026-01-01T00:00:00"}, {"stamped_headers": ["s"], "s": 1}]
)
def test_every_text_is_as_kombu_writes_it_whatever_the_call(desk: Desk, options: dict[str, Any]) -> None:
    to = QUEUES["anonymous"]
    desk.by_kombu(call(**options), to, SendOptions())
    expected = desk.texts()

    desk.publisher.publish(call(**options), to, SendOptions())

    assert desk.texts() == expected


@pytest.mark.parametrize(
    "options", [{"global_keyprefix": "app:"}, {"priority_steps": [0, 5], "sep": ":"}, {"body_encoding": "utf-8"}]
)
def test_options_of_the_channel_are_used(redis_url: str, options: dict[str, Any]) -> None:
    desk = Desk(redis_url, **options)
    to, how = QUEUES["named"], SendOptions(extra={"priority": 7})
    desk.by_kombu(call(), to, how)
    expected = desk.texts()

    desk.publisher.publish(call(), to, how)

    assert desk.texts() == expected
    desk.close()


def test_expiring_queues_get_their_time_to_live(desk: Desk) -> None:
    desk.publisher.publish(call(), QUEUES["expiring"], SendOptions())

    assert 0 < desk.store.pttl("x") <= 30_000


def test_a_header_that_cannot_be_serialised_is_named(desk: Desk) -> None:
    message = call()
    message.headers["mine"] = object()

    with pytest.raises(EncodeError, match=r"'headers' of the call\['mine'\]"):
        desk.publisher.publish(message, QUEUES["anonymous"], SendOptions())
    assert desk.store.llen("q") == 0


def test_a_broadcast_reaches_kombus_consumer(desk: Desk) -> None:
    exchange = Exchange("all", type="fanout")
    got: list[Any] = []
    with Connection(desk.url) as connection:
        queue = Queue("mine", exchange, auto_delete=True)
        with Consumer(connection, [queue], on_message=got.append, accept=["json"]):

            def arrived() -> bool:
                desk.publisher.publish(call(), Destination("all", "", (exchange,), "fanout"), SendOptions())  # type: ignore[arg-type]
                try:
                    connection.drain_events(timeout=0.1)
                except TimeoutError:
                    pass
                return bool(got)

            wait_until(arrived, 10, "the broadcast")


# -- failures ---------------------------------------------------------------------------------------------


def test_a_broker_that_is_away_is_named_without_its_password_and_with_a_remedy() -> None:
    desk = Desk("redis://:secret@127.0.0.1:1/0")

    started = time.monotonic()
    with pytest.raises(OperationalError) as failed:
        desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions(retry_policy={"max_retries": 2}))

    text = str(failed.value)
    assert time.monotonic() - started < 3
    assert "127.0.0.1:1" in text and "secret" not in text
    assert "3 attempts" in text and "broker_url" in text


def test_a_broker_that_does_not_answer_costs_the_deadline_and_no_more(own_redis_server: RedisServer) -> None:
    desk = Desk(own_redis_server.url())
    desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())
    own_redis_server.freeze()
    try:
        for to in (QUEUES["anonymous"], QUEUES["topic"]):
            started = time.monotonic()
            with pytest.raises(OperationalError):
                desk.publisher.publish(call(), to, SendOptions(deadline_s=1.0, retry_policy={"max_retries": None}))
            assert 0.5 < time.monotonic() - started < 3.0
    finally:
        own_redis_server.thaw()
    desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())
    desk.close()


def test_a_server_that_was_restarted_is_found_again_and_everything_is_declared_anew(
    own_redis_server: RedisServer,
) -> None:
    desk = Desk(own_redis_server.url())
    desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())
    desk.store.flushdb()
    own_redis_server.stop()
    own_redis_server.start()

    desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())

    assert desk.store.llen("q") == 1
    assert desk.store.smembers("_kombu.binding.q") == {b"q\x06\x16\x06\x16q"}
    desk.close()


def test_a_publish_waits_for_a_server_that_comes_back_in_time(
    redis_url: str, redis_server: RedisServer, proxy_to: Callable[[int], TcpProxy]
) -> None:
    proxy = proxy_to(redis_server.port)
    proxy.refuse()
    desk = Desk(redis_url.replace(str(redis_server.port), str(proxy.port)))
    back = threading.Timer(0.7, proxy.accept)
    back.start()

    desk.publisher.publish(
        call(),
        QUEUES["anonymous"],
        SendOptions(deadline_s=10, retry_policy={"max_retries": None, "interval_max": 0.2}),
    )

    back.join()
    assert desk.store.llen("q") == 1
    desk.close()


def test_a_batch_that_was_interrupted_loses_nothing(
    redis_url: str, redis_server: RedisServer, proxy_to: Callable[[int], TcpProxy]
) -> None:
    proxy = proxy_to(redis_server.port)
    desk = Desk(redis_url.replace(str(redis_server.port), str(proxy.port)))
    desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())
    store = redis.Redis.from_url(redis_url)
    store.delete("q")
    ids = [f"{number:036}" for number in range(6000)]
    cutter = threading.Timer(0.02, proxy.cut)
    cutter.start()

    desk.publisher.publish_many([(call(task_id), QUEUES["anonymous"], SendOptions()) for task_id in ids])

    cutter.join()
    found = [json.loads(text)["headers"]["id"] for text in reversed(store.lrange("q", 0, -1))]
    assert set(found) == set(ids)
    assert list(dict.fromkeys(found)) == ids
    store.close()
    desk.close()


def test_a_connection_that_the_server_closed_meanwhile_is_noticed_before_it_is_used(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())
    monkeypatch.setattr("celery_clone.transport.redis_publisher.IDLE_S", 0.0)
    for client in desk.store.client_list():
        if client["cmd"] == "lpush":
            desk.store.client_kill_filter(_id=client["id"])

    desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions(retry=False))

    assert desk.store.llen("q") == 2


def test_more_threads_than_connections_wait_for_each_other(redis_url: str) -> None:
    desk = Desk(redis_url, limit=2)
    threads = [
        threading.Thread(
            target=lambda: [desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions()) for _ in range(10)]
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert desk.store.llen("q") == 80
    database = str(desk.store.connection_pool.connection_kwargs["db"])
    clients = [client for client in desk.store.client_list() if client["db"] == database]
    assert sum(client["cmd"] == "lpush" for client in clients) <= 2
    desk.close()


def test_a_server_out_of_memory_is_an_error_that_says_so(own_redis_server: RedisServer) -> None:
    desk = Desk(own_redis_server.url())
    desk.store.config_set("maxmemory", 1)
    desk.store.config_set("maxmemory-policy", "noeviction")

    with pytest.raises(OperationalError, match="OOM|maxmemory"):
        desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions(retry_policy={"max_retries": 1}))

    desk.store.config_set("maxmemory", 0)
    desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())
    desk.close()


def test_a_forked_child_publishes_over_connections_of_its_own(desk: Desk) -> None:
    desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())
    desk.publisher.publish(call(), QUEUES["topic"], SendOptions())

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for _ in range(20):
                desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())
                desk.publisher.publish(call(), QUEUES["topic"], SendOptions())
            code = 0
        finally:
            os._exit(code)
    for _ in range(20):
        desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())
        desk.publisher.publish(call(), QUEUES["topic"], SendOptions())
    _, status = os.waitpid(pid, 0)

    assert status == 0
    assert desk.store.llen("q") == 41
    assert desk.store.llen("a") == 41


def test_a_closed_publisher_opens_again_when_it_is_used(desk: Desk) -> None:
    assert isinstance(desk.publisher, RedisPublisher)
    desk.publisher.close()
    desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())
    desk.publisher.close()
    desk.publisher.close()
    desk.publisher.publish(call(), QUEUES["anonymous"], SendOptions())

    assert desk.store.llen("q") == 2
