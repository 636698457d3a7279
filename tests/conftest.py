"""Fixtures that every test may ask for, and the rules that hold for all of them.

Servers live for the session, namespaces (a database, a virtual host, a file) for one test. A missing server
is a skip that says how to get it, and a failure where ``CI=true``.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

from celery_clone import _state, signals
from celery_clone.utils.dispatch import Signal
from tests.support.celery_env import celery_python as build_celery_python
from tests.support.databases import MariaServer, MemcachedServer, PostgresServer
from tests.support.folders import own_folder, remove_folder
from tests.support.processes import children_of, command_line
from tests.support.proxy import TcpProxy
from tests.support.rabbitmq import RabbitServer
from tests.support.redis import RedisServer
from tests.support.servers import Unavailable, is_ci
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

TESTS = Path(__file__).parent
ROOT = TESTS.parent
ServerFactory = Callable[[], Any]


def _or_skip(make: ServerFactory) -> Any:
    """What *make* returns; when it is unavailable, a skip here and a failure in CI."""
    try:
        return make()
    except Unavailable as missing:
        if is_ci():
            pytest.fail(f"CI=true and {missing}")
        pytest.skip(str(missing))


def pytest_configure(config: pytest.Config) -> None:
    """Tests see no configuration of the person who runs them; a busy machine makes no example too slow."""
    for name in [name for name in os.environ if name.startswith("CELERY_")]:
        del os.environ[name]
    # Behind `make test &` in a script it is ignored, and programs that tests interrupt would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    share_bytecode(config)
    settings.register_profile(
        "celery_clone",
        deadline=None,
        # In CI the same examples each time; new ones are looked for where somebody can look at them.
        derandomize=is_ci(),
        database=None if is_ci() else DirectoryBasedExampleDatabase(ROOT / ".cache" / "hypothesis"),
    )
    settings.load_profile("celery_clone")


def share_bytecode(config: pytest.Config) -> None:
    """Where Python may not write bytecode, hundreds of workers would each compile all they import: keep it aside."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        folder = own_folder("bytecode")
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
        config.add_cleanup(lambda: remove_folder(folder))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they use, so that ``-m "not rabbitmq"`` needs no hand-written markers."""
    for item in items:
        asked = set(getattr(item, "fixturenames", ()))
        for marker in ("redis", "rabbitmq"):
            if any(name.startswith((marker, f"own_{marker}")) for name in asked):
                item.add_marker(marker)
        top = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if top == "interop" or "celery_python" in asked:
            item.add_marker("interop")
        if top == "chaos":
            item.add_marker("chaos")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n`` and no ``--dist``, tests are spread over the processes as suits these."""
    if config.getoption("dist") != "load":
        return None
    from tests.support.spreading import LongestFirst

    return LongestFirst(config, log)


@pytest.fixture(autouse=True)
def unit_tests_touch_no_world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under ``tests/unit`` nothing connects, starts a process, or sleeps."""
    if not request.path.is_relative_to(TESTS / "unit"):
        return

    def refuse(what: str) -> Callable[..., Any]:
        def refused(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"a unit test {what}; move it to tests/integration")

        return refused

    really_connect = socket.socket.connect
    really_sleep = time.sleep

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            refuse(f"connected to {address!r}")()
        really_connect(self, address)

    def sleep(seconds: float) -> None:
        caller = sys._getframe(1).f_code.co_filename
        if caller.startswith(str(TESTS / "unit")):
            refuse(f"slept for {seconds} s")()
        really_sleep(seconds)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(os, "fork", refuse("forked"))
    monkeypatch.setattr(subprocess, "Popen", _RefusedPopen)


class _RefusedPopen(subprocess.Popen):  # type: ignore[type-arg]
    """Stays a class, since libraries subclass ``subprocess.Popen`` and annotate with it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a unit test started {args[:1]}; move it to tests/integration")

    def __del__(self, *args: Any) -> None:
        """There is no process to wait for."""


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The session's Redis server. Do not stop it: ask for ``own_redis_server`` instead."""
    with _or_skip(RedisServer) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """A Redis database of this test's own, empty."""
    return redis_server.new_database_url()


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A Redis server of this test's own, whose data survive ``stop()`` and ``kill()``."""
    with _or_skip(lambda: RedisServer(persistent=True)) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitServer]:
    """The session's RabbitMQ server. Do not stop it: ask for ``own_rabbitmq_server`` instead."""
    with _or_skip(RabbitServer) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL server. Do not stop it."""
    with _or_skip(lambda: PostgresServer().__enter__()) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaServer]:
    """The session's MariaDB server. Do not stop it."""
    with _or_skip(lambda: MariaServer().__enter__()) as server:
        yield server


@pytest.fixture(scope="session")
def memcached_server() -> Iterator[MemcachedServer]:
    """The session's Memcached server. Do not stop it."""
    with _or_skip(lambda: MemcachedServer().__enter__()) as server:
        yield server


@pytest.fixture
def rabbitmq_url(rabbitmq_server: RabbitServer) -> Iterator[str]:
    """A RabbitMQ virtual host of this test's own, empty."""
    virtual_host = rabbitmq_server.new_virtual_host()
    yield rabbitmq_server.url(virtual_host)
    rabbitmq_server.drop_virtual_host(virtual_host)


@pytest.fixture
def own_rabbitmq_server() -> Iterator[RabbitServer]:
    """A RabbitMQ server of this test's own, to be stopped, killed and started again. Takes six seconds."""
    with _or_skip(lambda: RabbitServer(management=False)) as server:
        yield server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """An embedded broker of this test's own, which is also a result store."""
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture(scope="session")
def celery_python() -> Path:
    """The interpreter of an environment with real Celery 5.7.0; built on the first run."""
    python: Path = _or_skip(build_celery_python)
    return python


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """``start_worker("module", "-c", "2", folder=..., environment=..., ...)``: a worker that is ready.

    Keyword arguments are those of ``WorkerProcess``; ``wait=False`` returns before it is ready. Whatever is
    left of the workers is ended after the test.
    """
    started: list[WorkerProcess] = []

    def start(app: str, *options: str, wait: bool = True, **how: Any) -> WorkerProcess:
        worker = WorkerProcess(app, options, **{"folder": tmp_path, **how})
        started.append(worker)
        return worker.start() if wait else worker.spawn()

    yield start
    for worker in reversed(started):
        worker.close()


@pytest.fixture
def proxy_to() -> Iterator[Callable[[int], TcpProxy]]:
    """``proxy_to(port)``: a bad network in front of a server on this machine."""
    opened: list[TcpProxy] = []

    def open_proxy(port: int) -> TcpProxy:
        proxy = TcpProxy(port)
        opened.append(proxy)
        return proxy.__enter__()

    yield open_proxy
    for proxy in opened:
        proxy.close()


@pytest.fixture(autouse=True)
def nothing_keeps_running(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test there is no process and no thread that was not there before it."""
    if request.path.is_relative_to(TESTS / "unit"):
        yield
        return
    processes, threads = set(_own_processes()), set(threading.enumerate())

    def left() -> list[object]:
        return [
            *(pid for pid in _own_processes() if pid not in processes),
            *(thread for thread in threading.enumerate() if thread not in threads and not thread.daemon),
        ]

    yield
    wait_until(lambda: not left(), 5, lambda: f"the end of what the test started: {left()}")


def _own_processes() -> list[int]:
    """Children of this process, without the one that Python keeps for shared memory."""
    return [pid for pid in children_of(os.getpid()) if "_tracker" not in command_line(pid)]


@pytest.fixture(autouse=True)
def modules_stay_the_same_objects() -> Iterator[None]:
    """A test that throws modules out or puts others in changes no class for the tests after it."""
    before = {name: module for name, module in sys.modules.items() if name.startswith("celery_clone")}
    yield
    for name, module in before.items():
        if sys.modules.get(name) is module:
            continue
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent in before:
            setattr(before[parent], last, module)


@pytest.fixture(autouse=True, scope="module")
def apps_of_a_module_stay_its_own() -> Iterator[None]:
    """As :func:`apps_of_a_test_stay_its_own`, for what fixtures of a module declare."""
    with ambient_apps_restored():
        yield


@pytest.fixture(autouse=True)
def apps_of_a_test_stay_its_own() -> Iterator[None]:
    """Shared tasks that a test declares are not in the apps of the tests after it, nor its apps current."""
    with ambient_apps_restored():
        yield


@contextmanager
def ambient_apps_restored() -> Iterator[None]:
    """Leave the ambient apps, the tasks for all apps, and what projects add for the process, as they were."""
    declared, default = set(_state._on_app_finalizers), _state.default_app
    current = _state._tls.current_app
    # A worker in this process that sets logging up would leave caplog without a word.
    loggers = [(each, each.level, each.propagate) for each in map(logging.getLogger, ("", "celery", "celery.task"))]
    receivers = [(each, [*each.receivers]) for each in vars(signals).values() if isinstance(each, Signal)]
    control = sys.modules.get("celery_clone.worker.control")
    commands = [(table, {**table}) for table in (control.Panel.data, control.Panel.meta)] if control else []
    yield
    for each, known in receivers:
        if len(each.receivers) != len(known):
            each.receivers = known
            each.sender_receivers_cache.clear()
    for table, known_commands in commands:
        if table.keys() != known_commands.keys():
            table.clear()
            table.update(known_commands)
    for logger, level, propagates in loggers:
        logger.setLevel(level)
        logger.propagate = propagates
    _state._on_app_finalizers.intersection_update(declared)
    _state.default_app, _state._tls.current_app = default, current


@pytest.fixture(autouse=True)
def the_memory_of_the_process_is_empty() -> Iterator[None]:
    """``memory://`` and ``cache+memory://`` keep messages and results for the life of the process; here for one test."""
    yield
    results = sys.modules.get("celery_clone.backends.cache")
    if results is not None:
        results.DummyClient().store.items.clear()
    memory = sys.modules.get("kombu.transport.memory")
    if memory is not None:
        memory.Transport.global_state.clear()
        memory.Channel.queues.clear()


@pytest.fixture(autouse=True)
def process_signals_stay_as_they_were() -> Iterator[None]:
    """A test that installs signal handlers leaves none behind."""
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {signum: signal.getsignal(signum) for signum in watched}
    yield
    for signum, handler in before.items():
        if signal.getsignal(signum) is not handler and handler is not None:
            signal.signal(signum, handler)
