"""Results in an SQL database, by way of SQLAlchemy.

Chosen by ``result_backend = "db+postgresql://..."``, ``"db+mysql://..."`` or ``"db+sqlite:///file"``, or
by ``"database"`` with ``database_url``.  Tables and columns (``models``) are Celery's; a chord's end is
found by the task ``celery.chord_unlock``, which workers of both sides run.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from kombu.exceptions import ContentDisallowed, DecodeError, SerializationError
from kombu.utils.encoding import ensure_bytes

from celery_clone import states
from celery_clone.backends.backend import stays
from celery_clone.backends.base import BaseBackend
from celery_clone.backends.polling import ManyAtOnceMixin
from celery_clone.backends.writer import Deferred, ResultWriter
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.result import result_from_tuple
from celery_clone.utils.imports import symbol_by_name
from celery_clone.utils.log import get_logger
from celery_clone.utils.time import maybe_timedelta

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import DatabaseError, InterfaceError, InvalidRequestError, SQLAlchemyError
    from sqlalchemy.exc import TimeoutError as PoolTimeoutError
    from sqlalchemy.orm import defer
    from sqlalchemy.orm.exc import StaleDataError
except ImportError as exc:
    raise ImproperlyConfigured(
        "The database result backend requires SQLAlchemy to be installed: pip install celery_clone[sqlalchemy]. "
        "See https://pypi.org/project/SQLAlchemy/"
    ) from exc

from .models import DEFAULT, GROUP_TABLE, TASK_TABLE, Task, TaskExtended, TaskSet, models_of
from .session import SessionManager
from .writing import Kept, store_rows

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ("DatabaseBackend", "Task", "session_cleanup")

logger = get_logger(__name__)

RETRYABLE_DB_ERRORS = (DatabaseError, InterfaceError, InvalidRequestError, StaleDataError, PoolTimeoutError)

PICKLE_START = b"\x80"
"""What a pickle begins with.  Versions of Celery before 5.7 stored one whatever the serializer was."""

PICKLE_TYPE = "application/x-python-serialize"

ASKED_AT_ONCE = 500
"""Ids in one query; databases bound the number of parameters."""

SHORT_COLUMNS = ("name", "worker", "queue")
"""Columns that only describe: a value too long for them is cut, rather than the result refused."""


@contextmanager
def session_cleanup(session: Session) -> Iterator[None]:
    """Close *session* at the end, after a rollback if there was an error."""
    try:
        yield
    except Exception:
        session.rollback()
        raise
    finally:
        session.close()


class DatabaseBackend(ManyAtOnceMixin, BaseBackend):
    """Keeps results in an SQL database.  Safe to use from several threads and processes.

    *dburi* (or *url*) is the address as SQLAlchemy writes it, *engine_options* go to its
    ``create_engine``, over the setting ``database_engine_options``.  *short_lived_sessions* and
    *engine_callback* stand before the settings ``database_short_lived_sessions`` and
    ``database_engine_callback``.
    """

    #: Seconds between the passes over the members of a group.
    subpolling_interval = 0.5
    thread_safe = True

    #: The states of many tasks are read with one query, though members are waited for in turn, as in Celery.
    reads_many = True

    task_cls: Any = Task
    taskset_cls: Any = TaskSet

    def __init__(
        self,
        dburi: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
        url: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(expires_type=maybe_timedelta, url=url, **kwargs)
        conf = self.app.conf
        # A connection to a database is lost every now and then; so this store tries again unless told not to.
        if not conf.value_set_for("result_backend_always_retry") or self.always_retry is None:
            self.always_retry = True
        if not conf.value_set_for("result_backend_max_retries") or self.max_retries is None:
            self.max_retries = 3
        self.url = url or dburi or conf.database_url
        if not self.url:
            raise ImproperlyConfigured(
                "Missing connection string! Do you have the database_url setting set to a real value? "
                "Or set result_backend to the whole address, as in db+postgresql://user:password@host/name."
            )
        self.engine_options = {**(conf.database_engine_options or {}), **(engine_options or {})}
        self.short_lived_sessions = kwargs.get("short_lived_sessions", conf.database_short_lived_sessions)
        self._choose_tables(conf.database_table_names or {}, conf.database_table_schemas or {})
        for model in (self.task_cls, self.taskset_cls):
            # Now, rather than with the first query: SQLAlchemy does it under a lock, with which nobody must fork.
            registry = getattr(model, "registry", None)
            if registry is not None:
                registry.configure()
        self.session_manager = SessionManager(
            engine_callback(kwargs.get("engine_callback", conf.database_engine_callback)),
            tuple(dict.fromkeys((self.task_cls.metadata, self.taskset_cls.metadata))),
        )
        self._writer: ResultWriter | None = None
        # A mistake in the URL is told now, not with the first result.
        self.session_manager.get_engine(self.url, short_lived_sessions=self.short_lived_sessions, **self.engine_options)
        if conf.database_create_tables_at_setup is True:
            self._create_tables()

    def _choose_tables(self, names: Mapping[str, str], schemas: Mapping[str, str]) -> None:
        ours = {DEFAULT.task, DEFAULT.extended}
        if self.task_cls in ours and self.taskset_cls is DEFAULT.group:
            models = models_of(
                names.get("task") or TASK_TABLE,
                schemas.get("task"),
                names.get("group") or GROUP_TABLE,
                schemas.get("group"),
            )
            extended = self.extended_result or self.task_cls is TaskExtended
            self.task_cls = models.extended if extended else models.task
            self.taskset_cls = models.group
        elif names or schemas:
            self.task_cls.configure(schema=schemas.get("task"), name=names.get("task"))
            self.taskset_cls.configure(schema=schemas.get("group"), name=names.get("group"))

    def _create_tables(self) -> None:
        try:
            self._ensure_retryable(self._prepare)
        except SQLAlchemyError as exc:
            # The program can go on without: the first use makes them, or tells of the error.
            logger.warning("The tables of results could not be made yet in %s: %s", self.as_uri(), exc)

    def _prepare(self) -> None:
        self.ResultSession().close()

    @property
    def extended_result(self) -> Any:
        """Is it stored how tasks were called?"""
        return self.app.conf.find_value_for_key("extended", "result")

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """What the database says, and a connection that is lost: these may pass."""
        return isinstance(exc, RETRYABLE_DB_ERRORS)

    def on_backend_retryable_error(self, exc: BaseException) -> None:
        """The next attempt has new connections."""
        self.session_manager.invalidate(self.url or "")

    def ResultSession(self, session_manager: SessionManager | None = None) -> Session:  # noqa: N802 Celery's name
        """A new SQLAlchemy session; close it, for instance by :func:`session_cleanup`."""
        manager = self.session_manager if session_manager is None else session_manager
        return manager.session_factory(
            dburi=self.url or "", short_lived_sessions=self.short_lived_sessions, **self.engine_options
        )

    @contextmanager
    def _session(self) -> Iterator[Session]:
        session = self.ResultSession()
        with session_cleanup(session):
            yield session

    def close(self) -> None:
        """Let go of connections; the next use makes new ones.  Legal twice."""
        self.session_manager.close()

    # --- writing --------------------------------------------------------------------

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        row = self._row(task_id, result, state, traceback, request)
        if self._writer is None:
            self._put([row])
        else:
            self._writer.add(Deferred(task_id, state, len(row["result"]), row))
        return result

    def defer_results(self) -> ResultWriter:
        """From now on let the results of this process wait for :meth:`ResultWriter.flush`."""
        if self._writer is None:
            self._writer = ResultWriter(self._put_deferred)
        return self._writer

    def _put_deferred(self, batch: Sequence[Deferred]) -> None:
        # Of several states of one task the last one that may be stored stays, as if stored one by one.
        rows: dict[str, Any] = {}
        for item in batch:
            before = rows.get(item.task_id)
            if before is None or not stays(before["status"], item.what["status"]):
                rows[item.task_id] = item.what
        self._ensure_retryable(self._put, list(rows.values()))

    def _put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with self._session() as session:
            table = self._table()
            store_rows(session, table, "task_id", rows, Kept(table.c.status))
            session.commit()

    def _table(self) -> Any:
        return self.task_cls.__table__

    def _missing_columns(self) -> frozenset[str]:
        return self.session_manager.missing.get(self._table().fullname, frozenset())

    def _row(self, task_id: str, result: Any, state: str, traceback: str | None, request: Any) -> dict[str, Any]:
        """The columns of one task; those of which nothing is known are emptied."""
        meta = self._get_result_meta(
            result=ensure_bytes(self.encode(result)),
            state=state,
            traceback=traceback,
            request=request,
            format_date=False,
            encode=True,
        )
        meta["task_id"] = task_id
        meta["date_done"] = in_utc(meta.get("date_done"))
        meta["children"] = ensure_bytes(self.encode(meta["children"])) if meta.get("children") else None
        meta["stamps"] = self._packed_stamps(meta)
        columns = self._table().columns
        missing = self._missing_columns()
        row = {column.name: meta.get(column.name) for column in columns if column.name not in missing}
        del row["id"]
        for name in SHORT_COLUMNS:
            text = row.get(name)
            if isinstance(text, str):
                row[name] = text[: columns[name].type.length]
        return row

    def _packed_stamps(self, meta: Mapping[str, Any]) -> bytes | None:
        names = meta.get("stamped_headers")
        if not names:
            return None
        stamps = {name: meta[name] for name in names if name in meta}
        packed: bytes = ensure_bytes(self.encode({"stamped_headers": list(names), "stamps": stamps}))
        return packed

    def _forget(self, task_id: str) -> None:
        with self._session() as session:
            table = self._table()
            session.execute(sa.delete(table).where(table.c.task_id == task_id))
            session.commit()

    # --- reading --------------------------------------------------------------------

    def _read(self, session: Session, task_ids: Iterable[str]) -> list[Any]:
        query = session.query(self.task_cls).filter(self.task_cls.task_id.in_(list(task_ids)))
        missing = [getattr(self.task_cls, name) for name in self._missing_columns() if hasattr(self.task_cls, name)]
        return list(query.options(*(defer(column, raiseload=True) for column in missing)))

    def _get_task_meta_for(self, task_id: str) -> Any:
        with self._session() as session:
            found = self._read(session, [task_id])
            row = found[0].to_dict() if found else None
        if row is None:
            row = {"task_id": task_id, "status": states.PENDING, "result": None, "traceback": None, "children": None}
        return self._meta(row)

    def _meta(self, row: dict[str, Any]) -> Any:
        """A row as :meth:`get_task_meta` gives it."""
        meta = dict(row)
        meta["result"] = self._decode_stored_result(meta["result"])
        for name in ("args", "kwargs", "children"):
            if meta.get(name) is not None:
                meta[name] = self.decode(meta[name])
        stamps = meta.pop("stamps", None)
        if stamps is not None:
            packed = self.decode(stamps)
            meta["stamped_headers"] = packed.get("stamped_headers")
            meta.update(packed.get("stamps") or {})
        return self.meta_from_decoded(meta)

    def _decode_stored_result(self, payload: Any) -> Any:
        if payload is None:
            return None
        payload = ensure_bytes(payload)
        try:
            return self.decode(payload)
        except (DecodeError, SerializationError, ValueError) as exc:
            if not payload.startswith(PICKLE_START):
                raise
            if PICKLE_TYPE not in (self.accept or ()):
                raise ContentDisallowed(
                    "A stored result is a pickle, as versions of Celery before 5.7 stored it, and pickles are not "
                    "read. If everybody who can write into the database is trusted, allow them: "
                    "result_accept_content = ['json', 'pickle']."
                ) from exc
            logger.warning("A stored result is read as a pickle, as versions of Celery before 5.7 stored it.")
            return pickle.loads(payload)

    def task_result_exists(self, task_id: str) -> bool:
        """Is anything stored of this task?"""
        self._flush_deferred(task_id)
        return bool(self._ensure_retryable(self._task_result_exists, task_id))

    def _task_result_exists(self, task_id: str) -> bool:
        with self._session() as session:
            column = self._table().c.task_id
            return session.execute(sa.select(column).where(column == task_id)).first() is not None

    def _read_ended(self, task_ids: Sequence[str], ready_states: Any) -> dict[str, Any]:
        """The metas of those tasks that have ended; rows of others are not even fetched."""
        rows = []
        with self._session() as session:
            columns = self._table().c
            for start in range(0, len(task_ids), ASKED_AT_ONCE):
                slice_ = list(task_ids[start : start + ASKED_AT_ONCE])
                query = sa.select(columns.task_id).where(
                    columns.task_id.in_(slice_), columns.status.in_(list(ready_states))
                )
                ended = list(session.execute(query).scalars())
                if ended:
                    rows += [row.to_dict() for row in self._read(session, ended)]
        return {row["task_id"]: self._meta(row) for row in rows}

    # --- groups ---------------------------------------------------------------------

    def _save_group(self, group_id: str, result: Any) -> Any:
        value = ensure_bytes(self.encode(self.prepare_value(result)))
        row = {"taskset_id": group_id, "result": value, "date_done": in_utc(self.app.now())}
        with self._session() as session:
            store_rows(session, self.taskset_cls.__table__, "taskset_id", [row])
            session.commit()
        return result

    def _restore_group(self, group_id: str) -> Any:
        with self._session() as session:
            found = session.query(self.taskset_cls).filter(self.taskset_cls.taskset_id == group_id).first()
            if found is None:
                return None
            meta = found.to_dict()
        value = self._decode_stored_result(meta["result"])
        meta["result"] = None if value is None else result_from_tuple(value, self.app)
        return meta

    def _delete_group(self, group_id: str) -> None:
        with self._session() as session:
            table = self.taskset_cls.__table__
            session.execute(sa.delete(table).where(table.c.taskset_id == group_id))
            session.commit()

    # --- the life of the store --------------------------------------------------------

    def cleanup(self) -> None:
        """Remove expired results and groups."""
        if self.expires:
            self._ensure_retryable(self._cleanup)

    def _cleanup(self) -> None:
        oldest = in_utc(datetime.now(timezone.utc) - maybe_timedelta(self.expires))
        with self._session() as session:
            for model in (self.task_cls, self.taskset_cls):
                table = model.__table__
                session.execute(sa.delete(table).where(table.c.date_done < oldest))
                session.commit()

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        own = {"dburi": self.url, "expires": self.expires, "engine_options": self.engine_options}
        return super().__reduce__(args, {**(kwargs or {}), **own})


def engine_callback(given: Any) -> Callable[[Any], Any] | None:
    """The function that is *given*, itself or by its path."""
    found: Any = symbol_by_name(given) if isinstance(given, str) else given
    if found is not None and not callable(found):
        raise ImproperlyConfigured(
            f"database_engine_callback must be callable, got {found!r}: give a function that takes an engine, "
            "or its path as in 'module:function'."
        )
    return found  # type: ignore[no-any-return]


def in_utc(moment: datetime | None) -> datetime | None:
    """*moment* as the columns hold it: of no zone, meant as UTC."""
    if moment is None or moment.tzinfo is None:
        return moment
    return moment.astimezone(timezone.utc).replace(tzinfo=None)
