"""Results as documents in ArangoDB.

Chosen by ``result_backend = "arangodb://user:password@host:8529/database/collection"``, or with the
setting ``arangodb_backend_settings``.  Database and collection must be there.  Expired documents are
removed by the daily ``celery.backend_cleanup``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.url import url_to_parts

from .base import KeyValueStoreBackend
from .clients import library_missing, settings_of

try:
    from pyArango import connection as py_arango_connection
except ImportError:  # the extra "arangodb"
    py_arango_connection = None

__all__ = ("ArangoDbBackend",)

READ = "RETURN DOCUMENT(@@collection, @key).task"
READ_MANY = "FOR k IN @keys RETURN DOCUMENT(@@collection, k).task"
WRITE = "UPSERT {_key: @key} INSERT {_key: @key, task: @value} UPDATE {task: @value} IN @@collection"
REMOVE = "REMOVE {_key: @key} IN @@collection OPTIONS { ignoreErrors: true }"
# The stored meta is text, in which the time of the end is found as JSON.
CLEAN_UP = """
FOR record IN @@collection
    LET meta = IS_STRING(record.task) ? JSON_PARSE(record.task) : record.task
    FILTER meta.date_done != null AND meta.date_done < @checkpoint
    REMOVE record IN @@collection
"""


class ArangoDbBackend(KeyValueStoreBackend):
    """Keeps results in one collection."""

    host = "127.0.0.1"
    port: Any = "8529"
    database = "celery"
    collection = "celery"
    username: str | None = None
    password: str | None = None
    http_protocol = "http"
    verify = False

    key_t = str

    def __init__(self, url: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if py_arango_connection is None:
            raise library_missing("ArangoDB", "pyArango", "arangodb")
        self.url = url
        settings = settings_of(self.app, "arangodb_backend_settings", "ArangoDB")
        parts = url_to_parts(url or "arangodb://")
        database, _, collection = (parts.path or "").partition("/")
        self.host = parts.hostname or settings.get("host", self.host)
        self.port = int(parts.port or settings.get("port", self.port))
        self.http_protocol = settings.get("http_protocol", self.http_protocol)
        self.verify = settings.get("verify", self.verify)
        self.database = database or settings.get("database", self.database)
        self.collection = collection or settings.get("collection", self.collection)
        self.username = parts.username or settings.get("username", self.username)
        self.password = parts.password or settings.get("password", self.password)
        self.arangodb_url = f"{self.http_protocol}://{self.host}:{self.port}"
        # The library's connection is for one thread.
        self._own = threading.local()

    @property
    def connection(self) -> Any:
        """The connection of this thread."""
        found = getattr(self._own, "connection", None)
        if found is None:
            found = self._own.connection = py_arango_connection.Connection(
                arangoURL=self.arangodb_url, username=self.username, password=self.password, verify=self.verify
            )
        return found

    @property
    def db(self) -> Any:
        """The database of results."""
        return self.connection[self.database]

    @property
    def expires_delta(self) -> timedelta:
        """How long results are kept."""
        return timedelta(seconds=self.expires or 0)

    def _query(self, text: str, raw: bool = False, **values: Any) -> Any:
        bound = {"@collection": self.collection, **values}
        return self.db.AQLQuery(text, rawResults=raw, bindVars=bound)

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        if key is None:
            return None
        found = self._query(READ, raw=True, key=key)
        return next(found) if len(found) > 0 else None

    def mget(self, keys: Iterable[Any] | None) -> Iterator[Any]:
        """The values of several keys."""
        if keys is None:
            return
        found = self._query(READ_MANY, raw=True, keys=list(keys))
        while True:
            yield from found
            try:
                found.nextBatch()
            except StopIteration:
                return

    def set(self, key: Any, value: Any) -> None:
        """Write a value."""
        self._query(WRITE, key=key, value=bytes_to_str(value))

    def delete(self, key: Any) -> None:
        """Remove a key; legal if it is not there."""
        if key is not None:
            self._query(REMOVE, key=key)

    def cleanup(self) -> None:
        """Remove expired results."""
        if self.expires:
            self._query(CLEAN_UP, checkpoint=(self.app.now() - self.expires_delta).isoformat())

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url})
