"""The current app, the current task, and whether a task may wait for another: all ambient state.

Read where Celery's interface hands in no app (``shared_task``, ``AsyncResult(id)``, ...); the import
contract ``ambient`` lists by whom.  It knows no class above it: the one of the default app is found
by its name.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery_clone.local import Proxy
from celery_clone.utils.imports import instantiate
from celery_clone.utils.threads import LocalStack

if TYPE_CHECKING:
    from celery_clone.app.base import Celery
    from celery_clone.app.task import Task

__all__ = (
    "connect_on_app_finalize",
    "current_app",
    "current_task",
    "get_current_app",
    "get_current_task",
    "get_current_worker_task",
    "set_default_app",
)

#: The app of every thread that has no current one.
default_app: Celery | None = None

#: The class of the default app, as ``module:name``.
DEFAULT_APP_CLASS = "celery_clone.app.base:Celery"

#: Returns its argument, or the current app for ``None``.  Replaced by :func:`enable_trace`.
app_or_default: Callable[..., Celery]

_default_app_lock = threading.RLock()

# Apps live as long as their users hold them.
_apps: weakref.WeakSet[Celery] = weakref.WeakSet()
_on_app_finalizers: set[Callable[[Celery], Any]] = set()
_task_join_will_block = False

#: The tasks that run here, the innermost on top.
_task_stack = LocalStack()
push_current_task = _task_stack.push
pop_current_task = _task_stack.pop


class _ThreadState(threading.local):
    current_app: Celery | None = None


_tls = _ThreadState()


# -- apps


def set_default_app(app: Celery | None) -> None:
    """Make *app* the one of every thread that has no current one."""
    global default_app
    default_app = app


def _set_current_app(app: Celery | None) -> None:
    """Make *app* the current one of this thread."""
    _tls.current_app = app


def get_current_app() -> Celery:
    """Return the current app of this thread, else the default one, which is made if need be."""
    return _tls.current_app or default_app or _make_default_app()


_get_current_app = get_current_app


def default_app_factory() -> Celery:
    """Make the app of programs that made none.  May be replaced."""
    loader = os.environ.get("CELERY_LOADER") or "default"
    app: Celery = instantiate(DEFAULT_APP_CLASS, "default", fixups=[], set_as_current=False, loader=loader)
    return app


def _make_default_app() -> Celery:
    # Two threads that ask at once must get the same app: tasks register with it.
    with _default_app_lock:
        if default_app is None:
            set_default_app(default_app_factory())
        assert default_app is not None
        return default_app


def _app_or_default(app: Celery | None = None) -> Celery:
    return get_current_app() if app is None else app


def _app_or_default_trace(app: Celery | None = None) -> Celery:
    """Say on standard error who falls back on the current app."""
    if app is not None:
        return app
    kind = "CURRENT" if _tls.current_app is not None else "DEFAULT"
    print(f"-- RETURNING TO {kind} APP --", file=sys.stderr)
    traceback.print_stack(file=sys.stderr)
    return get_current_app()


def enable_trace() -> None:
    """From now on tell on standard error who relies on the current app."""
    global app_or_default
    app_or_default = _app_or_default_trace


def disable_trace() -> None:
    """End what :func:`enable_trace` began."""
    global app_or_default
    app_or_default = _app_or_default


def _register_app(app: Celery) -> None:
    """Count *app* among the active ones, as long as somebody holds it."""
    _apps.add(app)


def _deregister_app(app: Celery) -> None:
    _apps.discard(app)


def _get_active_apps() -> weakref.WeakSet[Celery]:
    """Return the apps that are in use in this process."""
    return _apps


def connect_on_app_finalize(callback: Callable[[Celery], Any]) -> Callable[[Celery], Any]:
    """Have ``callback(app)`` called whenever an app is finalized.  Returns the callback."""
    _on_app_finalizers.add(callback)
    return callback


def _announce_app_finalized(app: Celery) -> None:
    # A callback may connect another one.
    for callback in set(_on_app_finalizers):
        callback(app)


# -- tasks


def get_current_task() -> Task | None:
    """Return the innermost task that runs here, or ``None`` outside of tasks."""
    task: Task | None = _task_stack.top
    return task


def get_current_worker_task() -> Task | None:
    """Return the innermost running task that a worker runs, not one called like a function."""
    for task in reversed(_task_stack.stack):
        if not task.request.called_directly:
            found: Task = task
            return found
    return None


def _set_task_join_will_block(blocks: bool) -> None:
    global _task_join_will_block
    _task_join_will_block = blocks


def task_join_will_block() -> bool:
    """Does waiting for a result here keep a worker's process from working?"""
    return _task_join_will_block


#: Stands for what :func:`get_current_app` returns.
current_app = Proxy(get_current_app)
#: Stands for what :func:`get_current_task` returns.
current_task = Proxy(get_current_task)

if os.environ.get("CELERY_TRACE_APP"):
    enable_trace()
else:
    disable_trace()
