"""``chain``: tasks that follow one another, each called with the value of the one before.

Made by users and by ``canvas.pipe``, read back by ``app.trace``, which sends one step after the other.
Owns how steps are laid out flat, paired into chords and given their ids: :func:`flatten`,
:func:`upgrade` and :func:`freeze_backwards`, each a function from a list to a new list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from celery_clone import states
from celery_clone.canvas.chord import chord, earliest, without_header_links
from celery_clone.canvas.group import group, is_empty_group, read_generators, single_member, without_placing
from celery_clone.canvas.signature import (
    Signature,
    app_of_any,
    as_signature,
    bound,
    copied,
    is_several,
    maybe_signature,
    options_copied,
    shortened,
)
from celery_clone.result import EagerResult, allow_join_result
from celery_clone.utils.functional import maybe_list
from celery_clone.utils.objects import getitem_property

__all__ = ("chain", "ends_in_group", "flatten", "followed", "freeze_backwards", "upgrade")

#: Options of a chain that are for its first step: all but those that the chain itself acts on.
NOT_FOR_FIRST_STEP = frozenset({"link", "link_error"})


def flatten(tasks: Iterable[Any], app: Any = None) -> list[Any]:
    """Give the steps one after the other: no chain in the chain, and no group that is none.

    Chains are spliced, groups of one member give way to that member, groups of none are left out
    (a chain of nothing else keeps one, whose result is an empty group).  A chord whose body is a chain
    becomes a chord with the first step of it, followed by the others: the body travels with every
    member of the header, so it should be no longer than need be.
    """
    steps: list[Any] = []
    empty_group = None
    waiting = deque(tasks)
    while waiting:
        step = single_member(bound(waiting.popleft(), app)._unfolded())
        if isinstance(step, _chain):
            waiting.extendleft(reversed(step._spliced()))
        elif is_empty_group(step):
            empty_group = step
        elif isinstance(step, chord) and isinstance(step.body, _chain):
            waiting.extendleft(reversed(_unrolled(step, app)))
        else:
            steps.append(step)
    return steps or ([] if empty_group is None else [empty_group])


def _unrolled(step: Any, app: Any) -> list[Any]:
    """Give a chord whose body is a chain as a chord with a simpler body, and the steps after it."""
    body = step.body_or_refuse()
    first, *rest = upgrade(flatten(body._spliced(), app))
    return [step.with_body(first), *rest]


def upgrade(steps: Iterable[Any]) -> list[Any]:
    """Give the steps with each group that something follows made into a chord with what follows.

    A group calls nothing when it ends, a chord does.
    """
    upgraded: list[Any] = []
    for step in steps:
        if upgraded and ends_in_group(upgraded[-1]):
            upgraded[-1] = followed(upgraded[-1], step)
        else:
            upgraded.append(step)
    return upgraded


def ends_in_group(step: Any) -> bool:
    """Does the signature end with several calls, so that none of them is its end?"""
    while True:
        if isinstance(step, chord) and step.body is not None:
            step = step.body
        elif isinstance(step, _chain) and step.tasks:
            step = step.tasks[-1]
        else:
            return isinstance(step._unfolded(), group)


def followed(step: Any, following: Any) -> Any:
    """Give a signature that ends in a group with *following* as the last body."""
    step = step._unfolded()
    if isinstance(step, group):
        return chord(step, body=following, app=step._app)
    if isinstance(step, _chain):
        *before, last = step.unchain_tasks()
        options = {key: value for key, value in step.options.items() if key not in NOT_FOR_FIRST_STEP}
        return _chain([*before, followed(last, following)], app=step._app, **options)
    return step.with_body(followed(step.body, following))


def freeze_backwards(
    steps: list[Any],
    *,
    app: Any,
    last_task_id: str | None = None,
    root_id: str | None = None,
    group_id: str | None = None,
    chord_body: Any = None,
    group_index: int | None = None,
) -> list[Any]:
    """Give the steps their ids, and their results in reverse order: the last step's comes first.

    The id, the group and the chord that are told are the last step's, since its end is the chain's.
    Each result has that of the step before it as parent.
    """
    results: list[Any] = []
    for step in reversed(steps):
        if isinstance(step, chord):
            app.backend.ensure_chords_allowed()
        if results:
            result = step.freeze(root_id=root_id)
            # What follows a chord, or is one, has its own line of parents: the header, for one.
            earliest(results[-1]).parent = result
        else:
            result = step.freeze(
                last_task_id, root_id=root_id, group_id=group_id, chord=chord_body, group_index=group_index
            )
        results.append(result)
    return results


def _link_end(step: Any, callback: Any) -> None:
    """Have a callback of the chain called when its last step has ended: that of a group, for each member."""
    if isinstance(step, group):
        step.append_to_list_option("link", callback)
    else:
        step.link(copied(callback))


@Signature.register_type(name="chain")
class _chain(Signature):  # noqa: N801 (Celery's name, used for isinstance)
    """Tasks to run one after the other, exactly as given.  Made by ``chain(...)`` and ``|``."""

    #: What ``chain(a, b, c)`` makes.  Set by ``canvas.pipe``.
    _fold: ClassVar[Callable[[Iterable[Any]], Any]]

    tasks = getitem_property("kwargs.tasks", "The steps.")

    @classmethod
    def from_dict(cls, d: dict[str, Any], app: Any = None) -> Any:
        """Make a chain of its dictionary; ``d["kwargs"]["tasks"]`` may hold signatures or dictionaries."""
        tasks = [maybe_signature(task, app=app) for task in d["kwargs"]["tasks"] or ()]
        made = cls(tasks, app=app, **d.get("options") or {})
        made["args"], made["immutable"] = tuple(d.get("args") or ()), bool(d.get("immutable"))
        return made

    def __init__(self, *tasks: Any, **options: Any) -> None:
        steps: Any = tasks[0] if len(tasks) == 1 and is_several(tasks[0]) else tasks
        app = options.get("app")
        kind = tuple if isinstance(steps, tuple) else list
        steps = kind(as_signature(task, app, taker="chain()") for task in steps)
        super().__init__("celery.chain", (), {"tasks": steps}, **options)
        self["subtask_type"] = "chain"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.tasks:
            return self.apply_async(args, kwargs)
        return None

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """Copy the chain and its steps; *args* and *kwargs* are for the first step."""
        return self._clone(*args, **kwargs)

    def _clone(self, args: Any = None, kwargs: Any = None, **opts: Any) -> Any:
        args, _, options = self._merge(args, None, opts or None)
        tasks = [maybe_signature(task, clone=True) for task in self.tasks]
        if tasks and kwargs:
            tasks[0] = tasks[0].clone(None, kwargs)
        return self._twin(tuple(args), {"tasks": tasks}, options_copied(options))

    def unchain_tasks(self) -> list[Any]:
        """Give copies of the steps that stand for the whole chain.

        The chain's callbacks are linked to the last one, its errbacks to all, its arguments are given
        to the first.
        """
        tasks = [maybe_signature(task, clone=True) for task in self.tasks]
        if not tasks:
            return tasks
        if self.args:
            tasks[0] = tasks[0].clone(self.args)
        if self.immutable:
            tasks[0].set_immutable(True)
        for callback in maybe_list(self.options.get("link")) or ():
            tasks[-1].link(callback)
        for errback in maybe_list(self.options.get("link_error")) or ():
            for task in tasks:
                task.link_error(copied(errback))
        return tasks

    def _spliced(self) -> list[Any]:
        """Give the steps to be put in the place of this chain into another one."""
        tasks = self.unchain_tasks()
        options = without_placing(self.options)
        for key in NOT_FOR_FIRST_STEP:
            options.pop(key, None)
        if tasks and options:
            tasks[0] = tasks[0].clone(**options)
        return tasks

    # -- sending

    def apply_async(  # type: ignore[override]  # Celery's arguments
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Send the first step, with the others to follow, and give the result of the last.

        *args* and *kwargs* are for the first step, and so are *options*, but for callbacks and ids.
        """
        if self.app.conf.task_always_eager:
            with allow_join_result():
                return self.apply(args, kwargs, **options)
        given = {key: value for key, value in options.items() if value is not None}
        return self.run(args, kwargs, app=self.app, **{**self.options, **given})

    def run(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        group_id: str | None = None,
        chord: Any = None,
        task_id: str | None = None,
        link: Any = None,
        link_error: Any = None,
        publisher: Any = None,
        producer: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        app: Any = None,
        group_index: int | None = None,
        **options: Any,
    ) -> Any:
        """Send the chain.

        :param group_id: group that the chain is a member of; *group_index* is its place there.
        :param chord: body of the chord that waits for the chain.
        :param task_id: id of the last step.
        :param link: callbacks of the last step.
        :param link_error: errbacks of every step.
        :param publisher: old name of *producer*.
        :param root_id: id of the first call of the workflow; *parent_id*: that of the caller.
        """
        args = (*args, *self.args) if args and not self.immutable else self.args
        steps, results = self.prepare_steps(
            args,
            kwargs,
            self.tasks,
            root_id,
            parent_id,
            link_error,
            app or self.app,
            task_id,
            group_id,
            chord,
            group_index=group_index,
        )
        if not steps:
            return None
        for callback in maybe_list(link) or ():
            _link_end(steps[0], callback)
        first = steps.pop()
        # A new list: the options may be those of a whole group, whose members share them.
        options["chain"] = [*(options.get("chain") or ()), *steps]
        result = first.apply_async(producer=producer or publisher, parent_id=parent_id, **options)
        return results[0] if steps else result

    def prepare_steps(
        self,
        args: Iterable[Any] | None,
        kwargs: Mapping[str, Any] | None,
        tasks: Iterable[Any],
        root_id: str | None = None,
        parent_id: str | None = None,
        link_error: Any = None,
        app: Any = None,
        last_task_id: str | None = None,
        group_id: str | None = None,
        chord_body: Any = None,
        clone: bool = True,
        from_dict: Callable[..., Any] = Signature.from_dict,
        group_index: int | None = None,
    ) -> tuple[list[Any], list[Any]]:
        """Give the steps that are sent, with ids, and their results; both with the last step first.

        That is the order in which the rest of a chain travels: each worker takes the next off the end.
        *args* and *kwargs* are for the first step.  Without *clone* the given signatures themselves get
        the ids, else copies do.
        """
        app = app or self.app
        given = [task if isinstance(task, Signature) else as_signature(task, app, taker="chain()") for task in tasks]
        if clone:
            # Chains are copied as they are spliced.
            given = [task if isinstance(task, _chain) else task.clone() for task in given]
        steps = upgrade(flatten(given, app))
        if steps and (args or kwargs):
            steps[0] = steps[0].clone(args, kwargs)
        if clone:
            # All but the first travel inside a message, where a generator cannot.
            for step in steps[1:]:
                read_generators(step)
        results = freeze_backwards(
            steps,
            app=app,
            last_task_id=last_task_id,
            root_id=root_id,
            group_id=group_id,
            chord_body=chord_body,
            group_index=group_index,
        )
        for errback in maybe_list(link_error) or ():
            for step in steps:
                step.link_error(copied(errback))
        if clone:
            for step in steps:
                without_header_links(step)
        return steps[::-1], results

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> Any:
        """Fix the ids of all steps, and give the result of the last; the others are its parents.

        The steps are laid out as they will be sent.  *_id*, *group_id*, *chord* and *group_index* are for
        the last one, since its end is the chain's.
        """
        steps, results = self.prepare_steps(
            (),
            {},
            self.tasks,
            root_id,
            parent_id,
            None,
            self.app,
            _id,
            group_id,
            chord,
            clone=False,
            group_index=group_index,
        )
        if not steps:
            raise ValueError(f"{self!r} cannot be frozen: a chain without steps has no result.")
        self.tasks = steps[::-1]
        self.id = results[0].id
        return results[0]

    def apply(self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run the steps here, one after the other, and give the result of the last.

        An error in a step before the last is raised.  The run ends early at a step that is ignored or
        rejected.
        """
        options = {**self.options, **options}
        for key in ("chord", "group_id", "group_index"):
            options.pop(key, None)
        last_only = {"task_id": options.pop("task_id", None)}
        link = maybe_list(options.pop("link", None)) or ()
        args = (*args, *self.args) if args and not self.immutable else self.args
        steps = upgrade(flatten(task.clone() for task in map(maybe_signature, self.tasks)))
        result: Any = None
        for place, step in enumerate(steps):
            is_last = place == len(steps) - 1
            if is_last:
                for callback in link:
                    _link_end(step, callback)
            if result is not None:
                args, kwargs = (result.get(disable_sync_subtasks=False),), None
            before, result = result, step.apply(args, kwargs, **options, **(last_only if is_last else {}))
            if before is not None:
                earliest(result).parent = before
            if isinstance(result, EagerResult) and result.state in (states.IGNORED, states.REJECTED):
                break
        return result

    # -- as a value

    def _own_app(self) -> Any:
        app = super()._own_app()
        return app_of_any(self.tasks) if app is None else app

    def __repr__(self) -> str:
        tasks = self.tasks
        if not tasks:
            return f"<{type(self).__name__}@{id(self):#x}: empty>"
        return shortened(tasks[0]["task"], " | ".join(map(repr, tasks)))


class chain(_chain):
    """Tasks to run one after the other, each called with the value of the one before.

        >>> chain(add.s(2, 2), add.s(4))().get()
        8

    Takes signatures, or one iterable of them, and makes of them what ``a | b | c`` makes: so a group
    that is followed by something becomes a chord, and what comes back need not be a chain.  With
    options the steps are kept as they are given.
    """

    def __new__(cls, *tasks: Any, **kwargs: Any) -> Any:
        if kwargs or not tasks or (len(tasks) == 1 and not is_several(tasks[0])):
            return super().__new__(cls)
        if cls is not chain:
            # A class of the user's own keeps its type; its steps are paired when they are sent.
            return super().__new__(cls)
        return cls._fold(tasks[0] if len(tasks) == 1 else tasks)
