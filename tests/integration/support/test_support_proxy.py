"""The bad network does to a connection what it says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support.proxy import Direction, TcpProxy
from tests.support.wait import wait_until


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets, until the client says it is done."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.fixture
def proxy(proxy_to: Callable[[int], TcpProxy], echo_port: int) -> TcpProxy:
    return proxy_to(echo_port)


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as connection:
        proxy.wait_for_connections(1)
        yield connection


def read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := connection.recv(count - len(data))):
        data += more
    return data


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_what_goes_in_comes_out(proxy: TcpProxy, client: socket.socket) -> None:
    client.sendall(b"x" * 200_000)
    assert read(client, 200_000) == b"x" * 200_000
    # What was sent is counted when it has been, and may be back before that.
    wait_until(lambda: proxy.bytes_forwarded[Direction.TO_SERVER] == 200_000, 5, "all bytes to be counted")


def test_a_cut_ends_open_connections_and_accepts_new_ones(proxy: TcpProxy, client: socket.socket) -> None:
    assert proxy.cut() == 1
    assert ended(client)
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as again:
        again.sendall(b"hello")
        assert read(again, 5) == b"hello"


def test_refusing_ends_old_and_new_connections_until_it_accepts_again(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.refuse()
    assert ended(client)
    # The kernel accepts before the proxy does: what is ended at once may already be so when ``connect`` looks.
    with contextlib.suppress(ConnectionResetError), socket.create_connection(("127.0.0.1", proxy.port), 5) as refused:
        assert ended(refused)
    proxy.accept()
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as again:
        again.sendall(b"hello")
        assert read(again, 5) == b"hello"


def test_what_was_held_arrives_after_the_release(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.hold()
    client.sendall(b"late")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(4)
    proxy.release()
    client.settimeout(5)
    assert read(client, 4) == b"late"


def test_what_is_dropped_never_arrives(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.drop(Direction.TO_CLIENT)
    client.sendall(b"lost")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(4)
    proxy.stop_dropping()
    client.settimeout(5)
    client.sendall(b"kept")
    assert read(client, 4) == b"kept"


def test_a_connection_can_be_cut_in_the_middle_of_what_is_sent(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.cut_after(Direction.TO_SERVER, 3)
    client.sendall(b"abcdef")
    assert read_all(client) in (b"", b"abc")


def read_all(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(100):
            data += more
    return data


def test_a_half_closed_connection_still_delivers_the_other_way(proxy: TcpProxy, client: socket.socket) -> None:
    client.sendall(b"before")
    assert read(client, 6) == b"before"
    proxy.half_close(Direction.TO_CLIENT)
    assert client.recv(1) == b""
    client.sendall(b"after")
    wait_until(lambda: proxy.bytes_forwarded[Direction.TO_SERVER] == 11, describe="the bytes after")


def test_an_orderly_end_leaves_nothing_open(proxy: TcpProxy, client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    wait_until(lambda: proxy.open_connections == 0, describe="the proxy to forget the connection")
