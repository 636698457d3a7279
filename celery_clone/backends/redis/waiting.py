"""Waiting for results that Redis publishes: one connection of a process, for all its threads.

Made by ``RedisBackend`` for itself.  It may not store anything.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import redis

from celery_clone import states
from celery_clone.backends.asynchronous import ReconnectingConsumer, wait_readable
from celery_clone.transport.redis_layout import pack
from celery_clone.transport.redis_replies import Notice, Replies
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from .store import RedisBackend

__all__ = ("ResultConsumer",)

logger = get_logger("celery.backends.redis")

PING_EVERY_S = 15.0
"""After so long without a word the connection is tested, and given as long to answer."""

OVER = 16
"""Results that have come may stay subscribed until there are so many, or until something else is sent."""

PATIENCE_S = 5.0
"""How long the server may take to answer while somebody waits, who may have little time."""

PUBSUB_SLICE = 1000
"""Channels in one command, so that the server is not kept busy by one client."""


def packed(command: str, keys: list[bytes]) -> list[bytes]:
    """The command for all keys, in slices."""
    return [pack(command, *keys[start : start + PUBSUB_SLICE]) for start in range(0, len(keys), PUBSUB_SLICE)]


class ResultConsumer(ReconnectingConsumer):
    """Reads the one connection of a process that is subscribed to the results that are waited for.

    A result is subscribed to when somebody waits for it, read after that so that nothing is missed,
    and unsubscribed when it came or nobody waits any more.  A server that speaks RESP3 (Redis 6 and
    later) is asked for the value in the same breath; any other must be asked over a connection that
    is not subscribed, the looker, once it has said that the subscription holds.  The lock is held to
    write and to read what is there already, never while waiting.
    """

    backend: RedisBackend

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection_errors = self.backend.connection_errors
        self._speaks_resp3 = str(self.backend.connparams.get("protocol") or 3) == "3"

    def _forget(self) -> None:
        super()._forget()
        self._heard_at = 0.0
        self._pinged = False
        self.subscribed_to: dict[bytes, str] = {}
        self._unread: dict[bytes, str] = {}
        self._over: list[bytes] = []
        self._was_lost = False
        self._to_look_up: set[bytes] = set()
        """Keys that are read by the looker once their subscription holds."""
        self._asked: deque[list[bytes]] = deque()
        """The keys of each question whose answer is due; none for a ping."""
        self._replies: Any = None
        self._looking = Lock()
        self._looker: Any = None

    def start(self, initial_task_id: str, **kwargs: Any) -> None:
        """Connect, and subscribe to the result of this task."""
        self.consume_from(initial_task_id)

    def stop(self) -> None:
        """Disconnect.  The next wait connects again."""
        with self._lock:
            self._disconnect()
            self.subscribed_to.clear()
            self._unread.clear()
        with self._looking:
            looker, self._looker = self._looker, None
            if looker is not None:
                looker.disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    # -- subscribing

    def consume_from(self, task_id: str) -> None:
        """Subscribe to the result of a task."""
        self.consume_from_all((task_id,))

    def consume_from_all(self, task_ids: Iterable[str]) -> None:
        """Subscribe to the results of several tasks.  If Redis is away, the wait for them tries on."""
        wanted = {self.backend.get_key_for_task(task_id): task_id for task_id in task_ids}
        with self._lock:
            new = {key: task_id for key, task_id in wanted.items() if key not in self.subscribed_to}
            if not new:
                return
            self.subscribed_to.update(new)
            try:
                if self._connection is None:
                    self._connect()
                else:
                    self._subscribe(list(new))
            except self._connection_errors as exc:
                self._lost(exc)

    def cancel_for(self, task_id: str) -> None:
        """Unsubscribe from the result of a task."""
        key = self.backend.get_key_for_task(task_id)
        with self._lock:
            if self.subscribed_to.pop(key, None) is None:
                return
            self._unread.pop(key, None)
            self._unsubscribe([key])

    def _unsubscribe(self, keys: list[bytes]) -> None:
        """Unsubscribe, now or together with what is sent next."""
        if self._connection is not None and keys:
            self._over += keys
            if len(self._over) >= OVER:
                self._unsubscribe_now()

    def _unsubscribe_now(self) -> None:
        over, self._over = self._over, []
        if self._connection is not None and over:
            try:
                self._send(packed("UNSUBSCRIBE", over))
            except self._connection_errors as exc:
                self._lost(exc)

    def _connect(self) -> None:
        connection = self._greeted()
        self._connection, self._replies = connection, Replies(connection._sock)
        self._heard_at, self._pinged = time.monotonic(), False
        self._over.clear()
        self._asked.clear()
        self._to_look_up.clear()
        if self._was_lost:
            # Perhaps because of what was asked: the server hangs up on a subscriber whose answer is too large
            # (client-output-buffer-limit), and would do so again and again.
            self._to_look_up.update(self.subscribed_to)
        self._was_lost = False
        if self.subscribed_to:
            self._subscribe(list(self.subscribed_to))

    def _lost(self, exc: BaseException) -> None:
        super()._lost(exc)
        self._was_lost = True

    def _greeted(self) -> Any:
        """A new connection that has said hello."""
        if self._speaks_resp3:
            connection = self.backend._new_connection(PATIENCE_S, protocol=3)
            try:
                connection.connect()
            except redis.AuthenticationError:
                raise
            except redis.ResponseError as exc:
                logger.debug("The server does not speak RESP3: %r", exc)
                connection.disconnect()
                self._speaks_resp3 = False
            else:
                return connection
        connection = self.backend._new_connection(PATIENCE_S, protocol=2)
        connection.connect()
        return connection

    def _subscribe(self, keys: list[bytes]) -> None:
        """Subscribe; what is over is unsubscribed from in the same breath, which spares a call of the system."""
        over, self._over = self._over, []
        commands = [*packed("UNSUBSCRIBE", over), *packed("SUBSCRIBE", keys)]
        if self._speaks_resp3:
            commands += self._questions([key for key in keys if key not in self._to_look_up])
        self._send(commands)

    def _questions(self, keys: list[bytes]) -> list[bytes]:
        """The commands that ask for the values of *keys*."""
        for start in range(0, len(keys), PUBSUB_SLICE):
            self._asked.append(keys[start : start + PUBSUB_SLICE])
        return packed("MGET", keys)

    def _send(self, commands: list[bytes]) -> None:
        self._connection.send_packed_command([b"".join(commands)], check_health=False)

    # -- reading

    def _wait_readable(self, connection: Any, timeout: float) -> bool:
        return wait_readable((connection._sock,), timeout)

    def _read_there(self) -> list[Any] | None:
        """The states that have arrived; ``None`` if nothing has."""
        metas: list[Any] = []
        heard = False
        with self._lock:
            connection = self._connection
            try:
                while connection is not None and wait_readable((connection._sock,), 0):
                    heard = True
                    for message in self._replies.read():
                        self._take(message, metas)
            except self._connection_errors as exc:
                self._lost(exc)
                heard = True
            if heard:
                self._heard_at, self._pinged = time.monotonic(), False
            elif not self._unread:
                return None
            unread, self._unread = self._unread, {}
        if unread:
            self._read(unread, metas)
        return metas

    def _take(self, message: Any, metas: list[Any]) -> None:
        """One message of the server."""
        if isinstance(message, redis.RedisError):
            raise redis.ConnectionError(f"Redis refused to tell of results: {message}") from message
        if isinstance(message, Notice) or (isinstance(message, list) and len(message) == 3 and not self._speaks_resp3):
            self._told(message, metas)
            return
        if not self._asked:
            raise redis.ConnectionError(f"Redis said what nobody asked for: {message!r}")
        keys = self._asked.popleft()
        if keys:
            self._arrived(dict(zip(keys, message, strict=True)), metas)
        elif self._speaks_resp3:
            # The answer to a ping, after a long silence: a message may have been lost on its way.
            if self.subscribed_to:
                self._send(self._questions(list(self.subscribed_to)))
        else:
            self._unread.update(self.subscribed_to)

    def _told(self, message: Sequence[Any], metas: list[Any]) -> None:
        """What was published, or what became of a subscription."""
        if len(message) != 3:
            return  # about something else, such as the server's maintenance
        kind, key, payload = message
        task_id = self.subscribed_to.get(key)
        if task_id is None:
            return  # unsubscribed meanwhile
        if kind == b"message":
            self._arrived({key: payload}, metas)
        elif kind == b"subscribe" and (not self._speaks_resp3 or key in self._to_look_up):
            self._to_look_up.discard(key)
            # From now on nothing is missed; what was before must be read.
            self._unread[key] = task_id

    def _read(self, unread: dict[bytes, str], metas: list[Any]) -> None:
        keys = list(unread)
        try:
            payloads = self._look_up(keys)
        except self._connection_errors as exc:
            with self._lock:
                self._lost(exc)  # with the new connection everything is read
            return
        with self._lock:
            self._arrived(dict(zip(keys, payloads, strict=True)), metas)

    def _look_up(self, keys: list[bytes]) -> list[Any]:
        """The values of *keys*, over a connection that is not subscribed and not for ever patient."""
        with self._looking:
            if self._looker is not None:
                try:
                    return self._look(keys)
                except self._connection_errors as exc:
                    logger.debug("The server has closed a connection that was idle: %r", exc)
            self._looker = self.backend._new_connection(PATIENCE_S)
            return self._look(keys)

    def _look(self, keys: list[bytes]) -> list[Any]:
        looker = self._looker
        try:
            looker.connect()
            looker.send_packed_command([pack("MGET", *keys)], check_health=False)
            values: list[Any] = looker.read_response()
        except BaseException:
            self._looker = None
            looker.disconnect()
            raise
        return values

    def _arrived(self, payloads: Mapping[bytes, Any], metas: list[Any]) -> None:
        over = []
        for key, payload in payloads.items():
            task_id = self.subscribed_to.get(key)
            if not payload or task_id is None:
                continue
            self.backend.read_ahead.arrived(len(payload))
            try:
                meta = self.backend.decode_result(payload)
            except Exception as exc:  # noqa: BLE001 whatever is wrong with it, the reader must go on
                logger.error("The result of task %s cannot be read: %r", task_id, exc)  # noqa: TRY400
                meta = {"status": states.FAILURE, "result": exc, "traceback": None, "children": None}
            meta.setdefault("task_id", task_id)
            metas.append(meta)
            if meta["status"] in states.READY_STATES:
                # Before it is given away: who comes for it from now on subscribes, and reads, anew.
                del self.subscribed_to[key]
                over.append(key)
        self._unsubscribe(over)

    def _on_silence(self) -> None:
        """A peer that vanished without a word is noticed by its not answering."""
        with self._lock:
            self._unsubscribe_now()
            connection = self._connection
            if connection is None or time.monotonic() - self._heard_at < PING_EVERY_S:
                return
            try:
                if self._pinged:
                    raise redis.TimeoutError("no answer to a ping")
                self._asked.append([])
                self._send([pack("PING")])
                self._heard_at, self._pinged = time.monotonic(), True
            except self._connection_errors as exc:
                self._lost(exc)

    def on_wait_for_pending(self, result: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """A wait begins.  One without time to wait for the subscription reads at once."""
        if timeout is not None and timeout <= 0:
            self.read([result.id])

    def read(self, task_ids: Sequence[str]) -> None:
        """Read the results of these tasks that are there."""
        metas: list[Any] = []
        self._read({self.backend.get_key_for_task(task_id): task_id for task_id in task_ids}, metas)
        for meta in metas:
            self.on_state_change(meta, None)
