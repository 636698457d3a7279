"""An app in a Django project."""

from __future__ import annotations

import os
import sys
from datetime import timezone
from types import SimpleNamespace

import pytest

from celery_clone import _state, signals
from celery_clone.exceptions import FixupWarning, ImproperlyConfigured
from celery_clone.fixups.django import DjangoFixup, DjangoWorkerFixup, fixup
from celery_clone.local import Proxy


class App:
    """The part of an app that is adapted."""

    loader_cls = "app"
    _custom_task_cls_used = False

    def __init__(self, **conf):
        self.loader = SimpleNamespace(now=None)
        self.conf = conf
        self.task_cls = None
        self.is_default = False

    def set_default(self):
        self.is_default = True


@pytest.fixture(autouse=True)
def untouched_world(monkeypatch):
    """Signals, path and environment are put back."""
    watched = [
        getattr(signals, name)
        for name in (
            "import_modules",
            "worker_init",
            "beat_embedded_init",
            "task_prerun",
            "task_postrun",
            "worker_process_init",
        )
    ]
    before = [(signal, list(signal.receivers or ())) for signal in watched]
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    monkeypatch.delenv("FORKED_BY_MULTIPROCESSING", raising=False)
    yield
    for signal, receivers in before:
        signal.receivers = receivers
        signal.sender_receivers_cache.clear()


# -- whether to adapt


def test_without_django_settings_nothing_is_adapted():
    assert fixup(App()) is None


def test_a_loader_for_django_adapts_by_itself(monkeypatch):
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings")
    app = App()
    app.loader_cls = "djcelery.loaders.DjangoLoader"
    assert fixup(app) is None


def test_settings_without_django_are_a_warning(monkeypatch):
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings")
    monkeypatch.setitem(sys.modules, "django", None)
    with pytest.warns(FixupWarning, match="Django isn't installed"):
        assert fixup(App()) is None


def test_an_ancient_django_is_refused(monkeypatch):
    monkeypatch.setenv("OWN_SETTINGS", "shop.settings")
    monkeypatch.setitem(sys.modules, "django", SimpleNamespace(VERSION=(1, 8), __version__="1.8"))
    with pytest.raises(ImproperlyConfigured, match=r"Django 1\.8 is too old"):
        fixup(App(), env="OWN_SETTINGS")


# -- with Django


@pytest.fixture
def django(monkeypatch, tmp_path):
    """Django with a database in a file and one application."""
    module = pytest.importorskip("django")
    from django.conf import settings

    if not settings.configured:
        settings.configure(
            USE_TZ=True,
            INSTALLED_APPS=["django.contrib.contenttypes"],
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db")}},
        )
    module.setup()
    return module


@pytest.fixture
def app(monkeypatch):
    monkeypatch.setattr(_state, "default_app", App())
    return App()


@pytest.fixture
def worker_fixup(django, app):
    return DjangoWorkerFixup(app)


@pytest.fixture
def open_connection(django):
    from django.db import connection

    connection.ensure_connection()
    assert connection.connection is not None
    yield connection
    connection.close()


def test_an_app_takes_clock_and_task_class_of_django(django, app, monkeypatch):
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings")
    installed = fixup(app)
    assert app.task_cls == "celery_clone.contrib.django.task:DjangoTask"
    assert app.loader.now().tzinfo is not None
    assert app.loader.now(utc=True).tzinfo is timezone.utc
    assert sys.path[0] == os.getcwd()
    assert installed.autodiscover_tasks() == ["django.contrib.contenttypes"]


def test_an_own_task_class_stays(django, app):
    app._custom_task_cls_used = True
    DjangoFixup(app).install()
    assert app.task_cls is None


def test_the_first_app_becomes_the_default(monkeypatch, app):
    monkeypatch.setattr(_state, "default_app", None)
    DjangoFixup(app)
    assert app.is_default


def test_django_is_set_up_before_tasks_are_imported(django, app, monkeypatch):
    checked = []
    monkeypatch.setattr("django.core.checks.run_checks", lambda: checked.append("checked"))
    subject = DjangoFixup(app).install()
    signals.import_modules.send(sender=App())
    assert checked == []
    signals.import_modules.send(sender=app)
    assert checked == ["checked"]
    monkeypatch.setenv("CELERY_SKIP_CHECKS", "1")
    subject.on_import_modules()
    assert checked == ["checked"]


def test_only_the_worker_of_this_app_is_adapted(django, app, open_connection):
    subject = DjangoFixup(app).install()
    signals.worker_init.send(sender=SimpleNamespace(app=App()))
    assert open_connection.connection is not None
    worker = SimpleNamespace(app=Proxy(lambda: app), pool_cls="prefork")
    signals.worker_init.send(sender=worker)
    assert subject.worker_fixup.worker is worker
    assert open_connection.connection is None


def test_a_worker_that_does_not_show_itself_is_adapted_with_a_warning(django, app):
    subject = DjangoFixup(app)
    subject.worker_fixup = DjangoWorkerFixup(app)
    with pytest.warns(FixupWarning, match="without its sender"):
        subject.on_worker_init()
    assert subject.worker_fixup.worker is None


def test_connections_do_not_outlive_a_task(worker_fixup, open_connection):
    task = SimpleNamespace(request=SimpleNamespace(is_eager=False))
    worker_fixup.on_task_prerun(task)
    assert open_connection.connection is None
    open_connection.ensure_connection()
    worker_fixup.on_task_postrun(task)
    assert open_connection.connection is None


def test_a_task_called_eagerly_leaves_its_callers_connections_alone(worker_fixup, open_connection):
    task = SimpleNamespace(request=SimpleNamespace(is_eager=True))
    worker_fixup.on_task_prerun(task)
    worker_fixup.on_task_postrun(task)
    assert open_connection.connection is not None


def test_connections_can_be_shared_by_some_tasks(django, open_connection):
    subject = DjangoWorkerFixup(App(CELERY_DB_REUSE_MAX=2))
    for _ in range(4):
        subject.close_database()
    assert open_connection.connection is not None
    subject.close_database()
    assert open_connection.connection is None


class Connection:
    """A database connection that fails as told, or has a pool."""

    alias = "default"
    connection = None

    def __init__(self, error=None):
        self.error = error
        self.closed = self.pool_closed = False

    def close(self):
        self.closed = True
        if self.error:
            raise self.error

    def close_pool(self):
        self.pool_closed = True
        raise KeyError("already closed")


@pytest.fixture
def connections(worker_fixup, monkeypatch):
    def use(*connections, old=False):
        def every(initialized_only=False):
            return list(connections)

        def every_of_old():
            return list(connections)

        answer = every_of_old if old else every
        worker_fixup._db = SimpleNamespace(connections=SimpleNamespace(all=answer))

    return use


def test_connections_that_are_closed_already_are_no_error(worker_fixup, connections):
    from django.db import DatabaseError, InterfaceError

    last = Connection()
    connections(
        Connection(InterfaceError("gone")),
        Connection(DatabaseError("connection already closed")),
        Connection(DatabaseError("not connected")),
        last,
        old=True,
    )
    worker_fixup.close_database()
    assert last.closed


def test_other_errors_of_the_database_are_errors(worker_fixup, connections):
    from django.db import DatabaseError

    connections(Connection(DatabaseError("disk full")))
    with pytest.raises(DatabaseError, match="disk full"):
        worker_fixup.close_database()


@pytest.mark.parametrize(
    ("pool_cls", "closed"),
    [
        ("prefork", True),
        (type("P", (), {"__module__": "x.prefork"}), True),
        ("threads", False),
        (None, False),
    ],
)
def test_pools_of_connections_do_not_cross_a_fork(worker_fixup, connections, monkeypatch, pool_cls, closed):
    databases = {"default": {"OPTIONS": {"pool": True}}}
    worker_fixup._settings = SimpleNamespace(DATABASES=databases)
    worker_fixup.worker = pool_cls and SimpleNamespace(pool_cls=pool_cls)
    connection = Connection()
    connections(connection)
    worker_fixup.close_database()
    assert connection.pool_closed is closed


def test_a_forked_process_closes_descriptors_without_a_word_to_the_server(worker_fixup, connections, monkeypatch):
    closed = []
    monkeypatch.setattr(os, "close", closed.append)

    class Wrapped(Connection):
        wrap_database_errors = pytest.MonkeyPatch.context()
        connection = SimpleNamespace(fileno=lambda: 77)

    class WithoutDescriptor(Wrapped):
        wrap_database_errors = pytest.MonkeyPatch.context()
        connection = object()

    connections(Wrapped(), WithoutDescriptor(), Connection())
    worker_fixup.on_worker_process_init()
    assert closed == [77]


def test_a_process_started_by_exec_sets_django_up_again(worker_fixup, connections, monkeypatch):
    checked = []
    monkeypatch.setattr("django.core.checks.run_checks", lambda: checked.append(1))
    monkeypatch.setenv("FORKED_BY_MULTIPROCESSING", "1")
    connections()
    worker_fixup.on_worker_process_init()
    assert checked == [1]


def test_caches_that_cannot_be_closed_are_no_error(worker_fixup):
    worker_fixup._cache = SimpleNamespace()
    worker_fixup.close_cache()
