"""What ``left | right`` makes of two signatures, as one table.

Called through ``Signature.__or__`` and by ``chain(...)``; filled in when ``canvas`` is imported.  The
table :data:`TABLE` has a row for each kind of the left side and of the right side, and names the
rewrite; the rewrites are the functions below it.  Nothing here sends or freezes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import reduce
from operator import or_
from typing import Any

from celery_clone.canvas.chain import _chain
from celery_clone.canvas.chord import chord
from celery_clone.canvas.group import group, is_empty_group, single_member
from celery_clone.canvas.signature import Signature, as_signature, refuse_no_signature

__all__ = ("TABLE", "Kind", "fold", "kind_of", "pipe")


class Kind(Enum):
    """What the algebra tells signatures apart by."""

    TASK = "a task"
    GROUP = "a group"
    NOTHING = "a group of none"
    CHORD = "a chord"
    CHAIN = "a chain"
    CHAIN_ENDING_IN_GROUP = "a chain that ends in a group"
    CHAIN_ENDING_IN_CHORD = "a chain that ends in a chord"
    EMPTY_CHAIN = "a chain of none"


def kind_of(sig: Any) -> Kind:
    """Tell the kind of a signature."""
    if isinstance(sig, _chain):
        return _kind_of_chain(sig.tasks)
    if isinstance(sig, group):
        return Kind.NOTHING if is_empty_group(sig) else Kind.GROUP
    return Kind.CHORD if isinstance(sig, chord) else Kind.TASK


def _kind_of_chain(steps: Any) -> Kind:
    if not steps:
        return Kind.EMPTY_CHAIN
    if isinstance(steps[-1], group):
        return Kind.CHAIN_ENDING_IN_GROUP
    return Kind.CHAIN_ENDING_IN_CHORD if isinstance(steps[-1], chord) else Kind.CHAIN


# -- the rewrites


def begin(left: Any, right: Any) -> Any:
    """A chain of the two."""
    return _chain(left, right, app=left._app)


def prepend(left: Any, right: Any) -> Any:
    """The chain on the right with the left side before it."""
    return _chain((left, *right.unchain_tasks()), app=left._app)


def append(left: Any, right: Any) -> Any:
    """The chain on the left with the right side after it."""
    return _prolonged(left, [*left.unchain_tasks(), right])


def splice(left: Any, right: Any) -> Any:
    """The chain on the left with the steps of the right one after it, one by one."""
    return reduce(or_, right.unchain_tasks(), left)


def upgrade_to_chord(left: Any, right: Any) -> Any:
    """A chord: the group is the header, the right side the body."""
    return chord(left, body=right, app=left._app)


def upgrade_end_to_chord(left: Any, right: Any) -> Any:
    """The chain with its last step, a group, made into a chord with the right side as the body."""
    *before, last = left.unchain_tasks()
    made = upgrade_to_chord(last, right)
    if before and isinstance(before[-1], chord):
        made = extend_body(before.pop(), made)
    return _prolonged(left, [*before, made])


def extend_body(left: Any, right: Any) -> Any:
    """The chord with the right side after its body."""
    return left.with_body(right if left.body is None else left.body | right)


def extend_end_body(left: Any, right: Any) -> Any:
    """The chain with the right side after the body of its last step, a chord."""
    *before, last = left.unchain_tasks()
    return _prolonged(left, [*before, extend_body(last, right)])


def keep_left(left: Any, right: Any) -> Any:
    """The left side: there is nothing to follow it."""
    return left


def keep_right(left: Any, right: Any) -> Any:
    """The right side: there is nothing before it."""
    return right


def _prolonged(left: Any, steps: list[Any]) -> Any:
    """Give a chain like *left* with these steps, which carry its callbacks, arguments and last id."""
    options = {key: value for key, value in left.options.items() if key not in ("link", "link_error", "task_id")}
    # The app is given even if it is None: with an option chain() takes the steps as they are.
    return type(left)(steps, app=left._app, **options)


Rewrite = Callable[[Any, Any], Any]

_ON_TASK: dict[Kind, Rewrite] = {
    Kind.TASK: begin,
    Kind.GROUP: begin,
    Kind.NOTHING: begin,
    Kind.CHORD: begin,
    Kind.CHAIN: prepend,
    Kind.EMPTY_CHAIN: prepend,
}
_ON_GROUP: dict[Kind, Rewrite] = {
    Kind.TASK: upgrade_to_chord,
    Kind.GROUP: upgrade_to_chord,
    Kind.NOTHING: keep_left,
    Kind.CHORD: upgrade_to_chord,
    Kind.CHAIN: upgrade_to_chord,
    Kind.EMPTY_CHAIN: keep_left,
}
_ON_CHAIN: dict[Kind, Rewrite] = {
    Kind.TASK: append,
    Kind.GROUP: append,
    Kind.NOTHING: keep_left,
    Kind.CHORD: append,
    Kind.CHAIN: splice,
    Kind.EMPTY_CHAIN: keep_left,
}

#: Left kind, then right kind, to the rewrite.  Chains on the right count as ``CHAIN`` whatever they end
#: in, and a group of one member on the right as that member.
TABLE: Mapping[Kind, Mapping[Kind, Rewrite]] = {
    Kind.TASK: _ON_TASK,
    Kind.CHORD: {**_ON_TASK, Kind.TASK: extend_body, Kind.CHORD: extend_body},
    Kind.GROUP: _ON_GROUP,
    Kind.NOTHING: _ON_GROUP,
    Kind.CHAIN: _ON_CHAIN,
    Kind.EMPTY_CHAIN: {**_ON_CHAIN, Kind.GROUP: keep_right},
    Kind.CHAIN_ENDING_IN_GROUP: {**_ON_CHAIN, Kind.TASK: upgrade_end_to_chord, Kind.CHORD: upgrade_end_to_chord},
    Kind.CHAIN_ENDING_IN_CHORD: {**_ON_CHAIN, Kind.TASK: extend_end_body, Kind.GROUP: extend_end_body},
}


def pipe(left: Any, right: Any) -> Any:
    """Give what ``left | right`` makes.

    What is no signature is refused with :exc:`TypeError`, unless it knows by itself how to stand on the
    right of a ``|``.
    """
    if not isinstance(right, Signature):
        if not isinstance(right, dict):
            # Not hasattr: classes themselves can be piped, so every one of them would seem to know how.
            if not any("__ror__" in vars(kind) and kind.__module__ != "builtins" for kind in type(right).__mro__):
                refuse_no_signature(right, taker="|")
            return NotImplemented
        right = as_signature(right, left._app, taker="|")
    if isinstance(left, _chain):
        left = _without_nothing_at_its_end(left)
    left_kind = kind_of(left)
    if not isinstance(left, group):
        right = single_member(right)
    right_kind = kind_of(right)
    if isinstance(right, _chain) and right_kind is not Kind.EMPTY_CHAIN:
        right_kind = Kind.CHAIN
    return TABLE[left_kind][right_kind](left, right)


#: What a rewrite does to the steps of a chain that is being built, of which it changes the end only.
_IN_PLACE: dict[Rewrite, Callable[[list[Any], Any], None]] = {
    append: lambda steps, right: steps.append(right),
    upgrade_end_to_chord: lambda steps, right: steps.append(upgrade_to_chord(steps.pop(), right)),
    extend_end_body: lambda steps, right: steps.append(extend_body(steps.pop(), right)),
}


def _without_nothing_at_its_end(left: Any) -> Any:
    """Give the chain without the groups of none it ends in: what follows follows what was before them."""
    size = len(left.tasks)
    while size and is_empty_group(left.tasks[size - 1]):
        size -= 1
    if size == len(left.tasks):
        return left
    return type(left)(left.tasks[:size], app=left._app, **left.options)


def fold(tasks: Iterable[Any]) -> Any:
    """Give what ``chain(*tasks)`` makes: ``tasks[0] | tasks[1] | …`` from an empty chain on, in linear time.

    ``|`` copies the chain on its left each time; here its steps are kept in one list.
    """
    waiting = deque(as_signature(task, None, taker="chain()") for task in tasks)
    steps: list[Any] = []
    while waiting:
        right = single_member(waiting.popleft())
        if isinstance(right, _chain):
            waiting.extendleft(reversed(right.unchain_tasks()))
            continue
        kind = kind_of(right)
        if kind is Kind.NOTHING:
            continue
        if kind is Kind.GROUP and not steps:
            # No chain any more; what follows goes by what it became.
            return reduce(or_, waiting, right)
        rewrite = TABLE[_kind_of_chain(steps)][kind]
        _IN_PLACE[rewrite](steps, right.clone() if waiting else right)
    return _chain(steps)


Signature._pipe = staticmethod(pipe)
_chain._fold = staticmethod(fold)
