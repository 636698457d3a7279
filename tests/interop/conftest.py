"""Real Celery and us on the same brokers, for the whole session: four processes per pair of broker and store."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.rabbitmq import RabbitServer
from tests.support.redis import RedisServer
from tests.support.two_sides import SIDES, Client, Link, open_link, other


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
