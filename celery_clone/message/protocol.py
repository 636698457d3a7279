"""A call as a message, in the words every Celery speaks, and old dialects turned into today's.

Used by ``app.calls`` and ``app.amqp`` to build what leaves, by ``worker.strategy`` and
``app.trace`` to read what arrives.  Functions over plain values: time and identity are handed in.
It may not serialise, send or receive anything.

Protocol 2 keeps what the worker must know in the headers and ``(args, kwargs, embed)`` in the
body.  Protocol 1 keeps everything in one dictionary, the body.  A *hybrid* message is a protocol 1
body that already has protocol 2 headers.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any, NamedTuple

from celery_clone.exceptions import InvalidTaskError
from celery_clone.message.outgoing import TaskMessage
from celery_clone.utils.saferepr import saferepr
from celery_clone.utils.time import add_seconds_to_datetime, maybe_make_aware

__all__ = (
    "Incoming",
    "body_v2",
    "check_headers",
    "headers_v2",
    "moment",
    "task_message_v1",
    "task_message_v2",
    "to_v2",
)

EARLIEST_SECONDS = -2147483648
"""No countdown reaches further back: the oldest time a C library can express."""

REPR_MAXSIZE = 1024
"""Default bound of ``argsrepr`` and ``kwargsrepr``, in characters."""


class Incoming(NamedTuple):
    """A message of any protocol in the form of protocol 2.

    ``body`` is the decoded ``(args, kwargs, embed)`` when ``decoded``, else still to be decoded;
    ``utc`` tells whether times without an offset are UTC, ``None`` where the message does not say.
    """

    headers: dict[str, Any]
    body: Any
    decoded: bool
    utc: bool | None


def headers_v2(
    name: str,
    task_id: str,
    *,
    shadow: str | None = None,
    eta: str | None = None,
    expires: str | None = None,
    group_id: str | None = None,
    group_index: int | None = None,
    retries: int = 0,
    time_limit: float | None = None,
    soft_time_limit: float | None = None,
    root_id: str | None = None,
    parent_id: str | None = None,
    argsrepr: str | None = None,
    kwargsrepr: str | None = None,
    origin: str | None = None,
    ignore_result: bool = False,
    replaced_task_nesting: int = 0,
    stamped_headers: Sequence[str] | None = None,
    stamps: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The headers of one call, in the order Celery writes them: readers that peek rely on it.

    ``eta`` and ``expires`` are ISO 8601 texts, the limits seconds.
    """
    return {
        "lang": "py",
        "task": name,
        "id": task_id,
        "shadow": shadow,
        "eta": eta,
        "expires": expires,
        "group": group_id,
        "group_index": group_index,
        "retries": retries,
        "timelimit": [time_limit, soft_time_limit],
        "root_id": root_id or task_id,
        "parent_id": parent_id,
        "argsrepr": argsrepr,
        "kwargsrepr": kwargsrepr,
        "origin": origin,
        "ignore_result": ignore_result,
        "replaced_task_nesting": replaced_task_nesting,
        "stamped_headers": stamped_headers,
        "stamps": stamps or {},
    }


def body_v2(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    callbacks: Any = None,
    errbacks: Any = None,
    chain: Any = None,
    chord: Any = None,
) -> tuple[Sequence[Any], Mapping[str, Any], dict[str, Any]]:
    """The body of one call: arguments, and what is to follow it."""
    return args, kwargs, {"callbacks": callbacks, "errbacks": errbacks, "chain": chain, "chord": chord}


def task_message_v2(
    task_id: str,
    name: str,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    countdown: float | None = None,
    eta: datetime | str | None = None,
    group_id: str | None = None,
    group_index: int | None = None,
    expires: float | datetime | str | None = None,
    retries: int = 0,
    chord: Any = None,
    callbacks: Any = None,
    errbacks: Any = None,
    reply_to: str | None = None,
    time_limit: float | None = None,
    soft_time_limit: float | None = None,
    create_sent_event: bool = False,
    root_id: str | None = None,
    parent_id: str | None = None,
    shadow: str | None = None,
    chain: Any = None,
    now: datetime | None = None,
    timezone: tzinfo | None = None,
    origin: str | None = None,
    ignore_result: bool = False,
    argsrepr: str | None = None,
    kwargsrepr: str | None = None,
    stamped_headers: Sequence[str] | None = None,
    replaced_task_nesting: int = 0,
    *,
    clock: Callable[[], datetime] | None = None,
    argsrepr_maxsize: int | None = REPR_MAXSIZE,
    kwargsrepr_maxsize: int | None = REPR_MAXSIZE,
    repr_maxlevels: int = 3,
    **options: Any,
) -> TaskMessage:
    """One call as a message of protocol 2.

    ``countdown`` and a numeric ``expires`` are seconds from *now*; *clock* is asked only if they are
    used and *now* is not given.  ``timezone`` makes naive results aware.  ``options`` holds the
    values of the names in ``stamped_headers``, other keys are not for this function.

    Raises:
        TypeError: ``args`` is no list or tuple, ``kwargs`` no mapping.
        ValueError: ``countdown`` or ``expires`` is out of range.
    """
    args, kwargs = check_arguments(args, kwargs)
    eta, expires = times(countdown, eta, expires, now, clock, timezone)
    if argsrepr is None:
        argsrepr = saferepr(args, argsrepr_maxsize, maxlevels=repr_maxlevels)
    if kwargsrepr is None:
        kwargsrepr = saferepr(kwargs, kwargsrepr_maxsize, maxlevels=repr_maxlevels)
    headers = headers_v2(
        name,
        task_id,
        shadow=shadow,
        eta=eta,
        expires=expires,
        group_id=group_id,
        group_index=group_index,
        retries=retries,
        time_limit=time_limit,
        soft_time_limit=soft_time_limit,
        root_id=root_id,
        parent_id=parent_id,
        argsrepr=argsrepr,
        kwargsrepr=kwargsrepr,
        origin=origin,
        ignore_result=ignore_result,
        replaced_task_nesting=replaced_task_nesting,
        stamped_headers=stamped_headers,
        stamps={header: options[header] for header in stamped_headers or ()},
    )
    return TaskMessage(
        headers=headers,
        properties={"correlation_id": task_id, "reply_to": reply_to or ""},
        body=body_v2(args, kwargs, callbacks=callbacks, errbacks=errbacks, chain=chain, chord=chord),
        sent_event=sent_event_v2(headers) if create_sent_event else None,
    )


def sent_event_v2(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``task-sent`` for a message with these headers."""
    return {
        "uuid": headers["id"],
        "root_id": headers["root_id"],
        "parent_id": headers["parent_id"],
        "name": headers["task"],
        "args": headers["argsrepr"],
        "kwargs": headers["kwargsrepr"],
        "retries": headers["retries"],
        "eta": headers["eta"],
        "expires": headers["expires"],
    }


def task_message_v1(
    task_id: str,
    name: str,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    countdown: float | None = None,
    eta: datetime | str | None = None,
    group_id: str | None = None,
    group_index: int | None = None,
    expires: float | datetime | str | None = None,
    retries: int = 0,
    chord: Any = None,
    callbacks: Any = None,
    errbacks: Any = None,
    reply_to: str | None = None,
    time_limit: float | None = None,
    soft_time_limit: float | None = None,
    create_sent_event: bool = False,
    now: datetime | None = None,
    *,
    clock: Callable[[], datetime] | None = None,
    utc: bool = True,
    **_later_options: Any,
) -> TaskMessage:
    """One call as a message of protocol 1, for consumers that know no other.

    Options that protocol 1 cannot carry (stamps, parents, chains, ...) are left out, as they always were.

    Raises:
        TypeError, ValueError: as :func:`task_message_v2`.
    """
    args, kwargs = check_arguments(args, kwargs)
    eta, expires = times(countdown, eta, expires, now, clock, None, aware=False)
    return TaskMessage(
        headers={},
        properties={"correlation_id": task_id, "reply_to": reply_to or ""},
        body={
            "task": name,
            "id": task_id,
            "args": args,
            "kwargs": kwargs,
            "group": group_id,
            "group_index": group_index,
            "retries": retries,
            "eta": eta,
            "expires": expires,
            "utc": utc,
            "callbacks": callbacks,
            "errbacks": errbacks,
            "timelimit": (time_limit, soft_time_limit),
            "taskset": group_id,
            "chord": chord,
        },
        sent_event={
            "uuid": task_id,
            "name": name,
            "args": saferepr(args),
            "kwargs": saferepr(kwargs),
            "retries": retries,
            "eta": eta,
            "expires": expires,
        }
        if create_sent_event
        else None,
    )


def check_arguments(
    args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments of a call with defaults filled in; the texts of the errors are Celery's."""
    args, kwargs = args or (), kwargs or {}
    if not isinstance(args, list | tuple):
        raise TypeError("task args must be a list or tuple")
    if not isinstance(kwargs, Mapping):
        raise TypeError("task keyword arguments must be a mapping")
    return args, kwargs


def times(
    countdown: float | None,
    eta: datetime | str | None,
    expires: float | datetime | str | None,
    now: datetime | None,
    clock: Callable[[], datetime] | None,
    timezone: tzinfo | None,
    *,
    aware: bool = True,
) -> tuple[str | None, str | None]:
    """``(eta, expires)`` as texts, relative ones counted from one and the same *now*."""
    relative = isinstance(expires, numbers.Real)
    if (countdown or relative) and now is None:
        if clock is None:
            raise TypeError("A countdown or a numeric expires needs the present time: pass now= or clock=.")
        now = clock()
    if countdown:
        eta = moment(check_seconds(countdown, "countdown"), now, timezone, aware=aware)
    if relative:
        expires = moment(check_seconds(expires, "expires"), now, timezone, aware=aware)
    return as_text(eta), as_text(expires)


def moment(seconds: float, now: Any, timezone: tzinfo | None = None, *, aware: bool = True) -> datetime:
    """The time *seconds* after *now*, with a zone unless *aware* is false."""
    then: datetime = add_seconds_to_datetime(now, seconds)
    return maybe_make_aware(then, tz=timezone) if aware else then


def check_seconds(seconds: Any, what: str) -> Any:
    """*seconds*, if a clock can hold it."""
    if seconds < EARLIEST_SECONDS:
        raise ValueError(f"{what} is out of range: {seconds!r}")
    return seconds


def as_text(when: Any) -> str | None:
    """ISO 8601; texts (a retried task brings its own) and empty values stay as they are."""
    if when and not isinstance(when, str):
        return str(when.isoformat())
    return when or None if not isinstance(when, str) else when


# -- reading ----------------------------------------------------------------------------------------------

OPTIONAL_TEXT = (str, type(None))
OPTIONAL_TIME = (str, datetime, type(None))

HEADER_TYPES: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("shadow", OPTIONAL_TEXT, "text or null"),
    ("eta", OPTIONAL_TIME, "an ISO 8601 time or null"),
    ("expires", OPTIONAL_TIME, "an ISO 8601 time or null"),
    ("group", OPTIONAL_TEXT, "text or null"),
    ("group_index", (int, type(None)), "a whole number or null"),
    ("retries", (int, type(None)), "a whole number or null"),
    ("root_id", OPTIONAL_TEXT, "text or null"),
    ("parent_id", OPTIONAL_TEXT, "text or null"),
    ("origin", OPTIONAL_TEXT, "text or null"),
    ("replaced_task_nesting", (int, type(None)), "a whole number or null"),
    ("stamped_headers", (list, tuple, set, frozenset, type(None)), "a list of names or null"),
    ("stamps", (dict, type(None)), "a mapping or null"),
)

V1_TO_V2: tuple[tuple[str, Any], ...] = (
    ("lang", None),
    ("task", None),
    ("id", None),
    ("shadow", None),
    ("eta", None),
    ("expires", None),
    ("group", None),
    ("group_index", None),
    ("retries", 0),
    ("timelimit", (None, None)),
    ("root_id", None),
    ("parent_id", None),
    ("argsrepr", None),
    ("kwargsrepr", None),
    ("origin", None),
    ("meth", None),
)
"""Keys that protocol 1 and hybrid bodies may hold and protocol 2 keeps in its headers, with defaults."""

NOT_HEADERS = frozenset({"args", "kwargs", "callbacks", "errbacks", "chord", "chain", "utc", "taskset"})


def to_v2(headers: Mapping[str, Any] | None, properties: Mapping[str, Any] | None, body: Any) -> Incoming:
    """A message of any protocol in the form of protocol 2, checked.

    *body* is the decoded body, or the undecoded one (bytes) where it need not be looked at; a body
    that is not a dictionary belongs to protocol 2.

    Raises:
        InvalidTaskError: a field is missing or has the wrong type; the text names the field.
    """
    named = headers is not None and "task" in headers
    if named and not (isinstance(body, dict) and "args" in body):
        found = dict(headers or {})
        check_headers(found)
        undecoded = isinstance(body, bytes | bytearray | memoryview | str)
        return Incoming(found, body, decoded=not undecoded, utc=None)
    if not isinstance(body, dict) or not (named or "task" in body):
        raise InvalidTaskError(
            "The message is no task message: it has no header 'task', and its body is no dictionary with a "
            "key 'task'.  Send it with a Celery client, or from a queue of its own."
        )
    return from_v1_body(dict(headers or {}), body)


def from_v1_body(headers: dict[str, Any], body: Mapping[str, Any]) -> Incoming:
    """A protocol 1 or hybrid message in the form of protocol 2; headers win over the body."""
    args, kwargs = body.get("args", ()), body.get("kwargs", {})
    if not isinstance(kwargs, Mapping):
        raise InvalidTaskError("Task keyword arguments must be a mapping")
    if not isinstance(args, list | tuple):
        raise InvalidTaskError("Task positional arguments must be a list")
    found: dict[str, Any] = {key: body.get(key, default) for key, default in V1_TO_V2}
    found.update((key, value) for key, value in body.items() if key not in found and key not in NOT_HEADERS)
    if found["group"] is None:
        found["group"] = body.get("taskset")
    if found["argsrepr"] is None:
        found["argsrepr"], found["kwargsrepr"] = saferepr(args), saferepr(kwargs)
    if "task" in headers:
        found.update(headers)
    else:
        found["headers"] = headers
    check_headers(found)
    embed = {
        "callbacks": body.get("callbacks"),
        "errbacks": body.get("errbacks"),
        "chain": None,
        "chord": body.get("chord"),
    }
    return Incoming(found, (args, kwargs, embed), decoded=True, utc=bool(body.get("utc", True)))


def check_headers(headers: Mapping[str, Any]) -> None:
    """Refuse headers a worker cannot work with.

    Raises:
        InvalidTaskError: naming the header, its value and what it must be.
    """
    for key in ("task", "id"):
        value = headers.get(key)
        if not isinstance(value, str) or not value:
            raise wrong_header(headers, key, "text that is not empty")
    for key, types, expected in HEADER_TYPES:
        value = headers.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            raise wrong_header(headers, key, expected)
    limits = headers.get("timelimit")
    if limits is not None and not is_pair_of_limits(limits):
        raise wrong_header(headers, "timelimit", "[hard, soft] in seconds, each a number or null")


def is_pair_of_limits(value: Any) -> bool:
    """Is *value* ``[hard, soft]`` with numbers or nothing in it?"""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(limit, int | float | None) and not isinstance(limit, bool) for limit in value)
    )


def wrong_header(headers: Mapping[str, Any], key: str, expected: str) -> InvalidTaskError:
    """The error for one header."""
    what = f"is {saferepr(headers[key], 100)}" if key in headers else "is missing"
    return InvalidTaskError(
        f"Header {key!r} of the message {what}; it must be {expected}.  "
        f"Correct the producer of task {saferepr(headers.get('task'), 100)}, "
        f"id {saferepr(headers.get('id'), 100)}."
    )
