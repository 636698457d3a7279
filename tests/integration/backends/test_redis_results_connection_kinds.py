"""Results in Redis behind TLS and behind sentinels."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_clone import Celery
from tests.support.processes import dies_with_its_parent, end, free_port
from tests.support.redis import RedisServer
from tests.support.wait import wait_until


@contextmanager
def running(*command: str) -> Iterator[None]:
    """A process for the time of a test."""
    process = subprocess.Popen(
        dies_with_its_parent([*command]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        end(process)


def answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


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
    key, certificate, port = tmp_path / "key.pem", tmp_path / "cert.pem", free_port()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_check_hostname=false&ssl_ca_certs={certificate}"

    with running(
        "redis-server", "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "",
        "--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate),
        "--tls-auth-clients", "no", "--dir", str(tmp_path),
    ):  # fmt: skip
        with redis.Redis(port=port, ssl=True, ssl_ca_certs=str(certificate), ssl_check_hostname=False) as client:
            wait_until(lambda: answers(client), 10, "Redis behind TLS")
        check_results(url)


def test_behind_a_sentinel(redis_server: RedisServer, redis_url: str, tmp_path: Path) -> None:
    port, configuration = free_port(), tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor mymaster 127.0.0.1 {redis_server.port} 1\n"
    )

    with running("redis-server", str(configuration), "--sentinel"):
        with redis.Redis(port=port) as client:
            wait_until(lambda: answers(client), 10, "the sentinel")
        check_results(
            f"sentinel://127.0.0.1:{port}/{redis_url.rpartition('/')[2]}",
            result_backend_transport_options={"master_name": "mymaster"},
        )
