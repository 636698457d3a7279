"""Which class keeps the results, given a URL or a name.

Asked by ``app.base`` once for each backend it makes.  Imports the class and makes
nothing; the connection is the backend's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from celery_clone._state import current_app
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.imports import load_extension_class_names, symbol_by_name
from celery_clone.utils.suggest import hint

__all__ = ("BACKEND_ALIASES", "by_name", "by_url")

BACKEND_ALIASES = {
    "arangodb": "celery_clone.backends.arangodb:ArangoDbBackend",
    "azureblockblob": "celery_clone.backends.azureblockblob:AzureBlockBlobBackend",
    "cache": "celery_clone.backends.cache:CacheBackend",
    "cassandra": "celery_clone.backends.cassandra:CassandraBackend",
    "consul": "celery_clone.backends.consul:ConsulBackend",
    "cosmosdbsql": "celery_clone.backends.cosmosdbsql:CosmosDBSQLBackend",
    "couchbase": "celery_clone.backends.couchbase:CouchbaseBackend",
    "couchdb": "celery_clone.backends.couchdb:CouchBackend",
    "database": "celery_clone.backends.database:DatabaseBackend",
    "db": "celery_clone.backends.database:DatabaseBackend",
    "disabled": "celery_clone.backends.base:DisabledBackend",
    "dynamodb": "celery_clone.backends.dynamodb:DynamoDBBackend",
    "elasticsearch": "celery_clone.backends.elasticsearch:ElasticsearchBackend",
    "file": "celery_clone.backends.filesystem:FilesystemBackend",
    "gs": "celery_clone.backends.gcs:GCSBackend",
    "mongodb": "celery_clone.backends.mongodb:MongoBackend",
    "redis": "celery_clone.backends.redis:RedisBackend",
    "rediss": "celery_clone.backends.redis:RedisBackend",
    "rpc": "celery_clone.backends.rpc:RPCBackend",
    "s3": "celery_clone.backends.s3:S3Backend",
    "sentinel": "celery_clone.backends.redis:SentinelBackend",
    "sqlite": "celery_clone.backends.sqlite:SQLiteBackend",
}

#: What is often written where another scheme is meant.
MEANT = {
    "amqp": "rpc://",
    "amqps": "rpc://",
    "pyamqp": "rpc://",
    "filesystem": "file:///path/to/folder",
    "gcs": "gs://",
    "mariadb": "db+mysql+pymysql://",
    "memcache": "cache+memcached://",
    "memcached": "cache+memcached://",
    "memory": "cache+memory://",
    "mysql": "db+mysql://",
    "oracle": "db+oracle://",
    "postgres": "db+postgresql://",
    "postgresql": "db+postgresql://",
    "sqlalchemy": "db+postgresql:// and its like",
    "sqla": "db+postgresql:// and its like",
}


def by_name(
    backend: str | type | None = None,
    loader: Any = None,
    extension_namespace: str = "celery.result_backends",
) -> Any:
    """The backend class of that name: an alias, one of an installed plugin, or ``module:Class``.

    ``None`` is the backend that refuses to keep results.  What is not text is returned as it is.

    Raises:
        ImproperlyConfigured: if there is no such class.
    """
    backend = backend or "disabled"
    loader = loader or current_app.loader
    aliases: dict[str, Any] = {
        **BACKEND_ALIASES,
        **loader.override_backends,
        **dict(load_extension_class_names(extension_namespace)),
    }
    try:
        found = symbol_by_name(backend, aliases)
    except (ValueError, ModuleNotFoundError, AttributeError) as error:
        if not isinstance(error, ValueError) and not _is_not_there(str(backend), error):
            raise  # the backend is there, something it needs is not
        raise ImproperlyConfigured(
            f"Unknown result backend: {backend!r}. Did you spell that correctly? "
            f"({error!r}){_remedy(str(backend), aliases)}"
        ) from error
    if isinstance(found, ModuleType):
        raise ImproperlyConfigured(
            f"Unknown result backend: {backend!r} is a Python module, not a backend class. "
            f"Name a class in it, as module:Class.{_remedy(str(backend), aliases)}"
        )
    return found


def _is_not_there(path: str, error: ModuleNotFoundError | AttributeError) -> bool:
    """Does *error* tell that there is no class at *path*, and not of something that its module needs?"""
    module = path.rpartition(":" if ":" in path else ".")[0] or path
    if isinstance(error, AttributeError):
        return isinstance(error.obj, ModuleType) and error.obj.__name__ == module
    return error.name is not None and f"{module}.".startswith(f"{error.name}.")


def _remedy(backend: str, aliases: Iterable[str]) -> str:
    """How to go on from a name that is none of *aliases*."""
    if backend in MEANT:
        return f" Write {MEANT[backend]} for that."
    return hint(backend, aliases) or f" Known are: {', '.join(sorted(aliases))}; and any class, as module:Class."


def by_url(backend: str | type | None = None, loader: Any = None) -> tuple[Any, str | None]:
    """The backend class for a URL or a name, and the URL to give it (``None`` for a name).

    ``db+postgresql://...`` names the backend before the plus and gives it the rest.
    """
    if not isinstance(backend, str) or "://" not in backend:
        return by_name(backend, loader), None
    scheme, _, _ = url_scheme = backend.partition("://")
    name, plus, _ = scheme.partition("+")
    url = backend[len(name) + 1 :] if plus else "".join(url_scheme)
    return by_name(name, loader), url
