"""Consumer step: RabbitMQ's own way to deliver tasks later, which quorum queues need.

Started by the consumer when one of the app's queues is a quorum queue.  It declares the exchanges and
queues through which delayed messages travel (28 levels, each twice as slow as the one before) and binds the
task queues to their end.  Who sends a delayed task relies on them; nothing is consumed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kombu.common import Broadcast
from kombu.exceptions import OperationalError
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)
from kombu.utils.url import maybe_sanitize_url

from celery_clone.bootsteps import StartStopStep
from celery_clone.utils.log import get_logger
from celery_clone.utils.quorum_queues import detect_quorum_queues

__all__ = ("DelayedDelivery",)

logger = get_logger("celery.worker.consumer.delayed_delivery")

QUEUE_TYPES = ("classic", "quorum")

RETRIES = 3
RETRY_S = 1.0

AT_ONCE: dict[str, Any] = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
"""Kombu's own patience would keep the worker's loop waiting."""

SPARE_TIMEOUT_S = 1.0
"""How long a broker may take to answer that is only to be used when the first one fails."""

NONE_WORKED = (
    "Failed to setup delayed delivery for all broker URLs. Native delayed delivery will not be available: tasks "
    "with an eta or countdown cannot be sent to quorum queues."
)


class DelayedDelivery(StartStopStep):
    """Prepares delayed delivery at every broker that the app names."""

    name = "celery.worker.consumer.delayed_delivery.DelayedDelivery"
    requires = ("celery_clone.worker.consumer.tasks:Tasks",)

    def include_if(self, c: Any) -> bool:
        """Is there a quorum queue?"""
        driver_type = c.app.connection_for_write().transport.driver_type
        return detect_quorum_queues(c.app, driver_type)[0]

    def start(self, c: Any) -> None:
        """Prepare the broker in use now, and those that may replace it when the worker runs.

        Raises:
            ValueError: ``broker_url`` or ``broker_native_delayed_delivery_queue_type`` cannot be used.
        """
        conf = c.app.conf
        urls = broker_urls(conf.broker_write_url or conf.broker_url)
        queue_type = checked_queue_type(conf.broker_native_delayed_delivery_queue_type)
        in_use = self._prepare_first(c, queue_type)
        spare = [url for url in urls if in_use is None or not same_broker(c.app, url, in_use)]
        if in_use is None and len(urls) == 1:
            logger.critical(NONE_WORKED)
        elif spare:
            # One that does not answer must not keep the worker from its tasks.
            c.timer.call_after(0.0, c.call_soon, (self._prepare_spare, c, spare, queue_type, in_use is None))

    def _prepare_first(self, c: Any, queue_type: str) -> Any:
        """Prepare the broker that answers; its connection, closed, or ``None`` if that did not work."""
        for attempt in range(1, RETRIES + 2):
            connection = c.app.connection_for_write()
            try:
                with connection:
                    connection.ensure_connection(**AT_ONCE)
                    prepare(c.app, connection, queue_type)
            except (OSError, OperationalError) as exc:
                if attempt > RETRIES:
                    logger.warning("Failed to setup delayed delivery for %r: %s", connection.as_uri(), exc)
                    return None
                logger.warning(
                    "Retrying delayed delivery setup (attempt %d/%d) after error: %s. Sleeping %.2f seconds.",
                    attempt,
                    RETRIES,
                    exc,
                    RETRY_S,
                )
                c.pause(RETRY_S)
            except (*connection.connection_errors, *connection.channel_errors) as exc:
                logger.warning("Failed to setup delayed delivery for %r: %s", connection.as_uri(), exc)
                return None
            else:
                return connection
        return None

    def _prepare_spare(self, c: Any, urls: Iterable[str], queue_type: str, none_so_far: bool) -> None:
        """Prepare the brokers that are not in use, those that answer at once."""
        for url in urls:
            connection = c.app.connection_for_write(url=url, connect_timeout=SPARE_TIMEOUT_S)
            try:
                with connection:
                    connection.ensure_connection(**AT_ONCE)
                    prepare(c.app, connection, queue_type)
                none_so_far = False
            except (OperationalError, *connection.connection_errors, *connection.channel_errors) as exc:
                logger.warning("Failed to setup delayed delivery for %r: %s", maybe_sanitize_url(url), exc)
        if none_so_far:
            logger.critical(NONE_WORKED)


def prepare(app: Any, connection: Any, queue_type: str) -> None:
    """Declare the levels at one broker and bind the app's queues to their end.

    Raises:
        Exception: what the connection or a channel of it raises; a queue that cannot be bound is logged.
    """
    logger.debug("Setting up delayed delivery for broker %r with queue type %r", connection.as_uri(), queue_type)
    declare_native_delayed_delivery_exchanges_and_queues(connection, queue_type)
    queues = [queue for queue in app.amqp.queues.values() if not isinstance(queue, Broadcast)]
    if not queues:
        logger.warning("No queues found to bind for delayed delivery")
    for queue in queues:
        try:
            # Each on a channel of its own, so that a refusal concerns that queue alone.
            bind_queue_to_native_delayed_delivery_exchange(connection, queue)
        except connection.channel_errors as exc:
            logger.error(  # noqa: TRY400 the broker's text says it
                "Failed to bind queue %r to delayed delivery: %s. Its delayed tasks will not arrive.",
                queue.name,
                exc,
            )


def broker_urls(given: Any) -> list[str]:
    """The URLs of the brokers, each once.

    Raises:
        ValueError: there is none, or it is neither a text nor a list of texts.
    """
    if not given:
        raise ValueError("broker_url configuration is empty: set it to the URL of the broker.")
    if isinstance(given, str):
        return [*dict.fromkeys(given.split(";"))]
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"broker_url must be a string or list, got {given!r}")
    if not all(isinstance(url, str) for url in given):
        raise ValueError(f"All broker URLs must be strings, got {given!r}")
    return [*dict.fromkeys(given)]


def checked_queue_type(given: Any) -> str:
    """The type of the queues that messages wait in.

    Raises:
        ValueError: there is no such type.
    """
    if not given:
        raise ValueError("broker_native_delayed_delivery_queue_type is not configured")
    if given not in QUEUE_TYPES:
        raise ValueError(f"Invalid queue type {given!r}. Must be one of: {', '.join(QUEUE_TYPES)}")
    return str(given)


def same_broker(app: Any, url: str, connection: Any) -> bool:
    """Does *url* name the broker that *connection* was opened to?"""
    return bool(app.connection_for_write(url=url).as_uri() == connection.as_uri())
