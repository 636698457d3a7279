"""When a chord's body is sent.  What happens when it cannot be is in ``unrun``.

Used by the stores: ``redis`` and ``sqlite`` count the ends of a header in their own transactions,
stores with a counter use :func:`part_returned`, all others the polling task
``celery.chord_unlock``.  It may not talk to a store but by the methods of the backend it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from celery_clone import states
from celery_clone.canvas import maybe_signature
from celery_clone.exceptions import ChordError
from celery_clone.result import GroupResult, allow_join_result
from celery_clone.utils.functional import is_lazy
from celery_clone.utils.log import get_logger

from .failures import chord_error
from .stand_ins import body_for, let_go

__all__ = (
    "dispatch",
    "joined",
    "nested_values",
    "packed_part",
    "part_returned",
    "saves_structure",
    "unpacked_parts",
)

logger = get_logger("celery.backends.base")


# -- what a member leaves ---------------------------------------------------


def packed_part(task_id: str, state: str, result: Any) -> list[Any]:
    """What is stored of one member, before it is encoded."""
    return [1, task_id, state, result]


def unpacked_parts(backend: Any, parts: Iterable[Any]) -> list[tuple[str, Any]]:
    """``(task id, value)`` of each stored part.

    Raises:
        ChordError: a member failed or was revoked; its error is the cause.
    """
    values = []
    for part in parts:
        _, task_id, state, value = backend.decode(part)
        if state in states.EXCEPTION_STATES:
            value = backend.exception_to_python(value)
        if state in states.PROPAGATE_STATES:
            raise chord_error(f"Dependency {task_id} raised {value!r}", value)
        values.append((task_id, value))
    return values


def saves_structure(results: Any) -> bool:
    """Must the header be stored, because a member of it is a group again?

    Not asked of a header that comes from a generator: it is not known yet, and reading it now would
    make all of it before the first member is sent.
    """
    return not is_lazy(results) and any(isinstance(result, GroupResult) for result in results)


def nested_values(header: Any, by_id: dict[str, Any]) -> list[Any] | None:
    """The values of *header* in its own structure; ``None`` if one of its members is not in *by_id*."""
    values: list[Any] = []
    for result in header.results:
        if isinstance(result, GroupResult):
            inner = nested_values(result, by_id)
            if inner is None:
                return None
            values.append(inner)
        elif result.id in by_id:
            values.append(by_id[result.id])
        else:
            return None
    return values


def joined(header: Any, timeout: float | None) -> list[Any]:
    """Read the values of all members of a header that has ended."""
    join = header.join_native if header.supports_native_join else header.join
    with allow_join_result():
        values: list[Any] = join(timeout=timeout, propagate=True)
    return values


# -- sending the body -------------------------------------------------------


def dispatch(backend: Any, group_id: str, body: Any, values: Sequence[Any]) -> None:
    """Send *body* with the values of the header; if that fails, end the chord with an error."""
    try:
        body_for(backend, body).delay(values)
    except Exception as exc:
        logger.exception("Chord callback for %r raised: %r", group_id, exc)
        backend.chord_error_from_stack(body, chord_error(f"Callback error: {exc!r}", exc))
    else:
        let_go(backend, body)


def part_returned(backend: Any, request: Any) -> None:
    """Count one member, on a store whose ``incr`` is atomic; the last one sends the body."""
    app, group_id = backend.app, request.group
    if not group_id:
        return
    key = backend.get_key_for_chord(group_id)
    body = maybe_signature(request.chord, app=app)
    size = request.chord.get("chord_size")
    header = None
    if size is None:
        # Of a caller that did not count; all others have the stored group read once, by the last member.
        try:
            header = GroupResult.restore(group_id, backend=backend)
        except Exception as exc:  # noqa: BLE001 every store has errors of its own
            cannot_restore(backend, group_id, body, exc)
            return
    if not backend._is_new_chord_part(request):
        return  # delivered twice; its first end was counted, and with the last one the group may be gone
    if size is None:
        if header is None:
            is_gone(backend, group_id, body)
            return
        size = ends_in(header)
    count = backend.incr(key)
    if count > size:
        logger.warning("Chord counter incremented too many times for %r", group_id)
    elif count < size:
        backend.expire(key, backend.chord_expires)
        # The last member reads the group and the results of all others.
        backend.expire(backend.get_key_for_group(group_id), backend._chord_result_expires)
        backend.expire(backend.get_key_for_task(request.id), backend._chord_result_expires)
    else:
        header = header or restored(backend, group_id, body)
        if header is not None:
            finish_counted(backend, group_id, header, body)


def restored(backend: Any, group_id: str, body: Any) -> Any:
    """The stored header of a chord; ``None`` if it cannot be read, which is then what the chord ends with."""
    try:
        header = GroupResult.restore(group_id, backend=backend)
    except Exception as exc:  # noqa: BLE001 every store has errors of its own
        cannot_restore(backend, group_id, body, exc)
        return None
    if header is None:
        is_gone(backend, group_id, body)
    return header


def cannot_restore(backend: Any, group_id: str, body: Any, exc: Exception) -> None:
    """End a chord whose stored header cannot be read; called where *exc* is handled."""
    logger.exception("Chord %r raised: %r", group_id, exc)
    backend.chord_error_from_stack(body, ChordError(f"Cannot restore group: {exc!r}"))


def is_gone(backend: Any, group_id: str, body: Any) -> None:
    """End a chord whose header is not stored."""
    logger.error("Chord callback %r raised: the stored group is gone", group_id)
    backend.chord_error_from_stack(body, ChordError(f"GroupResult {group_id} no longer exists"))


def ends_in(header: Any) -> int:
    """How many tasks end before *header* has, groups in it counted by their members."""
    return sum(ends_in(result) if isinstance(result, GroupResult) else 1 for result in header.results)


def failed_member(backend: Any, header: Any) -> str | None:
    """The id of the first member of *header* that failed."""
    for result in header.results:
        if isinstance(result, GroupResult):
            found = failed_member(backend, result)
            if found is not None:
                return found
        elif backend.get_state(result.id) in states.PROPAGATE_STATES:
            return str(result.id)
    return None


def finish_counted(backend: Any, group_id: str, header: Any, body: Any) -> None:
    """All members have ended: read their values and send the body."""
    try:
        try:
            values = joined(header, backend.app.conf.result_chord_join_timeout)
        except Exception as exc:
            culprit = failed_member(backend, header)
            reason = repr(exc) if culprit is None else f"Dependency {culprit} raised {exc!r}"
            logger.exception("Chord %r raised: %r", group_id, reason)
            backend.chord_error_from_stack(body, chord_error(reason, exc))
        else:
            dispatch(backend, group_id, body, values)
    finally:
        header.delete(backend=backend)
        backend.delete(backend.get_key_for_chord(group_id))
        for member in header.results:
            backend.expire(backend.get_key_for_task(member.id), backend.expires)
