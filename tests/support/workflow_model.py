"""What workflows mean, as functions over trees of tuples: values, order, errors, calls and error callbacks.

Used by the tests that run workflows of any shape, here or with workers. A tree is ``("task", tag)``,
``("chain", trees)``, ``("group", trees)`` or ``("chord", trees, body)``. It may not import the package under
test: the model is what that is held to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

Tree = Any


class Failed(Exception):
    """A task failed; the argument is its tag."""


def called(value: Any, tag: int) -> str:
    """What a task gives: ``2(1(x))`` was called with what 1 made of x."""
    shown = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value
    return f"{tag}({shown})"


def steps(tasks: list[Tree]) -> list[Tree]:
    """The steps of a chain: chains opened, groups of none left out, groups of one unrolled."""
    opened: list[Tree] = []
    for tree in tasks:
        opened += steps(tree[1]) if tree[0] == "chain" else [tree]
    opened = [tree for tree in opened if tree[0] != "group" or any(members(tree[1]))]
    found: list[Tree] = []
    for tree in opened:
        after_a_leading_group = len(found) == 1 and found[0][0] == "group"
        only = list(members(tree[1])) if tree[0] == "group" else []
        if len(only) == 1 and not after_a_leading_group:
            found += steps(only)
        else:
            found.append(tree)
    return found


def members(trees: Iterable[Tree]) -> Iterator[Tree]:
    """The members of a group, those of groups in it among them; chains of no steps are none."""
    for tree in trees:
        if tree[0] == "group":
            yield from members(tree[1])
        elif tree[0] != "chain" or steps(tree[1]):
            yield tree


def normal(tree: Tree) -> Tree:
    """The tree as the constructors take it: a chain of one group is that group."""
    if tree[0] == "task":
        return tree
    if tree[0] == "chord":
        return ("chord", [normal(each) for each in tree[1]], normal(tree[2]))
    inner = [normal(each) for each in tree[1]]
    if tree[0] == "chain":
        laid_out = steps(inner)
        if len(laid_out) == 1 and laid_out[0][0] == "group":
            return laid_out[0]
    return (tree[0], inner)


def does_something(tree: Tree) -> bool:
    """A chain of no steps does not."""
    return tree[0] != "chain" or bool(steps(tree[1]))


def tags_of(tree: Tree) -> Iterator[int]:
    """The tags of all its tasks."""
    if tree[0] == "task":
        yield tree[1]
        return
    parts = list(members(tree[1])) if tree[0] != "chain" else steps(tree[1])
    for part in (*parts, *tree[2:]):
        yield from tags_of(part)


def run(tree: Tree, value: Any, call: Callable[[Any, int], Any] = called) -> Any:
    """What the workflow gives when it is called with *value*; *call* runs one task.

    The members of a group are all run, even if some fail; nothing is run that follows a failure.
    """
    if tree[0] == "task":
        return call(value, tree[1])
    if tree[0] == "group":
        return _run_all(members(tree[1]), value, call)
    if tree[0] == "chord":
        return run(tree[2], _run_all(members(tree[1]), value, call), call)
    for step in steps(tree[1]):
        value = run(step, value, call)
    return value


def _run_all(trees: Iterable[Tree], value: Any, call: Callable[[Any, int], Any]) -> list[Any]:
    values, failed = [], None
    for tree in trees:
        try:
            values.append(run(tree, value, call))
        except Failed as error:
            failed = error
    if failed is not None:
        raise failed
    return values


def errbacks(tree: Tree, bad: Collection[int]) -> int:
    """How often an error callback linked to *tree* is called when the tasks of these tags fail.

    A chain calls it for the step that fails, a group for each member that does, a chord for its body,
    which fails with its header.
    """
    if tree[0] == "task":
        return int(tree[1] in bad)
    if tree[0] == "group":
        return sum(errbacks(member, bad) for member in members(tree[1]))
    if tree[0] == "chord":
        failing = any(_fails(member, bad) for member in members(tree[1]))
        return _errbacks_if_not_run(tree[2]) if failing else errbacks(tree[2], bad)
    return next((errbacks(step, bad) for step in _paired(steps(tree[1])) if _fails(step, bad)), 0)


def _fails(tree: Tree, bad: Collection[int]) -> bool:
    return any(tag in bad for tag in tags_of(tree))


def _errbacks_if_not_run(tree: Tree) -> int:
    if tree[0] == "group":
        return sum(map(_errbacks_if_not_run, members(tree[1])))
    if tree[0] == "chain":
        paired = _paired(steps(tree[1]))
        return _errbacks_if_not_run(paired[0]) if len(paired) == 1 else 1
    return _errbacks_if_not_run(tree[2]) if tree[0] == "chord" else 1


def _paired(found: list[Tree]) -> list[Tree]:
    """Steps, with each group that something follows as a chord with that."""
    paired: list[Tree] = []
    for step in found:
        if paired and _ends_in_group(paired[-1]):
            paired[-1] = _followed(paired[-1], step)
        else:
            paired.append(step)
    return paired


def _ends_in_group(tree: Tree) -> bool:
    if tree[0] == "chord":
        return _ends_in_group(tree[2])
    if tree[0] == "chain" and steps(tree[1]):
        return _ends_in_group(steps(tree[1])[-1])
    return bool(tree[0] == "group")


def _followed(tree: Tree, following: Tree) -> Tree:
    if tree[0] == "group":
        return ("chord", tree[1], following)
    if tree[0] == "chain":
        *before, last = steps(tree[1])
        return ("chain", [*before, _followed(last, following)])
    return ("chord", tree[1], _followed(tree[2], following))
