"""Results as documents in CouchDB.

Chosen by ``result_backend = "couchdb://user:password@host:5984/container"``.  Documents are Celery's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.url import url_to_parts

from .base import KeyValueStoreBackend
from .clients import library_missing

try:
    import pycouchdb
except ImportError:  # the extra "couchdb"
    pycouchdb = None

__all__ = ("CouchBackend",)

MOST_CONFLICTS = 5
"""How often a write is tried again that met another one."""


class CouchBackend(KeyValueStoreBackend):
    """Keeps results in one database of a CouchDB server, the *container*, which is made if it is not there."""

    container = "default"
    scheme = "http"
    host = "localhost"
    port = 5984
    username: str | None = None
    password: str | None = None

    def __init__(self, url: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = url
        if pycouchdb is None:
            raise library_missing("CouchDB", "pycouchdb", "couchdb")
        if url:
            parts = url_to_parts(url)
            self.host = parts.hostname or self.host
            self.port = int(parts.port or self.port)
            self.username, self.password = parts.username, parts.password
            self.container = (parts.path or "").strip("/") or self.container
        # The library's connection is for one thread.
        self._own = threading.local()

    def _get_connection(self) -> Any:
        if self.username and self.password:
            address = f"{self.scheme}://{self.username}:{self.password}@{self.host}:{self.port}"
            server = pycouchdb.Server(address, authmethod="basic")
        else:
            server = pycouchdb.Server(f"{self.scheme}://{self.host}:{self.port}")
        try:
            return server.database(self.container)
        except pycouchdb.exceptions.NotFound:
            pass
        try:
            return server.create(self.container)
        except pycouchdb.exceptions.Conflict:
            return server.database(self.container)  # another process made it meanwhile

    @property
    def connection(self) -> Any:
        """The database, as this thread may use it."""
        found = getattr(self._own, "connection", None)
        if found is None:
            found = self._own.connection = self._get_connection()
        return found

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        try:
            return self.connection.get(bytes_to_str(key))["value"]
        except pycouchdb.exceptions.NotFound:
            return None

    def mget(self, keys: Iterable[Any]) -> Any:
        """The values of several keys."""
        return [self.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        """Write a value."""
        document = {"_id": bytes_to_str(key), "value": bytes_to_str(value)}
        for attempt in range(MOST_CONFLICTS):
            try:
                self.connection.save(document)
                return
            except pycouchdb.exceptions.Conflict:
                if attempt == MOST_CONFLICTS - 1:
                    raise
            # A document is changed by naming its last revision.
            try:
                document["_rev"] = self.connection.get(document["_id"])["_rev"]
            except pycouchdb.exceptions.NotFound:
                document.pop("_rev", None)

    def delete(self, key: Any) -> None:
        """Remove a key; legal if it is not there."""
        try:
            self.connection.delete(bytes_to_str(key))
        except pycouchdb.exceptions.NotFound:
            pass  # gone is what was wanted
