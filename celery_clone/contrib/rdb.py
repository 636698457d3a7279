"""A debugger that is reached through a socket, for tasks that run where nobody has a terminal.

::

    from celery_clone.contrib import rdb

    @app.task
    def add(x, y):
        result = x + y
        rdb.set_trace()
        return result

The worker logs the port to connect to: ``telnet 127.0.0.1 6903``.  ``continue`` and ``quit`` go on with the task.
A worker that was started with ``CELERY_RDBSIG=1`` in its environment can be stopped anywhere: ``kill -USR2``.

``CELERY_RDB_HOST`` is the address to listen on, ``CELERY_RDB_PORT`` the first port to try; whoever can connect
can do what the worker can.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from pdb import Pdb
from types import FrameType
from typing import Any

from celery_clone.platforms import current_process

__all__ = ("CELERY_RDB_HOST", "CELERY_RDB_PORT", "DEFAULT_PORT", "Rdb", "debugger", "set_trace")

DEFAULT_PORT = 6899
CELERY_RDB_HOST = os.environ.get("CELERY_RDB_HOST") or "127.0.0.1"
CELERY_RDB_PORT = int(os.environ.get("CELERY_RDB_PORT") or DEFAULT_PORT)

NO_AVAILABLE_PORT = (
    "{me}: no port from {first} to {last} of {host} is free. "
    "Set the environment variable CELERY_RDB_PORT to the first port to try."
)
BANNER = """\
{self.ident}: Ready to connect: telnet {self.host} {self.port}

Type `exit` in session to continue.

{self.ident}: Waiting for client...
"""
SESSION_STARTED = "{self.ident}: Now in session with {self.remote_addr}."
SESSION_ENDED = "{self.ident}: Session with {self.remote_addr} ended."

#: The debugger that is in use.
_current: list[Rdb | None] = [None]


class Rdb(Pdb):
    """A debugger that waits for somebody to connect, and then talks to them.

    Arguments:
        host: the address to listen on.
        port: the first port to try.
        port_search_limit: how many ports to try.
        port_skew: where to begin, counted from *port*; processes of a pool begin at their number.
        out: where to tell of itself.

    Raises:
        OSError: no port is free.
    """

    me = "Remote Debugger"

    def __init__(
        self,
        host: str = CELERY_RDB_HOST,
        port: int = CELERY_RDB_PORT,
        port_search_limit: int = 100,
        port_skew: int = +0,
        out: Any = sys.stdout,
    ) -> None:
        self.out = out
        self.host = host
        self._prev_handles = sys.stdin, sys.stdout
        listening, self.port = self.get_avail_port(host, port, port_search_limit, port_skew)
        self.ident = f"{self.me}:{self.port}"
        with listening:
            listening.listen(1)
            self.say(BANNER.format(self=self))
            self._client, address = listening.accept()
        self.remote_addr = ":".join(str(part) for part in address)
        self.active = True
        self.say(SESSION_STARTED.format(self=self))
        # What is printed at the prompt is for those who are connected.
        self._files: tuple[Any, Any] = self._client.makefile("r"), self._client.makefile("w")
        sys.stdin, sys.stdout = self._files
        super().__init__(completekey="tab", stdin=self._files[0], stdout=self._files[1])

    def get_avail_port(
        self, host: str, port: int, search_limit: int = 100, skew: int = +0
    ) -> tuple[socket.socket, int]:
        """A socket that is bound to a free port, and the port.

        Raises:
            OSError: there is none.
        """
        index = current_process().name.rpartition("-")[2]
        first = port + (int(index) if index.isdigit() else skew)
        for candidate in range(first, first + search_limit):
            found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind((host, candidate))
            except OSError as error:
                found.close()
                if error.errno not in (errno.EADDRINUSE, errno.EINVAL):
                    raise
            else:
                return found, candidate
        text = NO_AVAILABLE_PORT.format(me=self.me, first=first, last=first + search_limit - 1, host=host)
        raise OSError(errno.EADDRINUSE, text)

    def say(self, m: str) -> None:
        """Tell those who look at the log."""
        print(m, file=self.out, flush=True)

    def __enter__(self) -> Rdb:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close_session()

    def _close_session(self) -> None:
        self.stdin, self.stdout = sys.stdin, sys.stdout = self._prev_handles
        if not self.active:
            return
        self.active = False
        for file in reversed(self._files):
            try:
                file.close()
            except OSError:
                pass  # they hung up
        self._client.close()
        self.say(SESSION_ENDED.format(self=self))

    def do_continue(self, arg: str) -> bool:
        """Let the task go on to its next break point, and end the session."""
        self._close_session()
        self.set_continue()
        return True

    do_c = do_cont = do_continue

    def do_quit(self, arg: str) -> bool:
        """Let the task go on, and end the session."""
        self._close_session()
        self.set_quit()
        return True

    do_q = do_exit = do_EOF = do_quit  # noqa: N815 the names of pdb

    def stop_in(self, frame: FrameType) -> None:
        """Stop at the next line of *frame*, and not in what stands between it and us, such as a signal handler."""
        self.reset()
        outer: FrameType | None = frame
        while outer is not None:
            outer.f_trace = self.trace_dispatch
            self.botframe = outer
            outer = outer.f_back
        self.set_next(frame)
        sys.settrace(self.trace_dispatch)

    def set_quit(self) -> None:
        """Look no further; pdb would end the program here."""
        sys.settrace(None)


def debugger() -> Rdb:
    """The debugger in use; a new one, which waits for somebody to connect, if there is none."""
    found = _current[0]
    if found is None or not found.active:
        found = _current[0] = Rdb()
    return found


def set_trace(frame: FrameType | None = None) -> None:
    """Stop here, or at the next line of *frame*, and wait for somebody to connect."""
    found = debugger()
    if frame is None:
        found.set_trace(sys._getframe().f_back)
    else:
        found.stop_in(frame)
