"""``import celery_clone``: its names, its version, and patching for green pools."""

from __future__ import annotations

import importlib
import sys
import types

import pytest

import celery_clone
from celery_clone import _version


def test_the_version_is_that_of_the_celery_it_stands_for():
    assert celery_clone.__version__ == "5.7.0"
    assert celery_clone.VERSION is celery_clone.version_info
    assert tuple(celery_clone.VERSION) == (5, 7, 0, "", "")
    assert celery_clone.VERSION >= (5, 0)
    assert celery_clone.VERSION.major == 5
    assert celery_clone.VERSION_BANNER == "5.7.0 (collider)"


def test_on_the_wire_a_worker_is_the_software_fleet_tools_know():
    assert _version.SOFTWARE_IDENT == "py-celery"


def test_a_name_is_the_same_object_as_in_the_module_that_defines_it():
    assert celery_clone.uuid is importlib.import_module("celery_clone.utils.ids").uuid
    assert celery_clone.current_app is importlib.import_module("celery_clone._state").current_app


def test_every_public_name_has_a_home_or_is_here():
    for name in celery_clone.__all__:
        assert name in celery_clone._HOME or name in vars(celery_clone)
    assert set(celery_clone.__all__) <= set(dir(celery_clone))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'PeriodicTask'"):
        celery_clone.PeriodicTask  # noqa: B018


# -- patching for green pools


@pytest.fixture
def pools(monkeypatch):
    """A module of pools that records which implementation was loaded."""
    module = types.ModuleType("celery_clone.concurrency")
    module.loaded = []
    module.get_available_pool_names = lambda: ("prefork", "green")
    module.get_implementation = module.loaded.append
    monkeypatch.setitem(sys.modules, "celery_clone.concurrency", module)
    return module


@pytest.mark.parametrize(
    "argv",
    [
        ["celery", "worker", "-P", "green"],
        ["celery", "worker", "-Pgreen"],
        ["celery", "worker", "-P=green"],
        ["celery", "worker", "--pool", "green"],
        ["celery", "worker", "--pool=green", "-l", "INFO"],
    ],
    ids=" ".join,
)
def test_the_asked_pool_is_patched_for_and_loaded_in_every_spelling(pools, argv):
    patched = []
    celery_clone.maybe_patch_concurrency(argv, patches={"green": lambda: patched.append("green")})
    assert patched == ["green"]
    assert pools.loaded == ["green"]


@pytest.mark.parametrize(
    "argv",
    [["celery", "worker"], ["celery", "worker", "-P"], ["celery", "worker", "--pooling=green"]],
    ids=" ".join,
)
def test_without_a_pool_nothing_is_patched(pools, argv):
    celery_clone.maybe_patch_concurrency(argv, patches={"green": pytest.fail})
    assert pools.loaded == []


def test_a_pool_that_needs_no_patch_is_only_loaded(pools):
    celery_clone.maybe_patch_concurrency(["celery", "-P", "prefork"], patches={})
    assert pools.loaded == ["prefork"]


def test_an_unknown_pool_is_left_to_the_command_to_refuse(pools):
    celery_clone.maybe_patch_concurrency(["celery", "-P", "nonsense"])
    assert pools.loaded == []


def test_the_spellings_of_the_option_may_be_given(pools):
    celery_clone.maybe_patch_concurrency(["x", "--kind", "prefork"], short_opts=["-k"], long_opts=["--kind"])
    assert pools.loaded == ["prefork"]


def test_gevent_is_patched_all_over(pools, monkeypatch):
    calls = []
    gevent = types.ModuleType("gevent")
    monkey = types.ModuleType("gevent.monkey")
    monkey.patch_all = lambda: calls.append("patch_all")
    for name, module in {"gevent": gevent, "gevent.monkey": monkey, "gevent.signal": gevent}.items():
        monkeypatch.setitem(sys.modules, name, module)
    celery_clone.maybe_patch_concurrency(["celery", "-P", "gevent"])
    assert calls == ["patch_all"]


def test_eventlet_is_patched_and_told_how_long_a_block_may_last(pools, monkeypatch):
    calls = []
    eventlet = types.ModuleType("eventlet")
    eventlet.monkey_patch = lambda: calls.append("monkey_patch")
    debug = types.ModuleType("eventlet.debug")
    debug.hub_blocking_detection = lambda *args: calls.append(args)
    monkeypatch.setitem(sys.modules, "eventlet", eventlet)
    monkeypatch.setitem(sys.modules, "eventlet.debug", debug)
    celery_clone.maybe_patch_concurrency(["celery", "-P", "eventlet"])
    assert calls == ["monkey_patch"]
    monkeypatch.setenv("EVENTLET_NOBLOCK", "2.5")
    celery_clone.maybe_patch_concurrency(["celery", "-P", "eventlet"])
    assert calls[1:] == ["monkey_patch", (2.5, 2.5)]
