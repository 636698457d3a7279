"""Results as documents in Elasticsearch.

Chosen by ``result_backend = "elasticsearch://user:password@host:9200/index"`` (or
``elasticsearch+https://...``) and the settings that begin with ``elasticsearch_``.  Documents are
Celery's; expiry is the index's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.url import url_to_parts

from celery_clone import states
from celery_clone.utils.log import get_logger

from .base import KeyValueStoreBackend
from .clients import PerProcess, library_missing

try:
    import elasticsearch
except ImportError:  # the extra "elasticsearch"
    elasticsearch = None

__all__ = ("ElasticsearchBackend",)

logger = get_logger(__name__)

PASSING_STATUS = frozenset({401, 409, 500, 502, 504})
"""What the server answers while it is replaced, or while two write at once."""

MOST_CONFLICTS = 10
"""How often a change is tried again that met another one."""

ENCODED_APART = ("result", "traceback")
"""Fields that are serialised by themselves where the meta is stored as an object."""


class ElasticsearchBackend(KeyValueStoreBackend):
    """Keeps results in one index."""

    index = "celery"
    #: What old versions of Elasticsearch had; those that this store can use have none.
    doc_type: str | None = None
    scheme = "http"
    host = "localhost"
    port = 9200
    username: str | None = None
    password: str | None = None
    es_retry_on_timeout = False
    es_timeout: float = 10
    es_max_retries = 3
    thread_safe = True

    def __init__(self, url: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = url
        if elasticsearch is None:
            raise library_missing("Elasticsearch", "elasticsearch", "elasticsearch")
        if url:
            self._read_url(url)
        conf = self.app.conf
        self.es_retry_on_timeout = conf.get("elasticsearch_retry_on_timeout") or self.es_retry_on_timeout
        timeout, retries = conf.get("elasticsearch_timeout"), conf.get("elasticsearch_max_retries")
        self.es_timeout = self.es_timeout if timeout is None else timeout
        self.es_max_retries = self.es_max_retries if retries is None else retries
        self.es_save_meta_as_text = conf.get("elasticsearch_save_meta_as_text", True)
        self._client = PerProcess(self._get_server, lambda client: client.close())

    def _read_url(self, url: str) -> None:
        parts = url_to_parts(url)
        self.scheme = self.scheme if parts.scheme == "elasticsearch" else parts.scheme
        self.host, self.port = parts.hostname or self.host, parts.port or self.port
        self.username, self.password = parts.username, parts.password
        index, _, doc_type = (parts.path or "").strip("/").partition("/")
        self.index, self.doc_type = index or self.index, doc_type or None
        if self.doc_type:
            logger.warning(
                "The document type %r in the result URL has no meaning: Elasticsearch has no types since version 8. "
                "Leave it out.",
                self.doc_type,
            )

    def _get_server(self) -> Any:
        login = (self.username, self.password) if self.username and self.password else None
        return elasticsearch.Elasticsearch(
            f"{self.scheme}://{self.host}:{self.port}",
            retry_on_timeout=self.es_retry_on_timeout,
            max_retries=self.es_max_retries,
            request_timeout=self.es_timeout,
            basic_auth=login,
        )

    @property
    def server(self) -> Any:
        """The client of this process."""
        return self._client()

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """A connection that is lost, and what the server says while it is busy: these pass."""
        if isinstance(exc, elasticsearch.ApiError):
            return exc.status_code in PASSING_STATUS
        return isinstance(exc, elasticsearch.TransportError)

    def close(self) -> None:
        """Let go of connections; the next use makes new ones.  Legal twice."""
        self._client.close()

    # --- values -----------------------------------------------------------------------

    def encode(self, data: Any) -> Any:
        """*data* as it is written: text, or with ``elasticsearch_save_meta_as_text`` off an object."""
        if self.es_save_meta_as_text or not isinstance(data, dict):
            return super().encode(data)
        return {
            name: self._encode(value)[2] if name in ENCODED_APART and value else value for name, value in data.items()
        }

    def decode(self, payload: Any) -> Any:
        """Undo :meth:`encode`."""
        if self.es_save_meta_as_text or not isinstance(payload, dict):
            return super().decode(payload)
        decode = super().decode
        return {name: decode(value) if name in ENCODED_APART and value else value for name, value in payload.items()}

    # --- documents --------------------------------------------------------------------

    def _get(self, key: Any) -> Any:
        """The document of a key, or ``None``."""
        try:
            document = self.server.get(index=self.index, id=bytes_to_str(key))
        except elasticsearch.NotFoundError:
            return None
        return document if document.get("found") else None

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        document = self._get(key)
        return None if document is None else document["_source"].get("result")

    def mget(self, keys: Iterable[Any]) -> Any:
        """The values of several keys."""
        ids = [bytes_to_str(key) for key in keys]
        if not ids:
            return []
        try:
            documents = self.server.mget(index=self.index, ids=ids)["docs"]
        except elasticsearch.NotFoundError:
            return [None for _ in ids]
        return [each["_source"].get("result") if each.get("found") else None for each in documents]

    def set(self, key: Any, value: Any) -> Any:
        """Write a value."""
        return self._set_with_state(key, value, None)  # type: ignore[arg-type]

    def _set_with_state(self, key: Any, value: Any, state: str) -> Any:
        moment = datetime.now(timezone.utc).replace(tzinfo=None).isoformat(timespec="milliseconds")
        document = {"result": value, "@timestamp": f"{moment}Z"}
        name = bytes_to_str(key)
        for attempt in range(MOST_CONFLICTS):
            try:
                if attempt == 0:
                    return self._create(name, document)
                return self._change(name, document, state)
            except elasticsearch.ConflictError:
                if attempt == MOST_CONFLICTS - 1:
                    raise
        return None

    def _create(self, name: str, document: dict[str, Any]) -> Any:
        return self.server.index(index=self.index, id=name, document=document, op_type="create")

    def _change(self, name: str, document: dict[str, Any], state: str | None) -> Any:
        """Change a document unless it holds an end that *state* may not take back, or somebody changed it."""
        there = self._get(name)
        if there is None:
            return self._create(name, document)
        if state is not None and is_kept(self.decode(there["_source"].get("result")), state):
            return None
        return self.server.update(
            index=self.index,
            id=name,
            doc=document,
            if_seq_no=there["_seq_no"],
            if_primary_term=there["_primary_term"],
        )

    def delete(self, key: Any) -> None:
        """Remove a key; legal if it is not there."""
        try:
            self.server.delete(index=self.index, id=bytes_to_str(key))
        except elasticsearch.NotFoundError:
            pass  # gone is what was wanted


def is_kept(meta: Any, state: str) -> bool:
    """Is *meta* an end that *state* does not take back?"""
    stored = meta.get("status") if isinstance(meta, dict) else None
    return stored == states.SUCCESS or (stored in states.READY_STATES and state in states.UNREADY_STATES)
