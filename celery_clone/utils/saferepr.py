"""Bounded ``repr`` for values that travel or are logged.

Called once for the positional and once for the keyword arguments of every
published call (headers ``argsrepr`` and ``kwargsrepr``), and by the log lines
and events that show results.
The text must equal what Celery writes for the same value, since monitors
compare and parse it.  It may not raise, whatever the value does, and it may not
walk further into a value than the asked length needs.

Differences from the built-in ``repr``: strings are never escaped except for
single quotes, bytes show their text, nested containers end in ``...`` below
``maxlevels``, and a cut text still closes every bracket it opened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from numbers import Number
from typing import Any, NamedTuple, TypeAlias

from celery_clone.utils.text import truncate

__all__ = ("reprstream", "saferepr")

#: Room of the fast path, in characters, when the caller set no limit.
UNLIMITED_ROOM = 4096

#: Deepest nesting of the fast path, which is recursive.
QUICK_LEVELS = 16


class Mark(NamedTuple):
    """Punctuation: opens (+1), closes (-1) or keeps (0) the nesting level.

    ``closes`` is, for an opening mark, the text that will close it again; for a
    closing mark, ``container`` is the identity of the value that ends here.
    """

    value: str
    direction: int = 0
    closes: str = ""
    container: int = 0


class Key(NamedTuple):
    """A key of a mapping, shown as a value of its own."""

    value: Any


class Quoted(NamedTuple):
    """Characters or bytes that still need their quotes."""

    value: str | bytes


Token: TypeAlias = "Mark | Key | Quoted | str"

COMMA = Mark(", ")
COLON = Mark(": ")


def saferepr(o: Any, maxlen: int | None = None, maxlevels: int = 3, seen: set[int] | None = None) -> str:
    """Return a text for any value, about ``maxlen`` characters long at most.

    ``maxlen`` counts characters and is checked between the parts of a value, so
    closing brackets and the trailing ``...`` come on top of it; ``None`` means
    no limit.  ``maxlevels`` is the number of nested containers shown (``0`` for
    all), ``seen`` the identities of containers that are already being shown.
    """
    if not seen:
        room = UNLIMITED_ROOM if maxlen is None else maxlen
        quick = _plain_text(o, room, min(maxlevels or QUICK_LEVELS, QUICK_LEVELS), ())
        if quick is not None:
            return quick
    parts: list[str] = []
    try:
        parts.extend(_bounded(o, maxlen, maxlevels, seen))
    except Exception as error:  # noqa: BLE001 - a container that fails or changes while it is walked
        parts.append(f"<Unrepresentable {type(o)!r}{id(o):#x}: {error!r}>")
    return "".join(parts)


# -- the fast path ---------------------------------------------------------
#
# Hot: runs twice per published call.  It answers only where the whole text is
# shorter than the room, because then nothing can be cut and no counting is
# needed; everything else returns None and is shown by the token stream below.

_LEAF_TEXT: dict[type, Callable[[Any], str]] = {
    int: int.__repr__,
    float: float.__repr__,
    bool: bool.__repr__,
    type(None): repr,
    Decimal: Decimal.__repr__,
    datetime: datetime.__repr__,
    date: date.__repr__,
    time: time.__repr__,
    timedelta: timedelta.__repr__,
}


def _plain_text(value: Any, room: int, levels: int, above: tuple[int, ...]) -> str | None:
    """Return the text of a value of built-in types, or ``None`` if it needs care."""
    kind = type(value)
    if kind is str:
        if len(value) + 2 >= room:
            return None
        text = _quoted(value)
        return text if len(text) < room else None
    leaf = _LEAF_TEXT.get(kind)
    if leaf is not None:
        try:
            text = leaf(value)
        except Exception:  # noqa: BLE001 - an integer too long for str(), a tzinfo that raises
            return None
        return text if len(text) < room else None
    if kind is dict:
        return _plain_mapping(value, room, levels, above)
    if kind is tuple or kind is list:
        return _plain_sequence(value, room, levels, above)
    return None


def _quoted(text: str) -> str:
    if "'" in text:
        text = text.replace("'", "\\'")
    return f"'{text}'"


def _plain_sequence(value: Any, room: int, levels: int, above: tuple[int, ...]) -> str | None:
    size = len(value)
    if not size:
        return None if not levels or room <= 2 else ("()" if type(value) is tuple else "[]")
    identity = id(value)
    # A value of n items needs at least 3n characters: do not even start on it.
    if not levels or 3 * size >= room or identity in above:
        return None
    above = (*above, identity)
    levels -= 1
    room -= 3
    texts = []
    for item in value:
        text = _plain_text(item, room, levels, above)
        if text is None:
            return None
        room -= len(text) + 2
        texts.append(text)
    if room <= 0:
        return None
    if type(value) is list:
        return f"[{', '.join(texts)}]"
    return f"({texts[0]},)" if size == 1 else f"({', '.join(texts)})"


def _plain_mapping(value: dict[Any, Any], room: int, levels: int, above: tuple[int, ...]) -> str | None:
    if not value:
        return "{}" if levels and room > 2 else None
    identity = id(value)
    if not levels or 6 * len(value) >= room or identity in above:
        return None
    above = (*above, identity)
    levels -= 1
    room -= 2
    texts = []
    for key, item in value.items():
        if type(key) is not str or len(key) >= room:
            return None
        text = _plain_text(item, room, levels, above)
        if text is None:
            return None
        text = f"{_quoted(key)}: {text}"
        room -= len(text) + 2
        if room <= 0:
            return None
        texts.append(text)
    return f"{{{', '.join(texts)}}}"


# -- the general path ------------------------------------------------------


def _bounded(o: Any, maxlen: int | None, maxlevels: int, seen: set[int] | None) -> Iterator[str]:
    """Yield the parts of the text until the room is used up, then close what is open."""
    open_brackets: list[str] = []
    for token, _ in reprstream(deque([iter([o])]), seen=seen, maxlevels=maxlevels):
        ends_container = isinstance(token, Mark) and token.direction < 0
        if maxlen is not None and maxlen <= 0 and not ends_container:
            # The container at hand is not shown, so it is not closed either.
            yield ", ..."
            break
        part = _shown(token, maxlen, maxlevels)
        if isinstance(token, Mark) and token.direction > 0:
            open_brackets.append(token.closes)
        elif ends_container:
            open_brackets.pop()
        yield part
        if maxlen is not None and not (ends_container and maxlen <= 0):
            maxlen -= len(part)
    yield from reversed(open_brackets)


def _shown(token: Token, maxlen: int | None, maxlevels: int) -> str:
    if isinstance(token, Mark):
        return token.value
    if isinstance(token, Key):
        return saferepr(token.value, maxlen, maxlevels)
    if isinstance(token, Quoted):
        if isinstance(token.value, bytes):
            return _binary_text(token.value, maxlen)
        cut = token.value if maxlen is None else truncate(token.value, maxlen)
        return _quoted(cut)
    return token if maxlen is None else truncate(token, maxlen)


def _binary_text(value: bytes, maxlen: int | None) -> str:
    dots = ""
    if maxlen and len(value) > maxlen:
        value, dots = value[:maxlen], "..."
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.hex()
    return f"b'{text}{dots}'"


def reprstream(
    stack: deque[Iterator[Any]], seen: set[int] | None = None, maxlevels: int = 3, level: int = 0
) -> Iterator[tuple[Token, Iterator[Any]]]:
    """Yield the tokens of the values in ``stack`` one by one, with their iterator.

    Nothing is looked at before it is asked for, so a reader that stops early
    pays only for what it took.  ``stack`` holds iterators of values and is used
    up; ``level`` is the nesting level at which they stand.
    """
    inside = seen if seen is not None else set()
    while stack:
        values = stack[-1]
        for value in values:
            if isinstance(value, Mark):
                level += value.direction
                if value.direction < 0:
                    inside.discard(value.container)
                yield value, values
                continue
            bracketed = None if isinstance(value, (Key, Quoted)) else _brackets(value)
            if bracketed is None:
                yield _leaf(value), values
                continue
            opening, closing, content = bracketed
            identity = id(value)
            if maxlevels and level >= maxlevels:
                # One mark, so that cutting cannot leave half of it behind.
                yield Mark(f"{opening}...{closing}"), values
            elif identity in inside:
                yield f"<Recursion on {type(value).__name__} with id={identity}>", values
            else:
                inside.add(identity)
                stack.append(_enclosed(opening, closing, content, identity))
                break
        else:
            stack.pop()


def _leaf(value: Any) -> Token:
    """Return the token of a value that is not a container."""
    if isinstance(value, (Key, Quoted)):
        return value
    if isinstance(value, (str, bytes)):
        return Quoted(value)
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}()"
    if isinstance(value, Number) and not isinstance(value, Decimal):
        return _guarded(str, value)
    return _guarded(repr, value)


def _guarded(show: Callable[[Any], str], value: Any) -> str:
    try:
        return show(value)
    except Exception as error:  # noqa: BLE001 - user code, and this function may not raise
        return f"<Unrepresentable {type(value)!r}{id(value):#x}: {error!r}>"


def _brackets(value: Any) -> tuple[str, str, Iterator[Any]] | None:
    """Return opening text, closing text and content of a container, else ``None``."""
    if isinstance(value, (set, frozenset)):
        if not value:
            return None
        if type(value) is set:
            return "{", "}", _listed(value, len(value))
        return f"{type(value).__name__}({{", "})", _listed(value, len(value))
    if isinstance(value, tuple):
        return "(", ",)" if len(value) == 1 else ")", _listed(value, len(value))
    if isinstance(value, dict):
        return "{", "}", _paired(value)
    if isinstance(value, list):
        return "[", "]", _listed(value, len(value))
    return None


def _enclosed(opening: str, closing: str, content: Iterator[Any], identity: int) -> Iterator[Any]:
    yield Mark(opening, +1, closes=closing)
    yield from content
    yield Mark(closing, -1, container=identity)


def _listed(values: Iterable[Any], size: int) -> Iterator[Any]:
    for position, value in enumerate(values, 1):
        yield value
        if position < size:
            yield COMMA


def _paired(mapping: dict[Any, Any]) -> Iterator[Any]:
    size = len(mapping)
    for position, (key, value) in enumerate(mapping.items(), 1):
        yield Key(key)
        yield COLON
        yield value
        if position < size:
            yield COMMA
