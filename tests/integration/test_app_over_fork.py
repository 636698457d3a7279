"""What an app leaves behind in a forked child, and when it is closed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celery_clone import Celery
from tests.support.processes import open_files_of


def in_child(ask: Callable[[], str]) -> str:
    """What *ask* answers in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, ask().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        found = answer.read()
    os.waitpid(pid, 0)
    return found


@pytest.mark.parametrize("identity", ["oid", "thread_oid"])
def test_a_forked_child_has_an_identity_of_its_own(identity: str) -> None:
    with Celery("forked", broker="memory://", set_as_current=False) as app:
        ours = getattr(app, identity)

        assert in_child(lambda: getattr(app, identity)) not in ("", ours)
        assert getattr(app, identity) == ours


def test_a_call_from_a_forked_child_says_so_although_it_is_like_one_of_the_parent() -> None:
    with Celery("forked", broker="memory://", set_as_current=False) as app:
        task = app.task(name="nothing")(lambda: None)
        origins: list[str] = []

        def call() -> str:
            app.amqp.publisher.publish = lambda message, *_: origins.append(message.headers["origin"])
            task.delay()
            return f"{origins[-1]} {os.getpid()}"

        ours = [call(), call()]
        origin, pid = in_child(call).split()

        assert ours[0] == ours[1] and ours[0].startswith(f"gen{os.getpid()}@")
        assert origin.startswith(f"gen{pid}@")


def test_a_closed_app_holds_no_file_and_opens_it_again_when_it_is_used(tmp_path: Path) -> None:
    def held() -> list[Any]:
        return [path for path in open_files_of(os.getpid()).values() if str(path).startswith(str(tmp_path))]

    url = f"sqlite:///{tmp_path}/broker.db"
    app = Celery("closed", broker=url, backend=url, set_as_current=False)
    app.send_task("nobody")
    app.backend.store_result("id", 1, "SUCCESS")
    assert held()

    app.close()
    app.close()
    assert held() == []

    app.send_task("nobody")
    assert app.AsyncResult("id").get(timeout=5) == 1
    app.close()
    assert held() == []
