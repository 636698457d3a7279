"""One statement that stores a row, whatever the database: it makes the row, or changes it unless it is final.

Used by the backend beside it.  Two processes that store the same task at the same time both succeed,
and a success stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from celery_clone import states

__all__ = ("store_rows",)

Rows = Sequence[Mapping[str, Any]]


class Kept:
    """Which rows of a table are not changed: those whose state, in *column*, stays (``backends.backend.stays``)."""

    def __init__(self, column: Any) -> None:
        self.column = column

    def may_change(self, state: Any) -> Any:
        """The condition for a change to *state*, a value or an expression."""
        # Not with IN, which cannot stand in a statement for many rows.
        open_ended = sa.and_(*(self.column != end for end in sorted(states.READY_STATES)))
        return sa.or_(
            self.column.is_(None), open_ended, sa.and_(self.column != states.SUCCESS, state != states.RETRY)
        )


def store_rows(session: Session, table: Any, key: str, rows: Rows, kept: Kept | None = None) -> None:
    """Insert *rows*, which have the same columns, or change those whose column *key* has this value."""
    store: Callable[..., None] = STATEMENTS.get(session.get_bind().dialect.name, one_by_one)
    # In one order everywhere, so that two processes do not wait for each other's rows.
    store(session, table, key, sorted(rows, key=lambda row: str(row[key])), kept)


def on_conflict(insert: Callable[..., Any]) -> Callable[..., None]:
    """For databases with ``ON CONFLICT``."""

    def store(session: Session, table: Any, key: str, rows: Rows, kept: Kept | None) -> None:
        statement = insert(table)
        changes = {name: statement.excluded[name] for name in rows[0] if name != key}
        condition = None if kept is None else kept.may_change(statement.excluded[kept.column.name])
        session.execute(
            statement.on_conflict_do_update(index_elements=[table.c[key]], set_=changes, where=condition),
            [dict(row) for row in rows],
        )

    return store


def on_duplicate_key(session: Session, table: Any, key: str, rows: Rows, kept: Kept | None) -> None:
    """For MySQL and MariaDB."""
    statement = mysql.insert(table)
    changes: list[tuple[str, Any]] = []
    for name in rows[0]:
        if name == key:
            continue
        new: Any = statement.inserted[name]
        if kept is not None:
            new = sa.func.IF(kept.may_change(statement.inserted[kept.column.name]), new, table.c[name])
        changes.append((name, new))
    if kept is not None:
        # The changes are made one after the other: what the others look at comes last.
        changes.sort(key=lambda change: change[0] == kept.column.name)
    session.execute(statement.on_duplicate_key_update(changes), [dict(row) for row in rows])


def one_by_one(session: Session, table: Any, key: str, rows: Rows, kept: Kept | None) -> None:
    """For all other databases."""
    for row in rows:
        same = table.c[key] == row[key]
        changed = sa.update(table).where(same).values(**{name: row[name] for name in row if name != key})
        if kept is not None:
            changed = changed.where(kept.may_change(sa.literal(row[kept.column.name])))
        if session.execute(changed).rowcount:  # type: ignore[attr-defined]
            continue
        if session.execute(sa.select(table.c[key]).where(same)).first() is not None:
            continue  # it is final
        try:
            with session.begin_nested():
                session.execute(sa.insert(table).values(**row))
        except IntegrityError:
            # Another process inserted it meanwhile.
            session.execute(changed)


STATEMENTS: dict[str, Callable[..., None]] = {
    "postgresql": on_conflict(postgresql.insert),
    "sqlite": on_conflict(sqlite.insert),
    "mysql": on_duplicate_key,
    "mariadb": on_duplicate_key,
}
