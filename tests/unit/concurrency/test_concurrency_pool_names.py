"""Pools by name."""

from __future__ import annotations

import sys

import pytest

from celery_clone import concurrency
from celery_clone.concurrency import get_available_pool_names, get_implementation
from celery_clone.exceptions import ImproperlyConfigured


def test_the_names_are_celerys():
    assert {"prefork", "processes", "solo", "threads", "asyncio", "gevent", "eventlet", "custom"} <= {*get_available_pool_names()}


@pytest.mark.parametrize(
    ("name", "module"),
    [("prefork", "prefork"), ("processes", "prefork"), ("solo", "solo"), ("threads", "thread")],
)
def test_a_name_gives_its_class(name, module):
    cls = get_implementation(name)
    assert cls.__module__ == f"celery_clone.concurrency.{module}"
    assert cls.__name__ == "TaskPool"


def test_a_class_and_a_path_are_taken_as_they_are():
    cls = get_implementation("celery_clone.concurrency.solo:TaskPool")
    assert get_implementation(cls) is cls


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(ImproperlyConfigured, match="mean 'prefork'"):
        get_implementation("preforl")
    with pytest.raises(ImproperlyConfigured, match="Choose one of prefork"):
        get_implementation("xyzzy")


def test_the_custom_pool_says_how_to_name_it(monkeypatch):
    monkeypatch.setitem(concurrency.ALIASES, "custom", None)
    with pytest.raises(ImproperlyConfigured, match="CELERY_CUSTOM_WORKER_POOL"):
        get_implementation("custom")
    monkeypatch.setitem(concurrency.ALIASES, "custom", "celery_clone.concurrency.solo:TaskPool")
    assert get_implementation("custom").__module__.endswith("solo")


def test_a_pool_that_cannot_be_loaded_says_what_to_do(monkeypatch):
    monkeypatch.setitem(concurrency.ALIASES, "gevent", "celery_clone.concurrency.not_there:TaskPool")
    with pytest.raises(ImproperlyConfigured, match="choose prefork, threads or solo"):
        get_implementation("gevent")
    with pytest.raises(ImproperlyConfigured, match="needs the module 'no_such_module'"):
        get_implementation("no_such_module.pools:TaskPool")


def test_asking_for_names_loads_no_pool():
    for name in [name for name in sys.modules if name.startswith("celery_clone.concurrency.solo")]:
        del sys.modules[name]
    get_available_pool_names()
    assert "celery_clone.concurrency.solo" not in sys.modules


def test_the_old_names_lead_to_the_process_pool():
    from celery_clone.concurrency import asynpool
    from celery_clone.concurrency.procpool import ProcessPool

    assert asynpool.AsynPool is ProcessPool
    assert asynpool.PROC_ALIVE_TIMEOUT == 4.0


def test_a_class_that_is_not_in_its_module_is_named(monkeypatch):
    with pytest.raises(ImproperlyConfigured, match="no attribute 'Nope'"):
        get_implementation("celery_clone.concurrency.solo:Nope")
