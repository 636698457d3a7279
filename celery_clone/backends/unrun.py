"""Ends what will not run: the rest of a chain that failed, the body of a chord whose header did.

Called by the stores' base class.  All that somebody may wait for gets a final state, error callbacks
are called once, and chords further out are told.  It speaks to stores by the methods of ``Backend`` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from billiard.einfo import ExceptionInfo

from celery_clone import states
from celery_clone.canvas import chord, group, maybe_signature
from celery_clone.exceptions import ChordError
from celery_clone.execution.context import Context
from celery_clone.utils.functional import maybe_list
from celery_clone.utils.ids import uuid
from celery_clone.utils.log import get_logger

from .failures import call_errbacks, fake_request
from .stand_ins import body_for, let_go

__all__ = ("calls_in", "ends_of", "fail_body", "fail_followers", "failing_in")

logger = get_logger("celery.backends.base")


# -- what is in a signature ---------------------------------------------------


class FailingPart(NamedTuple):
    """Something in a signature that fails when it is not run."""

    sig: Any
    errbacks: list[Any]
    in_group: bool


def ends_of(sig: Any, in_group: bool = False) -> Iterator[tuple[Any, bool]]:
    """The calls whose results are the result of *sig*, and whether they are members of a group in it."""
    kind = sig.get("subtask_type")
    if kind == "group":
        for member in sig.tasks:
            yield from ends_of(maybe_signature(member, app=sig._app), True)
    elif kind == "chord" and sig.body is not None:
        yield from ends_of(maybe_signature(sig.body, app=sig._app), in_group)
    elif kind == "chain" and sig.tasks:
        yield from ends_of(maybe_signature(sig.tasks[-1], app=sig._app), in_group)
    else:
        yield sig, in_group


def failing_in(sig: Any, in_group: bool = False) -> Iterator[FailingPart]:
    """The parts of *sig* that have error callbacks to be called when it is not run.

    Each member of a group fails for itself; a chord fails with its body, a chain with its first step.
    """
    own = list(maybe_list(sig.options.get("link_error")) or ())
    kind = sig.get("subtask_type")
    if kind == "group":
        for member in sig.tasks:
            for part in failing_in(maybe_signature(member, app=sig._app), True):
                yield part._replace(errbacks=[*part.errbacks, *own])
    elif kind == "chord" and sig.body is not None:
        for part in failing_in(maybe_signature(sig.body, app=sig._app), in_group):
            yield part._replace(errbacks=[*own, *part.errbacks])
    elif kind == "chain" and sig.tasks:
        first = failing_in(maybe_signature(sig.tasks[0], app=sig._app))
        yield FailingPart(sig, [*own, *(errback for part in first for errback in part.errbacks)], in_group)
    else:
        yield FailingPart(sig, own, in_group)


def calls_in(sig: Any, in_header: bool = False) -> Iterator[tuple[Any, bool]]:
    """Each call that *sig* would make, in order, and whether it is in the header of a chord in *sig*.

    *sig* may be a signature or the dictionary that it travels as.
    """
    kind, kwargs = sig.get("subtask_type"), sig.get("kwargs") or {}
    if kind in ("group", "chain"):
        for each in kwargs.get("tasks") or ():
            yield from calls_in(each, in_header)
    elif kind == "chord":
        header = kwargs.get("header") or ()
        for each in [header] if isinstance(header, dict) else header:
            yield from calls_in(each, True)
        if kwargs.get("body") is not None:
            yield from calls_in(kwargs["body"], in_header)
    else:
        yield sig, in_header


def _distinct(errbacks: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for errback in errbacks:
        if errback not in found:
            found.append(errback)
    return found


# -- where it is stored -------------------------------------------------------


def _task_of(backend: Any, call: Any) -> Any:
    return backend.app._tasks.get(call["task"])


def _store_of(backend: Any, call: Any) -> Any:
    """The store of the results of a call; *backend* if its task is not known here."""
    task = _task_of(backend, call)
    return backend if task is None else task.backend


def _is_ignored(backend: Any, call: Any) -> bool:
    """Is the result of a call of no interest to anybody?"""
    wish = (call.get("options") or {}).get("ignore_result")
    if wish is None:
        task = _task_of(backend, call)
        wish = backend.app.conf.task_ignore_result if task is None else task.ignore_result
    return bool(wish)


def _request_of(call: Any, *, in_header: bool) -> Context:
    """The request that a call would have had."""
    options = call.get("options") or {}
    request = Context(call)
    request.update(options)
    request.id, request.group = options.get("task_id"), options.get("group_id")
    if in_header:
        # That chord will not run: nobody counts its members.
        request.chord = None
    return request


# -- the rest of a chain ------------------------------------------------------


def fail_followers(
    backend: Any, steps: Iterable[Any], exc: Any, traceback: str | None, *, state: str, store_result: bool
) -> None:
    """End the steps that would have followed a task, with the error of that task; the next one comes last.

    Without *store_result* the task's own result is ignored; those of its followers may yet be wanted.
    """
    if state not in states.PROPAGATE_STATES:
        return
    told = []
    for step in reversed(list(steps)):
        for call, in_header in calls_in(step):
            request = _request_of(call, in_header=in_header)
            if request.id is None:
                continue
            store = _store_of(backend, call)
            # Looked up for members of chords alone: plain chains work without a result store.
            if request.chord and store.get_state(request.id) not in states.PROPAGATE_STATES:
                told.append((store, request))
            if store_result or not _is_ignored(backend, call):
                store.store_result(request.id, exc, state, traceback=traceback, request=request)
    # Chords further out are told when all is stored, so that they find nothing unfinished.
    for store, request in told:
        store.on_chord_part_return(request, state, exc)


# -- the body of a chord ------------------------------------------------------


def fail_body(backend: Any, body: Any, exc: BaseException) -> ExceptionInfo | None:
    """End a chord without running its body.

    Error callbacks of the body are called, for a group those of each member.  What ends in a group gets
    the error of the member of the header itself; all else gets *exc*, which tells of it.
    """
    given = body
    try:
        body = body_for(backend, body)
    except Exception as fault:
        logger.exception("The body of a chord that failed cannot be read: %r", fault)
    if not body.id:
        body.options["task_id"] = uuid()
    several = isinstance(body, (group, chord))
    if several:
        body.freeze()
    cause = exc.__cause__ if isinstance(exc, ChordError) and exc.__cause__ else exc
    for part in failing_in(body):
        _call_errbacks(backend.app, part, cause if part.in_group else exc)
    ends = [(end if end.id else body, cause if in_group else exc) for end, in_group in ends_of(body)]
    info = _store_failures(backend, body, {end.id: error for end, error in ends}, cause if several else exc)
    # Chords further out are told when all is stored, so that they find nothing unfinished.
    for end, error in ends:
        _tell_outer_chord(backend, end, error)
    _store_of(backend, body)._fail_chain(body.options.get("chain"), exc)
    let_go(backend, given)
    return info


def _call_errbacks(app: Any, part: FailingPart, error: BaseException) -> None:
    request = fake_request(
        **{**part.sig, "task_id": part.sig.id, "errbacks": _distinct(part.errbacks), "task_name": part.sig.task}
    )
    try:
        call_errbacks(app, request, error, None)
    except Exception as fault:
        # Whoever waits must be told nevertheless.
        logger.exception("The error callbacks of %r, which will not run, failed: %r", part.sig.id, fault)


def _store_failures(
    backend: Any, body: Any, errors: dict[str, BaseException], error: BaseException
) -> ExceptionInfo | None:
    """Store FAILURE for each call in *body*: for its ends the error given for them, else *error*."""
    info: ExceptionInfo | None = None
    failing = {call.get("options", {}).get("task_id"): call for call, _ in calls_in(body)}
    failing.pop(None, None)
    for task_id in errors:
        failing.setdefault(task_id, body)
    for task_id, call in failing.items():
        store, one_error = _store_of(backend, call), errors.get(task_id, error)
        try:
            if info is None or task_id == body.id:
                info = store.fail_from_current_stack(task_id, exc=one_error)
            else:
                request = _request_of(call, in_header=True)
                store.store_result(task_id, one_error, states.FAILURE, traceback=info.traceback, request=request)
        except Exception as fault:
            logger.exception("The failure of %s, which will not run, cannot be stored: %r", task_id, fault)
    if isinstance(body, group):
        # Some look at a group by its id, as if it were a task.
        _store_of(backend, body).mark_as_failure(body.id, error)
    return info


def _tell_outer_chord(backend: Any, end: Any, error: BaseException) -> None:
    """*end* will not run: if it is a member of a chord itself, that one counts it as failed."""
    options = end.options
    if not options.get("chord"):
        return
    request = fake_request(
        options.get("task_id"),
        task_name=end.task,
        chord=options["chord"],
        group=options.get("group_id"),
        group_index=options.get("group_index"),
        root_id=options.get("root_id"),
    )
    _store_of(backend, end).on_chord_part_return(request, states.FAILURE, error)
