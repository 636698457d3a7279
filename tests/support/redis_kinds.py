"""Redis as it is reached in other ways: behind TLS, and behind a sentinel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.support.certificates import make_certificate
from tests.support.processes import dies_with_its_parent, end, free_port
from tests.support.redis import RedisServer
from tests.support.wait import wait_until

__all__ = ("redis_behind_a_sentinel", "redis_behind_tls", "running")


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


@contextmanager
def redis_behind_tls(folder: Path) -> Iterator[str]:
    """A server that speaks TLS alone; its URL.  It needs the program openssl."""
    (key, certificate), port = make_certificate(folder), free_port()
    with running(
        "redis-server", "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "",
        "--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate),
        "--tls-auth-clients", "no", "--dir", str(folder),
    ):  # fmt: skip
        with redis.Redis(port=port, ssl=True, ssl_ca_certs=str(certificate), ssl_check_hostname=False) as client:
            wait_until(lambda: answers(client), 10, "Redis behind TLS")
        yield f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_check_hostname=false&ssl_ca_certs={certificate}"


@contextmanager
def redis_behind_a_sentinel(server: RedisServer, folder: Path) -> Iterator[int]:
    """A sentinel that names *server* as the master ``mymaster``; its port."""
    port, configuration = free_port(), folder / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor mymaster 127.0.0.1 {server.port} 1\n"
    )
    with running("redis-server", str(configuration), "--sentinel"):
        with redis.Redis(port=port) as client:
            wait_until(lambda: answers(client), 10, "the sentinel")
        yield port


def answers(client: Any) -> bool:
    """Does the server say something?"""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
