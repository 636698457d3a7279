"""What the world is told of tasks: log, events, signals, results that the task's process could not store.

Owned by ``worker.dispatch``, in the loop's thread.  It decides nothing, settles no message and may not
fail: a store or a receiver that raises costs one log entry.
"""

from __future__ import annotations

import logging
import signal as process_signals
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from kombu.exceptions import DecodeError

from celery_clone import signals, states
from celery_clone.app.task import actual_ignore_result
from celery_clone.app.trace import LOG_RECEIVED
from celery_clone.exceptions import InvalidTaskError, NotRegistered, TimeLimitExceeded, WorkerLostError
from celery_clone.message import protocol
from celery_clone.message.outgoing import TaskMessage
from celery_clone.transport.protocols import Destination, SendOptions
from celery_clone.utils.log import get_logger
from celery_clone.utils.suggest import closest

from .request import Request
from .state import Phase

if TYPE_CHECKING:
    from celery_clone.execution.outcome import Outcome
    from celery_clone.message.delivery import Delivery

    from .plans import TaskPlan
    from .state import InFlight

__all__ = ("Announcer", "describe_exit", "headers_of", "losses_of")

received_logger = get_logger("celery.worker.strategy")
request_logger = get_logger("celery.worker.request")
consumer_logger = get_logger("celery.worker.consumer.consumer")

RESENT = ("correlation_id", "reply_to", "priority", "delivery_mode", "expiration", "message_id", "timestamp", "type")
"""Properties that a message keeps when it is sent again."""

RESEND_S = 5.0
"""How long that may take."""

UNKNOWN_TASK = """Received unregistered task of type {name!r}.
The message has been ignored and discarded.

Did you remember to import the module containing this task?
Or maybe you're using relative imports?{hint}

The message is kept for you: see {kept}.
The task is {name}[{id}], its arguments are {args} {kwargs}.
"""


class Announcer:
    """Tells of the tasks of one worker.

    Arguments:
        app: the app whose tasks are run.
        hostname: node name of the worker.
        owner: the consumer, sender of the signals.
    """

    def __init__(self, app: Any, hostname: str, owner: Any) -> None:
        self.app = app
        self.hostname = hostname
        self.owner = owner
        #: Sends events; that of the present connection.
        self.eventer: Any = None
        self._logs_received = received_logger.isEnabledFor(logging.INFO)

    def received(self, flight: InFlight) -> None:
        if self._logs_received:
            headers = headers_of(flight.delivery)
            context = {
                "id": flight.id,
                "name": flight.name,
                "args": headers.get("argsrepr", ""),
                "kwargs": headers.get("kwargsrepr", ""),
                "eta": headers.get("eta"),
            }
            received_logger.info(LOG_RECEIVED, context, extra={"data": context})
        if signals.task_received.receivers:
            signals.task_received.send(sender=self.owner, request=flight.request)
        if self.tells(flight.plan):
            headers = headers_of(flight.delivery)
            self.event(
                flight,
                "task-received",
                name=flight.name,
                args=headers.get("argsrepr", ""),
                kwargs=headers.get("kwargsrepr", ""),
                root_id=headers.get("root_id"),
                parent_id=headers.get("parent_id"),
                retries=headers.get("retries", 0),
                eta=headers.get("eta"),
                expires=headers.get("expires"),
            )

    def tells_of_tasks(self) -> bool:
        """Does anybody want events about tasks?  Without ``-E`` only those about the worker are sent."""
        eventer = self.eventer
        return eventer is not None and eventer.enabled and (not eventer.groups or "task" in eventer.groups)

    def tells(self, plan: TaskPlan) -> bool:
        return self.tells_of_tasks() and bool(plan.task.send_events)

    def event(self, flight: InFlight, kind: str, **fields: Any) -> None:
        if self.tells(flight.plan):
            self.eventer.send(kind, uuid=flight.id, **fields)

    def ended(self, flight: InFlight, outcome: Outcome) -> None:
        if outcome.state == states.SUCCESS:
            self.event(flight, "task-succeeded", result=outcome.summary, runtime=outcome.runtime)
        elif outcome.state in (states.FAILURE, states.RETRY):
            error = outcome.error
            kind = "task-failed" if outcome.state == states.FAILURE else "task-retried"
            self.event(
                flight,
                kind,
                exception=error.repr if error else outcome.summary,
                traceback=error.traceback if error else "",
            )
        elif outcome.state == states.REJECTED:
            self.event(flight, "task-rejected", requeue=outcome.requeue)

    def failed(self, flight: InFlight, error: BaseException) -> None:
        """Store a failure that the task's process could not."""
        task, context = flight.plan.task, self.context_of(flight)
        store = not actual_ignore_result(task, context) or bool(task.store_errors_even_if_ignored)
        try:
            task.backend.mark_as_failure(flight.id, error, request=context, store_result=store)
        except Exception as exc:
            request_logger.exception(
                "Task %s[%s] failed with %r, which could not be stored: %r",
                flight.name,
                flight.id,
                error,
                exc,
            )
        signals.task_failure.send(
            sender=task,
            task_id=flight.id,
            exception=error,
            args=context.args,
            kwargs=context.kwargs,
            traceback=None,
            einfo=None,
        )
        self.event(flight, "task-failed", exception=repr(error), traceback="")

    def call_hooks(self, flight: InFlight, error: TimeLimitExceeded) -> None:
        """The task's own ``on_failure`` and ``after_return``, which its process could not call."""
        task, context = flight.plan.task, self.context_of(flight)
        try:
            raise error
        except TimeLimitExceeded:  # raised for its traceback, which the hooks are given
            info = ExceptionInfo()
        try:
            task.on_failure(error, flight.id, context.args, context.kwargs, info)
            task.after_return(states.FAILURE, error, flight.id, context.args, context.kwargs, info)
        except Exception as exc:
            request_logger.exception("A failure hook of task %s[%s] raised: %r", flight.name, flight.id, exc)

    def retry(self, flight: InFlight, error: WorkerLostError, retries: int) -> bool:
        """Send the call again, as ``task.retry()`` would have; ``False`` when it cannot be sent."""
        task, context = flight.plan.task, self.context_of(flight)
        try:
            task.signature_from_request(context, retries=retries, countdown=task.default_retry_delay).apply_async()
            task.backend.mark_as_retry(flight.id, error, "", request=context)
        except Exception as exc:
            request_logger.exception("Task %s[%s] could not be sent again: %r", flight.name, flight.id, exc)
            return False
        self.event(flight, "task-retried", exception=repr(error), traceback="")
        return True

    def send_again(self, flight: InFlight, losses: int) -> bool:
        """Send the same message once more, with the number of *losses* in it; ``False`` when that is impossible.

        For brokers whose messages cannot be changed where they lie.
        """
        delivery = flight.delivery
        try:
            parts = delivery.parts
            properties = {name: parts.properties[name] for name in RESENT if parts.properties.get(name) is not None}
            if properties.get("expiration"):
                properties["expiration"] = float(properties["expiration"]) / 1000
            kinds = {"content_type": parts.content_type, "content_encoding": parts.content_encoding}
            message = TaskMessage({**parts.headers, "losses": losses}, properties, parts.body, None)
            destination = Destination("", delivery.queue)
            self.app.amqp.publisher.publish(message, destination, SendOptions(deadline_s=RESEND_S, extra=kinds))
        except Exception as exc:
            request_logger.exception("Task %s[%s] could not be sent again: %r", flight.name, flight.id, exc)
            return False
        return True

    def has_succeeded(self, flight: InFlight) -> bool:
        """Did its process store the result before it died?  Then there is nothing to fail or to run again."""
        task = flight.plan.task
        if task.ignore_result or (flight.phase is not Phase.BEGUN and not flight.plan.short):
            return False
        try:
            return bool(task.backend.get_state(flight.id) == states.SUCCESS)
        except Exception as exc:
            request_logger.exception("The result of lost task %s[%s] cannot be read: %r", flight.name, flight.id, exc)
            return False

    def revoked(
        self, flight: InFlight, *, terminated: bool, signum: int | None, expired: bool
    ) -> None:
        task = flight.plan.task
        context = self.context_of(flight)
        reason = "terminated" if terminated else "expired" if expired else "revoked"
        store = not task.ignore_result or bool(task.store_errors_even_if_ignored)
        try:
            task.backend.mark_as_revoked(flight.id, reason, request=context, store_result=store)
        except Exception as exc:
            request_logger.exception(
                "Task %s[%s] was %s, which could not be stored: %r", flight.name, flight.id, reason, exc
            )
        signals.task_revoked.send(
            sender=task, request=context, terminated=terminated, signum=signum, expired=expired
        )
        self.event(flight, "task-revoked", terminated=terminated, signum=signum, expired=expired)

    def unknown(self, delivery: Delivery, name: str, task_id: str, kept: str) -> None:
        """A message of a task that nobody here knows: say so, and tell the caller.  *kept* is where it goes."""
        near = closest(name, self.app.tasks)
        headers: Mapping[str, Any] = headers_of(delivery)
        consumer_logger.error(
            UNKNOWN_TASK.format(
                name=name,
                id=task_id,
                hint=f"\nThe name nearest to it that is registered here is {near!r}." if near else "",
                args=headers.get("argsrepr", "?"),
                kwargs=headers.get("kwargsrepr", "?"),
                kept=kept,
            )
        )
        error = NotRegistered(name)
        signals.task_unknown.send(sender=self.owner, message=delivery, exc=error, name=name, id=task_id)
        if self.tells_of_tasks():
            self.eventer.send("task-failed", uuid=task_id, exception=f"NotRegistered({name!r})")
        if not headers.get("ignore_result"):
            request = Request.context_of(headers, delivery.properties, self.hostname)
            request.update(embedded_in(delivery))
            try:
                self.app.backend.mark_as_failure(task_id, error, request=request)
            except Exception as exc:
                consumer_logger.exception(
                    "The failure of unknown task %s[%s] could not be stored: %r", name, task_id, exc
                )

    def unusable(self, delivery: Delivery, reason: str, kept: str) -> None:
        """A message that cannot be used: one log entry.  *kept* is where it goes."""
        consumer_logger.error(
            "Received a message that cannot be run: %s\nIt came from queue %r and is kept: see %s.\nIt begins: %r",
            reason,
            delivery.queue,
            kept,
            beginning(delivery),
        )
        signals.task_rejected.send(sender=self.owner, message=delivery, exc=InvalidTaskError(reason))

    def make_request(self, flight: InFlight) -> Request:
        delivery = flight.delivery
        return Request(
            delivery,
            app=self.app,
            hostname=self.hostname,
            eventer=self.eventer,
            task=flight.plan.task,
            connection_errors=self.owner.connection_errors,
            headers=headers_of(delivery),
            on_ack=delivery.ack_log_error if delivery.source is not None else None,
            on_reject=delivery.reject_log_error if delivery.source is not None else None,
        )

    def context_of(self, flight: InFlight) -> Any:
        """What the task would have seen as its request, as far as the message can be read."""
        try:
            return flight.request._context
        except (InvalidTaskError, DecodeError) as exc:
            request_logger.debug("The headers of task %s[%s] cannot be read: %s", flight.name, flight.id, exc)
            return Request.context_of({"id": flight.id, "task": flight.name}, flight.delivery.properties, self.hostname)


def headers_of(delivery: Delivery) -> dict[str, Any]:
    """The headers of a message of any protocol, in the form of protocol 2.

    Raises:
        InvalidTaskError, kombu.exceptions.DecodeError: it is not a task message.
    """
    headers = delivery.headers
    body = None if "task" in headers else delivery.decode()
    return protocol.to_v2(headers, delivery.properties, b"" if body is None else body).headers


def losses_of(delivery: Delivery) -> int:
    """How often the process that ran a message died, as the message tells."""
    losses = delivery.headers.get("losses")
    return losses if isinstance(losses, int) else 0


def embedded_in(delivery: Delivery) -> dict[str, Any]:
    """What waits for a call: its chain, its chord and its callbacks; nothing if the body cannot be read."""
    try:
        _, _, embedded = delivery.payload
    except Exception as exc:  # noqa: BLE001 whatever is in it: its failure is told, with or without
        consumer_logger.debug("The body of a message whose task is unknown cannot be read: %r", exc)
        return {}
    return embedded if isinstance(embedded, dict) else {}


def beginning(delivery: Delivery) -> bytes | str:
    """The first characters of a message, for the log."""
    raw = delivery.envelope.raw if delivery.envelope is not None else delivery.parts.body
    return raw[:200] if isinstance(raw, (bytes, str)) else repr(raw)[:200]


def describe_exit(exitcode: int | None) -> str:
    """How a process ended, in words."""
    if exitcode is None:
        return "exit status unknown."
    if exitcode < 0:
        try:
            name = process_signals.Signals(-exitcode).name
        except ValueError:
            name = "unknown"
        return f"signal {-exitcode} ({name})."
    return f"exitcode {exitcode}."
