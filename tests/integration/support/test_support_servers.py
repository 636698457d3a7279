"""The servers of the tests start, stop, die and come back with their data, and share nothing."""

from __future__ import annotations

import amqp
import pytest
import redis

from tests.support.processes import is_alive
from tests.support.rabbitmq import RabbitServer
from tests.support.redis import RedisServer


def test_every_test_has_a_redis_database_of_its_own(redis_server: RedisServer, redis_url: str) -> None:
    other = redis_server.new_database_url()
    with redis.Redis.from_url(redis_url) as mine, redis.Redis.from_url(other) as theirs:
        mine.set("key", "mine")
        assert theirs.get("key") is None


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_redis_server_of_ones_own_comes_back_with_its_data(own_redis_server: RedisServer, way: str) -> None:
    with redis.Redis.from_url(own_redis_server.url()) as client:
        client.set("key", "kept")
        pid = own_redis_server.pid
        getattr(own_redis_server, way)()
        assert not is_alive(pid)
        assert not own_redis_server.answers()
        own_redis_server.start()
        assert client.get("key") == b"kept"


def test_every_test_has_a_virtual_host_of_its_own(rabbitmq_server: RabbitServer, rabbitmq_url: str) -> None:
    mine = rabbitmq_url.rpartition("/")[2]
    other = rabbitmq_server.new_virtual_host()
    assert mine != other
    with (
        amqp.Connection(f"127.0.0.1:{rabbitmq_server.port}", virtual_host=mine) as connection,
        amqp.Connection(f"127.0.0.1:{rabbitmq_server.port}", virtual_host=other) as elsewhere,
    ):
        connection.channel().queue_declare("mine", auto_delete=False)
        with pytest.raises(amqp.NotFound):
            elsewhere.channel().queue_declare("mine", passive=True)
    assert [queue["name"] for queue in rabbitmq_server.ask("GET", f"queues/{mine}")] == ["mine"]
