"""Redis behind TLS, behind sentinels and behind a socket file is the same broker."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Queue
from kombu.pools import ProducerPool

from celery_clone.message import protocol
from celery_clone.transport import open_publisher, open_source
from celery_clone.transport.protocols import Destination, SendOptions
from tests.support.redis import RedisServer
from tests.support.redis_kinds import redis_behind_a_sentinel, redis_behind_tls, running
from tests.support.wait import wait_until


def check_broker(url: str, **options: Any) -> None:
    """Publish, take, wait, acknowledge."""
    pool = ProducerPool(Connection(url, transport_options=options).Pool(limit=2), limit=2)
    publisher: Any = open_publisher(pool)

    def publish(task_id: str) -> None:
        message = protocol.task_message_v2(task_id, "t", (task_id,), origin="test")
        publisher.publish(message, Destination("", "q", (Queue("q"),), "direct"), SendOptions())

    publish("first")
    connection = Connection(url, transport_options=options)
    connection.connect()
    source: Any = open_source(connection, accept=["json"])
    source.set_queues([Queue("q")])
    assert type(source).__name__ == "RedisSource"
    first = source.take(5)
    source.ack([delivery.tag for delivery in first])
    assert list(source.take(5, timeout=0.1)) == []
    assert not source._bell.polling
    sender = threading.Timer(0.2, publish, ["second"])
    sender.start()
    second = source.take(5, timeout=10)
    sender.join()

    assert [delivery.payload[0] for delivery in (*first, *second)] == [["first"], ["second"]]
    source.extend()
    source.close()
    publisher.close()
    connection.release()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate; apt-get install openssl")
def test_redis_behind_tls(redis_server: RedisServer, tmp_path: Path) -> None:
    with redis_behind_tls(tmp_path) as url:
        check_broker(url)


def test_redis_behind_a_sentinel(redis_server: RedisServer, redis_url: str, tmp_path: Path) -> None:
    with redis_behind_a_sentinel(redis_server, tmp_path) as port:
        check_broker(f"sentinel://127.0.0.1:{port}/{redis_url.rpartition('/')[2]}", master_name="mymaster")


def test_redis_behind_a_socket_file(redis_server: RedisServer, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"

    with running("redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)):
        wait_until(path.exists, 10, "the socket file")
        check_broker(f"redis+socket://{path}")
