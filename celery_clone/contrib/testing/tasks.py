"""The task that shows that a worker for tests is there."""

from __future__ import annotations

from typing import Any

from celery_clone.app import shared_task

__all__ = ("PING", "add_ping", "ping")

#: Name of :data:`ping`.
PING = "celery.ping"


def _pong() -> str:
    """Return ``"pong"``."""
    return "pong"


ping = shared_task(name=PING)(_pong)


def add_ping(app: Any) -> Any:
    """The task as one of *app*, whatever became of the tasks for all apps meanwhile."""
    return app.task(name=PING, shared=False)(_pong)
