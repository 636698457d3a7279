"""Results in Redis behind TLS and behind sentinels."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from celery_clone import Celery
from tests.support.redis import RedisServer
from tests.support.redis_kinds import redis_behind_a_sentinel, redis_behind_tls


def check_results(url: str, **conf: Any) -> None:
    """Store, read, and wait."""
    app = Celery("tests", broker="memory://", backend=url, set_as_current=False)
    app.conf.update(conf)
    try:
        app.backend.mark_as_done("t1", 1)
        later = threading.Timer(0.2, app.backend.mark_as_done, ("t2", 2))
        later.start()

        assert app.AsyncResult("t1").get(timeout=10) == 1
        assert app.AsyncResult("t2").get(timeout=10) == 2
        later.join()
    finally:
        app.backend.close()
        app.close()


def test_over_the_older_protocol_that_servers_before_6_speak(redis_url: str) -> None:
    check_results(f"{redis_url}?protocol=2")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate; apt-get install openssl")
def test_behind_tls(redis_server: RedisServer, tmp_path: Path) -> None:
    with redis_behind_tls(tmp_path) as url:
        check_results(url)


def test_behind_a_sentinel(redis_server: RedisServer, redis_url: str, tmp_path: Path) -> None:
    with redis_behind_a_sentinel(redis_server, tmp_path) as port:
        check_results(
            f"sentinel://127.0.0.1:{port}/{redis_url.rpartition('/')[2]}",
            result_backend_transport_options={"master_name": "mymaster"},
        )
