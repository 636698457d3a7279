"""Makes an app feel at home in a Django project.

Applied by ``app.base`` to every app if ``DJANGO_SETTINGS_MODULE`` is set.  Uses
Django's clock, looks for tasks in the installed applications, sets Django up
before task modules are imported, and keeps database and cache connections from
outliving a task or crossing a fork.
It may not import Django unless it is in use.
"""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from datetime import datetime, timezone
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from celery_clone import _state, signals
from celery_clone.exceptions import FixupWarning, ImproperlyConfigured
from celery_clone.local import Proxy, try_import
from celery_clone.utils.ids import uuid
from celery_clone.utils.imports import symbol_by_name
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from celery_clone.app.base import Celery

__all__ = ("DjangoFixup", "DjangoWorkerFixup", "fixup")

ROOT = __name__.partition(".")[0]

ERR_NOT_INSTALLED = """\
Environment variable DJANGO_SETTINGS_MODULE is defined
but Django isn't installed.  Won't apply Django fix-ups!
"""

#: The oldest Django whose interfaces are the ones used here.
OLDEST_DJANGO = (1, 11)

logger = get_logger("celery.fixups.django")


def fixup(app: Celery, env: str = "DJANGO_SETTINGS_MODULE") -> DjangoFixup | None:
    """Adapt ``app`` to Django if the environment names its settings; return the adaptation."""
    if not os.environ.get(env) or "django" in str(app.loader_cls).lower():
        return None
    django = try_import("django")
    if django is None:
        warnings.warn(FixupWarning(ERR_NOT_INSTALLED), stacklevel=2)
        return None
    if django.VERSION < OLDEST_DJANGO:
        raise ImproperlyConfigured(f"Django {django.__version__} is too old. Install 1.11 or later.")
    return DjangoFixup(app).install()


def _itself(app: Any) -> Any:
    """Return the app behind a proxy such as ``current_app``."""
    return app._get_current_object() if isinstance(app, Proxy) else app


class DjangoFixup:
    """What is adapted in every process of the project."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        if _state.default_app is None:
            app.set_default()
        self._worker_fixup: DjangoWorkerFixup | None = None
        # Several apps can be adapted in one process; each has its own receiver.
        self._receiver_id = f"{ROOT}.fixups.django.{uuid()}"

    def install(self) -> DjangoFixup:
        """Adapt clock and task class, and wait for the signals of this app."""
        # Before all other folders: the project's modules win.
        sys.path.insert(0, os.getcwd())
        self._settings = symbol_by_name("django.conf:settings")
        self.app.loader.now = self.now
        if not self.app._custom_task_cls_used:
            self.app.task_cls = f"{ROOT}.contrib.django.task:DjangoTask"
        signals.import_modules.connect(self.on_import_modules, sender=self.app)
        # The worker is the sender of this one, so whose it is must be looked at.
        signals.worker_init.connect(self.on_worker_init, dispatch_uid=self._receiver_id)
        return self

    @property
    def worker_fixup(self) -> DjangoWorkerFixup:
        """What is adapted in processes that run tasks, made when first needed."""
        if self._worker_fixup is None:
            self._worker_fixup = DjangoWorkerFixup(self.app)
        return self._worker_fixup

    @worker_fixup.setter
    def worker_fixup(self, value: DjangoWorkerFixup) -> None:
        self._worker_fixup = value

    def on_import_modules(self, **kwargs: Any) -> None:
        """Set Django up, since task modules import models."""
        self.worker_fixup.validate_models()

    def on_worker_init(self, **kwargs: Any) -> None:
        """Adapt the worker that starts, if it is one of this app."""
        worker = kwargs.get("sender")
        if worker is None:
            warnings.warn(
                FixupWarning(
                    "A worker_init signal came without its sender, so its app is not known. "
                    "Send it with sender=<the worker>."
                ),
                stacklevel=2,
            )
        else:
            app = _itself(getattr(worker, "app", None))
            if app is not None and app is not _itself(self.app):
                logger.debug("Worker %r belongs to app %r, which has a Django fixup of its own.", worker, app)
                return
            self.worker_fixup.worker = worker
        self.worker_fixup.install()

    def autodiscover_tasks(self) -> list[str]:
        """Return the names of the installed applications."""
        return [config.name for config in symbol_by_name("django.apps:apps").get_app_configs()]

    def now(self, utc: bool = False) -> datetime:
        """Return the current time, by default as Django shows it."""
        return datetime.now(timezone.utc) if utc else self._now()

    @cached_property
    def _now(self) -> Any:
        return symbol_by_name("django.utils.timezone:now")


class DjangoWorkerFixup:
    """What is adapted in a process that runs tasks.

    Database connections are closed around each task, so that none is used after
    the server dropped it.  ``CELERY_DB_REUSE_MAX`` in the settings is the number
    of tasks that may share one.
    """

    #: The worker, once it has started.
    worker: Any = None

    _db_recycles = 0

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.db_reuse_max = app.conf.get("CELERY_DB_REUSE_MAX", None)
        self._db = import_module("django.db")
        self._cache = import_module("django.core.cache")
        self._settings = symbol_by_name("django.conf:settings")
        self.interface_errors = (symbol_by_name("django.db.utils.InterfaceError"),)
        self.DatabaseError = symbol_by_name("django.db:DatabaseError")

    def django_setup(self) -> None:
        """Set Django up."""
        symbol_by_name("django:setup")()

    def validate_models(self) -> None:
        """Set Django up and run its checks, unless ``CELERY_SKIP_CHECKS`` is in the environment."""
        self.django_setup()
        if not os.environ.get("CELERY_SKIP_CHECKS"):
            symbol_by_name("django.core.checks:run_checks")()

    def install(self) -> DjangoWorkerFixup:
        """Close what is open and wait for the signals around processes and tasks."""
        signals.beat_embedded_init.connect(self.close_database)
        signals.task_prerun.connect(self.on_task_prerun)
        signals.task_postrun.connect(self.on_task_postrun)
        signals.worker_process_init.connect(self.on_worker_process_init)
        self.close_database()
        self.close_cache()
        return self

    def on_worker_process_init(self, **kwargs: Any) -> None:
        """Let go of the connections a forked process shares with its parent."""
        if os.environ.get("FORKED_BY_MULTIPROCESSING"):
            self.validate_models()  # started by exec, so nothing was inherited
        # Closing them the polite way would talk to the server, in the name of
        # the parent: the descriptors are closed instead.
        for connection in self._db.connections.all():
            if connection and connection.connection:
                with suppress(*self.interface_errors), connection.wrap_database_errors:
                    _close_descriptor(connection.connection)
        # Not close_database(), which may decide to keep them.
        self._close_database()
        self.close_cache()

    def on_task_prerun(self, sender: Any, **kwargs: Any) -> None:
        """Close the database connections before a task."""
        if not getattr(sender.request, "is_eager", False):
            self.close_database()

    def on_task_postrun(self, sender: Any, **kwargs: Any) -> None:
        """Close database and cache connections after a task."""
        if not getattr(sender.request, "is_eager", False):
            self.close_database()
            self.close_cache()

    def close_database(self, **kwargs: Any) -> None:
        """Close the database connections, or count one more use of them."""
        if not self.db_reuse_max:
            self._close_database()
            return
        # Called before and after each task.
        if self._db_recycles >= self.db_reuse_max * 2:
            self._db_recycles = 0
            self._close_database()
        else:
            self._close_unusable()
        self._db_recycles += 1

    def _close_unusable(self) -> None:
        """Let go of what the server has dropped, as Django does between requests; its age is not looked at."""
        for connection in self._open_connections():
            if connection.in_atomic_block:
                continue
            connection.health_check_done = False  # for CONN_HEALTH_CHECKS
            if connection.errors_occurred:
                if connection.is_usable():
                    connection.errors_occurred = False
                else:
                    connection.close()

    def close_cache(self) -> None:
        """Close the connections of the caches."""
        with suppress(TypeError, AttributeError):  # there may be none
            self._cache.close_caches()

    def _close_database(self) -> None:
        in_prefork = self._is_prefork()
        for connection in self._open_connections():
            try:
                connection.close()
                if in_prefork and self._has_pool(connection) and hasattr(connection, "close_pool"):
                    with suppress(KeyError):
                        connection.close_pool()
            except self.interface_errors:
                continue
            except self.DatabaseError as error:
                text = str(error)
                if "closed" not in text and "not connected" not in text:
                    raise

    def _open_connections(self) -> Any:
        try:
            return self._db.connections.all(initialized_only=True)
        except TypeError:  # before Django 4.1
            return self._db.connections.all()

    def _has_pool(self, connection: Any) -> bool:
        settings = self._settings.DATABASES.get(connection.alias, {})
        return bool(settings.get("OPTIONS", {}).get("pool"))

    def _is_prefork(self) -> bool:
        """Tell whether tasks run in forked processes."""
        if self.worker is None:
            return False
        pool = self.worker.pool_cls
        return "prefork" in (pool if isinstance(pool, str) else pool.__module__)


def _close_descriptor(connection: Any) -> None:
    with suppress(AttributeError, OSError, TypeError):  # not every driver has one
        os.close(connection.fileno())
