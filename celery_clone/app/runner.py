"""Runs jobs in a pool's process: from what travelled to an outcome.

Made by ``worker.components`` in the parent and called by the pool where tasks run; the one place
that decodes a task message.  It owns the buffer of unsent results of its process.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from kombu.exceptions import ContentDisallowed, DecodeError

from celery_clone.exceptions import InvalidTaskError, Reject, WorkerLostError, WorkerTerminate
from celery_clone.execution.context import Context
from celery_clone.execution.outcome import Outcome
from celery_clone.message import codec, protocol
from celery_clone.message.envelope import Envelope, Parts
from celery_clone.message.frames import WANT_SUMMARY, Ended, Job, Returned, Unfit
from celery_clone.states import FAILURE, REJECTED
from celery_clone.utils.functional import is_coroutine_function
from celery_clone.utils.log import get_logger
from celery_clone.utils.saferepr import saferepr

from . import trace

__all__ = ("Call", "TaskRunner", "read_call")

logger = get_logger("celery.app.trace")

DELIVERY_INFO = ("exchange", "routing_key", "priority", "redelivered")


def read_call(
    parts: Parts, accept: Collection[str] | None
) -> tuple[dict[str, Any], Any, dict[str, Any], dict[str, Any]]:
    """``(headers, args, kwargs, embed)`` of a message of any protocol.

    Raises:
        kombu.exceptions.DecodeError, kombu.exceptions.ContentDisallowed, InvalidTaskError: why not.
    """
    headers = parts.headers
    data = codec.uncompressed(parts.body, headers)
    body = codec.loads(data, parts.content_type, parts.content_encoding, accept)
    if "task" in headers and not isinstance(body, dict):
        # What the worker could see without decoding it did not cover all of them.
        protocol.check_headers(headers)
        args, kwargs, embed = codec.split_call(body)
        return headers, args, kwargs, embed
    incoming = protocol.to_v2(headers, parts.properties, body)
    args, kwargs, embed = codec.split_call(incoming.body)
    return incoming.headers, args, kwargs, embed


class Call(NamedTuple):
    """A message that was understood: what its tracer is given."""

    task: Any
    id: str
    args: Any
    kwargs: dict[str, Any]
    request: dict[str, Any]


class TaskRunner:
    """A ``concurrency.protocols.Runner`` for the tasks of one app.

    Results of tasks go through the backend's writer when it has one, so that the results of several
    short tasks are stored in one round trip.
    """

    def __init__(self, app: Any, hostname: str | None = None) -> None:
        self.app = app
        self.hostname = hostname or socket.gethostname()
        self._accept: Collection[str] | None = None
        self._writer: Any = None

    def prepare(self) -> None:
        """Make this process one that runs tasks of the app."""
        trace.setup_worker_optimizations(self.app, self.hostname)
        self._accept = codec.accepted(self.app.conf.accept_content)
        backend = self.app.backend
        self._writer = backend.defer_results() if hasattr(backend, "defer_results") else None

    @property
    def unsent(self) -> bool:
        """Are there results that :meth:`flush` would store?"""
        return self._writer is not None and bool(self._writer.pending)

    def flush(self) -> None:
        """Store the results that wait."""
        if self._writer is not None:
            self._writer.flush()

    def finish(self) -> None:
        """Store what waits; the process ends."""
        self.flush()

    def __call__(self, job: Job, begin: Callable[[], None]) -> Ended | Unfit | Returned:
        """Run one job.  *begin* is called when nothing but the task itself is left to do."""
        if job.call is not None:
            begin()
            return Returned(job.seq, run_call(job.call))
        call = self.understand(job)
        if isinstance(call, Unfit):
            return call
        begin()
        return Ended(job.seq, self.conclude(call, lambda: call.task.__trace__(*call[1:])).pack())

    def is_coroutine(self, name: str) -> bool:
        """Is the task of that name an ``async def``?"""
        task = self.app._tasks.get(name)
        return is_coroutine_function(getattr(task, "run", None)) or is_coroutine_function(type(task).__call__)

    @property
    def is_deferring(self) -> bool:
        """Do results wait for :meth:`flush`, so that storing one does not wait for the store?"""
        return self._writer is not None

    def understand(self, job: Job) -> Call | Unfit:
        """Decode the message of *job*."""
        try:
            parts = (
                Envelope(job.raw).parts()
                if job.raw is not None
                else Parts(*job.parts or ({}, {}, b"", None, None))
            )
            headers, args, kwargs, embed = read_call(parts, self._accept)
        except ContentDisallowed as exc:
            return Unfit(job.seq, "content", str(exc))
        except DecodeError as exc:
            return Unfit(job.seq, "undecodable", f"The message cannot be decoded: {exc}")
        except InvalidTaskError as exc:
            return Unfit(job.seq, "invalid", str(exc))
        task = self.app._tasks.get(headers["task"])
        if task is None:
            return Unfit(
                job.seq, "unknown", f"{headers['task']!r} is not registered in the process that runs tasks."
            )
        properties = parts.properties
        told = properties.get("delivery_info")
        info = told if isinstance(told, dict) else {}
        facts = job.facts or {}
        delivery_info = {
            "exchange": facts.get("exchange", info.get("exchange")),
            "routing_key": facts.get("routing_key", info.get("routing_key")),
            "priority": properties.get("priority"),
            "redelivered": bool(facts.get("redelivered", info.get("redelivered"))),
        }
        request = {
            **headers,
            **embed,
            "hostname": self.hostname,
            "is_eager": False,
            "delivery_info": delivery_info,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "properties": properties,
            "_wants_summary": bool(job.flags & WANT_SUMMARY),
        }
        if task.__trace__ is None:
            task.__trace__ = trace.build_tracer(task.name, task, hostname=self.hostname, app=task.app)
        return Call(task, headers["id"], args, kwargs, request)

    def conclude(self, call: Call, run: Callable[[], Any]) -> Outcome:
        """What became of *call*, by what its tracer, called by *run*, returns or raises."""
        try:
            return trace.outcome_of(run())
        except Reject as exc:
            return Outcome(REJECTED, saferepr(exc), requeue=bool(exc.requeue))
        except WorkerTerminate:
            raise  # the process was told to end: what becomes of the message is for the worker to say
        except (SystemExit, KeyboardInterrupt) as exc:
            # The process ends with it, and nobody else would tell who waits for the result.
            lost = WorkerLostError(f"Worker exited prematurely: the task raised {exc!r}.")
            request = Context({**call.request, "args": call.args, "kwargs": call.kwargs})
            call.task.backend.mark_as_failure(call.id, lost, request=request)
            self.flush()
            raise
        except Exception as exc:
            logger.exception("Task %s[%s]: its result could not be handled: %r", call.task.name, call.id, exc)
            return Outcome(FAILURE, saferepr(exc))


def run_call(pickled: bytes) -> bytes:
    """Run a plain call that the parent sent: a pickled ``(ok, value or error)``."""
    try:
        target, args, kwargs = pickle.loads(pickled)
        answer = (True, target(*args, **kwargs))
    except Exception as exc:  # noqa: BLE001 the caller gets it as a value
        answer = (False, exc)
    try:
        return pickle.dumps(answer)
    except Exception as exc:  # noqa: BLE001 any user class may refuse
        return pickle.dumps((False, RuntimeError(f"The outcome {answer[1]!r} cannot be pickled: {exc!r}")))
