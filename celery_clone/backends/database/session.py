"""Engines and sessions of SQLAlchemy, for each process its own, and the making of tables.

Used by the backend beside it.  It may not know what is stored.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from threading import RLock
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session, declarative_base, sessionmaker
from sqlalchemy.pool import NullPool, QueuePool

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.log import get_logger
from celery_clone.utils.time import get_exponential_backoff_interval

__all__ = ("SessionManager",)

logger = get_logger(__name__)

ResultModelBase: Any = declarative_base()

PREPARE_MODELS_MAX_RETRIES = 10
"""Processes that begin together make the tables together; all but one fail, and look again."""

SQLITE_TIMEOUT_S = 30.0
"""How long a process waits for others that write into the same SQLite file."""

DRIVERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "postgresql": (("psycopg2", "psycopg2"), ("psycopg", "psycopg"), ("pg8000", "pg8000")),
    "mysql": (("MySQLdb", "mysqldb"), ("pymysql", "pymysql"), ("mysql.connector", "mysqlconnector")),
    "mariadb": (("MySQLdb", "mysqldb"), ("pymysql", "pymysql"), ("mariadb", "mariadbconnector")),
}
"""Module and name of the drivers of a database, in the order in which one is taken if the URL names none."""

POOL_OPTIONS = frozenset({"max_overflow", "echo_pool"})


def with_driver(url: URL) -> URL:
    """*url* with a driver that is installed, where it names none."""
    drivers = DRIVERS.get(url.drivername, ())
    installed = next((name for module, name in drivers if is_installed(module)), None)
    return url if installed is None else url.set(drivername=f"{url.drivername}+{installed}")


def is_installed(module: str) -> bool:
    """Can this module be imported?"""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def is_in_memory(url: URL) -> bool:
    """Does the database end with its connection?"""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def pool_options(url: URL, short_lived: bool) -> dict[str, Any]:
    """How connections are kept, where the user does not say it."""
    if is_in_memory(url):
        # One connection, used by one thread at a time: another one would see a database of its own.
        one = {"pool_size": 1, "max_overflow": 0, "pool_recycle": -1}
        return {"poolclass": QueuePool, **one, "connect_args": {"check_same_thread": False}}
    options: dict[str, Any] = {"poolclass": NullPool} if short_lived else {"max_overflow": -1}
    if url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": SQLITE_TIMEOUT_S}
    return options


def engine_options(url: URL, short_lived: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for ``create_engine``: those that were *given*, over ours."""
    ours = pool_options(url, short_lived)
    # Settings of a pool do not fit one that keeps nothing, or exactly one connection.
    fixed = is_in_memory(url) or (short_lived and "poolclass" not in given)
    taken = {
        name: value
        for name, value in given.items()
        if not (fixed and (name in POOL_OPTIONS or name.startswith("pool")))
    }
    if "poolclass" in taken:
        ours.pop("poolclass", None)
        ours.pop("max_overflow", None)
    return {**ours, **taken, "connect_args": {**ours.get("connect_args", {}), **given.get("connect_args", {})}}


class SessionManager:
    """The engines of one backend.  Safe to use from several threads; a forked child makes its own.

    *engine_callback* is called with each new engine; *metadatas* are the tables to make.
    """

    def __init__(
        self, engine_callback: Callable[[Engine], Any] | None = None, metadatas: tuple[Any, ...] | None = None
    ) -> None:
        self.engine_callback = engine_callback
        self.metadatas = (ResultModelBase.metadata,) if metadatas is None else metadatas
        self._begin()
        ours = weakref.ref(self)

        def begin_in_child() -> None:
            manager = ours()
            if manager is not None:
                manager._after_fork()

        os.register_at_fork(after_in_child=begin_in_child)

    def _begin(self) -> None:
        self._lock = RLock()
        self._engines: dict[str, Engine] = {}
        self._prepared: set[str] = set()
        #: Columns that tables of an older version do not have, and that could not be added.
        self.missing: dict[str, frozenset[str]] = {}

    def _after_fork(self) -> None:
        engines = list(self._engines.values())
        self._begin()
        for engine in engines:
            # The connections are the parent's: forgotten here, and left open.
            engine.dispose(close=False)

    def get_engine(self, dburi: str, short_lived_sessions: bool = False, **kwargs: Any) -> Engine:
        """This process's engine for *dburi*; *kwargs* are arguments of ``create_engine``.

        Raises:
            ImproperlyConfigured: there is no such kind of database, or no driver for it is installed.
        """
        with self._lock:
            engine = self._engines.get(dburi)
            if engine is None:
                engine = self._engines[dburi] = self._made(dburi, short_lived_sessions, kwargs)
            return engine

    def _made(self, dburi: str, short_lived: bool, given: Mapping[str, Any]) -> Engine:
        try:
            url = with_driver(make_url(dburi))
        except ArgumentError as exc:
            raise ImproperlyConfigured(
                "The URL of the result database cannot be read. It looks like "
                "db+postgresql://user:password@host/name, db+mysql://... or db+sqlite:///path/to/file.db."
            ) from exc
        shown = url.render_as_string(hide_password=True)
        try:
            engine = sa.create_engine(url, **engine_options(url, short_lived, given))
        except NoSuchModuleError as exc:
            raise ImproperlyConfigured(
                f"SQLAlchemy knows no database {url.drivername!r}, which the result backend {shown} asks for. "
                "Use one that it knows, such as db+postgresql://, db+mysql:// or db+sqlite:///, or install the "
                "package that brings this one."
            ) from exc
        except ModuleNotFoundError as exc:
            raise ImproperlyConfigured(
                f"The result backend {shown} needs the module {exc.name!r}, which is not installed. Install a driver, "
                "for instance psycopg[binary] for PostgreSQL or PyMySQL for MySQL and MariaDB, or name an installed "
                "one in the URL, as in db+postgresql+psycopg://."
            ) from exc
        if self.engine_callback is not None:
            self.engine_callback(engine)
        return engine

    def create_session(
        self, dburi: str, short_lived_sessions: bool = False, **kwargs: Any
    ) -> tuple[Engine, sessionmaker[Session]]:
        """The engine for *dburi*, and what makes sessions on it."""
        engine = self.get_engine(dburi, short_lived_sessions=short_lived_sessions, **kwargs)
        return engine, sessionmaker(bind=engine)

    def session_factory(self, dburi: str, **kwargs: Any) -> Session:
        """A new session; the tables are there."""
        engine, make_session = self.create_session(dburi, **kwargs)
        self.prepare_models(engine)
        return make_session()

    def invalidate(self, dburi: str) -> None:
        """Close the connections to *dburi*, because one of them failed."""
        with self._lock:
            engine = self._engines.get(dburi)
        if engine is not None and not is_in_memory(engine.url):
            engine.dispose()

    def close(self) -> None:
        """Let go of all connections.  Legal twice; the next use opens new ones."""
        with self._lock:
            engines = list(self._engines.values())
            self._engines.clear()
            self._prepared.clear()
        for engine in engines:
            engine.dispose()

    # -- tables

    def prepare_models(self, engine: Engine) -> None:
        """Make tables that are missing, and columns that an older version did not have."""
        key = str(engine.url)
        if key in self._prepared:
            return
        with self._lock:
            if key in self._prepared:
                return
            for metadata in self.metadatas:
                create_tables(metadata, engine)
                for table in metadata.tables.values():
                    self.missing[table.fullname] = add_missing_columns(table, engine)
            self._prepared.add(key)


def create_tables(metadata: Any, engine: Engine) -> None:
    """Make the tables that are not there; others may make them at the same time."""
    retries = 0
    while True:
        try:
            metadata.create_all(engine)
        except DatabaseError:
            if retries >= PREPARE_MODELS_MAX_RETRIES or not can_connect(engine):
                raise
            time.sleep(get_exponential_backoff_interval(10, retries, 1000, True) / 1000)
            retries += 1
        else:
            return


def can_connect(engine: Engine) -> bool:
    """Is the database there at all?"""
    try:
        engine.connect().close()
    except DatabaseError:
        return False
    return True


def add_missing_columns(table: Any, engine: Engine) -> frozenset[str]:
    """Add the columns that a table does not have; those that could not be added."""
    try:
        columns = {column["name"] for column in sa.inspect(engine).get_columns(table.name, schema=table.schema)}
    except SQLAlchemyError as exc:
        logger.warning("The columns of table %s could not be read: %s", table.fullname, exc)
        return frozenset()
    missing = set()
    preparer = engine.dialect.identifier_preparer
    for column in table.columns:
        if column.name in columns or not column.nullable:
            continue
        kind = column.type.compile(engine.dialect)
        change = f"ALTER TABLE {preparer.format_table(table)} ADD COLUMN {preparer.quote(column.name)} {kind}"
        try:
            with engine.begin() as connection:
                connection.execute(sa.text(change))
        except SQLAlchemyError as exc:
            if column.name in {each["name"] for each in sa.inspect(engine).get_columns(table.name, table.schema)}:
                continue  # another process was faster
            missing.add(column.name)
            logger.warning(
                "Table %s has no column %r, and it could not be added (%s). It is left out; to have it stored: %s",
                table.fullname,
                column.name,
                exc,
                change,
            )
    return frozenset(missing)
