"""``Request``: the public view of one task in the parent process.

Made by ``worker.dispatch`` when somebody asks for one (signals, events, remote control), and by
strategies of tasks that handle their own messages, for which it also runs the task and settles the
message.  Built lazily: nothing is decoded before it is read.
"""

from __future__ import annotations

import signal as process_signals
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from weakref import ref

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback

from celery_clone import signals
from celery_clone.app.trace import fast_trace_task, trace_task, trace_task_ret
from celery_clone.concurrency.base import BasePool
from celery_clone.exceptions import (
    Ignore,
    InvalidTaskError,
    Reject,
    Retry,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery_clone.execution.acks import AckRule, Settle, settle_on_begin, settle_on_loss, settle_on_timeout
from celery_clone.execution.context import Context
from celery_clone.message import codec, protocol
from celery_clone.utils.functional import maybe, noop
from celery_clone.utils.log import get_logger
from celery_clone.utils.nodenames import gethostname
from celery_clone.utils.saferepr import saferepr
from celery_clone.utils.time import maybe_iso8601, maybe_make_aware, timezone

from . import state
from .admission import is_revoked_by_stamp

__all__ = ("Request", "create_request_cls")

logger = get_logger("celery.worker.request")

TERMINATE_SIGNAL = "TERM"


class Request:
    """One message of a task, and what becomes of it.

    Arguments:
        message: the delivery, or anything with the attributes of :class:`kombu.Message`.
        on_ack, on_reject: settle the message.
        hostname: node name of the worker.
        eventer: sends events, if any.
        app: the app; by default that of the task.
        connection_errors: what settling may raise when the connection is lost.
        request_dict: what the task will see as its request; by default the headers.
        task: the task; looked up by name when missing.
        body, headers, decoded: the message's, when they were read already.
        utc: are times without an offset UTC?
    """

    acknowledged = False
    time_start: float | None = None
    worker_pid: int | None = None
    time_limits: tuple[float | None, float | None] = (None, None)
    _already_revoked = False
    _already_cancelled = False
    _terminate_on_ack: tuple[Any, Any] | None = None
    _apply_result: Any = None
    _eta_timer_entry: Any = None
    _tzlocal: Any = None

    def __init__(
        self,
        message: Any,
        on_ack: Callable[..., Any] | None = noop,
        hostname: str | None = None,
        eventer: Any = None,
        app: Any = None,
        connection_errors: Any = None,
        request_dict: dict[str, Any] | None = None,
        task: Any = None,
        on_reject: Callable[..., Any] | None = noop,
        body: Any = None,
        headers: Mapping[str, Any] | None = None,
        decoded: bool = False,
        utc: bool = True,
        **opts: Any,
    ) -> None:
        self._message = message
        self._request_dict: dict[str, Any] = dict(
            (message.headers if headers is None else headers) if request_dict is None else request_dict
        )
        self._body = message.body if body is None else body
        self._app = app or task.app
        self._utc = utc
        self._decoded = decoded
        self._content_type = None if decoded else message.content_type
        self._content_encoding = None if decoded else message.content_encoding
        values = self._request_dict
        self._id = self._task_id = values["id"]
        self._type = self._name = values["task"]
        if values.get("shadow"):
            self._name = values["shadow"]
        limits = values.get("timelimit")
        if limits:
            self.time_limits = limits
        self._on_ack = on_ack or noop
        self._on_reject = on_reject or noop
        self._hostname = hostname or gethostname()
        self._eventer = eventer
        self._connection_errors = connection_errors or ()
        self._task = task or self._app.tasks[self._type]
        self._ignore_result = bool(values.get("ignore_result"))
        self._eta = self._time(values.get("eta"), "eta")
        self._expires = self._time(values.get("expires"), "expires")
        info = message.delivery_info or {}
        properties = message.properties or {}
        values.update(
            properties=properties,
            reply_to=properties.get("reply_to"),
            correlation_id=properties.get("correlation_id"),
            hostname=self._hostname,
            delivery_info={
                "exchange": info.get("exchange"),
                "routing_key": info.get("routing_key"),
                "priority": properties.get("priority"),
                "redelivered": info.get("redelivered", False),
            },
        )
        self._call: Any = None
        self._rule = AckRule.of(self._task)

    def _time(self, value: Any, what: str) -> datetime | None:
        if not value:
            return None
        try:
            return maybe_make_aware(maybe_iso8601(value), self.tzlocal)  # type: ignore[arg-type]  # not None: truthy
        except (AttributeError, ValueError, TypeError) as exc:
            raise InvalidTaskError(f"invalid {what} value {value!r}: {exc}") from exc

    @staticmethod
    def context_of(
        headers: Mapping[str, Any], properties: Mapping[str, Any], hostname: str | None = None
    ) -> Context:
        """A context for a message whose task is not known here, enough to store its failure."""
        return Context(
            headers,
            hostname=hostname,
            reply_to=properties.get("reply_to"),
            correlation_id=properties.get("correlation_id"),
        )

    # --- what the message says ---------------------------------------------------------

    @property
    def _payload(self) -> tuple[Any, Any, Any]:
        """``(args, kwargs, embed)``, decoded when first read."""
        if self._call is None:
            body = self._body if self._decoded else self._message.payload
            if isinstance(body, dict):
                body = protocol.to_v2(self._message.headers, self._message.properties, body).body
            self._call = tuple(body)
        return self._call  # type: ignore[no-any-return]  # user payload

    #: The name under which receivers of ``task_received`` that were written for Celery find it.
    _Request__payload = property(lambda self: self._payload)

    delivery_info = property(lambda self: self._request_dict["delivery_info"])
    message = property(lambda self: self._message)
    request_dict = property(lambda self: self._request_dict)
    body = property(lambda self: self._body)
    app = property(lambda self: self._app)
    utc = property(lambda self: self._utc)
    content_type = property(lambda self: self._content_type)
    content_encoding = property(lambda self: self._content_encoding)
    type = property(lambda self: self._type)
    id = property(lambda self: self._id)
    task_id = id
    name = property(lambda self: self._name)
    task_name = name
    task = property(lambda self: self._task)
    hostname = property(lambda self: self._hostname)
    eta = property(lambda self: self._eta)
    expires = property(lambda self: self._expires)
    ignore_result = property(lambda self: self._ignore_result)
    on_ack = property(lambda self: self._on_ack)
    on_reject = property(lambda self: self._on_reject)
    connection_errors = property(lambda self: self._connection_errors)
    root_id = property(lambda self: self._request_dict.get("root_id"))
    parent_id = property(lambda self: self._request_dict.get("parent_id"))
    argsrepr = property(lambda self: self._request_dict.get("argsrepr", ""))
    kwargsrepr = property(lambda self: self._request_dict.get("kwargsrepr", ""))
    group = property(lambda self: self._request_dict.get("group"))
    group_index = property(lambda self: self._request_dict.get("group_index"))
    stamps = property(
        lambda self: (
            {
                name: self._request_dict["stamps"].get(name)
                for name in self._request_dict.get("stamped_headers") or ()
            }
            if self._request_dict.get("stamps")
            else {}
        )
    )
    stamped_headers = property(lambda self: self._request_dict.get("stamped_headers") or [])
    replaced_task_nesting = property(lambda self: self._request_dict.get("replaced_task_nesting", 0))
    groups = property(lambda self: self._request_dict.get("groups", []))
    reply_to = property(lambda self: self._request_dict.get("reply_to"))
    correlation_id = property(lambda self: self._request_dict.get("correlation_id"))
    args = property(lambda self: self._payload[0])
    kwargs = property(lambda self: self._payload[1])
    chord = property(lambda self: (self._payload[2] or {}).get("chord"))
    errbacks = property(lambda self: (self._payload[2] or {}).get("errbacks"))

    @property
    def eventer(self) -> Any:
        """Sends events, if any."""
        return self._eventer

    @eventer.setter
    def eventer(self, eventer: Any) -> None:
        self._eventer = eventer

    @property
    def tzlocal(self) -> Any:
        """The zone of times without an offset."""
        if self._tzlocal is None:
            self._tzlocal = timezone.utc if self._utc else self._app.timezone
        return self._tzlocal

    @property
    def store_errors(self) -> bool:
        """Are failures stored?"""
        return not self.task.ignore_result or bool(self.task.store_errors_even_if_ignored)

    @property
    def _context(self) -> Context:
        """What the task would see as its request."""
        try:
            args, kwargs, embed = codec.split_call(self._payload)
        except Exception:  # noqa: BLE001 a body that cannot be read must not hide the error being stored
            args, kwargs, embed = (), {}, {}
        return Context({**self._request_dict, "args": args, "kwargs": kwargs, **embed})

    # --- running it, for tasks that handle their own messages ------------------------------

    def execute_using_pool(self, pool: BasePool, **kwargs: Any) -> Any:
        """Have the pool run the task.

        Raises:
            TaskRevokedError: it was revoked or has expired.
        """
        if self.revoked():
            raise TaskRevokedError(self.id)
        hard, soft = self.time_limits
        task = self.task
        trace = fast_trace_task if self._app.use_fast_trace_task else trace_task_ret
        result = pool.apply_async(
            trace,
            args=(
                self._type,
                self.id,
                self._request_dict,
                self._body,
                self._content_type,
                self._content_encoding,
            ),
            accept_callback=self.on_accepted,
            timeout_callback=self.on_timeout,
            callback=self.on_success,
            error_callback=self.on_failure,
            soft_timeout=soft or task.soft_time_limit,
            timeout=hard or task.time_limit,
            correlation_id=self.id,
        )
        self._apply_result = maybe(ref, result)
        return result

    def execute(self, loglevel: int | None = None, logfile: str | None = None) -> Any:
        """Run the task here, in this process."""
        if self.revoked():
            return None
        if not self.task.acks_late:
            self.acknowledge()
        args, kwargs, embed = self._payload
        request = {
            **self._request_dict,
            "loglevel": loglevel,
            "logfile": logfile,
            "is_eager": False,
            "args": args,
            "kwargs": kwargs,
            **(embed or {}),
        }
        ended = trace_task(
            self.task,
            self.id,
            args,
            kwargs,
            request,
            hostname=self._hostname,
            loader=self._app.loader,
            app=self._app,
        )
        value = ended.retval
        if isinstance(value, ExceptionInfo):
            self.reject(requeue=False) if isinstance(value.exception, Reject) else self.acknowledge()
        else:
            self.acknowledge()
        return value

    def maybe_expire(self) -> bool:
        """If its time is over, mark it as revoked; returns whether it is."""
        if self._expires is not None and datetime.now(self._expires.tzinfo) >= self._expires:
            state.revoked.add(self.id)
            return True
        return False

    def revoked(self) -> bool:
        """Must it not run?  Says so in the store, the log and the events, once."""
        if self._already_revoked:
            return True
        expired = self.maybe_expire()
        if (
            expired
            or self.id in state.revoked
            or is_revoked_by_stamp(self._request_dict, state.revoked_stamps)
        ):
            logger.info("Discarding revoked task: %s[%s]", self.name, self.id)
            self._announce_revoked("expired" if expired else "revoked", False, None, expired)
            self.acknowledge()
            self._already_revoked = True
            return True
        return False

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the run with a process signal, now or as soon as it begins."""
        number = signal_number(signal)
        if self.time_start:
            pool.terminate_job(self.worker_pid, number)
            self._announce_revoked("terminated", True, number, False)
        else:
            self._terminate_on_ack = pool, number

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """End the run without calling it revoked: its message will be given out again."""
        number = signal_number(signal)
        flight = next((each for each in state.flights.values() if each._request is self), None)
        if flight is not None:
            pool.kill(flight.seq, number)
        elif self.time_start:
            pool.terminate_job(self.worker_pid, number)
        if emit_retry and not self._already_cancelled:
            reason = Retry(exc=TaskRevokedError("cancelled by Celery"))
            self.task.backend.mark_as_retry(self.id, reason.exc, "", request=self._context)
            self.send_event("task-retried", exception=saferepr(reason), traceback="")
        self._already_cancelled = True
        self.send_event("task-cancelled")

    def _announce_revoked(self, reason: str, terminated: bool, signum: int | None, expired: bool) -> None:
        state.task_ready(self)
        name = None if signum is None else process_signals.Signals(signum).name
        self.send_event("task-revoked", terminated=terminated, signum=name, expired=expired)
        context = self._context
        self.task.backend.mark_as_revoked(self.id, reason, request=context, store_result=self.store_errors)
        signals.task_revoked.send(
            sender=self.task, request=context, terminated=terminated, signum=signum, expired=expired
        )

    # --- what the pool tells --------------------------------------------------------------

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A process has begun it; *time_accepted* is monotonic."""
        self.worker_pid = pid
        self.time_start = time.time() - (time.monotonic() - time_accepted)
        state.task_accepted(self)
        if settle_on_begin(self._rule) is Settle.ACK:
            self.acknowledge()
        self.send_event("task-started")
        if self._terminate_on_ack is not None:
            self.terminate(*self._terminate_on_ack)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit was reached."""
        if soft:
            logger.warning("Soft time limit (%ss) exceeded for %s[%s]", timeout, self.name, self.id)
            return
        state.task_ready(self)
        logger.error("Hard time limit (%ss) exceeded for %s[%s]", timeout, self.name, self.id)
        error = TimeLimitExceeded(timeout)
        self.task.backend.mark_as_failure(
            self.id, error, request=self._context, store_result=self.store_errors
        )
        self._settle(settle_on_timeout(self._rule))

    def on_success(self, failed__retval__runtime: tuple[Any, Any, Any], **kwargs: Any) -> Any:
        """The run came to its end in its process, well or not."""
        failed, value, runtime = failed__retval__runtime
        if failed:
            error = value.exception
            if isinstance(error, ExceptionWithTraceback):
                error = error.exc
            if isinstance(error, (SystemExit, KeyboardInterrupt)):
                raise error
            return self.on_failure(value, return_ok=True)
        state.task_ready(self, successful=True)
        if self.task.acks_late:
            self.acknowledge()
        self.send_event("task-succeeded", result=value, runtime=runtime)
        return None

    def on_retry(self, exc_info: Any) -> None:
        """The run ended in a retry."""
        if self.task.acks_late:
            self.acknowledge()
        self.send_event(
            "task-retried", exception=saferepr(exc_info.exception.exc), traceback=exc_info.traceback or ""
        )

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """The run failed, or its process died."""
        state.task_ready(self)
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, MemoryError):
            raise MemoryError(f"Process got: {error}")
        if isinstance(error, Reject):
            return self.reject(requeue=error.requeue)
        if isinstance(error, Ignore):
            return self.acknowledge()
        if isinstance(error, Retry):
            return self.on_retry(exc_info)
        lost = isinstance(error, (WorkerLostError, Terminated))
        if lost:
            how = settle_on_loss(self._rule)
            requeued = how is Settle.REQUEUE
            self._settle(how)
            if requeued:
                self.send_event("task-rejected", requeue=True)
                return None
        elif self.task.acks_late:
            self._settle(Settle.ACK if self._rule.ack_on_failure else Settle.DROP)
        if not return_ok:
            # The process could not tell the store itself.
            self.task.backend.mark_as_failure(
                self.id, error, request=self._context, store_result=self.store_errors
            )
            signals.task_failure.send(
                sender=self.task,
                task_id=self.id,
                exception=error,
                args=self.args,
                kwargs=self.kwargs,
                traceback=exc_info.traceback,
                einfo=exc_info,
            )
            logger.error(
                "Task handler raised error: %r", error, extra={"data": {"id": self.id, "name": self.name}}
            )
        if send_failed_event:
            self.send_event("task-failed", exception=saferepr(error), traceback=exc_info.traceback)
        return None

    # --- settling ---------------------------------------------------------------------------

    def acknowledge(self) -> None:
        """Settle the message as done; once."""
        if not self.acknowledged:
            self._on_ack(logger, self._connection_errors)
            self.acknowledged = True

    def reject(self, requeue: bool = False) -> None:
        """Give the message up, or back; once."""
        if not self.acknowledged:
            self._on_reject(logger, self._connection_errors, requeue)
            self.acknowledged = True
            self.send_event("task-rejected", requeue=requeue)

    def _settle(self, how: Settle) -> None:
        if how is Settle.ACK:
            self.acknowledge()
        elif how is not Settle.NONE:
            self.reject(requeue=how is Settle.REQUEUE)

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event about this task, if anybody listens."""
        if self._eventer and self._eventer.enabled and self.task.send_events:
            self._eventer.send(type, uuid=self.id, **fields)

    # --- for people -------------------------------------------------------------------------

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What ``inspect`` shows; with *safe* the reprs that were sent instead of the arguments themselves."""
        return {
            "id": self.id,
            "name": self.name,
            "args": self.argsrepr if safe else self.args,
            "kwargs": self.kwargsrepr if safe else self.kwargs,
            "type": self._type,
            "hostname": self._hostname,
            "time_start": self.time_start,
            "acknowledged": self.acknowledged,
            "delivery_info": self.delivery_info,
            "worker_pid": self.worker_pid,
        }

    def humaninfo(self) -> str:
        """Name and id."""
        return f"{self.name}[{self.id}]"

    def __str__(self) -> str:
        parts = [
            self.humaninfo(),
            f" ETA:[{self._eta}]" if self._eta else "",
            f" expires:[{self._expires}]" if self._expires else "",
        ]
        return "".join(parts).strip()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.humaninfo()} {self.argsrepr} {self.kwargsrepr}>"


def signal_number(signal: Any) -> int:
    """A process signal by name, with or without ``SIG``, or by number; TERM when missing."""
    if isinstance(signal, int):
        return int(signal)
    name = str(signal or TERMINATE_SIGNAL).upper()
    return int(process_signals.Signals[name if name.startswith("SIG") else f"SIG{name}"])


def create_request_cls(
    base: type[Request],
    task: Any,
    pool: Any,
    hostname: str | None,
    eventer: Any,
    trace: Any = None,
    app: Any = None,
) -> type[Request]:
    """A subclass of *base* for the requests of one task, which knows its pool and limits already."""
    soft_default, hard_default = task.soft_time_limit, task.time_limit
    trace = trace or fast_trace_task

    class TaskRequest(base):  # type: ignore[misc, valid-type]  # the base is chosen at run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.setdefault("task", task)
            kwargs.setdefault("app", task.app)
            super().__init__(*args, **kwargs)

        def execute_using_pool(self, pool: Any, **kwargs: Any) -> Any:
            if (self.expires or self.id in state.revoked or state.revoked_stamps) and self.revoked():
                raise TaskRevokedError(self.id)
            hard, soft = self.time_limits
            result = pool.apply_async(
                trace,
                args=(
                    self.type,
                    self.id,
                    self.request_dict,
                    self.body,
                    self.content_type,
                    self.content_encoding,
                ),
                accept_callback=self.on_accepted,
                timeout_callback=self.on_timeout,
                callback=self.on_success,
                error_callback=self.on_failure,
                soft_timeout=soft or soft_default,
                timeout=hard or hard_default,
                correlation_id=self.id,
            )
            self._apply_result = maybe(ref, result)
            return result

    return TaskRequest
