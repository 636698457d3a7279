"""Results in an SQLite file, also in the one that is the broker; who waits for a result is woken.

Chosen by ``result_backend = "sqlite:///path/to/file.db"``.  Keys and values are those of the other
key/value stores.  The file, its lock and the doorbells are the embedded broker's
(``docs/internals/sqlite-layout.md``); the tables, in ``store``, are ours, and ``consumer`` waits.  A
chord is counted in the transaction that stores the end of its member.

Options (``result_backend_transport_options``, or after ``?`` in the URL): ``synchronous`` and
``busy_timeout``, as for the broker.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from celery_clone import states
from celery_clone.backends import chords
from celery_clone.backends.asynchronous import AsyncBackendMixin
from celery_clone.backends.base import BaseKeyValueStoreBackend
from celery_clone.backends.sqlite.consumer import ResultConsumer
from celery_clone.backends.sqlite.store import RESULT_TABLES, Finished, Part, ResultStore, Stored
from celery_clone.backends.writer import Deferred, ResultWriter
from celery_clone.canvas import maybe_signature
from celery_clone.exceptions import ChordError
from celery_clone.result import GroupResult
from celery_clone.transport.sqlite import doorbell
from celery_clone.transport.sqlite.connection import read_seconds
from celery_clone.transport.sqlite.database import BUSY_TIMEOUT_S, Database, DatabaseUnavailable, locate
from celery_clone.utils.log import get_logger

__all__ = ("ResultConsumer", "SQLiteBackend")

logger = get_logger(__name__)

TIDY_EVERY_S = 60.0
"""How often a process that stores results deletes what has expired."""
TIDY_ROWS = 1000
"""How many expired results go at once, so that nobody waits long for the lock."""
LAST_PLACE = float("inf")


class SQLiteBackend(AsyncBackendMixin, BaseKeyValueStoreBackend):
    """The store in an SQLite file.  Safe to use from several threads and processes."""

    key_t = staticmethod(lambda key: key.decode() if isinstance(key, bytes) else str(key))
    ResultConsumer = ResultConsumer

    keeps_unexpected = False
    thread_safe = True
    supports_native_join = True
    supports_autoexpire = True
    supports_failure_expires = True
    supports_result_compression = True

    def __init__(self, *args: Any, url: str | None = None, expires_type: Any = float, **kwargs: Any) -> None:
        super().__init__(*args, url=url, expires_type=expires_type, **kwargs)
        conf = self.app.conf
        path, given = locate(url if url and "://" in url else "sqlite://")
        options = {**given, **(conf.get("result_backend_transport_options") or {})}
        self.store = ResultStore(
            Database(
                path,
                RESULT_TABLES,
                synchronous=options.get("synchronous") or "NORMAL",
                busy_timeout_s=read_seconds(options, "busy_timeout", BUSY_TIMEOUT_S),
            )
        )
        failure_expires = conf.get("result_failure_expires")
        self.failure_expires = (
            self.expires if failure_expires is None else self.prepare_expires(failure_expires, expires_type)
        )
        self.result_consumer = self.ResultConsumer(
            self, self.app, self.accept, self._pending_results, self._pending_messages
        )
        self._writer: ResultWriter | None = None
        self._tidied_at = time.monotonic()

    def as_uri(self, include_password: bool = False) -> str:
        """The URL, with the path made absolute."""
        return f"sqlite:///{self.store.database.path}"

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """A lock held for too long, a full disk: these pass."""
        return isinstance(exc, DatabaseUnavailable)

    def close(self) -> None:
        """Let go of the file.  Legal twice; the next use opens it again."""
        self.result_consumer.stop()
        self.store.database.close()

    # --- keys and values ------------------------------------------------------------

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        return self.mget([key])[0]

    def mget(self, keys: Sequence[Any]) -> list[Any]:
        """The values of several keys, in their order."""
        if self._writer is not None:
            self._writer.flush()
        return self.store.get([self.key_t(key) for key in keys], time.time())

    def set(self, key: Any, value: Any) -> None:
        """Write a value."""
        self._put([self._stored(key, value, None)])

    def _set_with_state(self, key: Any, value: Any, state: str) -> None:
        self._put([self._stored(key, value, state)])

    def delete(self, key: Any) -> None:
        """Remove a key."""
        self.store.delete(self.key_t(key))

    def incr(self, key: Any) -> int:
        """Add one to a counter; its new value."""
        return self.store.add_one(self.key_t(key))

    def expire(self, key: Any, value: Any) -> None:
        """Have a key vanish after *value* seconds; 0: never."""
        self.store.expire(self.key_t(key), time.time() + value if value else None)

    def _stored(self, key: Any, value: Any, state: str | None) -> Stored:
        lifetime_s = self.failure_expires if state in states.EXCEPTION_STATES else self.expires
        return Stored(self.key_t(key), as_bytes(value), state, lifetime_s or None)

    def _put(self, results: Sequence[Stored], parts: Sequence[Part] = ()) -> None:
        bells, finished = self.store.put(results, parts, time.time())
        silent = doorbell.ring(bells)
        if silent:
            self._forget_dead(silent)
        for chord in finished:
            self._finish_chord(chord)
        self._maybe_tidy()

    # --- tasks ----------------------------------------------------------------------

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        payload = self._result_payload(task_id, result, state, traceback, request)
        stored = self._stored(self.get_key_for_task(task_id), payload, state)
        if self._writer is None:
            self._put([stored])
        else:
            self._writer.add(Deferred(task_id, state, len(stored.value), stored))
        return result

    def defer_results(self) -> ResultWriter:
        """From now on let the results of this process wait for :meth:`ResultWriter.flush`."""
        if self._writer is None:
            self._writer = ResultWriter(self._put_deferred)
        for chord in self.store.orphaned_chords():
            self._finish_chord(chord)
        return self._writer

    def _put_deferred(self, batch: Sequence[Deferred]) -> None:
        self._put(
            [item.what for item in batch if isinstance(item.what, Stored)],
            [item.what for item in batch if isinstance(item.what, Part)],
        )

    # --- chords ---------------------------------------------------------------------

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """A chord is about to be sent: keep its structure if it has one; the members do the rest."""
        self.ensure_chords_allowed()
        group_id, results = header_result_args
        if chords.saves_structure(results):
            self.app.GroupResult(group_id, results).save(backend=self)
            self.store.prepare_chord(group_id, {"structured": 1}, self._chord_lifetime_s, time.time())

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """The header of a chord has *chord_size* ends."""
        self.store.prepare_chord(group_id, {"size": chord_size}, self._chord_lifetime_s, time.time())

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """A running member adds one more."""
        self.store.prepare_chord(chord_id, {"extra": 1}, self._chord_lifetime_s, time.time())

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count a member that has ended; the last one sends the body."""
        task_id, group_id, index = request.id, request.group, request.group_index
        if not group_id or not task_id:
            return
        part = Part(
            group_id,
            task_id,
            LAST_PLACE if index is None else float(index),
            as_bytes(self.encode(chords.packed_part(task_id, state, self.encode_result(result, state)))),
            request.chord.get("chord_size"),
            lambda: as_bytes(self.encode(dict(request.chord))),
            self._chord_lifetime_s,
        )
        if self._writer is None:
            self._put([], [part])
        else:
            self._writer.add(Deferred(task_id, state, len(part.value), part))

    @property
    def _chord_lifetime_s(self) -> float | None:
        return self.chord_expires or None

    def _finish_chord(self, chord: Finished) -> None:
        """Send the body with the values of the header, or end the chord with the error of a member."""
        group_id = chord.group_id
        body = maybe_signature(self.decode(chord.body), app=self.app)
        try:
            values = self._chord_values(chord)
        except ChordError as exc:
            logger.exception("Chord %r raised: %r", group_id, exc)
            self.chord_error_from_stack(body, exc)
        except Exception as exc:
            logger.exception("Chord %r raised: %r", group_id, exc)
            self.chord_error_from_stack(body, ChordError(f"Join error: {exc!r}"))
        else:
            chords.dispatch(self, group_id, body, values)
        self.store.chord_was_sent(group_id)
        if chord.structured:
            self.delete(self.get_key_for_group(group_id))

    def _chord_values(self, chord: Finished) -> list[Any]:
        pairs = chords.unpacked_parts(self, self.store.chord_parts(chord.group_id))
        header = GroupResult.restore(chord.group_id, backend=self) if chord.structured else None
        if header is None:
            return [value for _, value in pairs]
        values = chords.nested_values(header, dict(pairs))
        if values is None:
            values = chords.joined(header, self.app.conf.result_chord_join_timeout)
        return values

    # --- the life of the store --------------------------------------------------------

    def cleanup(self) -> None:
        """Remove all that has expired, and the watches of processes that are gone."""
        while self.store.tidy(time.time(), TIDY_ROWS) == TIDY_ROWS:
            pass
        gone = [bell for bell in self.store.bells() if doorbell.sign_of_life(bell) is doorbell.Sign.DEAD]
        if gone:
            self._forget_dead(gone)

    def _forget_dead(self, bells: Sequence[str]) -> None:
        """End the watches of processes that are gone, and remove the sockets they left."""
        self.store.forget_bells(bells)
        for bell in bells:
            doorbell.remove(bell)

    def _maybe_tidy(self) -> None:
        instant = time.monotonic()
        if instant - self._tidied_at >= TIDY_EVERY_S:
            self._tidied_at = instant
            self.store.tidy(time.time(), TIDY_ROWS)

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {"url": self.url, **(kwargs or {})})


def as_bytes(value: Any) -> bytes:
    """A serialised value as it is written."""
    return value.encode("utf-8") if isinstance(value, str) else bytes(value)
