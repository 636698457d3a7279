"""One worker for each broker and each module of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.redis import RedisServer
from tests.support.workflows import Shop, open_shop


@pytest.fixture(scope="module", params=["redis", "sqlite"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop on each broker that keeps results, too."""
    folder = tmp_path_factory.mktemp(f"{request.param}-shop")
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        broker = server.new_database_url()
    else:
        broker = f"sqlite:///{folder}/broker.db"
    with open_shop(folder, broker) as opened:
        yield opened
