"""What happens around the user's function: one tracer per task, and the runner of jobs.

``build_tracer`` is called by the app for each task, its closure by the runner (in a pool's
process), by eager calls and by instrumentation that replaces it.  The tracer may assume nothing
about where it runs: stores, callbacks and signals are reached through the task and the app.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from kombu.exceptions import EncodeError

from celery_clone import signals, states
from celery_clone._state import _task_stack, current_app
from celery_clone.canvas import group, maybe_signature
from celery_clone.exceptions import (
    BackendGetMetaError,
    Ignore,
    InvalidTaskError,
    OperationalError,
    Reject,
    Retry,
)
from celery_clone.execution.context import Context
from celery_clone.execution.outcome import ErrorInfo, Outcome
from celery_clone.loaders.base import BaseLoader
from celery_clone.message import codec
from celery_clone.utils import coroutines
from celery_clone.utils.collections import LimitedSet
from celery_clone.utils.log import get_logger
from celery_clone.utils.objects import mro_lookup
from celery_clone.utils.saferepr import saferepr
from celery_clone.utils.serialization import (
    get_pickleable_etype,
    get_pickleable_exception,
    get_pickled_exception,
)

from .task import Task as BaseTask
from .task import actual_ignore_result

if TYPE_CHECKING:
    from types import TracebackType

__all__ = (
    "TraceInfo",
    "build_tracer",
    "reset_worker_optimizations",
    "setup_worker_optimizations",
    "trace_task",
)

logger = get_logger("celery.app.trace")

LOG_RECEIVED = "Task %(name)s[%(id)s] received"
LOG_SUCCESS = "Task %(name)s[%(id)s] succeeded in %(runtime)ss: %(return_value)s"
LOG_FAILURE = "Task %(name)s[%(id)s] %(description)s: %(exc)s"
LOG_INTERNAL_ERROR = "Task %(name)s[%(id)s] %(description)s: %(exc)s"
LOG_IGNORED = "Task %(name)s[%(id)s] %(description)s"
LOG_REJECTED = "Task %(name)s[%(id)s] %(exc)s"
LOG_RETRY = "Task %(name)s[%(id)s] retry: %(exc)s"


class LogPolicy(NamedTuple):
    """How an error of a task is logged."""

    format: str
    description: str
    severity: int
    traceback: bool


POLICY_REJECT = LogPolicy(LOG_REJECTED, "rejected", logging.WARNING, True)
POLICY_IGNORE = LogPolicy(LOG_IGNORED, "ignored", logging.INFO, False)
POLICY_INTERNAL = LogPolicy(LOG_INTERNAL_ERROR, "INTERNAL ERROR", logging.CRITICAL, True)
POLICY_EXPECTED = LogPolicy(LOG_FAILURE, "raised expected", logging.INFO, False)
POLICY_UNEXPECTED = LogPolicy(LOG_FAILURE, "raised unexpected", logging.ERROR, True)

IGNORE_STATES = frozenset({states.IGNORED, states.RETRY, states.REJECTED})
"""Ends of a run that are not the end of the call: no ``after_return`` for them."""

SUCCESSFUL_MAX = int(os.environ.get("CELERY_WORKER_SUCCESSFUL_MAX", 1000))
SUCCESSFUL_EXPIRES = float(os.environ.get("CELERY_WORKER_SUCCESSFUL_EXPIRES", 10800))
successful_requests = LimitedSet(maxlen=SUCCESSFUL_MAX, expires=SUCCESSFUL_EXPIRES)
"""Ids known to have succeeded; a redelivered message of one of them is not run again."""


class trace_ok_t(NamedTuple):
    """What a tracer returns."""

    retval: Any
    info: Any
    runtime: float | None
    retstr: str | None


def log_policy(task: Any, error: Any, exc: BaseException | None) -> LogPolicy:
    """How this error of *task* is logged."""
    if isinstance(exc, Reject):
        return POLICY_REJECT
    if isinstance(exc, Ignore):
        return POLICY_IGNORE
    if error.internal:
        return POLICY_INTERNAL
    if task.throws and isinstance(exc, task.throws):
        return POLICY_EXPECTED
    return POLICY_UNEXPECTED


def display_name(request: Any, default: str) -> str:
    """The name to show for a run: its shadow, else the task's."""
    return getattr(request, "shadow", None) or default


def task_has_custom(task: Any, attr: str) -> Any:
    """Does the class of *task* override *attr* of the base class?"""
    return mro_lookup(task.__class__, attr, stop={BaseTask, object}, monkey_patched=["celery_clone.app.task"])


def clear_frames(error: BaseException | None) -> None:
    """Let go of the local variables that a traceback keeps alive.

    Without it a worker holds the last failing task's data until the next failure.
    """
    traceback = error.__traceback__ if error is not None else sys.exc_info()[2]
    while traceback is not None:
        try:
            traceback.tb_frame.clear()
        except RuntimeError:
            pass  # the frame is still executing: nothing to free yet
        traceback = traceback.tb_next


class TraceInfo:
    """How a run ended that did not succeed: its state and the error."""

    __slots__ = ("retval", "state")

    def __init__(self, state: str, retval: Any = None) -> None:
        self.state = state
        self.retval = retval

    def handle_error_state(self, task: Any, req: Any, eager: bool = False, call_errbacks: bool = True) -> Any:
        """Store and announce a failure or a retry; returns its ``ExceptionInfo``."""
        if actual_ignore_result(task, req):
            store_errors = bool(task.store_errors_even_if_ignored)
        else:
            store_errors = not eager or bool(task.store_eager_result)
        handle = self.handle_retry if self.state == states.RETRY else self.handle_failure
        return handle(task, req, store_errors=store_errors, call_errbacks=call_errbacks)

    def handle_reject(self, task: Any, req: Any, **kwargs: Any) -> None:
        """Log that the run rejected its message."""
        self._log_error(task, req, ExceptionInfo())

    def handle_ignore(self, task: Any, req: Any, **kwargs: Any) -> None:
        """Log that the run asked to be ignored."""
        self._log_error(task, req, ExceptionInfo())

    def handle_retry(self, task: Any, req: Any, store_errors: bool = True, **kwargs: Any) -> Any:
        """Store the state RETRY, call ``on_retry``, send ``task_retry``, log."""
        reason = self.retval
        error = ExceptionInfo((type(reason), reason, reason.__traceback__))
        if store_errors:
            task.backend.mark_as_retry(req.id, reason.exc, error.traceback, request=req)
        task.on_retry(reason.exc, req.id, req.args, req.kwargs, error)
        signals.task_retry.send(sender=task, request=req, reason=reason, einfo=error)
        context = {"id": req.id, "name": display_name(req, task.name), "exc": str(reason)}
        logger.info(LOG_RETRY, context, extra={"data": context})
        return error

    def handle_failure(
        self, task: Any, req: Any, store_errors: bool = True, call_errbacks: bool = True
    ) -> Any:
        """Store the state FAILURE, call errbacks and ``on_failure``, send ``task_failure``, log."""
        original = self.retval
        exc = get_pickleable_exception(original)
        if exc.__traceback__ is None:
            # A replacement for one that cannot be pickled is new and was never raised.
            exc.__traceback__ = original.__traceback__
        error = ExceptionInfo((get_pickleable_etype(type(original)), exc, exc.__traceback__))
        task.backend.mark_as_failure(
            req.id, exc, error.traceback, request=req, store_result=store_errors, call_errbacks=call_errbacks
        )
        task.on_failure(exc, req.id, req.args, req.kwargs, error)
        signals.task_failure.send(
            sender=task,
            task_id=req.id,
            exception=exc,
            args=req.args,
            kwargs=req.kwargs,
            traceback=exc.__traceback__,
            einfo=error,
        )
        self._log_error(task, req, error)
        return error

    def _log_error(self, task: Any, req: Any, error: Any) -> None:
        exception = get_pickled_exception(error.exception)
        if isinstance(exception, ExceptionWithTraceback):
            exception = exception.exc
        error.exception = exception
        policy = log_policy(task, error, exception)
        context = {
            "hostname": req.hostname,
            "id": req.id,
            "name": display_name(req, task.name),
            "exc": saferepr(exception),
            "traceback": error.traceback,
            "args": req.get("argsrepr") or saferepr(req.args),
            "kwargs": req.get("kwargsrepr") or saferepr(req.kwargs),
            "description": policy.description,
            "internal": error.internal,
        }
        logger.log(
            policy.severity,
            policy.format,
            context,
            exc_info=error.exc_info if policy.traceback else None,
            extra={"data": context},
        )


def send_followers(app: Any, value: Any, request: Any, root_id: str, priority: Any) -> None:
    """Send the callbacks of a finished run, then the next step of its chain.

    Before the result is stored, so that whoever sees the result finds its children.
    """
    options = {"parent_id": request.id, "root_id": root_id, "priority": priority}
    plain = []
    for callback in request.callbacks or ():
        callback = maybe_signature(callback, app=app)
        if isinstance(callback, group):
            callback.apply_async((value,), **options)
        else:
            plain.append(callback)
    if len(plain) == 1:
        plain[0].apply_async((value,), **options)
    elif plain:
        group(plain, app=app).apply_async((value,), **options)
    if request.chain:
        following = maybe_signature(request.chain[-1], app=app)
        following.apply_async((value,), chain=request.chain[:-1], **options)


class Steps(NamedTuple):
    """A tracer in parts, for pools that call the body of a task in their own way.

    ``open(uuid, args, kwargs, request)`` makes a generator: advanced once, it does what comes before the body and
    gives the request, or ends, if there is nothing to run.  It is then sent what *body* returned or
    thrown what that raised, does what comes after, and returns what a tracer returns.
    """

    open: Callable[..., Generator[Context, Any, Any]]
    body: Callable[..., Any]
    begins_quietly: Callable[[], bool]
    """Does nothing before the body of this task wait for anybody, as things are now?"""
    ends_quietly: Callable[[Context], bool]
    """Does nothing after a success wait for anybody but the result store?"""


def build_tracer(
    name: str,
    task: Any,
    loader: Any = None,
    hostname: str | None = None,
    store_errors: bool = True,
    Info: type[TraceInfo] = TraceInfo,  # noqa: N803 public name
    eager: bool = False,
    propagate: bool = False,
    app: Any = None,
    monotonic: Callable[[], float] = time.monotonic,
    trace_ok_t: type[trace_ok_t] = trace_ok_t,
    IGNORE_STATES: frozenset[str] = IGNORE_STATES,  # noqa: N803 public name
) -> Callable[..., trace_ok_t]:
    """Return the function ``(uuid, args, kwargs, request) -> trace_ok_t`` that runs *task*.

    What depends on the task alone is looked up here, once.  With *eager* nothing is stored unless
    the task says so; with *propagate* errors of the body are raised.
    """
    body = task if task_has_custom(task, "__call__") else task.run
    loader = loader or app.loader
    conf = app.conf
    hostname = hostname or socket.gethostname()
    deduplicate = bool(
        (conf.task_acks_late or task.acks_late)
        and conf.worker_deduplicate_successful_tasks
        and app.backend.persistent
    )
    inherit_priority = conf.task_inherit_parent_priority
    before_start = task.before_start if task_has_custom(task, "before_start") else None
    on_success = task.on_success if task_has_custom(task, "on_success") else None
    after_return = task.after_return if task_has_custom(task, "after_return") else None
    # The base class of loaders does nothing here; asking costs less than calling.
    on_task_init, on_process_cleanup = loader.on_task_init, loader.on_process_cleanup
    has_init = getattr(type(loader), "on_task_init", None) is not BaseLoader.on_task_init
    has_cleanup = getattr(type(loader), "on_process_cleanup", None) is not BaseLoader.on_process_cleanup
    process_id = os.getpid()
    request_stack = task.request_stack
    summary_size = task.resultrepr_maxsize
    logs_success = logger.isEnabledFor(logging.INFO)
    prerun, postrun, success = signals.task_prerun, signals.task_postrun, signals.task_success

    def fail(
        request: Context, exc: BaseException, state: str = states.FAILURE, call_errbacks: bool = True
    ) -> Any:
        if propagate:
            raise exc
        info = Info(state, exc)
        error = info.handle_error_state(task, request, eager=eager, call_errbacks=call_errbacks)
        return info, error

    def guarded(handler: Callable[..., Any], what: str, request: Context, *args: Any) -> None:
        # The outcome is stored by now.  A second one would call errbacks for a task that succeeded.
        try:
            handler(*args)
        except (Reject, MemoryError):
            raise
        except Exception as exc:
            if eager:
                raise
            logger.exception(
                "Task %s[%s] %s handler raised: %r", display_name(request, name), request.id, what, exc
            )
            clear_frames(exc)

    def already_succeeded(request: Context) -> bool:
        """Was this redelivered call finished before?  If its followers were not sent, sends them."""
        if request.id in successful_requests:
            return True
        result = app.AsyncResult(request.id)
        try:
            meta = result._get_task_meta()
        except BackendGetMetaError:
            return False
        if meta.get("status") != states.SUCCESS:
            return False
        context = {
            "id": request.id,
            "name": display_name(request, name),
            "description": "Task already completed successfully.",
        }
        logger.info(LOG_IGNORED, context, extra={"data": context})
        if (request.callbacks or request.chain) and not meta.get("children"):
            priority = (request.delivery_info or {}).get("priority") if inherit_priority else None
            try:
                send_followers(
                    app, meta.get("result"), request, request.root_id or request.id or "", priority
                )
            except MemoryError:
                raise
            except Exception as exc:
                logger.exception("Failed to dispatch chain/callbacks for deduplicated task %s", request.id)
                raise Reject(exc, requeue=True) from exc
        successful_requests.add(request.id)
        return True

    def run_steps(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Generator[Context, Any, Any]:
        info = error = None
        value: Any = None
        state: str | None = None
        runtime: float | None = None
        summary: str | None = None
        context: Context | None = None
        started = monotonic()
        try:
            if not isinstance(kwargs, Mapping):
                raise InvalidTaskError("Task keyword arguments is not a mapping")
            context = Context(request or {}, args=args, called_directly=False, kwargs=kwargs)
            ignored = actual_ignore_result(task, context)
            delivery_info = context.delivery_info or {}
            if deduplicate and delivery_info.get("redelivered") and already_succeeded(context):
                return trace_ok_t(None, None, None, None)
            _task_stack.push(task)
            request_stack.push(context)
            root_id = context.root_id or uuid
            priority = delivery_info.get("priority") if inherit_priority else None
            try:
                if prerun.receivers:
                    prerun.send(sender=task, task_id=uuid, task=task, args=args, kwargs=kwargs)
                on_task_init(uuid, task)
                if task.track_started and not ignored and not eager:
                    task.backend.store_result(
                        uuid, {"pid": process_id, "hostname": hostname}, states.STARTED, request=context
                    )
                try:
                    if before_start is not None:
                        before_start(uuid, args, kwargs)
                    value = yield context
                    state = states.SUCCESS
                except (Reject, Ignore) as exc:
                    rejected = isinstance(exc, Reject)
                    state, value = (states.REJECTED if rejected else states.IGNORED), exc
                    info, error = Info(state, exc), ExceptionInfo(internal=True)
                    (info.handle_reject if rejected else info.handle_ignore)(task, context)
                    clear_frames(exc)
                except Retry as exc:
                    info, error = fail(context, exc, states.RETRY, call_errbacks=False)
                    state, value = info.state, info.retval
                    clear_frames(exc)
                except Exception as exc:  # noqa: BLE001 this is where users' errors end up
                    info, error = fail(context, exc)
                    state, value = info.state, info.retval
                    clear_frames(exc)
                else:
                    followers_sent = False
                    try:
                        if context.callbacks or context.chain:
                            send_followers(app, value, context, root_id, priority)
                        followers_sent = True
                        task.backend.mark_as_done(
                            uuid, value, context, not ignored and (not eager or bool(task.store_eager_result))
                        )
                    except (EncodeError, OperationalError) as exc:
                        if followers_sent and isinstance(exc, OperationalError):
                            raise
                        info, error = fail(context, exc)
                        state, value = info.state, info.retval
                        clear_frames(exc)
                    else:
                        runtime = monotonic() - started
                        if logs_success or context._wants_summary:
                            summary = saferepr(value, summary_size)
                        if on_success is not None:
                            guarded(on_success, "on_success", context, value, uuid, args, kwargs)
                        if success.receivers:
                            success.send(sender=task, result=value, runtime=runtime)
                        if logs_success:
                            fields = {
                                "id": uuid,
                                "name": display_name(context, name),
                                "return_value": summary,
                                "runtime": runtime,
                                "args": context.get("argsrepr") or saferepr(args),
                                "kwargs": context.get("kwargsrepr") or saferepr(kwargs),
                            }
                            logger.info(LOG_SUCCESS, fields, extra={"data": fields})
                if after_return is not None and state not in IGNORE_STATES:
                    guarded(after_return, "after_return", context, state, value, uuid, args, kwargs, None)
            finally:
                try:
                    if postrun.receivers:
                        postrun.send(
                            sender=task,
                            task_id=uuid,
                            task=task,
                            args=args,
                            kwargs=kwargs,
                            retval=value,
                            state=state,
                        )
                finally:
                    _task_stack.pop()
                    request_stack.pop()
                    if not eager:
                        try:
                            task.backend.process_cleanup()
                            on_process_cleanup()
                        except MemoryError:
                            raise
                        except Exception as exc:
                            logger.error("Process cleanup failed: %r", exc, exc_info=True)
        except (MemoryError, Reject):
            raise
        except Exception as exc:
            announce_internal_error(task, uuid, args, kwargs, request, exc)
            if eager:
                raise
            error = report_internal_error(task, exc)
            if context is not None:
                info, _ = fail(context, exc)
        return trace_ok_t(value if error is None else error, info, runtime, summary)

    def trace_task(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        steps: Any = run_steps(uuid, args, kwargs, request)
        try:
            try:
                next(steps)
                value = body(*args, **kwargs)
                if type(value) is CoroutineType:
                    ok, value = coroutines.outcome_of(value)
                    if not ok:
                        steps.throw(value)
            except BaseException as exc:
                if steps.gi_frame is None:
                    raise  # of the steps, which have ended
                # What is shown begins with the steps and goes on with the body.
                steps.throw(exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next))
            steps.send(value)
        except StopIteration as end:
            return end.value
        except BaseException as exc:
            if steps.gi_frame is None:
                raise
            # A signal between the lines above: the task has not ended, and must.
            try:
                steps.throw(exc)
            except StopIteration as end:
                return end.value
        raise RuntimeError(f"The steps of task {name} did not end.")

    def begins_quietly() -> bool:
        return not (prerun.receivers or before_start is not None or task.track_started or deduplicate or has_init)

    def ends_quietly(context: Context) -> bool:
        return not (
            context.callbacks
            or context.chain
            or context.chord
            or success.receivers
            or postrun.receivers
            or on_success is not None
            or after_return is not None
            or has_cleanup
        )

    trace_task.steps = Steps(run_steps, body, begins_quietly, ends_quietly)  # type: ignore[attr-defined]
    return trace_task


def announce_internal_error(
    task: Any, uuid: str, args: Any, kwargs: Any, request: Any, exc: BaseException
) -> None:
    """Send ``task_internal_error`` for an error outside the task's body."""
    traceback: TracebackType | None = exc.__traceback__
    error = ExceptionInfo((type(exc), exc, traceback))
    error.exception = get_pickleable_exception(exc)
    error.type = get_pickleable_etype(type(exc))
    signals.task_internal_error.send(
        sender=task,
        task_id=uuid,
        args=args,
        kwargs=kwargs,
        request=request,
        exception=exc,
        traceback=traceback,
        einfo=error,
    )


def report_internal_error(task: Any, exc: BaseException) -> Any:
    """Warn of an error outside the task's body; returns its ``ExceptionInfo``."""
    value = task.backend.prepare_exception(exc, "pickle")
    error = ExceptionInfo((type(exc), value, exc.__traceback__), internal=True)
    warnings.warn(RuntimeWarning(f"Exception raised outside body: {exc!r}:\n{error.traceback}"), stacklevel=2)
    return error


def trace_task(task: Any, uuid: str, args: Any, kwargs: Any, request: Any = None, **opts: Any) -> Any:
    """Run *task* through its tracer, which is built when it is missing."""
    request = request or {}
    try:
        if task.__trace__ is None:
            task.__trace__ = build_tracer(task.name, task, **opts)
        return task.__trace__(uuid, args, kwargs, request)
    except Reject:
        raise
    except Exception as exc:  # noqa: BLE001 the tracer itself failed; the caller gets it as a value
        announce_internal_error(task, uuid, args, kwargs, request, exc)
        return trace_ok_t(report_internal_error(task, exc), TraceInfo(states.FAILURE, exc), 0.0, None)


def run_eagerly(
    app: Any, task: Any, uuid: str, args: Any, kwargs: Any, request: Mapping[str, Any], *, propagate: bool
) -> tuple[Any, str, str | None]:
    """Run *task* in this process; returns (value or error, state, traceback text)."""
    tracer = build_tracer(task.name, task, eager=True, propagate=propagate, app=app)
    ended = tracer(uuid, args, kwargs, request)
    value, traceback = ended.retval, None
    if isinstance(value, ExceptionInfo):
        value, traceback = value.exception, value.traceback
        if isinstance(value, ExceptionWithTraceback):
            value = value.exc
    return value, states.SUCCESS if ended.info is None else ended.info.state, traceback


# --- the worker's side -----------------------------------------------------

_localized: list[Any] = []
"""(tasks, accepted content types, host name) of the app that this process works for."""


def setup_worker_optimizations(app: Any, hostname: str | None = None) -> None:
    """Make *app* the one app of this process and evaluate its tasks.

    New threads start without a current app; making it the default one too serves them all.
    """
    app.set_current()
    app.set_default()
    app.finalize()
    accept = codec.accepted(app.conf.accept_content)
    _localized[:] = [app._tasks, accept, hostname or socket.gethostname()]
    app.use_fast_trace_task = True


def reset_worker_optimizations(app: Any = current_app) -> None:
    """Undo :func:`setup_worker_optimizations`."""
    _localized.clear()
    app.use_fast_trace_task = False


def trace_task_ret(
    name: str,
    uuid: str,
    request: dict[str, Any],
    body: Any,
    content_type: str | None,
    content_encoding: str | None,
    loads: Any = codec.loads,
    app: Any = None,
    **extra_request: Any,
) -> tuple[int, Any, float | None]:
    """Decode *body* and run the task *name* of *app*: ``(failed, value or summary, seconds)``."""
    app = app or current_app._get_current_object()
    accept = codec.accepted(app.conf.accept_content)
    args, kwargs, embed = loads(body, content_type, content_encoding, accept=accept) if content_type else body
    request.update({"args": args, "kwargs": kwargs, "hostname": socket.gethostname(), "is_eager": False})
    request.update(embed or {})
    ended = trace_task(app.tasks[name], uuid, args, kwargs, request, app=app)
    return (1, ended.retval, ended.runtime) if ended.info else (0, ended.retstr, ended.runtime)


def fast_trace_task(
    task: str,
    uuid: str,
    request: dict[str, Any],
    body: Any,
    content_type: str | None,
    content_encoding: str | None,
    loads: Any = codec.loads,
    _loc: Any = None,
    hostname: str | None = None,
    **_: Any,
) -> tuple[int, Any, float | None]:
    """As :func:`trace_task_ret`, with what :func:`setup_worker_optimizations` prepared."""
    prepared = _loc or _localized
    if len(prepared) != 3:
        raise RuntimeError(
            "fast_trace_task: this process was not prepared to run tasks: setup_worker_optimizations() never ran "
            "in it. It was probably spawned rather than forked; use trace_task_ret, or the solo or threads pool."
        )
    tasks, accept, own_hostname = prepared
    args, kwargs, embed = loads(body, content_type, content_encoding, accept=accept) if content_type else body
    request.update({"args": args, "kwargs": kwargs, "hostname": own_hostname, "is_eager": False})
    request.update(embed or {})
    definition = tasks[task]
    if definition.__trace__ is None:
        definition.__trace__ = build_tracer(task, definition, hostname=own_hostname, app=definition.app)
    ended = definition.__trace__(uuid, args, kwargs, request)
    return (1, ended.retval, ended.runtime) if ended.info else (0, ended.retstr, ended.runtime)


def error_info(error: Any) -> ErrorInfo:
    """The text form of an ``ExceptionInfo``, with the exception pickled where that is possible."""
    exc = error.exception
    if isinstance(exc, ExceptionWithTraceback):
        exc = exc.exc
    try:
        pickled: bytes | None = pickle.dumps(exc)
    except Exception:  # noqa: BLE001 any user class may refuse
        pickled = None
    return ErrorInfo(type(exc).__name__, type(exc).__module__, saferepr(exc), error.traceback or "", pickled)


def outcome_of(ended: Any) -> Outcome:
    """The outcome of a run, from what its tracer returned."""
    info = ended.info
    if info is None:
        return Outcome(states.SUCCESS, ended.retstr or "", ended.runtime or 0.0)
    reason = info.retval
    error = ended.retval if isinstance(ended.retval, ExceptionInfo) else None
    return Outcome(
        info.state,
        saferepr(reason),
        ended.runtime or 0.0,
        error_info(error) if error is not None else None,
        requeue=bool(getattr(reason, "requeue", False)) if info.state == states.REJECTED else False,
    )
