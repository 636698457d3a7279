"""Publishing over kombu: any transport, one total deadline, one kind of error.

Opened by ``transport.open_publisher``, used by ``app.amqp`` from any thread.  Takes connections from
the application's pool for the time of one publish.  Also the way out for faster publishers, when
something is not theirs to do.  It may not decide where a message goes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kombu import Producer
from kombu.exceptions import EncodeError, LimitExceeded, OperationalError

from celery_clone.message import codec
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from celery_clone.message.outgoing import TaskMessage
    from celery_clone.transport.protocols import Destination, SendOptions

__all__ = ("Deadline", "KombuPublisher", "RetryPolicy", "not_sent", "publish_arguments", "undeclared")

logger = get_logger(__name__)

SHIPPED_PUBLISH = Producer.publish
"""What kombu shipped: tracing libraries replace it, and then every message has to pass through theirs."""

CONNECT_TIMEOUT_S = 4.0
"""How long one attempt to connect may take where the connection does not say."""


class Deadline:
    """The end of the time one publish may take in all, by the monotonic clock."""

    __slots__ = ("ends", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.ends = None if seconds is None else time.monotonic() + seconds

    def left(self, at_most: float | None = None) -> float | None:
        """Seconds left, never less than a millisecond; ``None`` for no bound."""
        if self.ends is None:
            return at_most
        left = max(0.001, self.ends - time.monotonic())
        return left if at_most is None else min(left, at_most)

    @property
    def over(self) -> bool:
        """Has the time run out?"""
        return self.ends is not None and time.monotonic() >= self.ends


class RetryPolicy:
    """When to try again: Celery's ``task_publish_retry_policy``, cut off by a deadline."""

    def __init__(self, wanted: bool, policy: Mapping[str, Any], deadline: Deadline) -> None:
        self.max_retries: int | None = policy.get("max_retries", 3) if wanted else 0
        self.start: float = policy.get("interval_start", 0) or 0
        self.step: float = policy.get("interval_step", 0.2) or 0
        self.largest: float = policy.get("interval_max", 0.2) or 0
        self.errors: tuple[type[BaseException], ...] = tuple(policy.get("retry_errors") or ())
        self.deadline = deadline
        self.failures = 0

    def again(self) -> bool:
        """Note a failure; wait and say yes, or say no."""
        self.failures += 1
        if self.deadline.over or (self.max_retries is not None and self.failures > self.max_retries):
            return False
        pause = min(self.start + self.step * (self.failures - 1), self.largest)
        if pause > 0:
            time.sleep(self.deadline.left(pause) or 0)
        return not self.deadline.over


def not_sent(uri: str, policy: RetryPolicy, exc: BaseException, done: str = "") -> OperationalError:
    """The error for a broker that did not take a message; *uri* carries no password."""
    seconds = policy.deadline.seconds
    within = "" if seconds is None else f" within {seconds:g} s"
    return OperationalError(
        f"The broker at {uri} did not take the message{within} ({policy.failures} attempts{done}): "
        f"{exc if isinstance(exc, OperationalError) else f'{type(exc).__name__}: {exc}'}  "
        "Check that it is running and can be reached from here (broker_url); how long and how often to try "
        "is set by broker_transport_options['publish_deadline'] and task_publish_retry_policy."
    )


def publish_arguments(message: TaskMessage, to: Destination, how: SendOptions) -> dict[str, Any]:
    """The keyword arguments of :meth:`kombu.Producer.publish` for one message, as Celery gives them."""
    return {
        "exchange": to.exchange,
        "routing_key": to.routing_key,
        "serializer": how.serializer,
        "compression": how.compression,
        "headers": message.headers,
        **how.extra,
        **message.properties,
    }


def undeclared(connection: Any, entities: Iterable[Any]) -> list[Any]:
    """Those of *entities* that were not declared over *connection*; kombu would bind each to find that out."""
    known = connection.declared_entities
    return [entity for entity in entities if not (entity.can_cache_declaration and hash(entity) in known)]


class KombuPublisher:
    """A :class:`~celery_clone.transport.protocols.Publisher` over a pool of kombu producers."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self._pid = os.getpid()
        self._inherited: list[Any] = []
        self.socket_timeout: float | None = pool.connections.connection.transport_options.get("socket_timeout")
        self.prepare_template(pool.connections.connection)

    def prepare_template(self, connection: Any) -> None:
        """Set options of the connection that all others are copies of, before there are any."""

    @property
    def uri(self) -> str:
        """The broker's URL without its password."""
        return str(self.pool.connections.connection.as_uri())

    def publish(self, message: TaskMessage, to: Destination, how: SendOptions) -> None:
        """Publish one message; see :class:`~celery_clone.transport.protocols.Publisher`."""
        deadline = Deadline(how.deadline_s)
        with self.connection(deadline) as connection:
            self._send(connection, message, to, how, RetryPolicy(how.retry, how.retry_policy, deadline))

    def publish_many(self, batch: Sequence[tuple[TaskMessage, Destination, SendOptions]]) -> None:
        """Publish in order over one connection; each message has the deadline of its options."""
        if not batch:
            return
        with self.connection(Deadline(batch[0][2].deadline_s)) as connection:
            for sent, (message, to, how) in enumerate(batch):
                policy = RetryPolicy(how.retry, how.retry_policy, Deadline(how.deadline_s))
                self._send(connection, message, to, how, policy, f", {sent} of {len(batch)} were sent before")

    def close(self) -> None:
        """Nothing: kombu's pools serve every app of the process that has the same broker."""

    # -- one message ----------------------------------------------------------------------------------

    def _send(
        self,
        connection: Any,
        message: TaskMessage,
        to: Destination,
        how: SendOptions,
        policy: RetryPolicy,
        done: str = "",
    ) -> None:
        """Connect and publish until it works or the policy says no."""
        arguments = publish_arguments(message, to, how)
        while True:
            try:
                self.connect(connection, policy.deadline)
                arguments["declare"] = undeclared(connection, to.declare)
                self.attempt(connection, message, to, dict(arguments), policy.deadline)
            except EncodeError as exc:
                serializer = how.serializer or "the default serializer"
                raise codec.unserializable(message.body, serializer, exc.__cause__ or exc) from exc
            except self.retryable(connection, policy) as exc:
                self.drop(connection)
                if not policy.again():
                    raise not_sent(self.uri, policy, exc, done) from exc
                logger.debug("Publishing failed, trying again: %r", exc)
            else:
                return

    def retryable(self, connection: Any, policy: RetryPolicy) -> tuple[type[BaseException], ...]:
        """Errors after which the same message may be sent again over a new connection."""
        return (
            OperationalError,
            *connection.recoverable_connection_errors,
            *connection.recoverable_channel_errors,
            *policy.errors,
        )

    def attempt(
        self,
        connection: Any,
        message: TaskMessage,
        to: Destination,
        arguments: dict[str, Any],
        deadline: Deadline,
    ) -> None:
        """Publish once over a connection that stands."""
        arguments["timeout"] = deadline.left(arguments.get("timeout"))
        self.pool.Producer(connection).publish(message.body, retry=False, **arguments)

    # -- connections ----------------------------------------------------------------------------------

    @contextmanager
    def connection(self, deadline: Deadline) -> Iterator[Any]:
        """A connection of the pool, for this thread alone while it is used."""
        self._after_fork()
        connections = self.pool.connections
        try:
            connection = connections.acquire(block=True, timeout=deadline.left())
        except LimitExceeded as exc:
            raise OperationalError(
                f"All {connections.limit} connections to the broker at {self.uri} were in use for "
                f"{deadline.seconds:g} s.  Raise broker_pool_limit, or publish from fewer threads at once."
            ) from exc
        try:
            yield connection
        except (OperationalError, EncodeError):
            raise
        except BaseException:
            # A signal handler may have raised it (a soft time limit, Ctrl-C) amid what is said or heard: the next
            # user would take what is left of this for the answer to his own message.
            self.drop(connection)
            raise
        finally:
            connection.release()

    def connect(self, connection: Any, deadline: Deadline) -> None:
        """Connect once, trying each host of the URL, within the time that is left."""
        if connection.connected:
            return
        usual = connection.connect_timeout or CONNECT_TIMEOUT_S
        hosts = max(1, len(connection.alt or ()))
        try:
            for failures in range(hosts):
                connection.connect_timeout = deadline.left(usual)
                if connection.transport.driver_type == "redis":
                    # Its connections know no other end: without one a silent server holds the caller for ever.
                    connection.transport_options = {
                        **connection.transport_options,
                        "socket_timeout": deadline.left(self.socket_timeout),
                        "socket_connect_timeout": connection.connect_timeout,
                    }
                try:
                    connection.ensure_connection(max_retries=0)
                except OperationalError:
                    if failures + 1 == hosts or deadline.over:
                        raise
                    connection.maybe_switch_next()
                else:
                    return
        finally:
            connection.connect_timeout = usual

    def drop(self, connection: Any) -> None:
        """Forget a connection that failed, without waiting for the broker's consent."""
        try:
            connection.collect()
        except (OSError, *connection.connection_errors, *connection.channel_errors):
            logger.debug("A broken connection could not be closed.", exc_info=True)

    def _after_fork(self) -> None:
        """A child of a plain fork gets connections of its own; the parent's are left as they are.

        Closing them here would end them for the parent.  Forks by multiprocessing are seen by kombu itself.
        """
        if os.getpid() == self._pid:
            return
        self._inherited.append(self.pool)
        connections = self.pool.connections
        self.pool = type(self.pool)(
            type(connections)(connections.connection.clone(), limit=connections.limit),
            limit=self.pool.limit,
            Producer=self.pool.Producer,
        )
        self._pid = os.getpid()
