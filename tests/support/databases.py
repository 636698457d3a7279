"""A PostgreSQL, a MariaDB and a Memcached server of the tests' own.

Used by ``conftest`` of the tests of result stores: one server of each kind per session, one database
per test.  They listen on the loopback address only and end with the process that started them.
"""

from __future__ import annotations

import itertools
import os
import pwd
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.folders import own_folder, remove_folder
from tests.support.processes import dies_with_its_parent, end, free_port
from tests.support.servers import Unavailable, program
from tests.support.wait import wait_until

NOBODY = "nobody"
"""Whose process a server becomes that refuses to be root's."""


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


class Server:
    """One server process with a folder of its own.  A context manager."""

    name = "server"
    ending = signal.SIGKILL
    """Ends the server at once; its data are not needed any more."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = own_folder(self.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    def __enter__(self) -> Any:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and return when it answers."""
        if self._process is None:
            self._process = self._open(self.command())
            wait_until(self.answers, 20, lambda: f"{self.name} on port {self.port}; its log:\n{self.log()}")

    def command(self) -> Sequence[str]:
        """The command line of the server."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether the server can be used."""
        process = self._process
        assert process is None or process.poll() is None, f"{self.name} ended:\n{self.log()}"
        return accepts(self.port)

    def log(self) -> str:
        """The server's log so far."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """End the server; its port and data stay its own."""
        process, self._process = self._process, None
        if process is not None:
            end(process)

    def close(self) -> None:
        """End the server and remove its data. Legal twice."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(self.ending)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        remove_folder(self.folder)

    def _open(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "server.log").open("ab") as log:
            return subprocess.Popen(
                dies_with_its_parent(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )

    def _run(self, command: Sequence[str], **more: Any) -> None:
        done = subprocess.run(command, capture_output=True, cwd=self.folder, check=False, **more)
        if done.returncode:
            raise Unavailable(f"{command[0]} failed: {(done.stderr or done.stdout).decode(errors='replace')[-500:]}")


class PostgresServer(Server):
    """``postgres`` with an empty cluster."""

    name = "postgresql"
    ending = signal.SIGQUIT

    def start(self) -> None:
        """Make the cluster, and start the server."""
        if not (self.folder / "data").exists():
            if os.getuid() == 0:
                os.chown(self.folder, pwd.getpwnam(NOBODY).pw_uid, -1)
            initdb = self._program("initdb")
            options = ("--auth=trust", "--username=tests", "--encoding=UTF8", "--locale=C", "--no-sync")
            self._run(self._as_other([initdb, "-D", str(self.folder / "data"), *options]))
        super().start()

    def command(self) -> Sequence[str]:
        """The command line of the server; nothing is synced to the disk."""
        settings = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")
        options = [part for setting in settings for part in ("-c", setting)]
        place = ("-D", str(self.folder / "data"), "-k", str(self.folder))
        server = [self._program("postgres"), *place, "-h", "127.0.0.1", "-p", str(self.port), *options]
        # Asked for once more, since the kernel forgets it when a process becomes another user's.
        return self._as_other(dies_with_its_parent(server))

    def database_url(self, name: str = "postgres") -> str:
        """A database, as SQLAlchemy writes it; that of this name is there for all tests to share."""
        return f"postgresql+psycopg://tests@127.0.0.1:{self.port}/{name}"

    def new_database_url(self) -> str:
        """A database that nobody has used yet."""
        import psycopg

        name = f"tests_{next(self._numbers)}"
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
        return self.database_url(name)

    def answers(self) -> bool:
        """Whether somebody can log in."""
        import psycopg

        if not super().answers():
            return False
        try:
            psycopg.connect(self._address("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def _address(self, database: str) -> str:
        return f"postgresql://tests@127.0.0.1:{self.port}/{database}"

    @staticmethod
    def _program(name: str) -> str:
        # Debian keeps each version's programs in a folder of its own, beside the path.
        places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
        return program(name, "postgresql", *map(str, places))

    @staticmethod
    def _as_other(command: Sequence[str]) -> list[str]:
        """*command* as another user if this one is root, as whom PostgreSQL does not run."""
        if os.getuid() != 0:
            return list(command)
        user = pwd.getpwnam(NOBODY)
        setpriv = program("setpriv", "util-linux")
        return [setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--", *command]


class MariaServer(Server):
    """``mariadbd`` without grants: everybody may do everything."""

    name = "mariadb"

    # Grants are not looked at, so the tables they are in need not be made.

    def command(self) -> Sequence[str]:
        """The command line of the server; nothing is synced to the disk."""
        return [
            program("mariadbd", "mariadb-server-core", "/usr/sbin/mariadbd"),
            "--no-defaults",
            f"--datadir={self.folder}",
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--skip-grant-tables",
            "--skip-networking=0",
            "--skip-name-resolve",
            *(("--user=root",) if os.getuid() == 0 else ()),
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-flush-method=nosync",
            "--innodb-buffer-pool-size=16M",
            "--innodb-log-file-size=16M",
            "--innodb-temp-data-file-path=ibtmp1:3M:autoextend",
            "--performance-schema=OFF",
        ]

    def database_url(self, name: str = "shared") -> str:
        """A database, as SQLAlchemy writes it; that of this name is there for all tests to share."""
        return f"mysql+pymysql://tests@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        """Start the server and return when it answers."""
        super().start()
        self._create("shared")

    def new_database_url(self) -> str:
        """A database that nobody has used yet."""
        name = f"tests_{next(self._numbers)}"
        self._create(name)
        return self.database_url(name)

    def _create(self, name: str) -> None:
        import pymysql

        connection = pymysql.connect(host="127.0.0.1", port=self.port, user="tests")
        try:
            connection.cursor().execute(f"CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb4")
        finally:
            connection.close()


class MemcachedServer(Server):
    """``memcached``."""

    name = "memcached"

    def command(self) -> Sequence[str]:
        """The command line of the server."""
        user = ("-u", "root") if os.getuid() == 0 else ()
        path = program("memcached", "memcached", "/usr/bin/memcached")
        return [path, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-I", "8m", *user]

    def url(self, scheme: str = "memcached") -> str:
        """The URL of a result backend."""
        return f"cache+{scheme}://127.0.0.1:{self.port}/"
