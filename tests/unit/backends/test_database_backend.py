"""Results in an SQL database: what the settings do, which tables there are, what a bad address says."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from kombu.exceptions import ContentDisallowed
from sqlalchemy.pool import NullPool, QueuePool

from celery_clone import Celery, states
from celery_clone.backends.database import DatabaseBackend, session_cleanup, writing
from celery_clone.backends.database.models import Task, TaskExtended, TaskSet
from celery_clone.backends.database.session import SessionManager, with_driver
from celery_clone.exceptions import BackendStoreError, ImproperlyConfigured
from celery_clone.execution.context import Context

MakeApp = Callable[..., Celery]

TASK_COLUMNS = ["id", "task_id", "status", "result", "date_done", "traceback", "children"]
EXTENDED_COLUMNS = ["name", "args", "kwargs", "worker", "retries", "queue", "stamps"]
GROUP_COLUMNS = ["id", "taskset_id", "result", "date_done"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/results.db"


@pytest.fixture
def make_app(url: str) -> Iterator[MakeApp]:
    made: list[Celery] = []

    def make(backend: str = f"db+{url}", **conf: Any) -> Celery:
        app = Celery("tests", broker="memory://", backend=backend, set_as_current=False)
        app.conf.update({"result_backend_base_sleep_between_retries_ms": 0, **conf})
        made.append(app)
        return app

    yield make
    for app in made:
        if "backend" in vars(app._local):
            app.backend.close()
        app.close()


@pytest.fixture
def database(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url, poolclass=NullPool)
    yield engine
    engine.dispose()


# --- tables ------------------------------------------------------------------------


def test_tables_and_columns_are_celerys(make_app: MakeApp, database: sa.Engine) -> None:
    assert make_app().backend

    tables = sa.inspect(database)
    assert sorted(name for name in tables.get_table_names()) == ["celery_taskmeta", "celery_tasksetmeta"]
    names = [column["name"] for column in tables.get_columns("celery_taskmeta")]
    assert names == [*TASK_COLUMNS, *EXTENDED_COLUMNS]
    assert [column["name"] for column in tables.get_columns("celery_tasksetmeta")] == GROUP_COLUMNS
    assert tables.get_unique_constraints("celery_taskmeta")[0]["column_names"] == ["task_id"]
    assert tables.get_indexes("celery_taskmeta")[0]["name"] == "ix_celery_taskmeta_date_done"


def test_tables_are_made_at_setup_or_with_the_first_result(make_app: MakeApp, database: sa.Engine) -> None:
    app = make_app(database_create_tables_at_setup=False)
    assert app.backend.thread_safe
    assert sa.inspect(database).get_table_names() == []

    app.backend.mark_as_done("a", 1)

    assert "celery_taskmeta" in sa.inspect(database).get_table_names()


def test_names_of_tables_can_be_chosen_by_each_app_for_itself(make_app: MakeApp, database: sa.Engine) -> None:
    named = make_app(database_table_names={"task": "shop_tasks", "group": "shop_groups"})
    plain = make_app()

    named.backend.mark_as_done("a", "named")
    plain.backend.mark_as_done("a", "plain")
    named.GroupResult("g", [named.AsyncResult("a")]).save()

    assert sorted(sa.inspect(database).get_table_names()) == [
        "celery_taskmeta",
        "celery_tasksetmeta",
        "shop_groups",
        "shop_tasks",
    ]
    assert named.AsyncResult("a").get(timeout=1) == "named"
    assert plain.AsyncResult("a").get(timeout=1) == "plain"
    assert plain.GroupResult.restore("g") is None


def test_schemas_of_tables_can_be_chosen(make_app: MakeApp) -> None:
    schemas = {"task": "tasks", "group": "groups"}
    backend = make_app(database_table_schemas=schemas, database_create_tables_at_setup=False).backend

    assert backend.task_cls.__table__.fullname == "tasks.celery_taskmeta"
    assert backend.task_cls.__table__.c.id.default.schema == "tasks"
    assert backend.taskset_cls.__table__.fullname == "groups.celery_tasksetmeta"
    assert Task.__table__.schema is None


def test_a_table_class_of_ones_own_is_used_and_configured(make_app: MakeApp) -> None:
    class Mine(DatabaseBackend):
        task_cls = type("Wrapped", (), {"__table__": Task.__table__, "metadata": Task.metadata, "configured": None})

    Mine.task_cls.configure = classmethod(lambda cls, **names: setattr(cls, "configured", names))  # type: ignore[attr-defined]
    app = make_app(database_table_names={"task": "mine"}, database_create_tables_at_setup=False)

    Mine(url="sqlite://", app=app)

    assert Mine.task_cls.configured == {"schema": None, "name": "mine"}  # type: ignore[attr-defined]
    TaskSet.configure()


def test_a_table_class_can_be_renamed_for_the_whole_process() -> None:
    TaskSet.configure(schema="there", name="other")
    try:
        assert (TaskSet.__table__.schema, TaskSet.__table__.name) == ("there", "other")
        assert TaskSet.__table__.c.id.default.schema == "there"
    finally:
        TaskSet.configure()
    assert (TaskSet.__table__.schema, TaskSet.__table__.name) == (None, "celery_tasksetmeta")


def without_columns(database: sa.Engine, *missing: str) -> None:
    """Make the table of tasks as an older version did."""
    kept = [column for column in Task.__table__.columns if column.name not in missing]
    table = sa.Table(
        "celery_taskmeta",
        sa.MetaData(),
        *(sa.Column(c.name, c.type, primary_key=c.primary_key, unique=c.unique) for c in kept),
    )
    table.create(database)


def test_columns_that_an_older_table_does_not_have_are_added(make_app: MakeApp, database: sa.Engine) -> None:
    without_columns(database, "children", "stamps")
    app = make_app(result_extended=True)
    request = Context({"id": "a", "stamped_headers": ["k"], "stamps": {"k": 1}})
    request.children.append(app.AsyncResult("child"))

    app.backend.mark_as_done("a", 1, request=request)

    assert app.AsyncResult("a").children == [app.AsyncResult("child")]
    assert app.backend.get_task_meta("a")["k"] == 1


def refuse_changes(engine: sa.Engine) -> None:
    """For a user that may not change tables."""

    def refuse(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if statement.startswith("ALTER"):
            raise sa.exc.OperationalError(statement, {}, Exception("not allowed"))

    sa.event.listen(engine, "before_cursor_execute", refuse)


def test_columns_that_cannot_be_added_are_left_out(
    make_app: MakeApp, database: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    without_columns(database, "children")
    app = make_app(database_engine_callback=refuse_changes)

    request = Context({"id": "a"})
    request.children.append(app.AsyncResult("child"))

    app.backend.mark_as_done("a", 1, request=request)

    assert app.AsyncResult("a").get(timeout=1) == 1
    assert app.AsyncResult("a").children is None
    assert "ADD COLUMN children" in caplog.text


# --- rows --------------------------------------------------------------------------


@pytest.fixture(params=["the database's own", "one by one"])
def statement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to store a row: databases that are not in the table are written one by one."""
    if request.param == "one by one":
        monkeypatch.delitem(writing.STATEMENTS, "sqlite")


@pytest.mark.usefixtures("statement")
def test_a_row_is_made_changed_and_then_final(make_app: MakeApp) -> None:
    backend = make_app().backend
    backend.mark_as_started("a", pid=1)
    assert backend._get_task_meta_for("a")["status"] == states.STARTED
    backend.mark_as_failure("a", KeyError("x"), "there")
    assert backend._get_task_meta_for("a")["traceback"] == "there"

    backend.mark_as_done("a", 2)
    backend.mark_as_failure("a", KeyError("again"), "again")

    meta = backend._get_task_meta_for("a")
    assert (meta["status"], meta["result"], meta["traceback"]) == (states.SUCCESS, 2, None)


@pytest.mark.usefixtures("statement")
def test_a_group_can_be_saved_twice(make_app: MakeApp) -> None:
    app = make_app()
    app.GroupResult("g", [app.AsyncResult("a")]).save()

    app.GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")]).save()

    assert len(app.GroupResult.restore("g")) == 2


def test_of_what_waits_for_one_task_the_last_that_may_be_stored_stays(make_app: MakeApp) -> None:
    backend = make_app().backend
    writer = backend.defer_results()

    backend.store_result("a", {"at": 1}, "PROGRESS")
    backend.store_result("b", {"at": 1}, "PROGRESS")
    backend.mark_as_done("a", "end")
    backend.mark_as_failure("a", KeyError("late"), "")
    writer.flush()

    assert backend._get_task_meta_for("a")["result"] == "end"
    assert backend._get_task_meta_for("b")["result"] == {"at": 1}


def test_a_description_too_long_for_its_column_is_cut(make_app: MakeApp) -> None:
    app = make_app(result_extended=True)

    app.backend.mark_as_done("a", 1, request=Context({"id": "a", "task": "t" * 200, "hostname": "h"}))

    assert app.AsyncResult("a").name == "t" * 155
    assert app.AsyncResult("a").worker == "h"


def test_times_are_utc_whatever_the_zone_of_the_app_is(make_app: MakeApp) -> None:
    app = make_app(timezone="Asia/Tokyo")

    app.backend.mark_as_done("a", 1)

    done = app.AsyncResult("a").date_done
    assert done is not None
    assert abs(done - datetime.now(timezone.utc).replace(tzinfo=None)) < timedelta(minutes=1)


def test_pickles_of_older_versions_are_read_where_pickles_are_allowed(make_app: MakeApp, database: sa.Engine) -> None:
    app = make_app()
    app.backend.mark_as_done("a", 1)
    with database.begin() as connection:
        connection.execute(sa.text("UPDATE celery_taskmeta SET result = :value"), {"value": pickle.dumps({"old": 1})})

    with pytest.raises(ContentDisallowed, match="result_accept_content"):
        app.AsyncResult("a").get(timeout=1)

    assert make_app(result_accept_content=["json", "pickle"]).AsyncResult("a").get(timeout=1) == {"old": 1}


def test_what_is_expired_goes_and_the_rest_stays(make_app: MakeApp, database: sa.Engine) -> None:
    app = make_app(result_expires=3600)
    for name in ("old", "new"):
        app.backend.mark_as_done(name, 1)
        app.GroupResult(f"group-{name}", [app.AsyncResult(name)]).save()
    app.backend.store_result("running", {}, states.STARTED)
    ago = datetime.now(timezone.utc) - timedelta(hours=2)
    with database.begin() as connection:
        for table, key in (("celery_taskmeta", "task_id"), ("celery_tasksetmeta", "taskset_id")):
            connection.execute(
                sa.text(f"UPDATE {table} SET date_done = :ago WHERE {key} LIKE '%old'"), {"ago": str(ago)[:26]}
            )

    app.backend.cleanup()

    assert [app.AsyncResult(name).exists() for name in ("old", "new", "running")] == [False, True, True]
    assert app.GroupResult.restore("group-old") is None
    assert app.GroupResult.restore("group-new") is not None


def test_what_never_expires_is_not_cleaned_up(make_app: MakeApp) -> None:
    app = make_app(result_expires=None)
    app.backend.mark_as_done("a", 1)

    app.backend.cleanup()

    assert app.AsyncResult("a").exists()


def test_rows_can_be_queried_with_a_session(make_app: MakeApp) -> None:
    backend = make_app(result_extended=True).backend
    backend.mark_as_done("a", [1])

    session = backend.ResultSession()
    with session_cleanup(session):
        rows = session.query(backend.task_cls).filter(backend.task_cls.task_id.in_(["a", "b"])).all()

    assert backend.task_cls is TaskExtended
    assert [row.to_dict()["status"] for row in rows] == [states.SUCCESS]
    assert repr(rows[0]) == "<Task a state: SUCCESS>"


# --- trying again ------------------------------------------------------------------


def failing(times: int) -> Callable[[sa.Engine], None]:
    """An engine whose first *times* statements that store something fail."""
    left = [times]

    def listen(engine: sa.Engine) -> None:
        def fail(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
            if statement.startswith("INSERT") and left[0]:
                left[0] -= 1
                raise sa.exc.OperationalError(statement, {}, Exception("server closed the connection"))

        sa.event.listen(engine, "before_cursor_execute", fail)

    return listen


def test_a_lost_connection_is_tried_again_three_times(make_app: MakeApp) -> None:
    passing = make_app(database_engine_callback=failing(3)).backend
    passing.mark_as_done("a", 1)
    assert passing.get_result("a") == 1

    with pytest.raises(BackendStoreError):
        make_app(database_engine_callback=failing(4)).backend.mark_as_done("b", 1)


def test_trying_again_can_be_turned_off_and_bounded(make_app: MakeApp) -> None:
    once = make_app(database_engine_callback=failing(1), result_backend_always_retry=False).backend
    with pytest.raises(sa.exc.OperationalError):
        once.mark_as_done("a", 1)

    more = make_app(database_engine_callback=failing(5), result_backend_max_retries=5).backend
    more.mark_as_done("b", 1)
    assert more.get_result("b") == 1


def test_a_database_that_is_away_at_setup_does_not_stop_the_program(
    make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "later"
    app = make_app(f"db+sqlite:///{folder}/results.db")
    assert app.backend
    assert "could not be made yet" in caplog.text

    folder.mkdir()
    app.backend.mark_as_done("a", 1)

    assert app.AsyncResult("a").get(timeout=1) == 1


# --- the address ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("db+oracl://user:secret@host/name", "SQLAlchemy knows no database 'oracl'"),
        ("db+postgresql+nosuch://user:secret@host/name", "postgresql\\+nosuch"),
        ("db+mysql+oursql2://user:secret@host/name", "mysql"),
        ("db+mssql+pymssql://user:secret@host/name", "needs the module 'pymssql'"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_with_the_remedy_and_without_the_password(
    url: str, says: str, make_app: MakeApp
) -> None:
    with pytest.raises(ImproperlyConfigured, match=says) as raised:
        assert make_app(url).backend

    assert "secret" not in str(raised.value)
    assert "nstall" in str(raised.value)


def test_no_address_at_all_is_an_error_that_names_the_setting(make_app: MakeApp) -> None:
    with pytest.raises(ImproperlyConfigured, match="database_url"):
        assert make_app("database").backend


def test_the_address_may_stand_in_its_own_setting(make_app: MakeApp, url: str) -> None:
    app = make_app("database", database_url=url)

    app.backend.mark_as_done("a", 1)

    assert app.AsyncResult("a").get(timeout=1) == 1
    assert app.backend.as_uri() == url


def test_an_address_that_is_none_is_refused(make_app: MakeApp) -> None:
    with pytest.raises(ImproperlyConfigured, match="cannot be read"):
        DatabaseBackend(dburi="no address", app=make_app())


def test_where_no_driver_is_named_one_that_is_installed_is_taken() -> None:
    pytest.importorskip("pymysql")
    url = with_driver(sa.make_url("mariadb://user@host/name"))

    assert url.drivername.startswith("mariadb+")
    assert with_driver(sa.make_url("sqlite:///file")).drivername == "sqlite"
    assert with_driver(sa.make_url("mysql+asyncmy://host")).drivername == "mysql+asyncmy"


def test_a_database_in_memory_is_one_for_all_threads(make_app: MakeApp) -> None:
    app = make_app("db+sqlite://")

    app.backend.mark_as_done("a", 1)

    assert app.AsyncResult("a").get(timeout=1) == 1


def test_the_password_is_shown_to_nobody_who_does_not_ask(make_app: MakeApp) -> None:
    backend = make_app(database_create_tables_at_setup=False).backend
    backend.url = "postgresql://user:secret@host/name"

    assert "secret" not in backend.as_uri()
    assert "secret" in backend.as_uri(include_password=True)


# --- connections -----------------------------------------------------------------------


def engine_of(app: Celery) -> Any:
    backend = app.backend
    return backend.session_manager.get_engine(backend.url)


def test_connections_are_kept_unless_sessions_are_to_be_short(make_app: MakeApp) -> None:
    assert isinstance(engine_of(make_app()).pool, QueuePool)
    assert isinstance(engine_of(make_app(database_short_lived_sessions=True)).pool, NullPool)
    assert isinstance(engine_of(make_app(database_engine_options={"poolclass": NullPool})).pool, NullPool)


def test_options_go_to_the_engine(make_app: MakeApp) -> None:
    engine = engine_of(make_app(database_engine_options={"echo": False, "pool_size": 3}))

    assert engine.pool.size() == 3
    assert not engine.echo


def test_a_callback_is_given_each_engine(make_app: MakeApp) -> None:
    given: list[Any] = []

    engine = engine_of(make_app(database_engine_callback=given.append))

    assert given == [engine]


def test_a_callback_may_be_given_by_its_path(make_app: MakeApp) -> None:
    assert engine_of(make_app(database_engine_callback="builtins:repr"))

    with pytest.raises(ImproperlyConfigured, match="must be callable"):
        assert make_app(database_engine_callback=42).backend


def test_a_backend_can_be_pickled(make_app: MakeApp) -> None:
    app = make_app()
    app.backend.mark_as_done("a", 1)
    app.set_current()

    copy = pickle.loads(pickle.dumps(app.backend))

    assert copy.get_result("a") == 1
    copy.close()


def test_a_session_manager_may_be_used_by_itself(url: str) -> None:
    manager = SessionManager()

    engine, make_session = manager.create_session(url)
    manager.prepare_models(engine)
    with make_session() as session:
        session.add(TaskSet("g", b"1"))
        session.commit()
    with manager.session_factory(url) as session:
        assert session.query(TaskSet).one().taskset_id == "g"
    manager.invalidate(url)
    manager.invalidate("sqlite:///unknown")
    manager.close()
    manager.close()
