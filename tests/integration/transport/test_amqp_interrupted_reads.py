"""A time limit that raises while RabbitMQ's answer is being read: nothing waits for ever on what is left of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from celery_clone import Celery
from celery_clone.contrib.testing.worker import start_worker
from celery_clone.exceptions import SoftTimeLimitExceeded
from tests.support.proxy import TcpProxy
from tests.support.rabbitmq import RabbitServer


@contextmanager
def soft_limit(before: Callable[[], Any], seconds: float = 0.5) -> Iterator[list[float]]:
    """*before*, then the exception of a soft limit, raised by a process signal; gives the seconds it took to pass."""
    raised: list[float] = []
    took: list[float] = []

    def expire(signum: int, frame: Any) -> None:
        raised.append(time.monotonic())
        raise SoftTimeLimitExceeded(seconds)

    previous = signal.signal(signal.SIGALRM, expire)
    before()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(SoftTimeLimitExceeded):
            yield took
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    took.append(time.monotonic() - raised[0])


@pytest.fixture
def proxy(rabbitmq_server: RabbitServer, proxy_to: Callable[[int], TcpProxy]) -> TcpProxy:
    return proxy_to(rabbitmq_server.port)


@pytest.fixture
def app(rabbitmq_url: str, rabbitmq_server: RabbitServer, proxy: TcpProxy) -> Iterator[Celery]:
    url = rabbitmq_url.replace(f":{rabbitmq_server.port}", f":{proxy.port}")
    with Celery("tests", broker=url, backend="rpc://", set_as_current=False) as app:

        @app.task(name="add", shared=False)
        def add(x: int, y: int) -> int:
            return x + y

        yield app
        proxy.release()
        app.backend.close()


def test_a_question_to_workers_ends_with_the_time_limit_and_the_next_one_is_answered(app: Celery, proxy: TcpProxy):
    with start_worker(app, perform_ping_check=False) as worker:
        assert app.control.ping(timeout=5, limit=1)
        # In the middle of the reply queue's declaration.
        with soft_limit(proxy.hold) as took:
            app.control.ping(timeout=60)
        assert took[0] < 2
        proxy.release()
        assert app.control.ping(timeout=5, limit=1) == [{worker.hostname: {"ok": "pong"}}]


class Limit(int):
    """A number of answers that is first looked at when they are waited for: the broker falls silent then."""

    def __new__(cls, proxy: TcpProxy) -> Limit:
        made = super().__new__(cls, 5)
        made.proxy = proxy
        return made

    proxy: TcpProxy

    def __gt__(self, other: int) -> bool:
        self.proxy.hold()
        return super().__gt__(other)


def test_a_wait_for_answers_ends_with_the_time_limit(app: Celery, proxy: TcpProxy):
    with soft_limit(lambda: None, seconds=1.5) as took:
        app.control.broadcast("ping", reply=True, timeout=60, limit=Limit(proxy))
    assert took[0] < 2
    proxy.release()
    assert app.control.ping(timeout=0.5) == []


def test_a_result_is_read_over_a_new_connection_after_a_time_limit(app: Celery, proxy: TcpProxy):
    with start_worker(app, perform_ping_check=False):
        result = app.tasks["add"].delay(1, 2)
        assert result.get(timeout=10) == 3
        waiting = app.AsyncResult("nobody sends this")
        with soft_limit(proxy.hold) as took:
            waiting.get(timeout=60)
        assert took[0] < 2
        proxy.release()
        assert app.tasks["add"].delay(2, 3).get(timeout=10) == 5
