"""Results in SQL databases: real servers, several processes, a worker with chords."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from celery_clone import Celery, chord, group, states
from celery_clone.exceptions import ChordError
from tests.support.databases import MariaServer, PostgresServer
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = """
import os
from celery_clone import Celery

app = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["BACKEND"])
app.conf.update(result_extended=True, result_chord_retry_interval=0.05, task_track_started=True)

@app.task
def add(x, y):
    return x + y

@app.task
def total(numbers):
    return sum(numbers)

@app.task
def fail():
    raise KeyError("out of stock")
"""


class Shop:
    """A client of the project that a worker runs."""

    def __init__(self, broker: str, backend: str) -> None:
        self.app = Celery("shop", broker=broker, backend=backend, set_as_current=False)
        self.app.conf.result_extended = True

    def call(self, name: str, *args: Any) -> Any:
        return self.app.signature(f"shop.{name}", args, app=self.app)


@pytest.fixture(scope="module")
def shop(postgresql_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A worker with its results in PostgreSQL and its messages in a file."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(PROJECT)
    broker, backend = f"sqlite:///{folder}/broker.db", f"db+{postgresql_server.new_database_url()}"
    environment = {"BROKER": broker, "BACKEND": backend}
    with WorkerProcess("shop", ["-c", "2"], folder=folder, environment=environment):
        shop = Shop(broker, backend)
        yield shop
        shop.app.backend.close()
        shop.app.close()


def test_a_worker_keeps_what_its_tasks_return(shop: Shop) -> None:
    result = shop.call("add", 1, 2).delay()

    assert result.get(timeout=10) == 3
    assert (result.name, result.args, result.queue) == ("shop.add", [1, 2], "celery")
    assert group(shop.call("add", at, 1) for at in range(20)).delay().get(timeout=10) == list(range(1, 21))


def test_a_chord_ends_with_the_values_of_its_header(shop: Shop) -> None:
    members = [group(shop.call("add", 1, 1), shop.call("add", 2, 2)), shop.call("add", 3, 3)]

    assert chord([shop.call("add", at, 1) for at in range(4)], app=shop.app)(shop.call("total")).get(timeout=10) == 10
    whole = chord(members[1:], shop.call("total"), app=shop.app) | shop.call("add", 100)
    assert whole.delay().get(timeout=10) == 106


def test_a_chord_with_a_failed_member_ends_with_an_error(shop: Shop) -> None:
    result = chord([shop.call("add", 1, 1), shop.call("fail")], app=shop.app)(shop.call("total"))

    with pytest.raises(ChordError, match="Dependency .* raised KeyError"):
        result.get(timeout=10, follow_parents=False)


def test_the_daily_task_removes_what_is_expired(shop: Shop) -> None:
    result = shop.call("add", 1, 2).delay()
    result.get(timeout=10)
    table = shop.app.backend.task_cls.__table__
    with shop.app.backend.ResultSession() as session:
        long_ago = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(days=2)
        session.execute(sa.update(table).where(table.c.task_id == result.id).values(date_done=long_ago))
        session.commit()

    shop.app.send_task("celery.backend_cleanup").get(timeout=10)

    assert not shop.app.AsyncResult(result.id).exists()


# --- several processes ---------------------------------------------------------------


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> PostgresServer | MariaServer:
    """Each kind of server."""
    found: PostgresServer | MariaServer = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def database(server: PostgresServer | MariaServer) -> str:
    """The URL of an empty database on a server."""
    return f"db+{server.new_database_url()}"


@pytest.fixture
def make_app() -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(url: str, **conf: Any) -> Celery:
        app = Celery("tests", broker="memory://", backend=url, set_as_current=False)
        app.conf.update(conf)
        made.append(app)
        return app

    yield make
    for app in made:
        app.backend.close()
        app.close()


def test_processes_that_begin_together_make_the_tables_together(database: str, make_app: Callable[..., Celery]) -> None:
    app = make_app(database, database_create_tables_at_setup=False)
    assert app.backend
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                app.backend.mark_as_done(f"result-{number}", f"result-{number}")
                app.backend.mark_as_done("the same", "by one of them")
                status = 0
            finally:
                os._exit(status)
        children.append(child)

    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 6

    results = app.ResultSet([app.AsyncResult(f"result-{number}") for number in range(6)])
    assert results.get(timeout=5) == [f"result-{number}" for number in range(6)]
    assert app.AsyncResult("the same").get(timeout=5) == "by one of them"


def test_of_many_that_store_one_task_at_once_a_success_wins(database: str, make_app: Callable[..., Celery]) -> None:
    app = make_app(database)
    backend = app.backend
    start = threading.Barrier(8)

    def store(at: int) -> None:
        start.wait(10)
        for number in range(5):
            if at == 3:
                backend.mark_as_done(f"task-{number}", "success")
            else:
                backend.mark_as_failure(f"task-{number}", KeyError(at), "")

    threads = [threading.Thread(target=store, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for number in range(5):
        assert app.AsyncResult(f"task-{number}").get(timeout=5) == "success"


def test_tables_are_where_the_schema_says(postgresql_server: PostgresServer, make_app: Callable[..., Celery]) -> None:
    url = postgresql_server.new_database_url()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE SCHEMA shop"))
    app = make_app(f"db+{url}", database_table_schemas={"task": "shop", "group": "shop"})

    app.backend.mark_as_done("a", 1)
    app.GroupResult("g", [app.AsyncResult("a")]).save()

    assert app.GroupResult.restore("g").get(timeout=5) == [1]
    assert sorted(sa.inspect(engine).get_table_names("shop")) == ["celery_taskmeta", "celery_tasksetmeta"]
    assert sa.inspect(engine).get_table_names("public") == []
    engine.dispose()


def test_connections_that_the_server_closed_do_no_harm(
    postgresql_server: PostgresServer, make_app: Callable[..., Celery]
) -> None:
    url = postgresql_server.new_database_url()
    app = make_app(f"db+{url}", database_engine_options={"pool_pre_ping": False}, result_backend_max_retries=5)
    app.backend.mark_as_done("a", 1)
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    close = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with engine.connect() as connection:
        assert connection.execute(sa.text(close)).rowcount
    engine.dispose()

    app.backend.mark_as_done("b", 2)

    assert app.AsyncResult("a").get(timeout=5) == 1
    assert app.AsyncResult("b").get(timeout=5) == 2


def test_a_waiting_client_sees_what_another_process_stores(
    postgresql_server: PostgresServer, make_app: Callable[..., Celery]
) -> None:
    url = f"db+{postgresql_server.new_database_url()}"
    app, other = make_app(url), make_app(url)
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(app.AsyncResult("late").get(timeout=20)))
    waiting.start()
    other.backend.store_result("late", {}, states.STARTED)

    other.backend.mark_as_done("late", "came")

    wait_until(lambda: got, 5, "the result")
    waiting.join()
    assert got == ["came"]


def test_a_file_is_shared_by_threads_and_forked_children(tmp_path: Path, make_app: Callable[..., Celery]) -> None:
    app = make_app(f"db+sqlite:///{tmp_path}/results.db")
    threads = [
        threading.Thread(target=lambda at=at: [app.backend.mark_as_done(f"{at}-{n}", n) for n in range(5)])
        for at in range(8)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    results = app.ResultSet([app.AsyncResult(f"{at}-{n}") for at in range(8) for n in range(5)])
    assert sum(results.get(timeout=10)) == 8 * 10
