"""Stamps: headers put on a signature, on all signatures in it and on their callbacks.

Called through ``Signature.stamp``; filled in when ``canvas`` is imported.  A stamp is an option that is
named in the option ``stamped_headers``; it travels in the message, so that workers and the task itself
see it.  Owns the walk and the rule by which stamps of several origins are put together.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery_clone.canvas.chain import _chain
from celery_clone.canvas.chord import chord
from celery_clone.canvas.group import group
from celery_clone.canvas.signature import Signature, copied, maybe_signature
from celery_clone.utils.functional import is_lazy, maybe_list

__all__ = ("StampingVisitor", "combined", "inherit_stamps", "stamp", "stamp_links")

NAMES = "stamped_headers"

Stamps = dict[str, Any]


class StampingVisitor(metaclass=ABCMeta):
    """Says which stamps each part of a workflow gets.

    Each method is called with the part and the stamps it gets from around it, and gives the stamps to
    add, as a dictionary.  If that has the key ``stamped_headers``, only the keys listed there are
    stamps, and the others are set as plain headers.
    """

    def on_group_start(self, group: Any, **headers: Any) -> dict[str, Any]:
        """Give stamps for all members of a group."""
        return {}

    def on_group_end(self, group: Any, **headers: Any) -> None:  # noqa: B027 (may be left as it is)
        """Called when all members of a group are stamped."""

    def on_chain_start(self, chain: Any, **headers: Any) -> dict[str, Any]:
        """Give stamps for all steps of a chain."""
        return {}

    def on_chain_end(self, chain: Any, **headers: Any) -> None:  # noqa: B027 (may be left as it is)
        """Called when all steps of a chain are stamped."""

    @abstractmethod
    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        """Give stamps for one task."""

    def on_chord_header_start(self, sig: Any, **header: Any) -> dict[str, Any]:
        """Give stamps for all members of a chord's header; as for any group, unless overridden."""
        if not isinstance(sig.tasks, group):
            sig.tasks = group(sig.tasks)
        return self.on_group_start(sig.tasks, **header)

    def on_chord_header_end(self, sig: Any, **header: Any) -> None:
        """Called when all members of a chord's header are stamped."""
        self.on_group_end(sig.tasks, **header)

    def on_chord_body(self, sig: Any, **header: Any) -> dict[str, Any]:
        """Give stamps for the body of a chord."""
        return {}

    def on_callback(self, callback: Any, **header: Any) -> dict[str, Any]:
        """Give stamps for a callback of the part that is stamped."""
        return {}

    def on_errback(self, errback: Any, **header: Any) -> dict[str, Any]:
        """Give stamps for an errback of the part that is stamped."""
        return {}


# -- putting stamps together


def _names(stamps: Mapping[str, Any]) -> list[str]:
    found = stamps.get(NAMES)
    return list(stamps) if found is None else list(found)


def combined(
    headers: Mapping[str, Any],
    visitor_headers: Mapping[str, Any] | None,
    own: Mapping[str, Any] | None,
    *,
    append: bool = False,
) -> Stamps:
    """Give the stamps of three origins as one dictionary, with their names under ``stamped_headers``.

    Where two have the same stamp, the one from around (*headers*) wins over the visitor's, and both win
    over the one the signature has (*own*, its options); with *append* a list of all is made.
    """
    names = _names(headers)
    merged: Stamps = {key: value for key, value in headers.items() if key != NAMES}
    if visitor_headers is not None:
        names += _names(visitor_headers)
        _add(merged, visitor_headers, append)
    if own is not None:
        names += own.get(NAMES) or ()
        _add(merged, {name: own[name] for name in names if name in own}, append)
    merged[NAMES] = list(dict.fromkeys(name for name in names if name != NAMES))
    return merged


def _add(stamps: Stamps, more: Mapping[str, Any], append: bool) -> None:
    for key, value in more.items():
        if key == NAMES:
            continue
        stamps[key] = _both(stamps[key], value, append) if key in stamps else value


def _both(first: Any, second: Any, append: bool) -> Any:
    """Give one value for a stamp that has two."""
    if isinstance(first, dict):
        merged = dict(first)
        if isinstance(second, Mapping):
            _add(merged, second, append)
        return merged
    if append and not isinstance(first, (list, tuple, set, frozenset)):
        first = [] if first is None else [first]
    if isinstance(first, list) and isinstance(second, list):
        return [*first, *second]
    return [*first, second] if append else first


# -- the walk


def stamp(sig: Any, visitor: Any, append: bool, headers: Mapping[str, Any]) -> Any:
    """Stamp *sig* and all in it; give *sig*."""
    for kind, walk in _WALKS:
        if isinstance(sig, kind):
            walk(sig, visitor, append, dict(headers))
            break
    return sig


class _Inheritance(StampingVisitor):
    """Gives each call the stamps that it has none of its own for."""

    def __init__(self, stamps: Mapping[str, Any]) -> None:
        self._stamps = stamps

    def on_signature(self, sig: Any, **headers: Any) -> Stamps:
        return {name: value for name, value in self._stamps.items() if name not in sig.options}


def inherit_stamps(sig: Any, stamps: Mapping[str, Any]) -> None:
    """Stamp all calls in *sig* with *stamps*, but leave the stamps that they have as they are."""
    stamp(sig, _Inheritance(stamps), False, {})


def _stamp_task(sig: Any, visitor: Any, append: bool, headers: Stamps) -> None:
    stamp_links(sig, visitor, append, headers)
    sig.set(**_asked(visitor, "on_signature", sig, headers, append, own=sig.options))


def _stamp_chain(sig: Any, visitor: Any, append: bool, headers: Stamps) -> None:
    headers = _asked(visitor, "on_chain_start", sig, headers, append, own=sig.options)
    stamp_links(sig, visitor, append, headers)
    for task in sig.tasks:
        task.stamp(visitor, append, **headers)
    if visitor is not None:
        visitor.on_chain_end(sig, **headers)


def _stamp_group(sig: Any, visitor: Any, append: bool, headers: Stamps) -> None:
    headers = _asked(visitor, "on_group_start", sig, headers, append, own=sig.options)
    stamp_links(sig, visitor, append, headers)
    _stamp_members(sig, visitor, append, headers)
    if visitor is not None:
        visitor.on_group_end(sig, **headers)


def _stamp_chord(sig: Any, visitor: Any, append: bool, headers: Stamps) -> None:
    headers = _asked(visitor, "on_chord_header_start", sig, headers, append, own=sig.options)
    stamp_links(sig, visitor, append, headers)
    _stamp_members(sig.tasks if isinstance(sig.tasks, group) else sig, visitor, append, headers)
    if visitor is not None:
        visitor.on_chord_header_end(sig, **headers)
    if sig.body is not None:
        headers = _asked(visitor, "on_chord_body", sig, headers, append, own=sig.options)
        sig.body.stamp(visitor, append, **headers)


def _stamp_members(sig: Any, visitor: Any, append: bool, headers: Stamps) -> None:
    """Stamp the members of a group or header; those of a generator when it is read."""
    tasks = sig.tasks

    def stamped(task: Any) -> Any:
        task = maybe_signature(task, app=sig._app)
        task.stamp(visitor, append, **copied(headers))
        return task

    if is_lazy(tasks):
        tasks.map(stamped)
    else:
        sig.tasks = [stamped(task) for task in tasks]


def stamp_links(sig: Any, visitor: Any, append: bool, headers: Mapping[str, Any]) -> None:
    """Stamp the callbacks and errbacks of *sig*, with what it gets from around but not with its own."""
    for option, method in (("link", "on_callback"), ("link_error", "on_errback")):
        for link in maybe_list(sig.options.get(option)) or ():
            link = maybe_signature(link, app=sig._app)
            link.stamp(visitor, append, **_asked(visitor, method, link, copied(dict(headers)), append))


def _asked(
    visitor: Any, method: str, sig: Any, headers: Stamps, append: bool, own: Mapping[str, Any] | None = None
) -> Stamps:
    """Ask the visitor about *sig*, and give the stamps it has then."""
    given = None
    if visitor is not None:
        given = getattr(visitor, method)(sig, **headers) or {}
    return combined(headers, given, own, append=append)


_WALKS: Iterable[tuple[type[Signature], Callable[[Any, Any, bool, Stamps], None]]] = (
    (chord, _stamp_chord),
    (group, _stamp_group),
    (_chain, _stamp_chain),
    (Signature, _stamp_task),
)


class _Walk:
    """What ``Signature`` calls of this module."""

    stamp = staticmethod(stamp)
    stamp_links = staticmethod(stamp_links)
    combined = staticmethod(combined)


Signature._walk = _Walk
