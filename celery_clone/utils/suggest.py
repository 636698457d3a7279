"""The nearest known name, for every error about an unknown one.

Called where errors are made.  Pure: reads two values and answers with a third.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ("closest", "hint")


def closest(asked: str, known: Iterable[str]) -> str | None:
    """Return the name in *known* that *asked* was probably meant to be; ``None`` if none is near.

    Case is ignored; of equally near names the first in *known* is taken.
    """
    names: dict[str, str] = {}
    for name in known:
        names.setdefault(name.casefold(), name)
    near = get_close_matches(asked.casefold(), names, n=1, cutoff=0.6)
    return names[near[0]] if near else None


def hint(asked: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'name'?"`` to end a sentence with, or ``""`` if no name is near."""
    near = closest(asked, known)
    return f" Did you mean {near!r}?" if near is not None else ""
