"""How many hear a broadcast: asked of the brokers that can say, so that nobody waits longer than for the last answer.

Used by ``app.control``.  It may not read answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kombu import Producer
from kombu.utils.json import dumps

__all__ = ("WORKERS_HEADER", "listeners")

WORKERS_HEADER = "workers"
"""Header of an answer: how many workers there are as far as that one has heard, itself with them."""


def listeners(channel: Any, exchange: str, ignored: Mapping[str, Any]) -> int | None:
    """How many consumers a fanout *exchange* has now; ``None`` where the broker does not tell.

    *ignored* is a message that no consumer acts on: Redis tells of its subscribers only who publishes to them.
    """
    count = COUNTERS.get(channel.connection.client.transport.driver_type)
    return None if count is None else count(channel, exchange, ignored)


def count_on_redis(channel: Any, exchange: str, ignored: Mapping[str, Any]) -> int:
    body, content_type, encoding = Producer(channel, auto_declare=False)._prepare(ignored, serializer="json")
    message = channel.prepare_message(body, None, content_type, encoding, {}, {})
    channel._inplace_augment_message(message, exchange, "")
    with channel.conn_or_acquire() as client:
        return sum(client.publish(topic, dumps(message)) for topic in channel._get_publish_topics(exchange, ""))


def count_on_sqlite(channel: Any, exchange: str, ignored: Mapping[str, Any]) -> int:
    return sum(bound_to == exchange for _, bound_to, _ in channel.broker.bindings())


COUNTERS: dict[str, Callable[[Any, str, Mapping[str, Any]], int]] = {
    "redis": count_on_redis,
    "sqlite": count_on_sqlite,
}
