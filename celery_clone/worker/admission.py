"""Decide what the worker does with one delivery.

Called by ``worker.dispatch`` for every delivery, and again when a held one becomes due.  Owns
nothing: it reads the headers, the revoked ids and the given time, and answers with a verdict.
It may not talk to the broker, the pool or the result store, and it may not log.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from celery_clone.exceptions import InvalidTaskError
from celery_clone.utils.functional import maybe_list
from celery_clone.utils.time import maybe_iso8601, maybe_make_aware

__all__ = ("Discard", "Hold", "Run", "Verdict", "admit", "epoch")


@dataclass(frozen=True, slots=True)
class Run:
    """It may run now."""


@dataclass(frozen=True, slots=True)
class Hold:
    """It must wait until *due* (epoch seconds)."""

    due: float


@dataclass(frozen=True, slots=True)
class Discard:
    """It must not run: it was revoked, or its time is over (*expired*)."""

    expired: bool


Verdict = Run | Hold | Discard
RUN = Run()


def epoch(when: Any, what: str) -> float | None:
    """A time of a message in epoch seconds; one without an offset is in UTC, as all times on the wire.

    Raises:
        InvalidTaskError: it cannot be read.
    """
    if when is None or when == "":
        return None
    if isinstance(when, (int, float)):
        return float(when)
    try:
        moment = when if isinstance(when, datetime) else maybe_iso8601(when)
        if moment is None:
            return None
        return float(maybe_make_aware(moment, timezone.utc).timestamp())
    except (AttributeError, ValueError, TypeError, OverflowError) as exc:
        raise InvalidTaskError(f"invalid {what} value {when!r}: {exc}") from exc


def is_revoked_by_stamp(headers: Mapping[str, Any], revoked_stamps: Mapping[str, Any]) -> bool:
    """Does the message carry a stamp that was revoked?"""
    stamps = headers.get("stamps") or {}
    for name, values in revoked_stamps.items():
        carried = set(maybe_list(stamps.get(name)) or ())
        if carried & set(maybe_list(values) or ()):
            return True
    return False


def admit(
    task_id: str,
    plain: bool,
    headers: Callable[[], Mapping[str, Any]],
    now: float,
    revoked: Container[str],
    revoked_stamps: Mapping[str, Any],
) -> Verdict:
    """The verdict on one message.

    *plain* tells that it has no eta and no expires, so that *headers*, which costs decoding, is not
    asked for; *now* is in epoch seconds.

    Raises:
        InvalidTaskError: its eta or expires cannot be read.
    """
    if revoked and task_id in revoked:
        return Discard(expired=False)
    if plain and not revoked_stamps:
        return RUN
    found = headers()
    if revoked_stamps and is_revoked_by_stamp(found, revoked_stamps):
        return Discard(expired=False)
    expires = epoch(found.get("expires"), "expires")
    if expires is not None and expires <= now:
        return Discard(expired=True)
    due = epoch(found.get("eta"), "eta")
    if due is not None and due > now:
        return Hold(due)
    return RUN
