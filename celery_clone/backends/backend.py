"""``Backend``: what all result stores share.

Subclassed by every store here and by those of third parties, which override the methods whose names
are Celery's; made by ``app.base``, used by tasks, the tracer and results.  It decides what is
stored and how an operation is retried; reading and writing it leaves to ``_store_result``,
``_get_task_meta_for``, ``_forget`` and their like.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from billiard.einfo import ExceptionInfo
from kombu.compression import compress, decompress, encoders, get_encoder
from kombu.serialization import dumps as kombu_dumps
from kombu.serialization import registry
from kombu.utils.url import maybe_sanitize_url

from celery_clone import states
from celery_clone._state import _task_stack, current_app, get_current_task, get_current_worker_task
from celery_clone.exceptions import (
    BackendGetMetaError,
    BackendStoreError,
    ImproperlyConfigured,
    NotRegistered,
    TaskRevokedError,
    TimeoutError,
)
from celery_clone.message import codec
from celery_clone.result import ResultBase
from celery_clone.utils.collections import BufferMap
from celery_clone.utils.functional import LRUCache
from celery_clone.utils.log import get_logger
from celery_clone.utils.serialization import get_pickleable_exception, get_pickled_exception
from celery_clone.utils.suggest import hint
from celery_clone.utils.time import get_exponential_backoff_interval

from . import failures, stand_ins, unrun
from .asynchronous import PendingResults

if TYPE_CHECKING:
    from celery_clone.result import GroupResult

__all__ = ("Backend", "TaskMeta", "unpickle_backend")

logger = get_logger("celery.backends.base")

EXCEPTION_ABLE_CODECS = frozenset({"pickle"})
"""Serializers that store an exception itself instead of its description."""

COMPRESSED_PAYLOAD_MAGIC = b"\x00celery-compressed\x00"
"""What a compressed payload begins with, followed by the content type, a NUL byte and the data."""

MESSAGE_BUFFER_MAX = 8192
"""Results that are kept for whoever may ask for them, in stores that hand out each only once."""

E_UNKNOWN_COMPRESSION = "Unknown compression method {0!r} configured in result_compression. Available methods are: {1}."
W_COMPRESSION_UNSUPPORTED = (
    "The {0} result backend cannot store compressed payloads, so the result_compression setting is ignored "
    "and results are stored uncompressed."
)
W_FAILURE_EXPIRES_UNSUPPORTED = (
    "The {0} result backend does not support result_failure_expires, so failed results expire like any other result."
)


class _AlwaysStored(TypedDict):
    status: str
    result: Any
    traceback: str | None
    children: list[Any] | None
    date_done: Any


class TaskMeta(_AlwaysStored, total=False):
    """What is stored of a task.  From ``name`` on: only with ``result_extended``."""

    task_id: str
    group_id: str
    parent_id: str
    name: str | None
    args: Any
    kwargs: Any
    worker: str | None
    retries: int | None
    queue: str | None
    stamped_headers: list[str]


class NullDict(dict[Any, Any]):
    """A cache that keeps nothing."""

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing."""

    __setitem__ = update = setdefault = _ignore


def compress_payload(payload: Any, compression: str) -> bytes:
    """*payload* compressed, with a mark that says how."""
    body, content_type = compress(payload, compression)
    return b"".join((COMPRESSED_PAYLOAD_MAGIC, content_type.encode(), b"\x00", body))


def decompress_payload(payload: Any) -> Any:
    """Undo :func:`compress_payload`; what carries no mark is returned as it is."""
    if isinstance(payload, memoryview):
        payload = payload.tobytes()
    if isinstance(payload, (bytes, bytearray)) and payload.startswith(COMPRESSED_PAYLOAD_MAGIC):
        content_type, _, body = payload[len(COMPRESSED_PAYLOAD_MAGIC) :].partition(b"\x00")
        return decompress(bytes(body), content_type.decode())
    return payload


def unpickle_backend(cls: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A backend of the current app, made in the process that unpickles it."""
    return cls(*args, app=current_app._get_current_object(), **kwargs)


def ignores_result(request: Any) -> bool:
    """Did the caller say that no result is wanted?"""
    return request is not None and bool(request.ignore_result)


def stays(stored: str, state: str) -> bool:
    """Does the *stored* state of a task stay, although *state* is to be stored?

    A success is final: a second run of a task that was delivered twice does not take it back.  Nor does the
    word of a run that it will be tried again take back the end of that next try, which may be faster.
    """
    return stored == states.SUCCESS or (state == states.RETRY and stored in states.READY_STATES)


class Backend:
    """Base class of result stores.

    *url* is where the store is; the other arguments override settings of the app: *serializer*,
    *max_cached_results*, *accept* (content types that are read), *expires* (seconds or a timedelta),
    *expires_type* (what the seconds are turned into).
    """

    READY_STATES = states.READY_STATES
    UNREADY_STATES = states.UNREADY_STATES
    EXCEPTION_STATES = states.EXCEPTION_STATES

    TimeoutError = TimeoutError

    #: Seconds between the items of one pass over many results; ``None``: none.
    subpolling_interval: float | None = None

    #: Can many results be waited for at once (``get_many``)?
    supports_native_join = False

    #: Does the store drop expired results by itself?
    supports_autoexpire = False

    #: Does it apply ``result_failure_expires``?
    supports_failure_expires = False

    #: Does it give back arbitrary bytes unchanged?
    supports_result_compression = False

    #: May one instance be used by all threads?  If not, the app makes one for each.
    thread_safe: bool = False

    #: Do results outlive the store's processes?
    persistent: bool = True

    #: How a store that repeats its operations does so: seconds and numbers.
    retry_policy: Any = {"max_retries": 20, "interval_start": 0, "interval_step": 1, "interval_max": 1}

    #: Holds the results of this process that wait, once :meth:`defer_results` was called.
    _writer: Any = None

    def __init__(
        self,
        app: Any,
        serializer: str | None = None,
        max_cached_results: int | None = None,
        accept: Any = None,
        expires: Any = None,
        expires_type: Callable[[Any], Any] | None = None,
        url: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.app = app
        conf = app.conf
        self.serializer: str = serializer or conf.result_serializer
        try:
            self.content_type, self.content_encoding, self.encoder = registry._encoders[self.serializer]
        except KeyError:
            raise ImproperlyConfigured(
                f"Unknown serializer {self.serializer!r} in result_serializer."
                f"{hint(self.serializer, registry._encoders)} A serializer of your own must be registered "
                "with kombu.serialization.register() before results are stored."
            ) from None
        self.compression = self.prepare_compression(conf.get("result_compression"))
        most = max_cached_results or conf.result_cache_max
        self._cache: Any = NullDict() if most == -1 else LRUCache(limit=most or None)
        self.expires: Any = self.prepare_expires(expires, expires_type)
        accept = conf.result_accept_content if accept is None else accept
        self.accept: Any = codec.accepted(conf.accept_content if accept is None else accept)
        if conf.get("result_failure_expires") is not None and not self.supports_failure_expires:
            warnings.warn(W_FAILURE_EXPIRES_UNSUPPORTED.format(type(self).__name__), UserWarning, stacklevel=2)
        self.always_retry = conf.get("result_backend_always_retry", False)
        self.max_sleep_between_retries_ms = conf.get("result_backend_max_sleep_between_retries_ms", 10000)
        self.base_sleep_between_retries_ms = conf.get("result_backend_base_sleep_between_retries_ms", 10)
        self.max_retries = conf.get("result_backend_max_retries", float("inf"))
        self.thread_safe = self.thread_safe or conf.get("result_backend_thread_safe", False)
        self._pending_results: Any = PendingResults()
        self._pending_messages: Any = BufferMap(MESSAGE_BUFFER_MAX)
        self.url = url

    def as_uri(self, include_password: bool = False) -> str | None:
        """The URL, with the password only if it is asked for."""
        if include_password:
            return self.url
        url: str = maybe_sanitize_url(self.url or "")
        return url[:-1] if url.endswith(":///") else url

    # --- how a task stands ------------------------------------------------------

    def mark_as_started(self, task_id: str, **meta: Any) -> Any:
        """The task was begun."""
        return self.store_result(task_id, meta, states.STARTED)

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """The task returned *result*."""
        self._end(task_id, result, state, None, request, store_result and not ignores_result(request))

    def mark_as_failure(
        self,
        task_id: str,
        exc: Any,
        traceback: str | None = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """The task raised *exc*: store it, tell its chord and the rest of its chain, call its errbacks."""
        self._end(task_id, exc, state, traceback, request, store_result)
        if not request:
            return
        self._fail_chain(getattr(request, "chain", None), exc, traceback, store_result=store_result, state=state)
        if call_errbacks and request.errbacks:
            try:
                self._flush_deferred(task_id)  # an errback that is a task looks the failure up
            finally:
                # The result is kept for the next flush if that failed; who waits for the errback must not wait, too.
                self._call_task_errbacks(request, exc, traceback)

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """The task was revoked and will not run."""
        error = TaskRevokedError(reason)
        self._end(task_id, error, state, None, request, store_result)
        if request:
            self._fail_chain(getattr(request, "chain", None), error, None, store_result=store_result, state=state)

    def mark_as_retry(
        self,
        task_id: str,
        exc: Any,
        traceback: str | None = None,
        request: Any = None,
        store_result: bool = True,
        state: str = states.RETRY,
    ) -> Any:
        """The task will be tried again, because of *exc*."""
        return self.store_result(task_id, exc, state, traceback=traceback, request=request)

    def _end(self, task_id: str, result: Any, state: str, traceback: str | None, request: Any, store: bool) -> None:
        """Store a final state, and tell the chord that the task is a member of."""
        if store:
            self.store_result(task_id, result, state, traceback=traceback, request=request)
        if request and request.chord:
            self.on_chord_part_return(request, state, result)

    def _fail_chain(
        self,
        chain: Any,
        exc: Any,
        traceback: str | None = None,
        store_result: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """The steps that would have followed a failed task fail with it, so that nobody waits for them."""
        steps = chain if isinstance(chain, (list, tuple, deque)) else ()
        unrun.fail_followers(self, steps, exc, traceback, state=state, store_result=store_result)

    def _call_task_errbacks(self, request: Any, exc: Any, traceback: str | None) -> None:
        failures.call_errbacks(self.app, request, exc, traceback)

    def chord_error_from_stack(self, callback: Any, exc: Any = None) -> ExceptionInfo | None:
        """The body *callback* of a chord will not run, because of *exc* (default: the current error)."""
        error: Any = sys.exc_info()[1] if exc is None else exc
        return unrun.fail_body(self, callback, error)

    def fail_from_current_stack(self, task_id: str, exc: Any = None) -> ExceptionInfo:
        """Store *exc* (default: the current error) as the failure of a task, with the current traceback."""
        kind, current, traceback = sys.exc_info()
        exc = current if exc is None else exc
        if traceback is None:
            try:
                raise exc  # it was only made, and what is stored needs a place
            except BaseException:  # noqa: BLE001 it is the one raised here
                kind, _, traceback = sys.exc_info()
        info = ExceptionInfo((kind, exc, traceback))
        self.mark_as_failure(task_id, exc, info.traceback)
        while traceback is not None:
            try:
                # The stored text is enough; the frames would keep their variables alive.
                traceback.tb_frame.clear()
            except RuntimeError:
                pass  # still executing: nothing to free yet
            traceback = traceback.tb_next
        return info

    # --- values to and from what is stored --------------------------------------

    def prepare_exception(self, exc: Any, serializer: str | None = None) -> Any:
        """*exc* in the form in which it is stored."""
        if (self.serializer if serializer is None else serializer) in EXCEPTION_ABLE_CODECS:
            return get_pickleable_exception(exc)
        return failures.described(exc, self.encode)

    def exception_to_python(self, exc: Any) -> Any:
        """Undo :meth:`prepare_exception`."""
        if isinstance(exc, BaseException):
            return get_pickled_exception(exc) if self.serializer in EXCEPTION_ABLE_CODECS else exc
        return failures.restored(exc)

    def prepare_value(self, result: Any) -> Any:
        """*result* in the form in which it is stored."""
        if self.serializer != "pickle" and isinstance(result, ResultBase):
            return result.as_tuple()  # type: ignore[attr-defined]
        return result

    def encode(self, data: Any) -> Any:
        """*data* as it is written into the store."""
        payload = self._encode(data)[2]
        return compress_payload(payload, self.compression) if self.compression else payload

    def _encode(self, data: Any) -> tuple[str, str, Any]:
        if self.serializer == "json" and codec.json_is_kombus():
            return codec.dumps(data)
        return kombu_dumps(data, serializer=self.serializer)  # type: ignore[no-any-return]

    def decode(self, payload: Any) -> Any:
        """Undo :meth:`encode`.

        Raises:
            kombu.exceptions.ContentDisallowed: ``result_accept_content`` does not allow this serializer.
        """
        if payload is None:
            return None
        return codec.loads(decompress_payload(payload), self.content_type, self.content_encoding, accept=self.accept)

    def meta_from_decoded(self, meta: Any) -> Any:
        """*meta* with the error it holds made an exception."""
        if meta["status"] in self.EXCEPTION_STATES:
            meta["result"] = self.exception_to_python(meta["result"])
        return meta

    def decode_result(self, payload: Any) -> Any:
        """A stored meta as :meth:`get_task_meta` gives it."""
        return self.meta_from_decoded(self.decode(payload))

    def encode_result(self, result: Any, state: str) -> Any:
        """The result or error of a task in the form in which it is stored."""
        if state in self.EXCEPTION_STATES and isinstance(result, BaseException):
            return self.prepare_exception(result)
        return self.prepare_value(result)

    def _get_result_meta(
        self,
        result: Any,
        state: str,
        traceback: str | None,
        request: Any,
        format_date: bool = True,
        encode: bool = False,
    ) -> dict[str, Any]:
        """What is stored of a task.  *result* is in stored form already.

        With *encode* the arguments are encoded on their own, for stores that keep them in columns.
        """
        done: Any = None
        if state in self.READY_STATES:
            done = self.app.now()
            if format_date:
                done = done.isoformat()
        meta: dict[str, Any] = {
            "status": state,
            "result": result,
            "traceback": traceback,
            "children": self.current_task_children(request),
            "date_done": done,
        }
        if not request:
            return meta
        for name, attribute in (("group_id", "group"), ("parent_id", "parent_id")):
            value = getattr(request, attribute, None)
            if value:
                meta[name] = value
        if self.app.conf.result_extended:
            meta.update(self._extended_meta(request, encode))
        return meta

    def _extended_meta(self, request: Any, encode: bool) -> dict[str, Any]:
        delivery_info = getattr(request, "delivery_info", None)
        meta = {
            "name": getattr(request, "task", None),
            "args": getattr(request, "args", None),
            "kwargs": getattr(request, "kwargs", None),
            "worker": getattr(request, "hostname", None),
            "retries": getattr(request, "retries", None),
            "queue": delivery_info.get("routing_key") if delivery_info else None,
        }
        stamps = getattr(request, "stamps", None)
        if stamps:
            names = request.stamped_headers
            meta["stamped_headers"] = names
            meta.update((name, value) for name, value in stamps.items() if name in (names or ()))
        if encode:
            for name in ("args", "kwargs"):
                encoded = self.encode(meta[name])
                meta[name] = encoded.encode() if isinstance(encoded, str) else encoded
        return meta

    def current_task_children(self, request: Any = None) -> list[Any] | None:
        """The calls made by the task of *request* (default: by the running one), in stored form."""
        request = request or getattr(get_current_task(), "request", None)
        if not request:
            return None
        return [child.as_tuple() for child in getattr(request, "children", ())]

    # --- settings ------------------------------------------------------------------

    def prepare_compression(self, compression: str | None) -> str | None:
        """The compression to use, ``None`` if there is none or the store cannot keep bytes."""
        if not compression:
            return None
        if not self.supports_result_compression:
            warnings.warn(W_COMPRESSION_UNSUPPORTED.format(type(self).__name__), UserWarning, stacklevel=2)
            return None
        try:
            get_encoder(compression)
        except KeyError:
            known = ", ".join(sorted(encoders()))
            raise ImproperlyConfigured(E_UNKNOWN_COMPRESSION.format(compression, known)) from None
        return compression

    def prepare_expires(self, value: Any, type: Callable[[Any], Any] | None = None) -> Any:
        """Seconds that results are kept; *value* or, for ``None``, the setting ``result_expires``."""
        if value is None:
            value = self.app.conf.result_expires
        if isinstance(value, timedelta):
            value = value.total_seconds()
        return type(value) if value is not None and type is not None else value

    def prepare_persistent(self, enabled: bool | None = None) -> bool:
        """Are results to survive a restart of the broker?"""
        if enabled is not None:
            return enabled
        persistent = self.app.conf.result_persistent
        return bool(self.persistent if persistent is None else persistent)

    # --- trying again ---------------------------------------------------------------

    def _sleep(self, amount: float) -> None:
        time.sleep(amount)

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """May the operation that raised *exc* be repeated?  Stores say which errors pass."""
        return False

    def on_backend_retryable_error(self, exc: BaseException) -> None:
        """Called before an operation is repeated."""

    def _ensure_retryable(
        self,
        func: Callable[..., Any],
        *args: Any,
        fallback_exc: Callable[[str], BaseException] | None = None,
        fallback_msg: str = "",
        max_retries: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call *func*; with ``result_backend_always_retry`` again after errors that pass.

        When it was tried *max_retries* times more, ``fallback_exc(fallback_msg)`` is raised.
        """
        limit = self.max_retries if max_retries is None else max_retries
        retries = 0
        while True:
            try:
                return func(*args, **kwargs)
            except Exception as exc:
                if not self.always_retry or not self.exception_safe_to_retry(exc):
                    raise
                if retries >= limit:
                    if fallback_exc is None:
                        raise
                    raise fallback_exc(fallback_msg) from exc
                retries += 1
                logger.warning(
                    "Failed operation %s. Retrying %s more times.",
                    getattr(func, "__name__", repr(func)),
                    limit - retries,
                    exc_info=True,
                )
                try:
                    self.on_backend_retryable_error(exc)
                except Exception:
                    logger.exception("on_backend_retryable_error hook failed; continuing retry loop")
                milliseconds = get_exponential_backoff_interval(
                    self.base_sleep_between_retries_ms, retries, self.max_sleep_between_retries_ms, True
                )
                self._sleep(milliseconds / 1000)

    # --- tasks ------------------------------------------------------------------------

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Store the state and the result of a task.  Returns the result in stored form.

        Raises:
            BackendStoreError: the store could not be written, and was tried often enough.
        """
        result = self.encode_result(result, state)

        def not_stored(text: str) -> BackendStoreError:
            return BackendStoreError(text, task_id=task_id, state=state)

        # By position: stores of third parties name these parameters differently.
        self._ensure_retryable(
            self._store_result,
            task_id,
            result,
            state,
            traceback,
            fallback_exc=not_stored,
            fallback_msg="failed to store result on the backend",
            request=request,
            **kwargs,
        )
        return result

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not implement _store_result.")

    def _get_task_meta_for(self, task_id: str) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not implement _get_task_meta_for.")

    def _forget(self, task_id: str) -> None:
        raise NotImplementedError("backend does not implement forget.")

    def defer_results(self) -> Any:
        """From now on let the results of this process wait for :meth:`ResultWriter.flush`.

        Returns the writer; ``None`` from a store that is written to one result at a time.
        """
        return None

    @contextmanager
    def _running(self, request: Any) -> Iterator[None]:
        """Inside, the run of *request* is the current one, although it may have ended: the parent of what is sent."""
        current = get_current_worker_task()
        task = self.app._tasks.get(getattr(request, "task", None))
        if task is None or (current is not None and current.request is request):
            yield
            return
        _task_stack.push(task)
        task.request_stack.push(request)
        try:
            yield
        finally:
            task.request_stack.pop()
            _task_stack.pop()

    def _flush_deferred(self, task_id: str | None = None) -> None:
        """Store deferred results now: all of them, or those of one task if there are any."""
        writer = self._writer
        if writer is not None and (writer.pending if task_id is None else writer.holds(task_id)):
            writer.flush()

    def forget(self, task_id: str) -> None:
        """Remove what is stored of a task."""
        self._flush_deferred(task_id)
        self._cache.pop(task_id, None)
        self._ensure_retryable(self._forget, task_id)

    def get_state(self, task_id: str) -> str:
        """The state of a task."""
        state: str = self.get_task_meta(task_id)["status"]
        return state

    get_status = get_state

    def get_traceback(self, task_id: str) -> Any:
        """The traceback of a failed task, as text."""
        return self.get_task_meta(task_id).get("traceback")

    def get_result(self, task_id: str) -> Any:
        """The value or the error of a task."""
        return self.get_task_meta(task_id).get("result")

    def get_children(self, task_id: str) -> Any:
        """The calls that a task made."""
        return self.get_task_meta(task_id).get("children")

    def _ensure_not_eager(self) -> None:
        conf = self.app.conf
        if conf.task_always_eager and not conf.task_store_eager_result:
            warnings.warn(
                "Results are not stored in backend and should not be retrieved when task_always_eager is "
                "enabled, unless task_store_eager_result is enabled.",
                RuntimeWarning,
                stacklevel=3,
            )

    def get_task_meta(self, task_id: str, cache: bool = True) -> Any:
        """What is stored of a task; with *cache* from this process's memory if it is there.

        Raises:
            BackendGetMetaError: the store could not be read, and was tried often enough.
        """
        self._ensure_not_eager()
        if cache:
            try:
                return self._cache[task_id]
            except KeyError:
                pass  # not in memory: ask the store

        def not_read(text: str) -> BackendGetMetaError:
            return BackendGetMetaError(text, task_id=task_id)

        self._flush_deferred(task_id)
        meta = self._ensure_retryable(
            self._get_task_meta_for, task_id, fallback_exc=not_read, fallback_msg="failed to get meta"
        )
        if cache and meta.get("status") == states.SUCCESS:
            self._cache[task_id] = meta
        return meta

    def task_result_exists(self, task_id: str) -> bool:
        """Is anything stored of this task?"""
        return bool(self._get_task_meta_for(task_id)["status"] != states.PENDING)

    def reload_task_result(self, task_id: str) -> None:
        """Read a result again that is in memory."""
        self._cache[task_id] = self.get_task_meta(task_id, cache=False)

    def is_cached(self, task_id: str) -> bool:
        """Is the result of this task in memory?"""
        return task_id in self._cache

    # --- groups -----------------------------------------------------------------------

    def get_group_meta(self, group_id: str, cache: bool = True) -> Any:
        """What is stored of a group, or ``None``."""
        self._ensure_not_eager()
        if cache:
            try:
                return self._cache[group_id]
            except KeyError:
                pass  # not in memory: ask the store
        meta = self._ensure_retryable(self._restore_group, group_id)
        if cache and meta is not None:
            self._cache[group_id] = meta
        return meta

    def reload_group_result(self, group_id: str) -> None:
        """Read a group again that is in memory."""
        self._cache[group_id] = self.get_group_meta(group_id, cache=False)

    def restore_group(self, group_id: str, cache: bool = True) -> Any:
        """The stored :class:`GroupResult`, or ``None``."""
        meta = self.get_group_meta(group_id, cache=cache)
        return meta["result"] if meta else None

    def save_group(self, group_id: str, result: GroupResult) -> Any:
        """Store a group, so that it can be restored by its id."""
        return self._ensure_retryable(self._save_group, group_id, result)

    def delete_group(self, group_id: str) -> Any:
        """Remove a stored group."""
        self._cache.pop(group_id, None)
        return self._ensure_retryable(self._delete_group, group_id)

    def _save_group(self, group_id: str, result: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not implement _save_group.")

    def _restore_group(self, group_id: str) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not implement _restore_group.")

    def _delete_group(self, group_id: str) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not implement _delete_group.")

    # --- chords -----------------------------------------------------------------------

    def ensure_chords_allowed(self) -> None:
        """Raise :exc:`NotImplementedError` if the store cannot do chords."""

    def body_to_send(self, group_id: str, body: Any) -> Any:
        """What members of a chord are to carry: *body*, or for a large one a small signature in its place."""
        return stand_ins.stand_in_for(self, group_id, body)

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """A chord is about to be sent; *header_result_args* are (group id, results of the header)."""
        self.ensure_chords_allowed()
        self.fallback_chord_unlock(self.app.GroupResult(*header_result_args), body, **kwargs)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """The header of a chord has *chord_size* ends; told before the last member is sent."""

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """A running member adds one more."""
        raise NotImplementedError(
            f"Backend does not support add_to_chord: {type(self).__name__} cannot change the size of a chord "
            "that was sent. The redis and sqlite backends can."
        )

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """A member of a chord has ended."""

    def fallback_chord_unlock(self, header_result: Any, body: Any, countdown: float = 1, **kwargs: Any) -> None:
        """Send the task that looks at the header until all of it has ended, by the route of the body."""
        app = self.app
        options = body.options
        kwargs["result"] = [result.as_tuple() for result in header_result]
        try:
            task = getattr(body, "type", None)
        except NotRegistered:
            task = None
        queue = options.get("queue", getattr(task, "queue", None))
        if queue is None:
            queue = app.amqp.router.route(kwargs, body.name)["queue"].name
        priority = options.get("priority", getattr(task, "priority", 0))
        stamps = options.get("stamped_headers") or ()
        route = {
            name: options[name]
            for name in ("exchange", "exchange_type", "routing_key", "headers")
            if name not in stamps and options.get(name) is not None
        }
        if "exchange_type" not in route:
            try:
                declared = app.amqp.queues[queue] if isinstance(queue, str) else queue
                route["exchange_type"] = declared.exchange.type
            except (AttributeError, KeyError):
                pass  # a queue of which nothing is known here: the broker's default it is
        if "exchange_type" in route:
            # A retry of the task is routed by its delivery, which does not tell this.
            kwargs["_chord_unlock_exchange_type"] = route["exchange_type"]
        app.tasks["celery.chord_unlock"].apply_async(
            (header_result.id, body), kwargs, countdown=countdown, queue=queue, priority=priority, **route
        )

    # --- the life of the store ----------------------------------------------------------

    def cleanup(self) -> None:
        """Remove expired results; called daily by ``celery.backend_cleanup``."""

    def close(self) -> None:
        """Let go of connections; the next use makes new ones.  Legal twice."""

    def process_cleanup(self) -> None:
        """Called after each task, in the process that ran it."""

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:
        """A task is about to be sent, and its result is wanted."""
        return {}

    def on_task_sent(self, result: Any) -> None:
        """A task was sent by itself, and *result* will be asked for."""

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return unpickle_backend, (self.__class__, args, dict(kwargs or {}))
