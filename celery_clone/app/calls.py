"""From the options of a call to what is published where: pure functions.

Called by ``app.base`` and ``app.amqp`` for every call.  Time and queues are arguments; it may not
talk to the broker and may not read the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, cast

from kombu import Exchange
from kombu.common import Broadcast
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.native_delayed_delivery import calculate_routing_key

from celery_clone.transport.protocols import Destination, SendOptions
from celery_clone.utils.log import get_logger
from celery_clone.utils.suggest import hint
from celery_clone.utils.time import maybe_iso8601, subtract_datetimes

__all__ = ("SendDefaults", "Way", "delayed_route", "destination", "expiration_seconds", "unknown_transport")

logger = get_logger("celery.app.base")


class SendDefaults(NamedTuple):
    """The settings that every publish falls back on."""

    exchange: str
    routing_key: str
    delivery_mode: Any
    serializer: str
    compression: str | None
    retry: bool
    retry_policy: Mapping[str, Any]
    deadline_s: float | None


class Way(NamedTuple):
    """Where a message goes, the name of its queue when there is one, and how it is published."""

    to: Destination
    queue_name: str | None
    how: SendOptions


def expiration_seconds(expires: Any, task_id: str, *, now: Callable[[], datetime]) -> float:
    """Seconds until a message expires on the broker; 0 with a warning when that is over already."""
    if isinstance(expires, str):
        expires = maybe_iso8601(expires)
    seconds = subtract_datetimes(expires, now()).total_seconds() if isinstance(expires, datetime) else expires
    if seconds < 0:
        logger.warning(
            "%s has an expiration date in the past (%ss ago). It is sent with an expiration of 0, so the broker "
            "drops it unless a consumer takes it at once. If that is not intended, check the code that published "
            "this task.",
            task_id,
            -seconds,
        )
        return 0
    return float(seconds)


def delayed_route(options: dict[str, Any], eta: Any, countdown: Any, *, now: Callable[[], datetime]) -> None:
    """Send a delayed call through RabbitMQ's delay exchanges, in place (for quorum queues).

    A direct exchange cannot take part; such a call waits in the worker, which is said once per call.
    """
    queue: Any = options.get("queue")
    named = queue is not None and hasattr(queue, "exchange")
    exchange_type = queue.exchange.type if named else options.get("exchange_type")
    exchange_name = queue.exchange.name if named else options.get("exchange")
    routing_key = queue.routing_key if named else options.get("routing_key")
    if exchange_type in (None, "direct"):
        logger.warning(
            "Direct exchanges are not supported with native delayed delivery: %s should be a topic or a fanout "
            "exchange. The delayed task waits in a worker instead, where it may hold up a quorum queue.",
            exchange_name,
        )
        return
    if eta:
        countdown = subtract_datetimes(cast(datetime, maybe_iso8601(eta)), now()).total_seconds()
    if countdown and countdown > 0:
        options.pop("queue", None)
        options["routing_key"] = calculate_routing_key(int(countdown), routing_key or "")
        options["exchange"] = Exchange("celery_delayed_27", type="topic")


def destination(
    queue: Any,
    exchange: Any,
    routing_key: str | None,
    exchange_type: str | None,
    declare: Any,
    defaults: SendDefaults,
) -> tuple[Destination, str | None]:
    """Where a message goes, and the name of its queue when there is one.

    A direct exchange without an explicit exchange *and* key is addressed by queue name through the
    anonymous exchange, so that nothing depends on a binding.
    """
    queue_name = None if queue is None else queue.name
    if exchange_type is None:
        exchange_type = queue.exchange.type if queue is not None and queue.exchange is not None else "direct"
    if (not exchange or not routing_key) and exchange_type == "direct":
        exchange, routing_key = "", queue_name or routing_key or ""
    elif exchange is None:
        exchange = (queue.exchange.name if queue is not None else "") or defaults.exchange
        routing_key = (
            routing_key or (queue.routing_key if queue is not None else None) or defaults.routing_key
        )
    if declare is None:
        declare = declared_with(queue)
    return Destination(exchange, routing_key or "", tuple(declare), exchange_type), queue_name


def declared_with(queue: Any) -> tuple[Any, ...]:
    """What must be there before a message is sent to *queue*.

    Of a broadcast only the exchange: each worker has a queue of its own.  Without it a broker that keeps no
    exchanges, such as Redis, would not know that a copy goes to everybody.
    """
    if queue is None:
        return ()
    if not isinstance(queue, Broadcast):
        return (queue,)
    return () if queue.exchange is None else (queue.exchange,)


UNKNOWN_TRANSPORT = (
    "There is no transport for broker URLs that begin with {asked!r}.{hint} Known are: {known}. "
    "Check broker_url, CELERY_BROKER_URL and the option -b."
)
NO_SUCH_TRANSPORT = "No such transport: "
"""How kombu's error begins; its class is a plain KeyError."""


def unknown_transport(error: KeyError) -> str | None:
    """What to say of kombu's error about an unknown transport; ``None`` for any other."""
    text = str(error.args[0]) if error.args else ""
    if not text.startswith(NO_SUCH_TRANSPORT):
        return None
    asked = text.removeprefix(NO_SUCH_TRANSPORT).partition(".")[0].strip()
    known = sorted(name for name in TRANSPORT_ALIASES if name.islower())
    return UNKNOWN_TRANSPORT.format(asked=asked, hint=hint(asked, known), known=", ".join(known))
