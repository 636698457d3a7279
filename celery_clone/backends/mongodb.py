"""Results as documents in MongoDB.

Chosen by ``result_backend = "mongodb://user:password@host:27017/database"``; the setting
``mongodb_backend_settings`` stands over the URL.  Collections and documents are Celery's; expired
ones are removed by the daily ``celery.backend_cleanup``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from kombu.exceptions import EncodeError
from kombu.utils.url import maybe_sanitize_url

from celery_clone import states
from celery_clone.result import result_from_tuple

from .backend import stays
from .base import BaseBackend
from .clients import PerProcess, library_missing, settings_of
from .polling import ManyAtOnceMixin

try:
    import pymongo
    from bson.binary import Binary
    from bson.errors import InvalidDocument
    from pymongo import uri_parser
    from pymongo.errors import ConnectionFailure, DuplicateKeyError
except ImportError:  # the extra "mongodb"
    pymongo = None
    Binary = InvalidDocument = ConnectionFailure = DuplicateKeyError = None

__all__ = ("MongoBackend",)

BINARY_CODECS = frozenset({"pickle", "msgpack"})
"""Serializers whose output is no text, and is stored as bytes."""

EXTENDED = ("name", "args", "kwargs", "worker", "retries", "queue", "stamped_headers")

TASK_LIKE = ("status", "result", "date_done", "traceback", "children")


class MongoBackend(ManyAtOnceMixin, BaseBackend):
    """Keeps results in two collections of one database.  Safe to use from several threads."""

    mongo_host: Any = None
    host = "localhost"
    port = 27017
    user: str | None = None
    password: str | None = None
    database_name = "celery"
    taskmeta_collection = "celery_taskmeta"
    groupmeta_collection = "celery_groupmeta"
    max_pool_size = 10
    options: Any = None

    supports_autoexpire = False
    supports_result_compression = True
    thread_safe = True
    #: The states of many tasks are read with one query, though members are waited for in turn, as in Celery.
    reads_many = True

    def __init__(self, app: Any = None, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        if pymongo is None:
            raise library_missing("MongoDB", "pymongo", "mongodb")
        self.options = {"maxPoolSize": self.max_pool_size}
        if self.url:
            self.url = complete_url(self.url)
            self._read_url(self.url)
        self._read_settings(settings_of(self.app, "mongodb_backend_settings", "MongoDB"))
        self._client = PerProcess(self._connect, lambda client: client.close())
        self._indexed: set[str] = set()

    def _read_url(self, url: str) -> None:
        found = uri_parser.parse_uri(url)
        self.user, self.password = found["username"], found["password"]
        self.mongo_host = [f"{host}:{port}" for host, port in found["nodelist"]]
        self.database_name = found["database"] or self.database_name
        self.options.update(found["options"])

    def _read_settings(self, settings: dict[str, Any]) -> None:
        if "host" in settings or "port" in settings:
            self.mongo_host = None
        names = {
            "host": "host",
            "port": "port",
            "mongo_host": "mongo_host",
            "user": "user",
            "password": "password",
            "database": "database_name",
            "taskmeta_collection": "taskmeta_collection",
            "groupmeta_collection": "groupmeta_collection",
        }
        for name, attribute in names.items():
            if name in settings:
                setattr(self, attribute, settings.pop(name))
        self.options.update(settings.pop("options", None) or {})
        # Whatever else is there is for the client.
        self.options.update(settings)

    # --- connections ------------------------------------------------------------------

    def _connect(self) -> Any:
        host = self.mongo_host or self.host
        if isinstance(host, str) and not host.startswith("mongodb://"):
            host = f"mongodb://{host}:{self.port}"
        login = {"username": self.user, "password": self.password}
        given = {name: value for name, value in login.items() if value}
        return pymongo.MongoClient(**{**self.options, "host": host, **given})

    def _get_connection(self) -> Any:
        return self._client()

    @property
    def database(self) -> Any:
        """The database of results."""
        return self._get_connection()[self.database_name]

    @property
    def collection(self) -> Any:
        """The documents of tasks."""
        return self._with_index(self.taskmeta_collection)

    @property
    def group_collection(self) -> Any:
        """The documents of groups."""
        return self._with_index(self.groupmeta_collection)

    def _with_index(self, name: str) -> Any:
        collection = self.database[name]
        if name not in self._indexed:
            # So that finding what is expired does not read all.
            collection.create_index("date_done")
            self._indexed.add(name)
        return collection

    def close(self) -> None:
        """Let go of connections; the next use makes new ones.  Legal twice."""
        self._client.close()

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """A connection that is lost, and a server that is being replaced: these pass."""
        return isinstance(exc, ConnectionFailure)

    # --- values -----------------------------------------------------------------------

    def encode(self, data: Any) -> Any:
        """*data* as it is written; with the serializer ``bson`` MongoDB does it itself."""
        if self.serializer == "bson":
            return data
        payload = super().encode(data)
        return Binary(payload) if self.serializer in BINARY_CODECS else payload

    def decode(self, data: Any) -> Any:
        """Undo :meth:`encode`."""
        return data if self.serializer == "bson" else super().decode(data)

    # --- tasks ------------------------------------------------------------------------

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        meta = self._get_result_meta(
            result=self.encode(result), state=state, traceback=traceback, request=request, format_date=False
        )
        meta["_id"] = task_id
        kept = [stored for stored in sorted(states.READY_STATES) if stays(stored, state)]
        replaceable = {"_id": task_id, "status": {"$nin": kept}}
        for _ in range(2):
            try:
                self.collection.replace_one(replaceable, meta, upsert=True)
            except DuplicateKeyError:
                continue  # it is final, or was inserted at the same moment: the second look tells which
            except InvalidDocument as exc:
                raise EncodeError(exc) from exc
            break
        return result

    def _get_task_meta_for(self, task_id: str) -> Any:
        document = self.collection.find_one({"_id": task_id})
        return self._meta(document) if document else {"status": states.PENDING, "result": None}

    def _meta(self, document: Mapping[str, Any]) -> Any:
        """A document as :meth:`get_task_meta` gives it."""
        meta = {"task_id": document["_id"], **{name: document.get(name) for name in TASK_LIKE}}
        if self.app.conf.result_extended:
            meta.update((name, document.get(name)) for name in EXTENDED if name in document)
            meta.update((name, document[name]) for name in document.get("stamped_headers") or () if name in document)
        meta.update((name, document[name]) for name in ("group_id", "parent_id") if name in document)
        meta["result"] = self.decode(meta["result"])
        return self.meta_from_decoded(meta)

    def task_result_exists(self, task_id: str) -> bool:
        """Is anything stored of this task?"""
        return self.collection.find_one({"_id": task_id}, {"_id": 1}) is not None

    def _forget(self, task_id: str) -> None:
        self.collection.delete_one({"_id": task_id})

    def _read_ended(self, task_ids: Sequence[str], ready_states: Any) -> dict[str, Any]:
        """The metas of those tasks that have ended."""
        ended = {"_id": {"$in": list(task_ids)}, "status": {"$in": list(ready_states)}}
        return {document["_id"]: self._meta(document) for document in self.collection.find(ended)}

    # --- groups -----------------------------------------------------------------------

    def _save_group(self, group_id: str, result: Any) -> Any:
        ids = [member.id for member in result]
        if any(getattr(member, "results", None) is not None for member in result):
            # Ids alone would make a group in a group one task.  Celery reads only lists of ids.
            ids = result.as_tuple()
        document = {"_id": group_id, "result": self.encode(ids), "date_done": datetime.now(timezone.utc)}
        self.group_collection.replace_one({"_id": group_id}, document, upsert=True)
        return result

    def _restore_group(self, group_id: str) -> Any:
        document = self.group_collection.find_one({"_id": group_id})
        if not document:
            return None
        stored = self.decode(document["result"])
        if all(isinstance(member, str) for member in stored):
            result = self.app.GroupResult(group_id, [self.app.AsyncResult(task_id) for task_id in stored])
        else:
            result = result_from_tuple(stored, self.app)
        return {"task_id": document["_id"], "date_done": document["date_done"], "result": result}

    def _delete_group(self, group_id: str) -> None:
        self.group_collection.delete_one({"_id": group_id})

    # --- the life of the store ----------------------------------------------------------

    @property
    def expires_delta(self) -> timedelta:
        """How long results are kept."""
        return timedelta(seconds=self.expires or 0)

    def cleanup(self) -> None:
        """Remove expired results and groups."""
        if self.expires:
            expired = {"date_done": {"$lt": datetime.now(timezone.utc) - self.expires_delta}}
            self.collection.delete_many(expired)
            self.group_collection.delete_many(expired)

    def as_uri(self, include_password: bool = False) -> str:
        """The URL, with the password only if it is asked for."""
        if not self.url:
            return "mongodb://"
        if include_password:
            return self.url
        first, comma, others = self.url.partition(",")
        return f"{maybe_sanitize_url(first)}{comma}{others}"

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "expires": self.expires, "url": self.url})


def complete_url(url: str) -> str:
    """*url* as pymongo reads it: with its scheme, of which ``mongodb+`` may be missing, and a host."""
    if not url.partition("://")[0].startswith("mongodb"):
        url = f"mongodb+{url}"
    return "mongodb://localhost" if url == "mongodb://" else url
