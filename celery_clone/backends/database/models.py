"""The tables of results: columns, names and indexes are Celery's, so that both can use the same ones.

Used by the backend beside it, and by programs that query results with SQLAlchemy themselves.
It may not connect to anything.
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import LONGBLOB, LONGTEXT
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import declarative_base

from celery_clone import states

from .session import ResultModelBase

__all__ = ("Task", "TaskExtended", "TaskSet")

TASK_TABLE = "celery_taskmeta"
GROUP_TABLE = "celery_tasksetmeta"
TASK_SEQUENCE = "task_id_sequence"
GROUP_SEQUENCE = "taskset_id_sequence"

Integer = sa.Integer().with_variant(sa.BigInteger(), "mssql")
# What MySQL takes for a blob or a text ends at 64 kB, or it refuses the result.
Blob = sa.LargeBinary().with_variant(LONGBLOB(), "mysql", "mariadb")
LongText = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")


def utc_now() -> datetime:
    """The time, as the columns hold it: of no zone, meant as UTC."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


def primary_key(sequence: str, schema: str | None = None) -> Any:
    """The numbering column of a table."""
    return sa.Column(Integer, sa.Sequence(sequence, schema=schema), primary_key=True, autoincrement=True)


class Row:
    """What the tables have in common.  *told* are the columns that make the stored meta."""

    told: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:
        __tablename__: str
        __table__: Any
        id: Any

    @classmethod
    def configure(cls, schema: str | None = None, name: str | None = None) -> None:
        """Have the table another name, or be in another schema, for the whole process."""
        cls.__table__.schema = schema
        cls.id.default.schema = schema
        cls.__table__.name = name or cls.__tablename__

    def to_dict(self) -> dict[str, Any]:
        """The stored values, not decoded; ``None`` for a column that an older table does not have."""
        return {name: self._value(name) for name in self.told}

    def _value(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except SQLAlchemyError:
            return None


class TaskRow(Row):
    """Columns of the state and the result of one task."""

    told: ClassVar[tuple[str, ...]] = ("task_id", "status", "result", "traceback", "date_done", "children")

    task_id = sa.Column(sa.String(155), unique=True)
    status = sa.Column(sa.String(50), default=states.PENDING)
    result = sa.Column(Blob, nullable=True)
    date_done = sa.Column(sa.DateTime, default=utc_now, onupdate=utc_now, nullable=True, index=True)
    traceback = sa.Column(LongText, nullable=True)
    children = sa.Column(Blob, nullable=True)

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id  # type: ignore[assignment]  # the mapper's doing

    def __repr__(self) -> str:
        return f"<Task {self.task_id} state: {self.status}>"


class ExtendedRow:
    """Columns that are filled with ``result_extended``."""

    told = (*TaskRow.told, "name", "args", "kwargs", "worker", "retries", "queue", "stamps")

    name = sa.Column(sa.String(155), nullable=True)
    args = sa.Column(Blob, nullable=True)
    kwargs = sa.Column(Blob, nullable=True)
    worker = sa.Column(sa.String(155), nullable=True)
    retries = sa.Column(sa.Integer, nullable=True)
    queue = sa.Column(sa.String(155), nullable=True)
    stamps = sa.Column(Blob, nullable=True)


class GroupRow(Row):
    """Columns of a stored group."""

    told = ("taskset_id", "result", "date_done")

    taskset_id = sa.Column(sa.String(155), unique=True)
    result = sa.Column(Blob, nullable=True)
    date_done = sa.Column(sa.DateTime, default=utc_now, nullable=True, index=True)

    def __init__(self, taskset_id: str, result: Any) -> None:
        self.taskset_id = taskset_id  # type: ignore[assignment]
        self.result = result

    def __repr__(self) -> str:
        return f"<TaskSet: {self.taskset_id}>"


class Task(TaskRow, ResultModelBase):
    """The state and the result of one task."""

    __tablename__ = TASK_TABLE
    __table_args__ = {"sqlite_autoincrement": True}

    id = primary_key(TASK_SEQUENCE)


class TaskExtended(ExtendedRow, Task):
    """As :class:`Task`, with how the task was called.  Its columns are in the same table."""

    __tablename__ = TASK_TABLE
    __table_args__ = {"sqlite_autoincrement": True, "extend_existing": True}


class TaskSet(GroupRow, ResultModelBase):
    """A stored group."""

    __tablename__ = GROUP_TABLE
    __table_args__ = {"sqlite_autoincrement": True}

    id = primary_key(GROUP_SEQUENCE)


class Models(NamedTuple):
    """The classes of one pair of tables."""

    task: Any
    extended: Any
    group: Any


DEFAULT = Models(Task, TaskExtended, TaskSet)


@cache
def models_of(task_name: str, task_schema: str | None, group_name: str, group_schema: str | None) -> Models:
    """The classes of tables with these names, in these schemas.

    Each choice of names has classes of its own, so that the tables of one app are not those of another.
    """
    if (task_name, task_schema, group_name, group_schema) == (TASK_TABLE, None, GROUP_TABLE, None):
        return DEFAULT
    base = declarative_base()
    numbered = {"sqlite_autoincrement": True}
    task: Any = type(
        "Task",
        (TaskRow, base),
        {
            "__module__": __name__,
            "__tablename__": task_name,
            "__table_args__": {**numbered, "schema": task_schema},
            "id": primary_key(TASK_SEQUENCE, task_schema),
        },
    )
    extended = type(
        "TaskExtended",
        (ExtendedRow, task),
        {
            "__module__": __name__,
            "__tablename__": task_name,
            "__table_args__": {**numbered, "schema": task_schema, "extend_existing": True},
        },
    )
    group = type(
        "TaskSet",
        (GroupRow, base),
        {
            "__module__": __name__,
            "__tablename__": group_name,
            "__table_args__": {**numbered, "schema": group_schema},
            "id": primary_key(GROUP_SEQUENCE, group_schema),
        },
    )
    return Models(task, extended, group)
