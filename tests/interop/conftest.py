"""Real Celery and us on the same brokers, for the whole session: four processes per pair of broker and store."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from tests.support.rabbitmq import RabbitServer
from tests.support.redis import RedisServer
from tests.support.two_sides import SIDES, Client, Link, open_link, other

LINES_OF_A_LOG = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """With a test that failed on a link goes what both sides and their servers knew at that moment."""
    report = yield
    if report.failed and call.when == "call":
        ask = item._request.getfixturevalue  # type: ignore[attr-defined]
        for name in {"link", "counting_link", "redis_link"} & set(item.fixturenames):  # type: ignore[attr-defined]
            link = ask(name)
            for side, worker in link.workers.items():
                report.sections.append((f"log of {side}", "\n".join(worker.log().splitlines()[-LINES_OF_A_LOG:])))
            if link.broker.startswith("amqp"):
                report.sections.append(("queues", queues_of(ask("rabbitmq_server"))))
            if link.backend.startswith("redis"):
                report.sections.append(("chords", chords_in(link.backend)))
    return report


def queues_of(server: RabbitServer) -> str:
    """What waits and what is not acknowledged, in queues that hold something."""
    rows = [
        (row["vhost"], row["name"], row.get("messages_ready"), row.get("messages_unacknowledged"))
        for row in server.ask("GET", "queues")
    ]
    return "\n".join(
        f"{host} {name}: {ready} ready, {open_} open" for host, name, ready, open_ in rows if ready or open_
    )


def chords_in(url: str) -> str:
    """The bookkeeping of chords that are not over."""
    found = []
    with redis.Redis.from_url(url) as store:
        for key in sorted(key for key in store.scan_iter() if key[-2:] in (b".j", b".t", b".s", b".d", b".c")):
            read = {
                b"zset": lambda k: store.zrange(k, 0, -1),
                b"list": lambda k: store.lrange(k, 0, -1),
                b"set": store.smembers,
            }.get(store.type(key), store.get)
            value = read(key)
            if value != b"done":
                found.append(f"{key.decode()}: {value!r}")
    return "\n".join(found)


class Way(NamedTuple):
    """A producer of one side, and the queue whose worker is of the other."""

    link: Link
    client: Client
    queue: str
    reader: Client


@pytest.fixture(scope="session")
def pythons(celery_python: Path) -> dict[str, Path | str]:
    """The interpreters of both sides."""
    return {"real": celery_python, "ours": sys.executable}


@pytest.fixture(scope="session")
def redis_link(
    pythons: dict[str, Path | str], redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Link]:
    """Messages and results in Redis; the logs name their loggers."""
    url = redis_server.new_database_url()
    words = "[%(asctime)s: %(levelname)s/%(processName)s] <%(name)s> %(message)s"
    settings = json.dumps({"worker_log_format": words, "worker_task_log_format": words})
    with open_link(pythons, url, url, tmp_path_factory.mktemp("redis-link"), SETTINGS=settings) as link:
        yield link


@pytest.fixture(scope="session")
def rabbitmq_rpc_link(
    pythons: dict[str, Path | str], rabbitmq_server: RabbitServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Link]:
    """Messages and results in RabbitMQ."""
    host = rabbitmq_server.new_virtual_host()
    folder = tmp_path_factory.mktemp("rabbitmq-rpc-link")
    with open_link(pythons, rabbitmq_server.url(host), "rpc://", folder) as link:
        yield link


@pytest.fixture(scope="session")
def rabbitmq_redis_link(
    pythons: dict[str, Path | str],
    rabbitmq_server: RabbitServer,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Link]:
    """Messages in RabbitMQ, results with all that is known of a task in Redis; we go by the name ``celery``."""
    host = rabbitmq_server.new_virtual_host()
    broker, backend = rabbitmq_server.url(host), redis_server.new_database_url()
    folder = tmp_path_factory.mktemp("rabbitmq-redis-link")
    with open_link(pythons, broker, backend, folder, ALIAS="1", SETTINGS='{"result_extended": true}') as link:
        yield link


@pytest.fixture(scope="session", params=["redis", "rabbitmq_rpc", "rabbitmq_redis"])
def link(request: pytest.FixtureRequest) -> Link:
    """Each pair of broker and store."""
    found: Link = request.getfixturevalue(f"{request.param}_link")
    return found


@pytest.fixture(scope="session", params=["redis", "rabbitmq_redis"])
def counting_link(request: pytest.FixtureRequest) -> Link:
    """Each pair whose store counts the members of a chord."""
    found: Link = request.getfixturevalue(f"{request.param}_link")
    return found


@pytest.fixture(params=SIDES, ids=["real-to-ours", "ours-to-real"])
def way(request: pytest.FixtureRequest, link: Link) -> Way:
    """A producer of one side, a worker of the other."""
    return way_of(link, request.param)


@pytest.fixture(params=SIDES, ids=["sent-by-real", "sent-by-ours"])
def sender(request: pytest.FixtureRequest) -> str:
    """The side of the producer."""
    found: str = request.param
    return found


def way_of(link: Link, side: str) -> Way:
    """The way from *side* to the other."""
    return Way(link, link.clients[side], other(side), link.clients[other(side)])
