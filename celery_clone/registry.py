"""The tasks of the current app, under the name where tracing libraries look for them.

For ``import celery.registry`` of third parties; inside, ``app.tasks`` is used.
"""

from __future__ import annotations

from typing import Any

from celery_clone.app import app_or_default
from celery_clone.local import Proxy

__all__ = ("tasks",)


def _tasks_of_the_current_app() -> Any:
    return app_or_default().tasks


#: Stands for the task registry of the current app.
tasks = Proxy(_tasks_of_the_current_app)
