"""A Redis server of the tests' own.

Used by ``conftest`` (one server per session, one database per test), by recovery tests (a server of their
own that they stop and start) and by the benchmarks.
It listens on the loopback address only and ends with the process that started it.
"""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
from types import TracebackType

from tests.support.folders import own_folder, remove_folder
from tests.support.processes import dies_with_its_parent, end, free_port
from tests.support.servers import program
from tests.support.wait import wait_until

DATABASES = 4096


class RedisServer:
    """One ``redis-server`` on a free port with a data folder of its own.

    With ``persistent=True`` what was written survives ``stop()`` and ``kill()``: every write is appended to
    a file before it is answered.
    """

    def __init__(self, *, persistent: bool = False, options: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self.folder = own_folder("redis")
        self._options = (*options, "--appendonly", "yes") if persistent else options
        self._program = program("redis-server", "redis-server")
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = itertools.count(1)

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the Redis server is not running; call start()"
        return self._process.pid

    def url(self, database: int = 0) -> str:
        """The URL of one of the server's databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def new_database_url(self) -> str:
        """The URL of a database that nobody has used yet."""
        database = next(self._databases)
        assert database < DATABASES, f"all {DATABASES} databases were used; raise DATABASES"
        return self.url(database)

    def start(self) -> None:
        """Start the server and return when it answers."""
        if self._process is not None:
            return
        command = [
            self._program,
            *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)),
            *("--databases", str(DATABASES), "--save", "", "--logfile", "server.log"),
            *("--enable-debug-command", "local"),
            *self._options,
        ]
        self._process = subprocess.Popen(
            dies_with_its_parent(command), stdin=subprocess.DEVNULL, start_new_session=True
        )
        wait_until(self.answers, 10, lambda: f"Redis on port {self.port}; its log:\n{self.log()}")

    def answers(self) -> bool:
        """Whether the server replies to a PING."""
        process = self._process
        assert process is None or process.poll() is None, f"redis-server ended:\n{self.log()}"
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def log(self) -> str:
        """The server's log so far."""
        path = self.folder / "server.log"
        return path.read_text() if path.exists() else ""

    def stop(self) -> None:
        """Shut the server down in an orderly way; its port and data folder stay its own."""
        process, self._process = self._process, None
        if process is not None:
            end(process)

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)

    def freeze(self) -> None:
        """Stop the server's process without closing its connections: it is there and does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server and remove its data. Legal twice."""
        self.kill()
        remove_folder(self.folder)
