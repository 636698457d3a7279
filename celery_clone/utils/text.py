"""Making texts fit: shortening, indenting, filling in, and splitting lists.

Used for logs, tables of the command line and node names.  Pure.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, MutableMapping
from functools import partial
from textwrap import fill
from typing import Any

__all__ = (
    "abbr",
    "abbrtask",
    "dedent",
    "dedent_initial",
    "ensure_newlines",
    "ensure_sep",
    "fill_paragraphs",
    "indent",
    "join",
    "pluralize",
    "pretty",
    "simple_format",
    "str_to_list",
    "truncate",
)

#: A ``%`` and the character it makes special.
RE_FORMAT = re.compile(r"%([%\w])")

_UNKNOWN_FORMAT = (
    "Unknown format %{key} in string {text!r}.\n"
    "Possible causes: Did you forget to escape the expand sign (use '%%{key}'),\n"
    "or did you escape and the value was expanded twice? (%%N -> %N -> %hostname)?"
)


def str_to_list(s: Any) -> Any:
    """Split a text at its commas; anything else is returned as it is."""
    return s.split(",") if isinstance(s, str) else s


def dedent_initial(s: str, n: int = 4) -> str:
    """Remove *n* leading spaces, if there are so many."""
    return s.removeprefix(" " * n)


def dedent(s: str, sep: str = "\n") -> str:
    """Remove four leading spaces from every line that has them."""
    return sep.join(dedent_initial(line) for line in s.splitlines())


def fill_paragraphs(s: str, width: int, sep: str = "\n") -> str:
    """Break lines at *width* characters in each part between separators."""
    return sep.join(fill(paragraph, width) for paragraph in s.split(sep))


def join(l: Iterable[str | None], sep: str = "\n") -> str:  # noqa: E741 (Celery's public name)
    """Join the texts that are not empty."""
    return sep.join(text for text in l if text)


def ensure_sep(sep: str, s: str, n: int = 2) -> str:
    """Append so many separators that the text has *n* of them."""
    return s + sep * (n - s.count(sep))


#: :func:`ensure_sep` for line breaks.
ensure_newlines = partial(ensure_sep, "\n")


def abbr(S: str | None, max: int, ellipsis: str | bool = "...") -> str:  # noqa: N803 (Celery's public name)
    """Cut a word to *max* characters, the last of them the *ellipsis* if that is a text."""
    if S is None:
        return "???"
    if len(S) <= max:
        return S
    return S[: max - len(ellipsis)] + ellipsis if isinstance(ellipsis, str) and ellipsis else S[:max]


def abbrtask(S: str | None, max: int) -> str:  # noqa: N803 (Celery's public name)
    """Cut the module in a task's name so that the name has about *max* characters."""
    if S is None:
        return "???"
    if len(S) <= max:
        return S
    module, _, name = S.rpartition(".")
    return f"{abbr(module, max - len(name) - 3, False)}[.]{name}"


def indent(t: str, indent: int = 0, sep: str = "\n") -> str:
    """Put *indent* spaces before each line."""
    return sep.join(" " * indent + line for line in t.split(sep))


def truncate(s: str, maxlen: int = 128, suffix: str = "...") -> str:
    """Cut a text of *maxlen* or more characters at the last space before, and append *suffix*."""
    if not maxlen or len(s) < maxlen:
        return s
    return s[:maxlen].rsplit(" ", 1)[0] + suffix


def pluralize(n: float, text: str, suffix: str = "s") -> str:
    """Return *text* as it is for one, with *suffix* for any other number."""
    return text if n == 1 else text + suffix


def pretty(value: Any, width: int = 80, nl_width: int = 80, sep: str = "\n", **kw: Any) -> str:
    """Lay out a value for people; dicts and tuples begin on a line of their own."""
    from pprint import pformat  # noqa: PLC0415 for reports alone; it brings dataclasses along

    if isinstance(value, dict):
        return f"{sep} {pformat(value, 4, nl_width)[1:]}"
    if isinstance(value, tuple):
        return f"{sep}{' ' * 4}{pformat(value, width=nl_width, **kw)}"
    return pformat(value, width=width, **kw)


def match_case(s: str, other: str) -> str:
    """Return *s* in upper case if *other* is in upper case, else in lower case."""
    return s.upper() if other.isupper() else s.lower()


def simple_format(
    s: str,
    keys: MutableMapping[str, str | Callable[[], str]],
    pattern: re.Pattern[str] = RE_FORMAT,
    expand: str = r"\1",
) -> str:
    """Replace ``%x`` by ``keys["x"]`` (called, if it is a function) and ``%%`` by a percent sign.

    Raises ``ValueError`` for a letter that is not in *keys*.
    """
    if not s:
        return s
    keys.setdefault("%", "%")

    def replace(found: re.Match[str]) -> str:
        key = found.expand(expand)
        if key not in keys:
            raise ValueError(_UNKNOWN_FORMAT.format(key=key, text=s))
        value = keys[key]
        return value() if callable(value) else value

    return pattern.sub(replace, s)


def remove_repeating_from_task(task_name: str, s: str) -> str:
    """Drop the module of *task_name* wherever it stands in *s*, but for the first time."""
    module = str(task_name).rpartition(".")[0]
    return remove_repeating(f"{module}.", s) if module else s


def remove_repeating(substr: str, s: str) -> str:
    """Drop *substr* wherever a name begins with it, but for the first time it occurs."""
    head, found, rest = s.partition(substr)
    # Not inside a longer name: "app." stays in "webapp.tasks".
    return head + found + re.sub(rf"(?<![\w.-]){re.escape(substr)}", "", rest)


class WhateverIO(io.StringIO):
    """A text buffer that takes bytes (UTF-8) too."""

    def __init__(self, v: bytes | str | None = None, *a: Any, **kw: Any) -> None:
        super().__init__(v.decode() if isinstance(v, bytes) else v, *a, **kw)

    def write(self, data: bytes | str) -> int:
        return super().write(data.decode() if isinstance(data, bytes) else data)


StringIO = io.StringIO
