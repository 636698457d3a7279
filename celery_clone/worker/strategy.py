"""How messages of a task are handled, for tasks that bring their own way.

``Task.Strategy`` names a function like :func:`default`; the consumer calls it once per task.  Tasks
with the default strategy and request take the fast way in ``worker.dispatch`` instead; what is here
serves those whose Strategy or Request was replaced, and whoever calls it by name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery_clone import signals
from celery_clone.app.trace import LOG_RECEIVED
from celery_clone.message import protocol
from celery_clone.utils.imports import symbol_by_name
from celery_clone.utils.log import get_logger

from . import state
from .request import create_request_cls

__all__ = ("default", "hybrid_to_proto2", "proto1_to_proto2")

logger = get_logger("celery.worker.strategy")


def hybrid_to_proto2(message: Any, body: Any) -> tuple[Any, dict[str, Any], bool, bool]:
    """A message with headers of protocol 2 and a body of protocol 1: ``(body, headers, decoded, utc)``."""
    incoming = protocol.to_v2(message.headers, message.properties, body)
    return incoming.body, incoming.headers, True, True if incoming.utc is None else incoming.utc


def proto1_to_proto2(message: Any, body: Any) -> tuple[Any, dict[str, Any], bool, bool]:
    """A message of protocol 1: ``(body, headers, decoded, utc)``.

    Raises:
        InvalidTaskError: a field is missing or of the wrong kind; the text names it.
    """
    incoming = protocol.to_v2(None, message.properties, body)
    return incoming.body, incoming.headers, True, True if incoming.utc is None else incoming.utc


def default(task: Any, app: Any, consumer: Any) -> Callable[..., Any]:
    """The handler of messages of *task*: makes a request and runs it, now, when due, or as its rate allows."""
    logs_received = logger.isEnabledFor(logging.INFO)
    eventer = consumer.event_dispatcher
    tells = bool(eventer and eventer.enabled and task.send_events)
    request_class = create_request_cls(
        symbol_by_name(task.Request), task, consumer.pool, consumer.hostname, eventer, app=app
    )

    def task_message_handler(
        message: Any,
        body: Any,
        ack: Callable[..., Any],
        reject: Callable[..., Any],
        callbacks: Any,
        to_timestamp: Any = None,
        **kwargs: Any,
    ) -> Any:
        headers, decoded, utc = message.headers, False, True
        if body is not None or "task" not in (headers or {}):
            body = message.decode() if body is None else body
            convert = hybrid_to_proto2 if "task" in (headers or {}) else proto1_to_proto2
            body, headers, decoded, utc = convert(message, body)
        request = request_class(
            message,
            on_ack=ack,
            on_reject=reject,
            app=app,
            hostname=consumer.hostname,
            eventer=eventer,
            task=task,
            connection_errors=consumer.connection_errors,
            body=body,
            headers=headers,
            decoded=decoded,
            utc=utc,
        )
        if logs_received:
            context = {
                "id": request.id,
                "name": request.name,
                "args": request.argsrepr,
                "kwargs": request.kwargsrepr,
            }
            logger.info(LOG_RECEIVED, context, extra={"data": context})
        if (request.expires or request.id in state.revoked or state.revoked_stamps) and request.revoked():
            return None
        signals.task_received.send(sender=consumer, request=request)
        if tells:
            request.send_event(
                "task-received",
                name=request.name,
                args=request.argsrepr,
                kwargs=request.kwargsrepr,
                root_id=request.root_id,
                parent_id=request.parent_id,
                retries=request.request_dict.get("retries", 0),
                eta=request.eta and request.eta.isoformat(),
                expires=request.expires and request.expires.isoformat(),
            )
        for callback in callbacks or ():
            callback(request)
        bucket = None if consumer.disable_rate_limits else consumer.task_buckets[task.name]
        if request.eta is not None and request.eta.timestamp() > time.time():
            state.task_scheduled(request)
            consumer.qos.increment_eventually()
            request._eta_timer_entry = consumer.timer.call_after(
                request.eta.timestamp() - time.time(), consumer.apply_eta_task, (request,)
            )
            return None
        if bucket is not None:
            return run_when_allowed(consumer, bucket, request)
        state.task_reserved(request)
        return consumer.on_task_request(request)

    return task_message_handler


def run_when_allowed(consumer: Any, bucket: Any, request: Any = None) -> None:
    """Run *request*, and what waits before it, as the rate limit of the task allows."""
    if request is not None:
        bucket.waiting.append(request)
        if len(bucket.waiting) > 1:
            return
    while bucket.waiting and bucket.take(time.monotonic()):
        ready = bucket.waiting.popleft()
        state.task_reserved(ready)
        consumer.on_task_request(ready)
    if bucket.waiting:
        consumer.timer.call_after(bucket.wait(time.monotonic()), run_when_allowed, (consumer, bucket))
