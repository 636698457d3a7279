"""Results in Memcached, or in the memory of this process.

Chosen by ``result_backend = "cache+memcached://host:11211/"`` or ``"cache+memory://"``.  The second
is for tests and for apps whose caller and worker are threads of one process: nobody else sees it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kombu.utils.encoding import bytes_to_str, ensure_bytes

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.deprecated import warn
from celery_clone.utils.suggest import hint

from .base import KeyValueStoreBackend

try:
    from pymemcache.client.base import Client
    from pymemcache.client.hash import HashClient
    from pymemcache.client.retrying import RetryingClient
except ImportError:  # the extra "memcache"
    Client = HashClient = RetryingClient = None

__all__ = ("CacheBackend",)

MAX_RELATIVE_EXPIRES = 30 * 24 * 60 * 60
"""Memcached takes a longer time, in seconds, for a date."""

REQUIRES_BACKEND = (
    "The Memcached backend requires the 'pymemcache' library: pip install celery_clone[memcache]. "
    "The 'pylibmc' and 'python-memcached' libraries are no longer used."
)
UNKNOWN_BACKEND = "The cache backend {0!r} is unknown,\nPlease use one of the following backends instead: {1}"

PYLIBMC_ONLY_OPTIONS = ("behaviors", "binary")
RETRY_OPTIONS = {
    "retry_attempts": "attempts",
    "retry_delay": "retry_delay",
    "retry_for": "retry_for",
    "do_not_retry_for": "do_not_retry_for",
}
DEFAULT_CLIENT_OPTIONS = {
    # Wait for the answer, so that a failed write is an error.
    "default_noreply": False,
    "connect_timeout": 5.0,
    "timeout": 5.0,
}


# --- memcached ----------------------------------------------------------------


def memcache_client(servers: Any = None, **options: Any) -> Any:
    """A pymemcache client; with ``retry_attempts`` one that tries again.

    Raises:
        ImproperlyConfigured: the library is missing, or there is no server address.
    """
    if Client is None:
        raise ImproperlyConfigured(REQUIRES_BACKEND)
    for name in PYLIBMC_ONLY_OPTIONS:
        if options.pop(name, None) is not None:
            warn(
                description=f"The {name!r} cache backend option",
                removal="6.0",
                alternative="It is only supported by pylibmc and is ignored.",
                stacklevel=3,
            )
    retry = {theirs: options.pop(ours, None) for ours, theirs in RETRY_OPTIONS.items()}
    options = {**DEFAULT_CLIENT_OPTIONS, **options}
    addresses = [address for address in address_list(servers) if address]
    if not addresses:
        raise ImproperlyConfigured("No memcache servers provided: name one, as in cache+memcached://127.0.0.1:11211/")
    client = HashClient(addresses, **options) if len(addresses) > 1 else Client(addresses[0], **options)
    if retry["attempts"] is None:
        return client
    return RetryingClient(client, **{name: value for name, value in retry.items() if value is not None})


def address_list(servers: Any) -> list[Any]:
    """The addresses in *servers*: one of them or several, each as text or as (host, port)."""
    if servers is None:
        return []
    if isinstance(servers, str):
        return [servers]
    if isinstance(servers, tuple) and len(servers) == 2 and isinstance(servers[1], int):
        return [servers]
    if isinstance(servers, (list, tuple)):
        return list(servers)
    raise ImproperlyConfigured(
        f"Memcache servers must be a sequence of server addresses, got {type(servers)}: {servers!r}"
    )


# --- memory ---------------------------------------------------------------------


class MemoryStore:
    """Keys and values of this process, with times of expiry.  Safe to use from several threads."""

    def __init__(self, most: int = 50_000, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.clock = clock
        self.lock = threading.RLock()
        self.items: OrderedDict[Any, tuple[Any, float | None]] = OrderedDict()
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self.lock = threading.RLock()

    def read(self, key: Any) -> Any:
        """The value of *key*, or ``None``."""
        with self.lock:
            value, end = self.items.get(key, (None, None))
            if end is not None and end <= self.clock():
                del self.items[key]
                return None
            return value

    def write(self, key: Any, value: Any, expires: float) -> None:
        """Set a value that lives for *expires* seconds; 0: for ever."""
        with self.lock:
            self.items[key] = value, self.clock() + expires if expires else None
            self.items.move_to_end(key)
            while len(self.items) > self.most:
                self.items.popitem(last=False)


_MEMORY = MemoryStore()


class DummyClient:
    """Has the methods of a pymemcache client, and no server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.store = _MEMORY

    def get(self, key: Any, *args: Any, **kwargs: Any) -> Any:
        """The value of a key, or ``None``."""
        return self.store.read(key)

    def get_multi(self, keys: Iterable[Any]) -> dict[Any, Any]:
        """The keys that are there, with their values."""
        found = ((key, self.store.read(key)) for key in keys)
        return {key: value for key, value in found if value is not None}

    def set(self, key: Any, value: Any, expire: float = 0, *args: Any, **kwargs: Any) -> bool:
        """Write a value."""
        self.store.write(key, value, expire)
        return True

    def add(self, key: Any, value: Any, expire: float = 0, *args: Any, **kwargs: Any) -> bool:
        """Write a value unless there is one; was it written?"""
        with self.store.lock:
            if self.store.read(key) is not None:
                return False
            self.store.write(key, value, expire)
            return True

    def delete(self, key: Any, *args: Any, **kwargs: Any) -> bool:
        """Remove a key."""
        with self.store.lock:
            return self.store.items.pop(key, None) is not None

    def incr(self, key: Any, delta: int = 1) -> int | None:
        """Add to a counter; ``None`` if there is none."""
        with self.store.lock:
            value = self.store.read(key)
            if value is None:
                return None
            counted: int = int(value) + delta
            self.store.items[key] = counted, self.store.items[key][1]
            return counted

    def touch(self, key: Any, expire: float = 0) -> bool:
        """Set a new time of expiry; is the key there?"""
        with self.store.lock:
            value = self.store.read(key)
            if value is None:
                return False
            self.store.write(key, value, expire)
            return True


backends: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "memcache": (memcache_client, bytes_to_str),
    "memcached": (memcache_client, bytes_to_str),
    "pylibmc": (memcache_client, bytes_to_str),
    "pymemcache": (memcache_client, bytes_to_str),
    "memory": (DummyClient, ensure_bytes),
}
"""What makes the client, and the type of its keys, for each scheme."""


class OwnClient:
    """A client, and the process it was made in."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.pid = os.getpid()
        if hasattr(client, "close"):
            # With the thread it belongs to.
            weakref.finalize(self, client.close)


class CacheBackend(KeyValueStoreBackend):
    """Keeps results in Memcached or in memory.

    *backend* (or *url*) is ``scheme://server;server/``; *options* go to the client, over those of the
    setting ``cache_backend_options``.
    """

    servers: list[str] | None = None
    thread_safe = True
    supports_autoexpire = True
    supports_native_join = True
    implements_incr = True

    def __init__(
        self,
        app: Any,
        expires: Any = None,
        backend: str | None = None,
        options: Mapping[str, Any] | None = None,
        url: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(app, **kwargs)
        self.url = url
        self.options = {**(self.app.conf.cache_backend_options or {}), **(options or {})}
        self.backend: str = url or backend or self.app.conf.cache_backend or ""
        if self.backend:
            self.backend, _, servers = self.backend.partition("://")
            self.servers = servers.rstrip("/").split(";")
        self.expires = self.prepare_expires(expires, type=int)
        try:
            self.Client, self.key_t = backends[self.backend]
        except KeyError:
            message = UNKNOWN_BACKEND.format(self.backend, ", ".join(backends))
            raise ImproperlyConfigured(message + hint(self.backend, backends)) from None
        self._encode_prefixes()
        self._begin()

    def _begin(self) -> None:
        self._own = threading.local()
        self._opened: weakref.WeakSet[OwnClient] = weakref.WeakSet()

    @property
    def client(self) -> Any:
        """The client of this thread in this process: its library lets no two share one."""
        own: OwnClient | None = getattr(self._own, "client", None)
        if own is None or own.pid != os.getpid():
            own = self._own.client = OwnClient(self.Client(self.servers, **self.options))
            self._opened.add(own)
        return own.client

    def close(self) -> None:
        """Let go of connections; the next use makes new ones.  Legal twice."""
        opened = list(self._opened)
        self._begin()
        for own in opened:
            if own.pid == os.getpid() and hasattr(own.client, "close"):
                own.client.close()

    def _time_to_live(self, given: Any) -> int:
        seconds = int(given or 0)
        if seconds > MAX_RELATIVE_EXPIRES and self.Client is not DummyClient:
            return int(time.time()) + seconds
        return seconds

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        return self.client.get(key)

    def mget(self, keys: Any) -> Any:
        """The keys that are there, with their values."""
        return self.client.get_multi(keys)

    def set(self, key: Any, value: Any) -> Any:
        """Write a value."""
        return self.client.set(key, value, self._time_to_live(self.expires))

    def delete(self, key: Any) -> Any:
        """Remove a key."""
        return self.client.delete(key)

    def incr(self, key: Any) -> Any:
        """Add one to a counter; its new value."""
        return self.client.incr(key, 1)

    def expire(self, key: Any, value: Any) -> Any:
        """Have a key vanish after *value* seconds; 0 or ``None``: never."""
        return self.client.touch(key, self._time_to_live(value))

    def _apply_chord_incr(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        # A counter must be there to be counted up.
        counter = self.get_key_for_chord(header_result_args[0])
        self.client.set(counter, 0, self._time_to_live(self.chord_expires))
        super()._apply_chord_incr(header_result_args, body, **kwargs)

    def _is_new_chord_part(self, request: Any) -> bool:
        key = self.get_key_for_chord(request.group, f".{request.id}:{request.group_index}")
        return bool(self.client.add(key, b"1", self._time_to_live(self.chord_expires)))

    def as_uri(self, *args: Any, **kwargs: Any) -> str:
        """The URL, with all servers."""
        return f"{self.backend}://{';'.join(self.servers or ())}/"

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        own = {"backend": self.as_uri(), "expires": self.expires, "options": self.options}
        return super().__reduce__(args, {**(kwargs or {}), **own})
