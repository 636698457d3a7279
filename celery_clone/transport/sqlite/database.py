"""One SQLite file, shared safely by many processes and threads of one machine.

Used by the embedded broker (``broker``), by the kombu transport over it and by the result store
``celery_clone.backends.sqlite``; each brings its own tables.  It owns the connection to the file:
opening, write-ahead log, the wait for the write lock, errors that name the file, and forks.
It knows nothing of messages or results, and hands out no connection beyond one piece of work.
"""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from kombu.exceptions import OperationalError

__all__ = ("Database", "DatabaseUnavailable", "Location", "Tables", "locate")

Answer = TypeVar("Answer")
Work = Callable[[sqlite3.Connection], Answer]

DEFAULT_FILE = "celery.db"
BUSY_TIMEOUT_S = 30.0
SYNCHRONOUS_LEVELS = ("NORMAL", "FULL", "EXTRA")
JOURNAL_LIMIT_BYTES = 64 * 1024 * 1024

FIRST_WAIT_S = 0.0002
LONGEST_WAIT_S = 0.01

# SQLite's own words; Python 3.10 gives no error codes.
BUSY_WORDS = ("database is locked", "table is locked", "schema is locked", "locking protocol")

# Any other error speaks of a statement, not of the file, and is shown as it is.
FILE_WORDS = (
    *BUSY_WORDS,
    "unable to open",
    "readonly",
    "disk I/O error",
    "is full",
    "not a database",
    "malformed",
    "access permission",
    "large file support",
)


class DatabaseUnavailable(OperationalError):
    """The SQLite file cannot be used now: the text names the file, the cause and what to do."""


class Location(NamedTuple):
    """Where a ``sqlite://`` URL points: the path as written, and the options after ``?``."""

    path: str
    options: Mapping[str, str]


class Tables(NamedTuple):
    """The tables one user of the file brings: their owner's name, their version, the SQL that makes them."""

    owner: str
    version: int
    script: str


def locate(url: str) -> Location:
    """Read a ``sqlite://`` URL.

    Three slashes make the path relative to the current folder, four make it absolute, none given
    means ``celery.db`` in the current folder.  A leading ``~`` is the user's home.

    Raises:
        DatabaseUnavailable: the URL names a host, or memory: neither can be a shared file.
    """
    parts = urlsplit(url)
    if parts.netloc and parts.netloc != "localhost":
        raise DatabaseUnavailable(
            f"{url!r} names the host {parts.netloc!r}, but an SQLite file has no host. "
            f"Write three slashes for a path in the current folder (sqlite:///{parts.netloc}{parts.path}) "
            "or four for an absolute one."
        )
    path = unquote(parts.path[1:]) or DEFAULT_FILE
    if path == ":memory:":
        raise DatabaseUnavailable(
            f"{url!r} asks for a database in memory, which no other process can see. "
            "Name a file, or use the broker memory:// with the store cache+memory:// inside one process."
        )
    return Location(path, dict(parse_qsl(parts.query)))


def is_busy(error: BaseException) -> bool:
    """Does this error only say that another connection was faster?"""
    return isinstance(error, sqlite3.OperationalError) and any(words in str(error) for words in BUSY_WORDS)


def is_about_the_file(error: BaseException) -> bool:
    """Does this error tell of the file, rather than of what was asked of it?"""
    return isinstance(error, sqlite3.DatabaseError) and any(words in str(error) for words in FILE_WORDS)


def remedy_for(error: BaseException, path: str) -> str:
    """What to do about *error* on the file *path*, in one sentence."""
    words = str(error)
    folder = os.path.dirname(path)
    if is_busy(error):
        return (
            "Another program keeps it locked: end a transaction left open in it (an SQLite shell, a backup), "
            "or raise the transport option 'busy_timeout' (seconds)."
        )
    if "is full" in words:
        return "Free some disk space."
    if "not a database" in words or "malformed" in words:
        return "The file is no intact SQLite database: name another file, or restore this one from a backup."
    if os.path.isdir(path):
        return "This is a folder: name a file in it."
    try:
        os.stat(folder)
        may_write = os.access(folder, os.W_OK | os.X_OK)
    except PermissionError:
        may_write = False
    except OSError:
        return f"The folder {folder!r} does not exist: create it, or name a file elsewhere."
    if not may_write:
        return (
            f"The folder {folder!r} may not be written by this user, and SQLite needs to keep its "
            "log (-wal, -shm) there: change its owner or mode, or name a file elsewhere."
        )
    if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
        return "The file may not be read and written by this user: change its owner or mode, or name another file."
    return "See that it lies on a local disk that can be written; network file systems cannot carry it."


class Database:
    """A file, opened on first use and again after a fork.

    All work goes through :meth:`read` and :meth:`write`, one at a time per process.  No connection is open
    while the process forks (:class:`ForkGuard`); parent and child each open one when they need it.

    Args:
        path: the file; relative paths are fixed to the current folder now.
        tables: what must exist in the file.
        synchronous: ``NORMAL`` (a crash of a process loses nothing, a power failure may lose the last
            commits) or ``FULL`` / ``EXTRA`` (every commit waits for the disk).
        busy_timeout_s: seconds to wait for the write lock before giving up.
    """

    def __init__(
        self,
        path: str,
        tables: Tables,
        *,
        synchronous: str = "NORMAL",
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> None:
        level = str(synchronous).upper()
        if level not in SYNCHRONOUS_LEVELS:
            known = ", ".join(SYNCHRONOUS_LEVELS)
            raise DatabaseUnavailable(f"The option 'synchronous' is {synchronous!r}; it may be {known}.")
        self.path = os.path.abspath(os.path.expanduser(path))
        self.tables = tables
        self.synchronous = level
        self.busy_timeout_s = float(busy_timeout_s)
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._process = 0
        OPEN_DATABASES.add(self)

    def read(self, work: Work[Answer]) -> Answer:
        """Do *work*, which only selects.  Each statement sees what was committed when it began."""
        return self._attempt(work, None)

    def write(self, work: Work[Answer], patience_s: float | None = None) -> Answer:
        """Do *work* in one transaction: all of it is committed, or none.

        *work* is done again from its start when another process got in between, so it may change
        nothing but the database.  *patience_s* bounds the wait for the write lock if it is shorter than
        the database's own bound.

        Raises:
            DatabaseUnavailable: the file cannot be opened or written, or was locked for too long.
        """
        return self._attempt(work, "BEGIN IMMEDIATE", patience_s)

    def close(self) -> None:
        """Let go of the file.  Legal twice; the next work opens it again."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def __del__(self) -> None:
        """Close a connection that nobody closed, unless a fork made it somebody else's."""
        connection = getattr(self, "_connection", None)
        if connection is None:
            return
        if self._process == os.getpid():
            connection.close()
        else:
            ABANDONED.append(connection)

    def _attempt(self, work: Work[Answer], begin: str | None, patience_s: float | None = None) -> Answer:
        started = time.monotonic()
        longest_s = self.busy_timeout_s if patience_s is None else min(patience_s, self.busy_timeout_s)
        wait_s = FIRST_WAIT_S
        while True:
            # The lock is free while we sleep, so that the process's other threads get their turn.
            with self._lock:
                try:
                    connection = self._connected()
                    if begin is None:
                        return work(connection)
                    connection.execute(begin)
                    answer = work(connection)
                    connection.execute("COMMIT")
                    return answer
                except sqlite3.Error as error:
                    self._roll_back()
                    if not is_about_the_file(error):
                        raise
                    if not is_busy(error) or time.monotonic() - started >= longest_s:
                        raise self._unavailable(error) from error
                except BaseException:
                    self._roll_back()
                    raise
            time.sleep(wait_s * (0.5 + random.random()))
            wait_s = min(wait_s * 1.5, LONGEST_WAIT_S)

    def _roll_back(self) -> None:
        connection = self._connection
        if connection is not None and connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                # After some failures (a full disk) SQLite has rolled back by itself; whatever is
                # left open ends with the connection.
                self._connection = None
                connection.close()

    def _unavailable(self, error: BaseException) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"The SQLite file {self.path!r} cannot be used: {error}. {remedy_for(error, self.path)}"
        )

    def _connected(self) -> sqlite3.Connection:
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._process != os.getpid():
                # A fork that asked nobody (a server written in C made it): the connection is the parent's.
                ABANDONED.append(connection)
            elif file_identity(self.path) != self._identity or connection.in_transaction:
                # Somebody removed or replaced the file, or an exception raised by a signal handler left a
                # transaction open, which ends with its connection.
                connection.close()
            else:
                self._connection = connection
                return connection
        self._connection = connection = self._open()
        self._process = os.getpid()
        return connection

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
            )
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode.lower() != "wal":
                raise DatabaseUnavailable(
                    f"The SQLite file {self.path!r} cannot keep a write-ahead log (journal mode {mode!r}). "
                    + remedy_for(OSError(), self.path)
                )
            connection.execute(f"PRAGMA synchronous={self.synchronous}")
            connection.execute(f"PRAGMA journal_size_limit={JOURNAL_LIMIT_BYTES}")
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._identity = file_identity(self.path)
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        owner, version, script = self.tables
        found = stored_version(connection, owner)
        if found is None:
            connection.execute("BEGIN IMMEDIATE")
            found = stored_version(connection, owner)
            if found is None:
                connection.execute("CREATE TABLE IF NOT EXISTS celery_layout (owner TEXT PRIMARY KEY, version INTEGER)")
                for statement in script.split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute("INSERT INTO celery_layout VALUES (?, ?)", (owner, version))
                found = version
            connection.execute("COMMIT")
        if found != version:
            raise DatabaseUnavailable(
                f"The SQLite file {self.path!r} holds the {owner} tables in layout {found}, this version of "
                f"celery_clone knows layout {version}. Use the version that wrote it, or a new file."
            )


def stored_version(connection: sqlite3.Connection, owner: str) -> int | None:
    """The layout of *owner*'s tables in this file, ``None`` if there are none."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'celery_layout'").fetchone()
    if known is None:
        return None
    row = connection.execute("SELECT version FROM celery_layout WHERE owner = ?", (owner,)).fetchone()
    return None if row is None else int(row[0])


def file_identity(path: str) -> tuple[int, int] | None:
    """What tells one file from another under the same name; ``None`` if there is no such file."""
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise DatabaseUnavailable(
            f"The SQLite file {path!r} cannot be reached: {error}. {remedy_for(error, path)}"
        ) from error
    return (found.st_dev, found.st_ino)


def file_mode(path: str) -> int:
    """The permission bits of the file, ``0o600`` if it is not there."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return 0o600


LONGEST_FORK_DELAY_S = 1.0
OPEN_DATABASES: weakref.WeakSet[Database] = weakref.WeakSet()
ABANDONED: list[sqlite3.Connection] = []


class ForkGuard(threading.local):
    """Closes all connections of the process before it forks.

    SQLite counts its locks per file and process in memory.  A child inherits the counts without the locks:
    what it opens then is protected by nothing, and the log is deleted under it when the parent closes.
    And a mutex that another thread held inside SQLite would stay locked in the child for ever.
    """

    def __init__(self) -> None:
        self.held: list[threading.RLock] = []

    def hold(self) -> None:
        """Wait until no other thread of this process is inside SQLite, and close what is open."""
        for database in list(OPEN_DATABASES):
            if database._lock.acquire(timeout=LONGEST_FORK_DELAY_S):
                self.held.append(database._lock)
                database.close()

    def let_go(self) -> None:
        """The parent goes on."""
        while self.held:
            self.held.pop().release()

    def start_anew(self) -> None:
        """The child begins without locks; a connection that could not be closed is never touched again."""
        self.held.clear()
        for database in list(OPEN_DATABASES):
            database._lock = threading.RLock()
            if database._connection is not None:
                ABANDONED.append(database._connection)
                database._connection = None


if hasattr(os, "register_at_fork"):
    fork_guard = ForkGuard()
    os.register_at_fork(before=fork_guard.hold, after_in_parent=fork_guard.let_go, after_in_child=fork_guard.start_anew)
