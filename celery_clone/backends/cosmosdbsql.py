"""Results as documents in Azure Cosmos DB, by its SQL interface.

Chosen by ``result_backend = "cosmosdbsql://:key@host"`` and the settings that begin with
``cosmosdbsql_``.  Database and collection are made if they are not there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.url import url_to_parts

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.log import get_logger
from celery_clone.utils.suggest import hint

from .base import KeyValueStoreBackend
from .clients import library_missing

try:
    from pydocumentdb.document_client import DocumentClient
    from pydocumentdb.documents import ConnectionPolicy, ConsistencyLevel, PartitionKind
    from pydocumentdb.errors import HTTPFailure
    from pydocumentdb.retry_options import RetryOptions
except ImportError:  # the extra "cosmosdbsql"
    DocumentClient = ConnectionPolicy = ConsistencyLevel = PartitionKind = RetryOptions = None
    HTTPFailure = Exception

__all__ = ("CosmosDBSQLBackend",)

logger = get_logger(__name__)

ERROR_NOT_FOUND = 404
ERROR_EXISTS = 409
HTTPS_PORT = 443


class CosmosDBSQLBackend(KeyValueStoreBackend):
    """Keeps results in one collection; the arguments stand before the settings of the same names."""

    def __init__(
        self,
        url: str | None = None,
        database_name: str | None = None,
        collection_name: str | None = None,
        consistency_level: str | None = None,
        max_retry_attempts: int | None = None,
        max_retry_wait_time: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if DocumentClient is None:
            raise library_missing("CosmosDB", "pydocumentdb", "cosmosdbsql")
        conf = self.app.conf
        self.url = url
        self._endpoint, self._key = self._parse_url(url)
        self._database_name = database_name or conf["cosmosdbsql_database_name"]
        self._collection_name = collection_name or conf["cosmosdbsql_collection_name"]
        level = consistency_level or conf["cosmosdbsql_consistency_level"]
        try:
            self._consistency_level = getattr(ConsistencyLevel, level)
        except AttributeError:
            known = [name for name in vars(ConsistencyLevel) if not name.startswith("_")]
            raise ImproperlyConfigured(
                f"Unknown CosmosDB consistency level {level!r}; there are {', '.join(known)}.{hint(level, known)}"
            ) from None
        self._max_retry_attempts = max_retry_attempts or conf["cosmosdbsql_max_retry_attempts"]
        self._max_retry_wait_time = max_retry_wait_time or conf["cosmosdbsql_max_retry_wait_time"]
        # The library's client is for one thread.
        self._own = threading.local()

    @classmethod
    def _parse_url(cls, url: str | None) -> tuple[str, str]:
        parts = url_to_parts(url or "")
        if not parts.hostname or not parts.password:
            raise ImproperlyConfigured("Invalid URL: Cosmos DB is addressed as cosmosdbsql://:key@host")
        port = parts.port or HTTPS_PORT
        return f"{'https' if port == HTTPS_PORT else 'http'}://{parts.hostname}:{port}", parts.password

    @property
    def _client(self) -> Any:
        found = getattr(self._own, "client", None)
        if found is None:
            found = self._own.client = self._connect()
        return found

    def _connect(self) -> Any:
        policy = ConnectionPolicy()
        policy.RetryOptions = RetryOptions(
            max_retry_attempt_count=self._max_retry_attempts, max_wait_time_in_seconds=self._max_retry_wait_time
        )
        client = DocumentClient(
            self._endpoint,
            {"masterKey": self._key},
            connection_policy=policy,
            consistency_level=self._consistency_level,
        )
        self._unless_there(client.CreateDatabase, {"id": self._database_name})
        by_id = {"paths": ["/id"], "kind": PartitionKind.Hash}
        collection = {"id": self._collection_name, "partitionKey": by_id}
        self._unless_there(client.CreateCollection, self._database_link, collection)
        return client

    @staticmethod
    def _unless_there(create: Callable[..., Any], *arguments: Any) -> None:
        try:
            create(*arguments)
        except HTTPFailure as exc:
            if exc.status_code != ERROR_EXISTS:
                raise
        else:
            logger.info("Made in Cosmos DB: %s", arguments[-1]["id"])

    @property
    def _database_link(self) -> str:
        return f"dbs/{self._database_name}"

    @property
    def _collection_link(self) -> str:
        return f"{self._database_link}/colls/{self._collection_name}"

    def _get_document_link(self, key: str) -> str:
        return f"{self._collection_link}/docs/{key}"

    @classmethod
    def _get_partition_key(cls, key: str) -> dict[str, str]:
        if not key or key.isspace():
            raise ValueError("Key cannot be none, empty or whitespace.")
        return {"partitionKey": key}

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        key = bytes_to_str(key)
        try:
            document = self._client.ReadDocument(self._get_document_link(key), self._get_partition_key(key))
        except HTTPFailure as exc:
            if exc.status_code != ERROR_NOT_FOUND:
                raise
            return None
        return document.get("value")

    def mget(self, keys: Iterable[Any]) -> Any:
        """The values of several keys."""
        return [self.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        """Write a value."""
        key = bytes_to_str(key)
        document = {"id": key, "value": bytes_to_str(value)}
        self._client.UpsertDocument(self._collection_link, document, self._get_partition_key(key))

    def delete(self, key: Any) -> None:
        """Remove a key; legal if it is not there."""
        key = bytes_to_str(key)
        try:
            self._client.DeleteDocument(self._get_document_link(key), self._get_partition_key(key))
        except HTTPFailure as exc:
            if exc.status_code != ERROR_NOT_FOUND:
                raise

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url})
