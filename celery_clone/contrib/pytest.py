"""Fixtures for pytest: an app, a worker, and what they are made of.

Switch them on in ``conftest.py``::

    pytest_plugins = ("celery_clone.contrib.pytest",)

and override those that say what to make: ``celery_config``, ``celery_parameters``, ``celery_includes`` and so on.
``@pytest.mark.celery(task_always_eager=True)`` changes the settings of one test.

It is not switched on by being installed: the plug-in ``pytest-celery`` has fixtures of the same names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from .testing.app import TestApp, import_tasks, setup_default_app
from .testing.worker import start_worker

__all__ = (
    "celery_app",
    "celery_class_tasks",
    "celery_config",
    "celery_enable_logging",
    "celery_includes",
    "celery_parameters",
    "celery_session_app",
    "celery_session_worker",
    "celery_worker",
    "celery_worker_parameters",
    "celery_worker_pool",
    "depends_on_current_app",
    "pytest_configure",
    "use_celery_app_trap",
)

#: Set it in the environment to skip the tests that need a worker.
NO_WORKER = os.environ.get("NO_WORKER")


def pytest_configure(config: Any) -> None:
    """Tell pytest of the marker."""
    config.addinivalue_line("markers", "celery(**overrides): override celery configuration for a test case")


# -- what to make; to be overridden


@pytest.fixture(scope="session")
def use_celery_app_trap() -> bool:
    """Shall the use of the current or the default app be an error?"""
    return False


@pytest.fixture(scope="session")
def celery_config() -> Mapping[str, Any]:
    """Settings of the apps."""
    return {}


@pytest.fixture(scope="session")
def celery_parameters() -> Mapping[str, Any]:
    """Arguments of the apps, as of :class:`~celery_clone.app.base.Celery`."""
    return {}


@pytest.fixture(scope="session")
def celery_enable_logging() -> bool:
    """Shall the apps set up logging?"""
    return False


@pytest.fixture(scope="session")
def celery_includes() -> Sequence[str]:
    """Modules to import before a worker starts."""
    return ()


@pytest.fixture(scope="session")
def celery_class_tasks() -> Sequence[Any]:
    """Task classes and tasks to register before the worker of the session starts."""
    return []


@pytest.fixture(scope="session")
def celery_worker_pool() -> Any:
    """The pool of the workers."""
    return "solo"


@pytest.fixture(scope="session")
def celery_worker_parameters() -> Mapping[str, Any]:
    """Arguments of the workers, as of :func:`~celery_clone.contrib.testing.worker.start_worker`."""
    return {}


# -- what is made


@contextmanager
def _app_for(
    request: Any, config: Mapping[str, Any], parameters: Mapping[str, Any], enable_logging: bool, use_trap: bool
) -> Iterator[Any]:
    mark = request.node.get_closest_marker("celery")
    overrides = mark.kwargs if mark else {}
    app = TestApp(
        **{"set_as_current": False, "enable_logging": enable_logging, **parameters, "config": {**config, **overrides}}
    )
    with setup_default_app(app, use_trap=use_trap):
        yield app


@contextmanager
def _worker_of(
    app: Any, includes: Sequence[str], class_tasks: Sequence[Any], pool: Any, parameters: Mapping[str, Any]
) -> Iterator[Any]:
    if NO_WORKER:
        pytest.skip("NO_WORKER is set in the environment: no worker is started")
    import_tasks(app, includes)
    for task in class_tasks:
        app.register_task(task)
    with start_worker(app, pool=pool, **parameters) as worker:
        yield worker


@pytest.fixture(scope="session")
def celery_session_app(
    request: Any,
    celery_config: Mapping[str, Any],
    celery_parameters: Mapping[str, Any],
    celery_enable_logging: bool,
    use_celery_app_trap: bool,
) -> Iterator[Any]:
    """An app for the whole session."""
    with _app_for(request, celery_config, celery_parameters, celery_enable_logging, use_celery_app_trap) as app:
        if not use_celery_app_trap:
            app.set_default()
            app.set_current()
        yield app


@pytest.fixture(scope="session")
def celery_session_worker(
    request: Any,
    celery_session_app: Any,
    celery_includes: Sequence[str],
    celery_class_tasks: Sequence[Any],
    celery_worker_pool: Any,
    celery_worker_parameters: Mapping[str, Any],
) -> Iterator[Any]:
    """A worker for the whole session."""
    with _worker_of(
        celery_session_app, celery_includes, celery_class_tasks, celery_worker_pool, celery_worker_parameters
    ) as worker:
        yield worker


@pytest.fixture
def celery_app(
    request: Any,
    celery_config: Mapping[str, Any],
    celery_parameters: Mapping[str, Any],
    celery_enable_logging: bool,
    use_celery_app_trap: bool,
) -> Iterator[Any]:
    """An app for one test."""
    with _app_for(request, celery_config, celery_parameters, celery_enable_logging, use_celery_app_trap) as app:
        yield app


@pytest.fixture
def celery_worker(
    request: Any,
    celery_app: Any,
    celery_includes: Sequence[str],
    celery_worker_pool: Any,
    celery_worker_parameters: Mapping[str, Any],
) -> Iterator[Any]:
    """A worker for one test, in a thread."""
    with _worker_of(celery_app, celery_includes, (), celery_worker_pool, celery_worker_parameters) as worker:
        yield worker


@pytest.fixture
def depends_on_current_app(celery_app: Any) -> None:
    """The app of the test is the current one."""
    celery_app.set_current()
