"""How many completions a signature contributes to the chord whose header it is in, and to which.

Used by ``canvas.group`` and ``canvas.chord`` when a header is sent.  Goes by ``subtask_type``, so a
signature may be an object or the dictionary it travels as; imports nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ("completions", "completions_of_all", "counted_in")


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


def counted_in(signature: Any) -> str | None:
    """Give the id of the group that the end of a frozen signature is counted in.

    The end of a chain is that of its last step, the end of a chord that of its body.
    """
    kind = signature.get("subtask_type")
    if kind == "chain" and signature["kwargs"]["tasks"]:
        return counted_in(signature["kwargs"]["tasks"][-1])
    if kind == "chord" and signature["kwargs"].get("body"):
        return counted_in(signature["kwargs"]["body"])
    group_id: str | None = signature["options"].get("group_id")
    return group_id
