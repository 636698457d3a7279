"""Programs that the tests of the SQLite result store run as processes of their own.

``python sqlite_programs.py NAME URL [ARGUMENT ...]``.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from celery_clone import Celery
from celery_clone.execution.context import Context


def say(*words: Any) -> None:
    """One line for the test that listens."""
    print(*words, flush=True)


def make_app(url: str) -> Celery:
    """An app whose broker and store are one file."""
    app = Celery("tests", broker=url, backend=url, set_as_current=False)
    app.conf.task_default_queue = "tasks"

    @app.task(name="sum")
    def _sum(numbers: list[int]) -> int:
        return sum(numbers)

    app.finalize()
    return app


def store(url: str, *task_ids: str) -> None:
    """Wait for a line, then store the time as the result of each task."""
    app = make_app(url)
    _ = app.backend
    say("ready")
    sys.stdin.readline()
    for task_id in task_ids:
        app.backend.mark_as_done(task_id, time.time())
    say("stored")


def wait(url: str, task_id: str) -> None:
    """Wait for the result of a task; say it."""
    result = make_app(url).AsyncResult(task_id)
    say("ready")
    say("got", result.get(timeout=30))


def members(url: str, group_id: str, body_id: str, size: str, *indexes: str) -> None:
    """Wait for a line, then end these members of a chord, in batches as a worker does."""
    app = make_app(url)
    writer = app.backend.defer_results()
    body = app.signature("sum", task_id=body_id, app=app)
    body["chord_size"] = int(size)
    say("ready")
    sys.stdin.readline()
    for count, index in enumerate(indexes):
        request = Context({"id": f"member-{index}", "group": group_id, "group_index": int(index), "chord": body})
        app.backend.mark_as_done(f"member-{index}", int(index), request=request)
        if count % 4 == 3:
            writer.flush()
    writer.flush()
    say("ended")


def die_before_sending(url: str, group_id: str, body_id: str) -> None:
    """End the only member of a chord, and die between the count and the sending of the body."""
    app = make_app(url)
    app.backend._finish_chord = lambda chord: os._exit(0)
    body = app.signature("sum", task_id=body_id, app=app)
    body["chord_size"] = 1
    request = Context({"id": "member-0", "group": group_id, "group_index": 0, "chord": body})
    app.backend.mark_as_done("member-0", 7, request=request)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
