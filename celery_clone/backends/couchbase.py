"""Results as documents in a Couchbase bucket.

Chosen by ``result_backend = "couchbase://user:password@host:8091/bucket"``, or with the setting
``couchbase_backend_settings``.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from kombu.utils.url import url_to_parts

from .base import KeyValueStoreBackend
from .clients import PerProcess, library_missing, settings_of

try:
    from couchbase.auth import PasswordAuthenticator
    from couchbase.cluster import Cluster
    from couchbase.exceptions import DocumentNotFoundException
    from couchbase.options import ClusterOptions, GetMultiOptions, UpsertOptions
except ImportError:  # the extra "couchbase"
    Cluster = PasswordAuthenticator = ClusterOptions = GetMultiOptions = UpsertOptions = None
    DocumentNotFoundException = Exception

__all__ = ("CouchbaseBackend",)


class CouchbaseBackend(KeyValueStoreBackend):
    """Keeps results in the default collection of a bucket."""

    bucket = "default"
    host = "localhost"
    port = 8091
    username: str | None = None
    password: str | None = None
    quiet = False
    supports_autoexpire = True
    timeout = 2.5
    thread_safe = True

    key_t = str

    def __init__(self, url: str | None = None, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("expires_type", int)
        super().__init__(*args, **kwargs)
        self.url = url
        if Cluster is None:
            raise library_missing("Couchbase", "couchbase", "couchbase")
        settings = settings_of(self.app, "couchbase_backend_settings", "Couchbase")
        parts = url_to_parts(url or "couchbase://")
        self.host = parts.hostname or settings.get("host", self.host)
        self.port = int(parts.port or settings.get("port", self.port))
        self.bucket = (parts.path or "").strip("/") or settings.get("bucket", self.bucket)
        self.username = parts.username or settings.get("username", self.username)
        self.password = parts.password or settings.get("password", self.password)
        self._client = PerProcess(self._connect)

    def _connect(self) -> Any:
        address = f"couchbase://{self.host}:{self.port}" if self.port else f"couchbase://{self.host}"
        login = PasswordAuthenticator(self.username, self.password) if self.username and self.password else None
        cluster = Cluster(address, ClusterOptions(login)) if login else Cluster(address)
        return cluster.bucket(self.bucket).default_collection()

    @property
    def connection(self) -> Any:
        """The collection of results, in this process."""
        return self._client()

    def _get_connection(self) -> Any:
        return self._client()

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        try:
            return self.connection.get(key).value
        except DocumentNotFoundException:
            return None

    def mget(self, keys: Iterable[Any]) -> Any:
        """The values of several keys."""
        asked = list(keys)
        found = self.connection.get_multi(asked, GetMultiOptions(return_exceptions=True))
        values = dict.fromkeys(asked)
        values.update((key, result.value) for key, result in found.results.items())
        for error in found.exceptions.values():
            if not isinstance(error, DocumentNotFoundException):
                raise error
        return values

    def set(self, key: Any, value: Any) -> None:
        """Write a value."""
        if self.expires:
            self.connection.upsert(key, value, UpsertOptions(expiry=timedelta(seconds=self.expires)))
        else:
            self.connection.upsert(key, value)

    def delete(self, key: Any) -> None:
        """Remove a key; legal if it is not there."""
        try:
            self.connection.remove(key)
        except DocumentNotFoundException:
            pass  # gone is what was wanted
