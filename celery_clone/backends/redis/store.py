"""``RedisBackend``: results, groups and chords in Redis.

Made by ``app.base`` for ``redis://`` URLs.  One instance serves all threads of a process, and a
forked child starts with connections of its own.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import redis
from kombu.utils.functional import retry_over_time
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from celery_clone import states
from celery_clone.backends import chords
from celery_clone.backends.ahead import ReadAhead
from celery_clone.backends.asynchronous import AsyncBackendMixin
from celery_clone.backends.backend import stays
from celery_clone.backends.base import BaseKeyValueStoreBackend
from celery_clone.backends.writer import Deferred, ResultWriter
from celery_clone.canvas import maybe_signature
from celery_clone.exceptions import BackendStoreError, ChordError
from celery_clone.result import result_from_tuple
from celery_clone.transport.distress import DistressedBroker, is_distress
from celery_clone.transport.redis_layout import pack, pack_script
from celery_clone.utils.functional import dictfilter
from celery_clone.utils.log import get_logger
from celery_clone.utils.time import humanize_seconds

from . import parameters
from .parts import ChordPart, ResultWrite
from .scripts import CHORD_SIZE, SCRIPTS
from .waiting import ResultConsumer

__all__ = ("RedisBackend",)

logger = get_logger("celery.backends.redis")

BUSY_LOOK_S = 0.05
"""How often it is looked whether another run of a member has sent the body."""

E_LOST = "Connection to Redis lost: Retry (%s/%s) %s."

W_DECODE_RESPONSES = (
    "The Redis result backend is configured with decode_responses enabled. The result_compression setting "
    "is ignored and results are stored uncompressed."
)


class RedisBackend(BaseKeyValueStoreBackend, AsyncBackendMixin):
    """Keeps results in Redis.

    *url* says where; without it the settings ``redis_host``, ``redis_port`` and so on.  A *connection_pool*
    class replaces redis-py's.
    """

    ResultConsumer: Any = ResultConsumer

    #: The module of the client library.
    redis: Any = redis
    connection_class_ssl: Any = redis.SSLConnection

    #: Most connections of the pool; ``None``: no bound.
    max_connections: int | None = None

    supports_autoexpire = True
    supports_native_join = True
    supports_result_compression = True
    supports_failure_expires = True
    keeps_unexpected = False

    #: Redis takes no longer value.
    _MAX_STR_VALUE_SIZE = 536870912

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        db: int | str | None = None,
        password: str | None = None,
        max_connections: int | None = None,
        url: str | None = None,
        connection_pool: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(expires_type=int, **kwargs)
        conf = self.app.conf
        failure_expires = conf.get("result_failure_expires")
        self.failure_expires: Any = (
            self.expires if failure_expires is None else self.prepare_expires(failure_expires, type=int)
        )
        self.thread_safe = True
        if host and "://" in host:
            url, host = host, None
        self.url = url
        self.max_connections = max_connections or conf.get("redis_max_connections") or self.max_connections
        self._ConnectionPool = connection_pool
        given = dictfilter({"host": host, "port": port, "db": db, "password": password})
        self.connparams: dict[str, Any] = {
            **parameters.from_settings(conf, self.max_connections, self.connection_class_ssl),
            **given,
        }
        if url:
            self.connparams = self._params_from_url(url, self.connparams)
        parameters.check_certificates(self.connparams)
        self.connparams.update(parameters.driver_info())
        if self.compression and self.connparams.get("decode_responses"):
            warnings.warn(W_DECODE_RESPONSES, UserWarning, stacklevel=2)
            self.compression = None
        self._how_success_is_known = "text" if self.serializer == "json" and not self.compression else "ask"
        self.connection_errors: tuple[type[BaseException], ...] = (
            OSError,
            redis.ConnectionError,
            redis.TimeoutError,
            *parameters.additional_errors(self._transport_options.get("additional_connection_errors")),
        )
        self._client: Any = None
        self._client_lock = threading.Lock()
        self.read_ahead: ReadAhead = ReadAhead()
        self.result_consumer = self.ResultConsumer(
            self, self.app, self.accept, self._pending_results, self._pending_messages
        )
        ours = weakref.ref(self)

        def after_fork() -> None:
            backend = ours()
            if backend is not None:
                backend._after_fork()

        os.register_at_fork(after_in_child=after_fork)

    def _after_fork(self) -> None:
        """In a forked child: nothing of the parent's is waited for, used or sent here."""
        self._writer = None
        self._client_lock = threading.Lock()
        self._pending_results.clear()
        self.read_ahead.forget()
        self.result_consumer._after_fork()

    # --- connections ------------------------------------------------------------------

    @property
    def _transport_options(self) -> Mapping[str, Any]:
        return self.app.conf.get("result_backend_transport_options") or {}

    @property
    def retry_policy(self) -> Any:
        """How often and after how many seconds an operation is repeated when Redis is away."""
        return {**super().retry_policy, **(self._transport_options.get("retry_policy") or {})}

    def _params_from_url(self, url: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
        return parameters.from_url(url, defaults, self.connection_class_ssl)

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Is it an error of the connection?"""
        return isinstance(exc, self.connection_errors)

    @property
    def ConnectionPool(self) -> Any:  # noqa: N802 Celery's name
        """The class of the pool."""
        return self._ConnectionPool or self.redis.ConnectionPool

    def _get_client(self) -> Any:
        return self.redis.StrictRedis

    def _get_pool(self, **params: Any) -> Any:
        return self.ConnectionPool(**params)

    def _create_client(self, **params: Any) -> Any:
        return self._get_client()(connection_pool=self._get_pool(**params))

    @property
    def client(self) -> Any:
        """The client; its connections are made when they are needed, in each process."""
        if self._client is None:
            with self._client_lock:
                if self._client is None:
                    self._client = self._create_client(**self.connparams)
        return self._client

    @client.setter
    def client(self, client: Any) -> None:
        self._client = client

    def close(self) -> None:
        """Store what waits, and let go of connections; the next use makes new ones.  Legal twice."""
        self._flush_deferred()
        self.result_consumer.stop()
        with self._client_lock:
            client, self._client = self._client, None
        if client is not None:
            client.connection_pool.disconnect()

    def _new_connection(self, patience_s: float, **changes: Any) -> Any:
        """A connection beside the pool, so that waiting needs none of its places; *changes* are redis-py's options.

        It waits for the server at most *patience_s* seconds, or as long as the settings say if that is less.
        """
        pool = self.client.connection_pool
        params = {**pool.connection_kwargs, **changes}
        names = ("socket_timeout", "socket_connect_timeout")
        # A socket file is connected to at once, and its connection has no time for that.
        for name in names[:1] if issubclass(pool.connection_class, redis.UnixDomainSocketConnection) else names:
            params[name] = min(params.get(name) or patience_s, patience_s)
        return pool.connection_class(**params)

    def _exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """Send commands in one write; their replies, errors of single ones among them."""
        pool = self.client.connection_pool
        connection = pool.get_connection()
        replies: list[Any] = []
        try:
            # As one: redis-py makes a write of each.
            connection.send_packed_command([b"".join(commands)])
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except ReadOnlyError:
                    raise  # what was the master is a replica now: do not ask it again
                except ResponseError as exc:
                    replies.append(exc)
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)
        return replies

    def _call(self, commands: Sequence[bytes]) -> list[Any]:
        """As :meth:`_exchange`, with the scripts made known if they are not; raises the first error."""
        replies = self._exchange(commands)
        unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            self._exchange([pack("SCRIPT", "LOAD", each.text) for each in SCRIPTS])
            for at, reply in zip(unknown, self._exchange([commands[at] for at in unknown]), strict=True):
                replies[at] = reply
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        return replies

    def _call_again(self, *commands: bytes) -> list[Any]:
        """As :meth:`_call`, with a connection that turns out to be lost made again, once."""
        try:
            return self._call(commands)
        except self.connection_errors:
            return self._call(commands)

    def ensure(self, fun: Callable[..., Any], args: Any, **policy: Any) -> Any:
        """Call ``fun(*args)``, again and again while Redis is away or takes nothing, as ``retry_policy`` says."""
        policy = {**self.retry_policy, **policy}
        on_error = partial(self.on_connection_error, policy.get("max_retries"))

        def ask(*args: Any) -> Any:
            try:
                return fun(*args)
            except ResponseError as exc:
                if is_distress(exc):
                    raise DistressedBroker(f"Redis refuses: {exc}") from exc
                raise

        return retry_over_time(ask, (*self.connection_errors, DistressedBroker), args, {}, on_error, **policy)

    def on_connection_error(self, max_retries: Any, exc: BaseException, intervals: Any, retries: int) -> Any:
        """Log that Redis is away; gives the seconds until the next attempt."""
        seconds = next(intervals)
        logger.error(E_LOST, retries, max_retries or "Inf", humanize_seconds(seconds, "in "))
        return seconds

    # --- keys and values ------------------------------------------------------------------

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        return self._call_again(pack("GET", key))[0]

    def mget(self, keys: Any) -> Any:
        """The values of several keys, in their order."""
        return self._call_again(pack("MGET", *keys))[0] if keys else []

    def set(self, key: Any, value: Any, expires: Any = None, **retry_policy: Any) -> Any:
        """Write a value and publish it on the channel of the same name."""
        self._check_size(value)
        return self.ensure(self._set, (key, value, expires), **retry_policy)

    def _set(self, key: Any, value: Any, expires: Any = None) -> None:
        expires = self.expires if expires is None else expires
        write = pack("SETEX", key, expires, value) if expires else pack("SET", key, value)
        self._call([pack("MULTI"), write, pack("PUBLISH", key, value), pack("EXEC")])

    def _set_with_state(self, key: Any, value: Any, state: str) -> Any:
        return self.set(key, value, expires=self._expires_of(state))

    def _expires_of(self, state: str) -> Any:
        return (self.failure_expires if state == states.FAILURE else self.expires) or 0

    def _check_size(self, value: Any) -> None:
        if len(value) > self._MAX_STR_VALUE_SIZE:
            raise BackendStoreError("value too large for Redis backend")

    def delete(self, key: Any) -> Any:
        """Remove a key."""
        return self.client.delete(key)

    def incr(self, key: Any) -> Any:
        """Add one to a counter; its new value."""
        return self.client.incr(key)

    def expire(self, key: Any, value: Any) -> Any:
        """Have a key vanish after *value* seconds."""
        return self.client.expire(key, value)

    # --- results ----------------------------------------------------------------------------

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        payload = self._payload_to_store(task_id, result, state, traceback, request)
        stored = ResultWrite(self.get_key_for_task(task_id), payload, self._expires_of(state))
        writer = self._writer
        if writer is not None:
            if request is not None and state in self.READY_STATES and not request.chord:
                writer.add(Deferred(task_id, state, len(payload), stored))
                return result
            if writer.holds(task_id):
                writer.flush()
        self.ensure(self._write, ([stored],))
        return result

    def _payload_to_store(self, task_id: str, result: Any, state: str, traceback: str | None, request: Any) -> Any:
        payload = self._result_payload(task_id, result, state, traceback, request)
        if len(payload) > self._MAX_STR_VALUE_SIZE:
            raise BackendStoreError("value too large for Redis backend", state=state, task_id=task_id)
        return payload

    def _write(self, items: Sequence[ResultWrite | ChordPart]) -> list[Any]:
        """Store, and count, in one round trip; the answers.  Results of which the stored state stays are left out."""
        how = self._how_success_is_known
        answers = self._call([item.command(how) for item in items])
        again: dict[int, bytes] = {}
        for at, (item, answer) in enumerate(zip(items, answers, strict=True)):
            found = item.found(answer)
            if found is None:
                continue
            if not self._stays(found, item.payload):
                again[at] = item.command("force")
            elif isinstance(item, ChordPart):
                again[at] = item.count()
        if again:
            for at, answer in zip(again, self._call([*again.values()]), strict=True):
                answers[at] = answer
        return answers

    def _stays(self, stored: Any, payload: Any) -> bool:
        return stays(self.decode(stored)["status"], self.decode(payload)["status"])

    def defer_results(self) -> ResultWriter:
        """From now on let the results of this process wait for the writer's ``flush()``, which counts members, too.

        States that are not final are stored at once as before.
        """
        writer: ResultWriter = self._writer or ResultWriter(self._send_deferred)
        self._writer = writer
        return writer

    def _send_deferred(self, batch: Sequence[Deferred]) -> None:
        items = [item.what for item in batch]
        answers = self._ensure_retryable(self.ensure, self._write, (items,))
        for item, answer in zip(items, answers, strict=True):
            if isinstance(item, ChordPart):
                self._after_count(item, answer)

    def forget(self, task_id: str) -> None:
        """Remove what is stored of a task."""
        super().forget(task_id)
        self.result_consumer.cancel_for(task_id)

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:
        """Nothing: a result is subscribed to when somebody waits for it."""
        return {}

    def on_task_sent(self, result: Any) -> None:
        """Remember in what order calls are sent: their results may be read in that order."""
        self.read_ahead.sent(result)

    # --- chords -----------------------------------------------------------------------------

    @property
    def _chord_zset(self) -> bool:
        return bool(self._transport_options.get("result_chord_ordered", True))

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """A chord is about to be sent.  Its header is stored if the values will have a structure."""
        group_id, results = header_result_args[:2]
        if chords.saves_structure(results):
            header = self.app.GroupResult(*header_result_args)
            key, expires = self.get_key_for_group(group_id), self.chord_expires
            write = ("SET", key, self.encode({"result": header.as_tuple()}), *(("EX", expires) if expires else ()))
            self.ensure(self._call, ([pack(*write)],))

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """The header has *chord_size* ends.  A chord that was over under this id begins anew."""
        keys = [self.get_key_for_group(group_id, suffix) for suffix in (".s", ".c", ".j")]
        self.ensure(self._call, ([pack_script(CHORD_SIZE, keys, chord_size, self.chord_expires or 0)],))

    def add_to_chord(self, group_id: str, result: Any) -> None:
        """A running member adds one more."""
        self.client.incr(self.get_key_for_group(group_id, ".t"), 1)

    def _end(self, task_id: str, result: Any, state: str, traceback: str | None, request: Any, store: bool) -> None:
        in_one_step = (
            store
            and request
            and request.chord
            and request.group
            and request.id == task_id
            and not OVERRIDABLE.intersection(overridden_methods(type(self)))
        )
        if not in_one_step:
            super()._end(task_id, result, state, traceback, request, store)
            return
        stored = self.encode_result(result, state)
        payload = self._payload_to_store(task_id, stored, state, traceback, request)

        def not_stored(text: str) -> BackendStoreError:
            return BackendStoreError(text, task_id=task_id, state=state)

        result_to_store = ResultWrite(self.get_key_for_task(task_id), payload, self._expires_of(state))
        part = self._chord_part(request, state, stored, result_to_store)
        if self._writer is not None:
            self._writer.add(Deferred(task_id, state, len(payload), part))
            return
        self._ensure_retryable(
            self._count, part, fallback_exc=not_stored, fallback_msg="failed to store result on the backend"
        )

    def on_chord_part_return(self, request: Any, state: str, result: Any, propagate: Any = None, **kwargs: Any) -> None:
        """Count a member that has ended; the last one sends the body."""
        if request.group and request.id:
            self._count(self._chord_part(request, state, self.encode_result(result, state)))

    def _chord_part(self, request: Any, state: str, stored: Any, result: ResultWrite | None = None) -> ChordPart:
        return ChordPart(
            request,
            lambda suffix: self.get_key_for_group(request.group, suffix),
            self.encode(chords.packed_part(request.id, state, stored)),
            self._chord_zset,
            (self.chord_expires or 0, self._chord_result_expires),
            result,
        )

    def _count(self, part: ChordPart) -> None:
        """Count a member and, if it has one, store its result in the same step."""
        self._after_count(part, self.ensure(self._write, ([part],))[0])

    def _after_count(self, part: ChordPart, answer: Any) -> None:
        """A member was counted: send the body if it was the last one."""
        while answer[0] in (b"busy", "busy"):
            # The member was given out twice, and its other run is just sending the body, or died doing it.
            time.sleep(BUSY_LOOK_S)
            answer = self.ensure(self._call, ([part.count()],))[0]
        if answer[0] not in (b"complete", "complete"):
            return
        request = part.request
        try:
            if not part.is_body_sent:
                body = maybe_signature(request.chord, app=self.app)
                # It may have ended a moment ago, and is the body's parent all the same.
                with self._running(request):
                    # Of a chord that failed one may want to know what the others gave; Celery leaves it, too.
                    part.keeps_parts = not self._send_chord_body(request.group, body, answer[1], answer[2])
                part.is_body_sent = True
        finally:
            self.ensure(self._call, ([part.done()],))

    def _send_chord_body(self, group_id: str, body: Any, header: Any, parts: Sequence[Any]) -> bool:
        """All members of a chord have ended: send its body, or end the chord with an error; did all succeed?"""
        try:
            values = self._chord_values(header, parts)
        except ChordError as exc:
            logger.exception("Chord %r raised: %r", group_id, exc)
            self.chord_error_from_stack(body, exc)
        except Exception as exc:
            logger.exception("Chord %r raised: %r", group_id, exc)
            self.chord_error_from_stack(body, ChordError(f"Join error: {exc!r}"))
        else:
            chords.dispatch(self, group_id, body, values)
            return True
        return False

    def _chord_values(self, header: Any, parts: Sequence[Any]) -> list[Any]:
        """The values for the body, in the structure of the header if that was stored."""
        values = chords.unpacked_parts(self, parts)
        if not header:
            return [value for _, value in values]
        structure = result_from_tuple(self.decode(header)["result"], self.app)
        nested = chords.nested_values(structure, dict(values))
        if nested is not None:
            return nested
        return chords.joined(structure, self.app.conf.result_chord_join_timeout)

    # --- as a value -----------------------------------------------------------------------------

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "expires": self.expires, "url": self.url})


OVERRIDABLE = frozenset(
    {"store_result", "_store_result", "on_chord_part_return", "_set_with_state", "set", "_set", "mark_as_done"}
)
"""Methods of which a subclass may expect that each member of a chord goes through them."""


def overridden_methods(cls: type) -> set[str]:
    """What a subclass of the stores here defines itself."""
    names: set[str] = set()
    for ancestor in cls.__mro__:
        if ancestor.__module__.startswith(__package__):
            break
        names.update(vars(ancestor))
    return names
