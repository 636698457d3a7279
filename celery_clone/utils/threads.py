"""What belongs to one thread, greenlet or coroutine, and background threads.

``LocalStack`` holds the stack of running tasks (``_state``) and of requests (``app.task``);
``bgThread`` is the base of ``utils.timer2`` and ``worker.autoscale``; the socket helpers are for
the shutdown of ``worker``.  Knows nothing of tasks.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import GenericAlias
from typing import Any

from celery_clone.local import Proxy, try_import

__all__ = (
    "Local",
    "LocalManager",
    "LocalStack",
    "bgThread",
    "bound_open_broker_sockets",
    "default_socket_timeout",
    "get_ident",
    "release_local",
)

#: Identifies the running greenlet if the process has greenlets, else the running thread.
get_ident: Callable[[], Any] = getattr(try_import("greenlet"), "getcurrent", threading.get_ident)


def release_local(local: Local | LocalStack) -> None:
    """Forget what *local* holds for the running context."""
    local.__release_local__()


class Local:
    """Attributes that every thread and greenlet has for itself."""

    __slots__ = ("__ident_func__", "__storage__")

    __storage__: dict[Any, dict[str, Any]]
    __ident_func__: Callable[[], Any]

    def __init__(self) -> None:
        object.__setattr__(self, "__storage__", {})
        object.__setattr__(self, "__ident_func__", get_ident)

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Give ``(context, its attributes)`` for every context that has set any."""
        return iter(self.__storage__.items())

    def __call__(self, proxy: str) -> Proxy:
        """Return a proxy of the attribute named *proxy*, whichever context uses it."""
        return Proxy(self, name=proxy)

    def __release_local__(self) -> None:
        self.__storage__.pop(self.__ident_func__(), None)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__storage__[self.__ident_func__()][name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self.__storage__.setdefault(self.__ident_func__(), {})[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self.__storage__[self.__ident_func__()][name]
        except KeyError:
            raise AttributeError(name) from None


class LocalStack:
    """A stack that every thread, greenlet and coroutine has for itself.

    A coroutine started with something on the stack sees it, and what it pushes itself is not seen
    by the others: the stack is kept in a context variable, as an immutable value.

    Meant to live as long as the program: context variables are never freed by Python.
    """

    __slots__ = ("__weakref__", "_items")

    __class_getitem__: classmethod[Any, Any, GenericAlias] = classmethod(GenericAlias)

    def __init__(self) -> None:
        self._items: ContextVar[tuple[Any, ...]] = ContextVar("LocalStack", default=())

    def __call__(self) -> Proxy:
        """Return a proxy of the topmost object; ``RuntimeError`` if it is used on an empty stack."""

        def topmost() -> Any:
            items = self._items.get()
            if not items:
                raise RuntimeError("object unbound")
            return items[-1]

        return Proxy(topmost)

    def __release_local__(self) -> None:
        self._items.set(())

    def push(self, obj: Any) -> list[Any]:
        """Put *obj* on top; return the stack, bottom first."""
        items = (*self._items.get(), obj)
        self._items.set(items)
        return list(items)

    def pop(self) -> Any:
        """Take the topmost object off and return it; ``None`` if there is none."""
        items = self._items.get()
        if not items:
            return None
        self._items.set(items[:-1])
        return items[-1]

    def __len__(self) -> int:
        return len(self._items.get())

    @property
    def stack(self) -> list[Any]:
        """The objects, bottom first (a copy)."""
        return list(self._items.get())

    @property
    def top(self) -> Any:
        """The topmost object; ``None`` if there is none."""
        items = self._items.get()
        return items[-1] if items else None


class LocalManager:
    """Cleans up several :class:`Local` objects at once, at the end of what they were used for."""

    def __init__(
        self,
        locals: Iterable[Local | LocalStack] | Local | LocalStack | None = None,
        ident_func: Callable[[], Any] | None = None,
    ) -> None:
        if locals is None:
            self.locals: list[Local | LocalStack] = []
        elif isinstance(locals, (Local, LocalStack)):
            self.locals = [locals]
        else:
            self.locals = list(locals)
        self.ident_func = ident_func or get_ident
        if ident_func is not None:
            for local in self.locals:
                if isinstance(local, Local):
                    object.__setattr__(local, "__ident_func__", ident_func)

    def get_ident(self) -> Any:
        """Return what identifies the running context."""
        return self.ident_func()

    def cleanup(self) -> None:
        """Forget what the locals hold for the running context."""
        for local in self.locals:
            release_local(local)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} storages: {len(self.locals)}>"


class bgThread(threading.Thread):
    """A daemon thread that calls :meth:`body` again and again until :meth:`stop`.

    If the body raises, :meth:`on_crash` is told and the whole process ends with exit code 1: a
    service that died silently would leave a worker that looks alive and does nothing.
    """

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name or type(self).__name__, daemon=True, **kwargs)
        self._shall_stop = threading.Event()
        self._has_ended = threading.Event()

    def body(self) -> None:
        """Do one round of the work.  To be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must define body()")

    def on_crash(self, msg: str, *fmt: Any, **kwargs: Any) -> None:
        """Say that the body raised: ``msg.format(*fmt)`` and the traceback, on standard error."""
        print(msg.format(*fmt), file=sys.stderr)
        traceback.print_exc(file=sys.stderr)

    def run(self) -> None:
        try:
            while not self._shall_stop.is_set():
                try:
                    self.body()
                except Exception as error:  # noqa: BLE001 (whatever it is, the service has died)
                    try:
                        self.on_crash("{0!r} crashed: {1!r}", self.name, error)
                        self._has_ended.set()
                    finally:
                        sys.stderr.flush()
                        os._exit(1)  # sys.exit() would end this thread only
        finally:
            self._has_ended.set()

    def stop(self) -> None:
        """Ask the thread to end and wait for it.  Legal before ``start()``, twice, and from itself."""
        self._shall_stop.set()
        if self.ident is None or self is threading.current_thread():
            return
        self._has_ended.wait()
        self.join()


@contextmanager
def default_socket_timeout(timeout: float | None) -> Iterator[None]:
    """Give sockets made inside this context a timeout of *timeout* seconds (``None``: none).

    Sockets that are open already are not touched: see :func:`bound_open_broker_sockets`.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def bound_open_broker_sockets(connection: Any, timeout: float | None) -> None:
    """Give the sockets that a ``kombu.Connection`` has open a timeout of *timeout* seconds.

    Closing a connection reads from it (an AMQP reply, the rest of a BRPOP): when the broker's host
    is gone without a word, only this timeout ends that read.  Called while things are torn down,
    so it does what it can and never raises.
    """
    for open_socket in _open_sockets(connection):
        with suppress(Exception):
            open_socket.settimeout(timeout)


def _open_sockets(connection: Any) -> Iterator[Any]:
    """Find the sockets without touching a property that would connect again."""
    with suppress(Exception):
        # A virtual transport (Redis, SQS...) keeps its clients in each channel's dictionary.
        for channel in list(getattr(connection.transport, "channels", None) or ()):
            kept = getattr(channel, "__dict__", {})
            for name in ("client", "subclient"):
                yield from _present(kept.get(name), "connection", "_sock")
    with suppress(Exception):
        yield from _present(connection, "_connection", "_transport", "sock")


def _present(obj: Any, *path: str) -> Iterator[Any]:
    for name in path:
        obj = getattr(obj, name, None)
    if obj is not None:
        yield obj
