"""A TCP proxy that behaves like a bad network.

Used by recovery and chaos tests: put it between a client and a server, then cut, hold, slow, half-close or
drop what goes through. It knows nothing of the protocols it carries.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from tests.support.wait import wait_until

CHUNK_BYTES = 65536


class Direction(enum.Enum):
    """Which way bytes go."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


@dataclass
class _Link:
    """One client's connection and the connection to the server that belongs to it."""

    client: socket.socket
    server: socket.socket
    threads: list[threading.Thread] = field(default_factory=list)
    ended: int = 0
    dead: bool = False

    def ends(self, direction: Direction) -> tuple[socket.socket, socket.socket]:
        """The sockets to read from and to write to."""
        if direction is Direction.TO_SERVER:
            return self.client, self.server
        return self.server, self.client


class TcpProxy:
    """Listens on a free port of the loopback address and forwards to ``127.0.0.1:<server_port>``."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.delay_s = 0.0
        self.connections_made = 0
        self.bytes_forwarded = dict.fromkeys(Direction, 0)
        self._dropping: set[Direction] = set()
        self._drop_after: dict[Direction, int] = {}
        self._traps: list[tuple[bytes, bool, threading.Event]] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._accepting = True
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"proxy-{self.port}", daemon=True)

    def __enter__(self) -> TcpProxy:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def open_connections(self) -> int:
        """How many clients are connected through the proxy now."""
        with self._lock:
            return len(self._links)

    def cut(self) -> int:
        """Reset every connection that is open now; returns how many. New ones are accepted."""
        with self._lock:
            links = list(self._links)
        for link in links:
            self._reset(link)
        return len(links)

    def refuse(self) -> None:
        """Reset every connection and every new one at once, as if the server were gone."""
        self._accepting = False
        self.cut()

    def accept(self) -> None:
        """End what ``refuse()`` began."""
        self._accepting = True

    def hold(self) -> None:
        """Forward nothing, close nothing: a network that has fallen silent. What is sent waits."""
        self._flowing.clear()

    def release(self) -> None:
        """Forward again, beginning with what waited."""
        self._flowing.set()

    def forget(self) -> int:
        """Let the connections that are open now carry nothing more, and do not close them: returns how many.

        So a network does that has forgotten them, or a machine that is gone; new connections are not concerned.
        """
        with self._lock:
            links = list(self._links)
        for link in links:
            link.dead = True
        return len(links)

    def forget_at(self, marker: bytes, *, forward: bool) -> threading.Event:
        """Forget the connection whose client is next sent *marker*, with or without that; set when it happened."""
        self._traps.append((marker, forward, happened := threading.Event()))
        return happened

    def _is_trap(self, link: _Link, chunk: bytes) -> bool:
        """Does *chunk* spring a trap that swallows it?"""
        for trap in [each for each in self._traps if each[0] in chunk]:
            marker, forward, happened = trap
            self._traps.remove(trap)
            link.dead = True
            happened.set()
            return not forward
        return False

    def drop(self, direction: Direction) -> None:
        """Swallow what goes in *direction* from now on; connections stay open."""
        self._dropping.add(direction)

    def stop_dropping(self) -> None:
        """Forward in both directions again; what was swallowed is lost."""
        self._dropping.clear()

    def cut_after(self, direction: Direction, count: int) -> None:
        """Reset the connection that carries the *count*-th byte from now in *direction*, after that byte.

        This cuts in the middle of a frame or a command.
        """
        self._drop_after[direction] = count

    def half_close(self, direction: Direction) -> None:
        """Tell the receivers in *direction* that no more will come, and leave the other way open."""
        with self._lock:
            links = list(self._links)
        for link in links:
            with contextlib.suppress(OSError):
                link.ends(direction)[1].shutdown(socket.SHUT_WR)

    def wait_for_connections(self, count: int, timeout: float = 10.0) -> None:
        """Return when at least *count* connections have been made since the proxy began."""
        wait_until(
            lambda: self.connections_made >= count,
            timeout,
            lambda: f"{count} connections through the proxy, which saw {self.connections_made}",
        )

    def close(self) -> None:
        """Reset all connections and stop listening. Legal twice."""
        if self._closed:
            return
        self._closed = True
        self._flowing.set()
        # A thread inside accept() is not woken by close() of the socket, but by its shutdown().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._acceptor.ident is not None:
            self._acceptor.join(10)
        with self._lock:
            links = list(self._links)
        for link in links:
            self._reset(link)
        for link in links:
            for thread in link.threads:
                thread.join(10)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._accepting:
                _reset_on_close(client)
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.server_port), 5)
            except OSError:
                _reset_on_close(client)
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            with self._lock:
                self._links.append(link)
            self.connections_made += 1
            for direction in Direction:
                thread = threading.Thread(
                    target=self._pump, args=(link, direction), name=f"proxy-{self.port}", daemon=True
                )
                link.threads.append(thread)
                thread.start()

    def _pump(self, link: _Link, direction: Direction) -> None:
        source, target = link.ends(direction)
        try:
            while chunk := source.recv(CHUNK_BYTES):
                self._flowing.wait()
                if self.delay_s:
                    time.sleep(self.delay_s)
                if link.dead or direction in self._dropping:
                    continue
                if self._traps and direction is Direction.TO_CLIENT and self._is_trap(link, chunk):
                    continue
                left = self._drop_after.get(direction)
                if left is not None and left <= len(chunk):
                    del self._drop_after[direction]
                    target.sendall(chunk[:left])
                    self._reset(link)
                    return
                if left is not None:
                    self._drop_after[direction] = left - len(chunk)
                target.sendall(chunk)
                self.bytes_forwarded[direction] += len(chunk)
            # An orderly end travels on as one.
            target.shutdown(socket.SHUT_WR)
        except OSError:
            self._reset(link)
        finally:
            self._forget_if_done(link)

    def _forget_if_done(self, link: _Link) -> None:
        with self._lock:
            link.ended += 1
            done = link.ended == len(Direction)
        if done:
            self._reset(link)

    def _reset(self, link: _Link) -> None:
        with self._lock:
            if link not in self._links:
                return
            self._links.remove(link)
        for end in (link.client, link.server):
            _reset_on_close(end)
            # shutdown() wakes the thread that reads from this end; close() alone would not.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _reset_on_close(end: socket.socket) -> None:
    """Make close() send RST and not FIN."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
