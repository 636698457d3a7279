"""How many completions a signature contributes to the chord whose header it is in.

Used by ``canvas.group`` and ``canvas.chord`` when a header is sent.  Goes by ``subtask_type``, so a
signature may be an object or the dictionary it travels as; imports nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ("completions", "completions_of_all")


def completions(signature: Any) -> int:
    """Count the calls in *signature* whose ends the chord around it is told of.

    A group counts by its members, a chain by its last step that counts at all, a chord by its body.
    """
    if not isinstance(signature, (dict, Mapping)):
        return 0 if signature is None else completions_of_all(signature)
    kind = signature.get("subtask_type")
    if kind == "group":
        return completions_of_all(signature["kwargs"]["tasks"])
    if kind == "chain":
        return next((size for size in map(completions, reversed(signature["kwargs"]["tasks"])) if size), 0)
    if kind == "chord":
        return completions(signature["kwargs"].get("body"))
    return 1


def completions_of_all(signatures: Iterable[Any]) -> int:
    """Count the completions of a whole header, a group or any iterable of signatures."""
    if isinstance(signatures, Mapping):
        return completions(signatures)
    return sum(map(completions, signatures))
