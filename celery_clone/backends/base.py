"""The names that result stores are made of, under the path where third parties look for them.

Only names, and the classes that put two others together; imported by every store.
"""

from __future__ import annotations

from typing import Any

from celery_clone._state import get_current_task, task_join_will_block

from .backend import (
    COMPRESSED_PAYLOAD_MAGIC,
    EXCEPTION_ABLE_CODECS,
    MESSAGE_BUFFER_MAX,
    Backend,
    TaskMeta,
    compress_payload,
    decompress_payload,
    unpickle_backend,
)
from .failures import chord_error as _create_chord_error_with_cause
from .failures import fake_request as _create_fake_task_request
from .keyvalue import BaseKeyValueStoreBackend
from .polling import SyncBackendMixin

__all__ = (
    "COMPRESSED_PAYLOAD_MAGIC",
    "EXCEPTION_ABLE_CODECS",
    "MESSAGE_BUFFER_MAX",
    "Backend",
    "BaseBackend",
    "BaseDictBackend",
    "BaseKeyValueStoreBackend",
    "DisabledBackend",
    "KeyValueStoreBackend",
    "SyncBackendMixin",
    "TaskMeta",
    "_create_chord_error_with_cause",
    "_create_fake_task_request",
    "compress_payload",
    "decompress_payload",
    "get_current_task",
    "task_join_will_block",
    "unpickle_backend",
)

E_NO_BACKEND = (
    "No result backend is configured.\n"
    "This app does not keep states and results, so they cannot be asked for. Set result_backend, for "
    "instance to redis://localhost:6379/0, sqlite:///results.db or rpc://, in the app and in its workers."
)
E_CHORD_NO_BACKEND = (
    "Starting chords requires a result backend to be configured.\n\n"
    "Note that a group chained with a task is also upgraded to be a chord, as this pattern requires "
    "synchronization.\n\n"
    "Result backends that supports chords: Redis, SQLite, Database, Memcached, and more. Set result_backend, "
    "for instance to redis://localhost:6379/0 or sqlite:///results.db."
)


class BaseBackend(Backend, SyncBackendMixin):
    """Base class of stores that must be asked."""


BaseDictBackend = BaseBackend


class KeyValueStoreBackend(BaseKeyValueStoreBackend, SyncBackendMixin):
    """Base class of key/value stores that must be asked."""


class DisabledBackend(BaseBackend):
    """The store of apps that have none: keeps nothing, and says so when it is asked."""

    _cache: Any = {}
    thread_safe = True

    def store_result(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing."""

    def ensure_chords_allowed(self) -> None:
        """Raise :exc:`NotImplementedError`: chords need a store."""
        raise NotImplementedError(E_CHORD_NO_BACKEND)

    def _is_disabled(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(E_NO_BACKEND)

    def as_uri(self, *args: Any, **kwargs: Any) -> str:
        """``disabled://``."""
        return "disabled://"

    get_state = get_status = get_result = get_traceback = _is_disabled
    get_task_meta_for = wait_for = get_many = _is_disabled
    # What the above end in: without these the error would tell of a missing attribute.
    _get_task_meta_for = _forget = _save_group = _restore_group = _delete_group = _is_disabled
