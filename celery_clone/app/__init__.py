"""The application: ``Celery``, tasks, and what belongs to them.

Used by the front door and by whoever needs the current app.  Names are loaded when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from celery_clone import _state
from celery_clone._state import (
    app_or_default,
    disable_trace,
    enable_trace,
    pop_current_task,
    push_current_task,
)
from celery_clone.local import Proxy

if TYPE_CHECKING:
    from .base import Celery as Celery
    from .utils import AppPickler as AppPickler

__all__ = (
    "AppPickler",
    "Celery",
    "app_or_default",
    "bugreport",
    "default_app",
    "disable_trace",
    "enable_trace",
    "pop_current_task",
    "push_current_task",
    "shared_task",
)

_HOME = {"AppPickler": "celery_clone.app.utils", "Celery": "celery_clone.app.base"}

#: The app of code that made none.
default_app = Proxy(lambda: _state.default_app)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOME[name]), name)
    return found


def bugreport(app: Any = None) -> str:
    """Versions and settings of *app* (default: the current one), for a bug report."""
    return str((app or _state.get_current_app()).bugreport())


def shared_task(*args: Any, **kwargs: Any) -> Any:
    """Make a task that every app has, for code that cannot know the app: ``@shared_task``.

    Takes the options of ``app.task``; the value always stands for the task of the current app.

    Raises:
        TypeError: it was applied twice to one function.
    """

    def create(**options: Any) -> Any:
        def declare(function: Any) -> Any:
            if type(function) is Proxy:
                raise TypeError(
                    "@shared_task was applied more than once to the same function. "
                    "Remove the extra @shared_task decorator."
                )
            name = options.get("name")

            def cons(app: Any) -> Any:
                return app._task_from_fun(function, **options)

            _state.connect_on_app_finalize(cons)
            for app in _state._get_active_apps():
                if app.finalized:
                    with app._finalize_mutex:
                        app._task_from_fun(function, **options)

            def of_current_app() -> Any:
                app = _state.get_current_app()
                return app.tasks[name or app.gen_task_name(function.__name__, function.__module__)]

            return Proxy(of_current_app)

        return declare

    if len(args) == 1 and callable(args[0]):
        return create(**kwargs)(args[0])
    return create(*args, **kwargs)
