"""Apps for tests: in memory, out of the way of other apps, and gone afterwards.

Used by the fixtures of ``contrib.pytest`` and by test suites that make their own.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from celery_clone import _state
from celery_clone.app.base import Celery
from celery_clone.app.log import Logging
from celery_clone.contrib.testing.tasks import add_ping

__all__ = ("DEFAULT_TEST_CONFIG", "TestApp", "Trap", "UnitLogging", "import_tasks", "set_trap", "setup_default_app")

#: Settings of an app for tests.
DEFAULT_TEST_CONFIG: Mapping[str, Any] = {
    "worker_hijack_root_logger": False,
    "worker_log_color": False,
    "accept_content": {"json"},
    "enable_utc": True,
    "timezone": "UTC",
    "broker_url": "memory://",
    "result_backend": "cache+memory://",
    "broker_heartbeat": 0,
}

#: Attributes that tools look for on everything.
HARMLESS = frozenset({"_is_coroutine", "_is_coroutine_mark", "__func__", "__wrapped__"})


class Trap:
    """Stands where the current app would, and fails when it is used: somebody did not hand on their app."""

    def __getattr__(self, name: str) -> Any:
        if name in HARMLESS:
            return None
        raise RuntimeError(f"Test depends on current_app (its attribute {name!r}). Hand in the app instead.")


class UnitLogging(Logging):
    """Logging that is left as the tests have it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.already_setup = True


def TestApp(  # noqa: N802 Celery's name
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    enable_logging: bool = False,
    set_as_current: bool = False,
    log: Any = UnitLogging,
    backend: Any = None,
    broker: Any = None,
    **kwargs: Any,
) -> Celery:
    """An app for tests.

    Arguments:
        name: its name.
        config: settings that win over :data:`DEFAULT_TEST_CONFIG`.
        enable_logging: set up logging as for a real worker?
        set_as_current: make it the current app?
        log: class of its logging.
        backend, broker: URLs that win over the settings.
        kwargs: see :class:`~celery_clone.app.base.Celery`.
    """
    settings = {**deepcopy(dict(DEFAULT_TEST_CONFIG)), **(config or {})}
    if broker is not None:
        settings.pop("broker_url", None)
    if backend is not None:
        settings.pop("result_backend", None)
    app = Celery(
        name or "celery.tests",
        set_as_current=set_as_current,
        log=None if enable_logging else log,
        broker=broker,
        backend=backend,
        **kwargs,
    )
    app.add_defaults(settings)
    add_ping(app)
    return app


#: What the modules declared for all apps that :func:`import_tasks` imported.
_declared_by_modules: set[Any] = set()


def import_tasks(app: Any, modules: Iterable[str]) -> None:
    """Import modules with tasks.

    They are imported once, so their tasks for all apps outlive the app of the test that was first.
    """
    before = set(_state._on_app_finalizers)
    for module in modules:
        app.loader.import_task_module(module)
    _declared_by_modules.update(_state._on_app_finalizers - before)


@contextmanager
def set_trap(app: Any) -> Iterator[None]:
    """Within this context, using the current or the default app is an error."""
    trap: Any = Trap()
    before = _state._tls

    class Trapped:
        """The current app of each thread."""

        current_app = trap

    _state.set_default_app(trap)
    _state._tls = Trapped()  # type: ignore[assignment]
    try:
        yield
    finally:
        _state._tls = before


@contextmanager
def setup_default_app(app: Any, use_trap: bool = False) -> Iterator[None]:
    """Whatever is declared and made current within this context is undone in the end, and *app* is closed.

    With *use_trap* see :func:`set_trap`.
    """
    current, default = _state._tls.current_app, _state.default_app
    declared, apps = set(_state._on_app_finalizers), weakref.WeakSet(_state._apps)
    try:
        if use_trap:
            with set_trap(app):
                yield
        else:
            yield
    finally:
        _state.set_default_app(default)
        _state._tls.current_app = current
        if app is not current:
            app.close()
        _state._on_app_finalizers = declared | _declared_by_modules
        _state._apps = apps
        # Its connections are closed; who keeps the app shall not keep them.
        app._backend_cache = None
        app._local.backend = None
