"""Stand-ins: small signatures that travel in the place of large bodies of chords.

Each member of a header carries the body of its chord, so that whoever runs the last one can send it.  A
large body is kept once in the result store instead, and the members carry a stand-in, which names its
place.  Made when a chord is sent (``Backend.body_to_send``), undone by ``chords`` and ``unrun``.

Real Celery's workers pass a stand-in on as they would the body; it is a task of ours then
(``app.builtins``), which sends the body that it stands for.
"""

from __future__ import annotations

from typing import Any

from celery_clone.canvas import Signature, maybe_signature
from celery_clone.exceptions import ChordError
from celery_clone.utils.log import get_logger

__all__ = ("TASK", "body_for", "let_go", "stand_in_for")

logger = get_logger("celery.backends.base")

TASK = "celery.stored_body"
"""The task that a stand-in names.  Real Celery has none like it; the prefix keeps it out of lists of tasks."""

SUFFIX = ".b"
"""Where a body is kept: under the key of its group, with this behind it."""

TOO_LARGE = frozenset({"chain", "link"})
"""Options of the body that a stand-in does without: they may be as large as the body."""

ROUTING = ("queue", "exchange", "exchange_type", "routing_key", "priority", "delivery_mode")
"""Options that say where a call is sent."""

EMBED_LIMIT = 8192
"""``result_chord_embed_limit`` in bytes, if that is not set."""

KEPT_S = 600
"""How many seconds a body is kept after it was sent, for whoever finishes the work of a worker that died."""


def stand_in_for(backend: Any, group_id: str, body: Any) -> Any:
    """Give *body*, or a stand-in if it is larger than ``result_chord_embed_limit`` and can be kept.

    It can if the store knows keys and writes what messages are written in; else what comes back from it
    might not be what was put there.
    """
    conf = backend.app.conf
    limit = conf.get("result_chord_embed_limit", EMBED_LIMIT)
    if limit is None or not hasattr(backend, "get_key_for_group") or backend.serializer != conf.task_serializer:
        return body
    payload = backend.encode(body)
    if len(payload) <= limit:
        return body
    key = backend.get_key_for_group(group_id, SUFFIX)
    backend._ensure_retryable(backend.set, key, payload)
    if backend.chord_expires:
        backend.expire(key, backend.chord_expires)
    begins = first_call(body)
    options = {
        **{name: begins["options"][name] for name in ROUTING if name in begins["options"]},
        "route_name": begins["task"],
        **{name: value for name, value in body.options.items() if name not in TOO_LARGE},
    }
    return Signature(TASK, kwargs={"group_id": group_id}, options=options, app=backend.app)


def first_call(sig: Any) -> Any:
    """The call that is sent first of a signature; a stand-in goes the same way."""
    kwargs = sig["kwargs"]
    parts = kwargs.get("tasks") if sig.get("subtask_type") in ("group", "chain") else kwargs.get("header")
    if sig.get("subtask_type") not in ("group", "chain", "chord") or not parts:
        return sig
    return first_call(parts if isinstance(parts, dict) else next(iter(parts)))


def body_for(backend: Any, body: Any) -> Any:
    """Give the body that a stand-in stands for; anything else as it is.

    Raises:
        ChordError: the store has the body no more.
    """
    if body["task"] != TASK:
        return body
    group_id = body["kwargs"]["group_id"]
    payload = backend._ensure_retryable(backend.get, backend.get_key_for_group(group_id, SUFFIX))
    if payload is None:
        raise ChordError(
            f"The body of chord {group_id} is not in the result store any more. It is kept there for "
            "result_chord_expires or, if that is not set, result_expires seconds: raise them, or set "
            "result_chord_embed_limit to None, so that bodies travel with the members of their chords."
        )
    return maybe_signature(backend.decode(payload), app=backend.app)


def let_go(backend: Any, body: Any) -> None:
    """The body was sent, or will not be: what is kept of it may vanish soon."""
    if body["task"] != TASK:
        return
    group_id = body["kwargs"]["group_id"]
    try:
        backend.expire(backend.get_key_for_group(group_id, SUFFIX), KEPT_S)
    except Exception as exc:  # noqa: BLE001 it was sent; that is what counts
        logger.warning("The body of chord %s, which is over, stays in the result store: %r", group_id, exc)
