"""Results in the key/value store of Consul.

Chosen by ``result_backend = "consul://host:8500/path"``.  Each key belongs to a session of its own that
lives as long as results are kept; with the session the key goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.url import parse_url

from celery_clone.utils.log import get_logger

from .base import KeyValueStoreBackend
from .clients import library_missing

try:
    import consul
except ImportError:  # the extra "consul"
    consul = None

__all__ = ("ConsulBackend",)

logger = get_logger(__name__)

SESSION_TTL_MIN_S, SESSION_TTL_MAX_S = 10, 86400
"""What Consul allows as the time of a session."""


class ConsulBackend(KeyValueStoreBackend):
    """Keeps results below *path*.  With ``?one_client=1`` in the URL one client serves all operations."""

    consul = consul
    supports_autoexpire = True
    consistency = "consistent"
    path: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.consul is None:
            raise library_missing("Consul", "python-consul2", "consul")
        found = parse_url(self.url or "consul://")
        self.hostname: str = found["hostname"] or "localhost"
        self.port: int = found["port"] or 8500
        self.path = found["virtual_host"]
        self.one_client: Any = None
        if found.get("one_client"):
            self.one_client = self.client()

    def client(self) -> Any:
        """A client of the agent."""
        if self.one_client is not None:
            return self.one_client
        return self.consul.Consul(host=self.hostname, port=self.port, consistency=self.consistency)

    def _key_to_consul_key(self, key: Any) -> str:
        name: str = bytes_to_str(key)
        return name if self.path is None else f"{self.path}/{name}"

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        _, found = self.client().kv.get(self._key_to_consul_key(key))
        return found["Value"] if found else None

    def mget(self, keys: Iterable[Any]) -> Iterator[Any]:
        """The values of several keys."""
        return (self.get(key) for key in keys)

    def set(self, key: Any, value: Any) -> Any:
        """Write a value that goes with its session."""
        client, name = self.client(), self._key_to_consul_key(key)
        if not self.expires:
            return client.kv.put(key=name, value=value)
        lifetime_s = min(max(int(self.expires), SESSION_TTL_MIN_S), SESSION_TTL_MAX_S)
        session = client.session.create(name=bytes_to_str(key), behavior="delete", ttl=lifetime_s, lock_delay=0)
        written = client.kv.put(key=name, value=value, acquire=session)
        if not written:
            # An earlier state holds the key for its session: that one keeps it, and it lives as long as that.
            logger.debug("The key %s belongs to another session of Consul already; its value is changed.", name)
            client.session.destroy(session)
            written = client.kv.put(key=name, value=value)
        return written

    def delete(self, key: Any) -> Any:
        """Remove a key; legal if it is not there."""
        return self.client().kv.delete(self._key_to_consul_key(key))
