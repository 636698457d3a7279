"""To and from the broker: ``open_source`` and ``open_publisher`` choose by the connection's driver.

Called by ``worker.consumer`` and ``app.amqp``.  The tables name the classes instead of importing
them, so that an application pays only for the broker it uses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import kombu.transport
from kombu.serialization import prepare_accept_content
from kombu.utils.imports import symbol_by_name

if TYPE_CHECKING:
    from celery_clone.transport.beat_lease import LeaseStore
    from celery_clone.transport.protocols import MessageSource, Publisher

__all__ = ("LEASE_STORES", "PUBLISHERS", "SOURCES", "load", "open_lease_store", "open_publisher", "open_source")

# ``sqlite://`` is the embedded broker, whatever kombu may have under that name.
kombu.transport.TRANSPORT_ALIASES["sqlite"] = "celery_clone.transport.sqlite:Transport"
kombu.transport._transport_cache.pop("sqlite", None)

Row = TypeVar("Row")


class SourceRow(NamedTuple):
    """A class of sources and the options it takes beyond ``accept`` and ``epoch``."""

    name: str
    options: tuple[str, ...]


REDIS_SOURCE = SourceRow(
    "celery_clone.transport.redis_source:RedisSource", ("previous", "lease_s", "renew_in_background")
)
AMQP_SOURCE = SourceRow(
    "celery_clone.transport.amqp_source:AmqpSource",
    ("prefetch", "global_qos", "delay_queue_type", "renew_in_background"),
)
SQLITE_SOURCE = SourceRow(
    "celery_clone.transport.sqlite_source:SqliteSource", ("previous", "lease_s", "renew_in_background")
)
ANY_SOURCE = SourceRow("celery_clone.transport.kombu_source:KombuSource", ("prefetch",))

SOURCES: dict[str, SourceRow] = {
    "kombu.transport.redis:Transport": REDIS_SOURCE,
    "kombu.transport.redis:SentinelTransport": REDIS_SOURCE,
    "kombu.transport.pyamqp:Transport": AMQP_SOURCE,
    "kombu.transport.pyamqp:SSLTransport": AMQP_SOURCE,
    "celery_clone.transport.sqlite:Transport": SQLITE_SOURCE,
}
"""Class of a kombu transport to the source that knows it better than kombu's consumer does."""

PUBLISHERS: dict[str, str] = {
    "kombu.transport.redis:Transport": "celery_clone.transport.redis_publisher:RedisPublisher",
    "kombu.transport.redis:SentinelTransport": "celery_clone.transport.redis_publisher:RedisPublisher",
    "kombu.transport.pyamqp:Transport": "celery_clone.transport.amqp_publisher:AmqpPublisher",
    "kombu.transport.pyamqp:SSLTransport": "celery_clone.transport.amqp_publisher:AmqpPublisher",
    "celery_clone.transport.sqlite:Transport": "celery_clone.transport.sqlite_source:SqlitePublisher",
}
"""Class of a kombu transport to the publisher that is faster than kombu's producer."""

LEASE_STORES: dict[str, str] = {
    "kombu.transport.redis:Transport": "celery_clone.transport.redis_beat_lease:RedisLeaseStore",
    "kombu.transport.redis:SentinelTransport": "celery_clone.transport.redis_beat_lease:RedisLeaseStore",
    "celery_clone.transport.sqlite:Transport": "celery_clone.transport.sqlite_beat_lease:SqliteLeaseStore",
}
"""Class of a kombu transport to what keeps the leases of beats in that broker."""

ANY_PUBLISHER = "celery_clone.transport.publisher:KombuPublisher"


def open_source(
    connection: Any,
    *,
    accept: Iterable[str] | None = None,
    epoch: int = 0,
    previous: Any = None,
    prefetch: int = 0,
    global_qos: bool | None = None,
    delay_queue_type: str = "quorum",
    lease_s: float | None = None,
    renew_in_background: bool = False,
) -> MessageSource:
    """The source for a connected :class:`kombu.Connection`.

    Arguments:
        accept: names or content types of the serializers that deliveries may decode.
        epoch: number of this connection; grows with every reconnect.
        previous: the source of the lost connection, whose deliveries may still be held.  Pass it always: a
            source that survives reconnects goes on renewing, acknowledging and resending what that one had.
        prefetch: deliveries that a broker which pushes may send ahead; ``0`` for no bound.
        global_qos: AMQP: whether *prefetch* counts for the channel; ``None`` decides by the queues' types.
        delay_queue_type: RabbitMQ: the type of the queues that due messages wait in, if they must be declared.
        lease_s: Redis: seconds for which a claim is safe without renewal; ``None`` for the transport
            option ``lease``, whose default is 10.
        renew_in_background: renew leases (RabbitMQ: send heartbeats) from a thread; needed where tasks run in the
            loop's own thread (solo and green pools), because a loop that stands still does neither.

    Raises the connection errors of the transport.
    """
    row = chosen(SOURCES, connection, ANY_SOURCE)
    cls = symbol_by_name(row.name)
    given = {
        "previous": previous if isinstance(previous, cls) else None,
        "prefetch": prefetch,
        "global_qos": global_qos,
        "delay_queue_type": delay_queue_type,
        "lease_s": lease_s,
        "renew_in_background": renew_in_background,
    }
    source: MessageSource = cls(
        connection,
        accept=None if accept is None else frozenset(prepare_accept_content(accept)),
        epoch=epoch,
        **{name: given[name] for name in row.options},
    )
    return source


def load(connection: Any) -> None:
    """Import what :func:`open_source` and :func:`open_publisher` will need for *connection*.

    A worker does so before it makes its processes, which then share the memory of it.
    """
    symbol_by_name(chosen(SOURCES, connection, ANY_SOURCE).name)
    symbol_by_name(chosen(PUBLISHERS, connection, ANY_PUBLISHER))


def open_publisher(pool: Any) -> Publisher:
    """The publisher over *pool*, a pool of kombu producers (``app.amqp.producer_pool``).

    Nothing is connected before the first publish.
    """
    publisher: Publisher = symbol_by_name(chosen(PUBLISHERS, pool.connections.connection, ANY_PUBLISHER))(pool)
    return publisher


def open_lease_store(pool: Any) -> LeaseStore | None:
    """What keeps the leases of beats in the broker that *pool*, a pool of kombu producers, leads to.

    ``None``: this kind of broker cannot.  Nothing is connected before it is first asked.
    """
    name = chosen(LEASE_STORES, pool.connections.connection, "")
    return symbol_by_name(name)(pool) if name else None


def chosen(table: dict[str, Row], connection: Any, otherwise: Row) -> Row:
    """The row of *table* for the transport of *connection*.

    Only the very class counts: a subclass may keep its messages elsewhere.  Redis without kombu's
    acknowledgements is left to kombu.
    """
    transport = connection.get_transport_cls()
    if transport.driver_type == "redis" and connection.transport_options.get("ack_emulation") is False:
        return otherwise
    return table.get(f"{transport.__module__}:{transport.__qualname__}", otherwise)
