"""``group``: tasks that run in parallel.

Made by users, by ``canvas.chord`` for headers, by ``canvas.maps`` for chunks, and by ``app.trace`` for
several callbacks.  Owns how members are laid out flat, numbered, given ids and sent together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_clone.canvas.counting import completions, counted_in
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
from celery_clone.result import GroupResult
from celery_clone.utils.functional import is_lazy, lookahead, maybe_list, regen
from celery_clone.utils.ids import uuid
from celery_clone.utils.objects import getitem_property

if TYPE_CHECKING:
    from celery_clone.app.base import Celery

__all__ = ("group", "is_empty_group", "members_of", "read_generators", "single_member", "without_placing")

#: Options that say which call it is and where it belongs; they are never handed on to members.
PLACING = frozenset({"task_id", "group_id", "group_index", "chord", "root_id", "parent_id", "reply_to", "chain"})


def _size(tasks: Any, most: int = 2) -> int:
    """Count members as they will be sent, up to *most*; a generator counts as many, unread."""
    if is_lazy(tasks):
        return most
    size = 0
    for task in tasks:
        kind = task.get("subtask_type")
        if kind == "group":
            size += _size(task["kwargs"]["tasks"], most - size)
        elif kind != "chain" or task["kwargs"]["tasks"]:
            size += 1
        if size >= most:
            break
    return size


def is_empty_group(task: Any) -> bool:
    """Is it a group that is known, without reading a generator, to have no members?"""
    return isinstance(task, group) and _size(task.tasks, 1) == 0


def single_member(task: Any) -> Any:
    """Give the only member of a group that has but one, in the group's place; else *task*.

    A generator is not read for it.
    """
    if isinstance(task, group) and _size(task.tasks) == 1:
        return handed_down(task, next(members_of(task.tasks, task._app)))
    return task


class Callbacks(NamedTuple):
    """What is to be called for each member of a group."""

    links: Sequence[Any]
    errbacks: Sequence[Any]

    def link_to(self, member: Any) -> None:
        """Link copies of them to a member."""
        for callback in self.links:
            member.link(copied(callback))
        for errback in self.errbacks:
            member.link_error(copied(errback))


def callbacks_in(options: dict[str, Any]) -> Callbacks:
    """Take the callbacks out of the options of a group."""
    return Callbacks(*(maybe_list(options.pop(key, None)) or () for key in ("link", "link_error")))


def without_placing(options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the options that a group hands on to its members."""
    return {key: value for key, value in options.items() if key not in PLACING}


def handed_down(parent: Any, member: Any) -> Any:
    """Give *member* as it is without the group around it: with that group's arguments and options."""
    options = without_placing(parent.options)
    callbacks = callbacks_in(options)
    if not (options or any(callbacks) or parent.args):
        return member
    member = member.clone(None if member.immutable else parent.args, **options)
    callbacks.link_to(member)
    return member


def members_of(tasks: Iterable[Any], app: Any) -> Iterator[Any]:
    """Yield the members with nested groups opened, in order; chains without steps are left out."""
    for task in tasks:
        member = bound(task, app)._unfolded()
        if isinstance(member, group):
            for inner in members_of(member.tasks, app):
                yield handed_down(member, inner)
        elif member.get("subtask_type") != "chain" or member.tasks:
            yield member


def read_generators(sig: Any) -> None:
    """Put lists in the place of lazy members, wherever they are in *sig*."""
    kind = sig.get("subtask_type")
    if kind not in ("group", "chain", "chord"):
        return
    if is_lazy(sig.tasks):
        sig.tasks = list(sig.tasks)
    for task in sig.tasks.tasks if isinstance(sig.tasks, group) else sig.tasks:
        read_generators(task)
    if kind == "chord" and sig.body is not None:
        read_generators(sig.body)


def _give_an_end(sig: Any, app: Any) -> None:
    """Put a call that gives an empty list where *sig* ends in a group of none: a chord around it waits for an end."""
    kind = sig.get("subtask_type")
    if kind == "chain":
        last = next((step for step in reversed(sig.tasks) if not is_empty_group(step)), None)
        if last is not None:
            _give_an_end(last, app)
    elif kind == "chord" and sig.body is not None:
        if is_empty_group(sig.body):
            sig.body = Signature("celery.accumulate", ([],), {"index": 0}, immutable=True, app=app)
        else:
            _give_an_end(sig.body, app)


def _unread(members: Iterable[Any], app: Any) -> Any:
    """Give what is taken for members as a list; that of a generator is read when it is asked for."""
    if isinstance(members, (list, tuple)):
        return members
    return regen(as_signature(task, app, taker="group()") for task in members)


@Signature.register_type()
class group(Signature):
    """Tasks to run in parallel; called, it gives a :class:`GroupResult`.

    Takes signatures, or one iterable of them; a generator is read no earlier than the members are
    sent.  *options* apply to every member when the group is sent.

        >>> group(add.s(2, 2), add.s(4, 4))().get()
        [4, 8]
    """

    tasks = getitem_property("kwargs.tasks", "The members.")

    @classmethod
    def from_dict(cls, d: dict[str, Any], app: Any = None) -> Any:
        """Make a group of its dictionary; ``d["kwargs"]["tasks"]`` may hold signatures or dictionaries."""
        tasks = d["kwargs"]["tasks"]
        read = (maybe_signature(task, app=app) for task in tasks)
        made = cls(regen(read) if is_lazy(tasks) else type(tasks)(read), app=app, **d.get("options") or {})
        made["args"], made["immutable"] = tuple(d.get("args") or ()), bool(d.get("immutable"))
        return made

    def __init__(self, *tasks: Any, **options: Any) -> None:
        members: Any = tasks
        if len(tasks) == 1:
            members = tasks[0]
            if isinstance(members, group):
                members = members.tasks
            elif is_several(members):
                members = _unread(members, options.get("app"))
            else:
                members = [as_signature(members, options.get("app"), taker="group()").clone()]
        app = options.get("app")
        if not is_lazy(members):
            # A list of its own: freezing puts other members into it.
            kind = tuple if isinstance(members, tuple) else list
            members = kind(as_signature(task, app, taker="group()") for task in members)
        super().__init__("celery.group", (), {"tasks": members}, **options)
        self["subtask_type"] = "group"

    def __call__(self, *partial_args: Any, **options: Any) -> Any:
        return self.apply_async(partial_args, **options)

    def clone(self, args: Any = None, kwargs: Any = None, **opts: Any) -> Any:
        """Copy the group and its members; *args* and *kwargs* are for every member."""
        args, _, options = self._merge(args, None, opts or None)
        if is_lazy(self.tasks):
            tasks: Any = regen(maybe_signature(task, clone=True).clone(None, kwargs) for task in self.tasks)
        else:
            tasks = type(self.tasks)(maybe_signature(task).clone(None, kwargs) for task in self.tasks)
        return self._twin(tuple(args), {"tasks": tasks}, options_copied(options))

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> Any:
        """Give the members countdowns of *start*, *start + step*… seconds, at most *stop*."""
        countdown = start
        for task in self.tasks:
            task.set(countdown=countdown)
            if stop is None or countdown + step <= stop:
                countdown += step
        return self

    # -- sending

    def apply_async(  # type: ignore[override]  # Celery's arguments
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        add_to_parent: bool = True,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        **options: Any,
    ) -> Any:
        """Send all members together and give their results as a group.

        *args*, *kwargs* and *options* are for every member.  With *add_to_parent* the group becomes a
        child of the task that runs here.
        """
        if link is not None:
            raise TypeError("Cannot add link to group: use a chord, whose body is called when all end.")
        if link_error is not None:
            raise TypeError("Cannot add link to group: do that on individual tasks, with link_error().")
        app = self.app
        if app.conf.task_always_eager:
            return self.apply(args, kwargs, **options)
        if not self.tasks:
            return self.freeze()
        group_id, options = self._sending_options(options)
        root_id = options.get("root_id")
        chord = options.pop("chord", None)
        members = self._frozen_members(
            self.tasks, group_id=group_id, chord=None, root_id=root_id, parent_id=None, first_index=0
        )
        args = (*(args or ()), *self.args)
        results = _send_members(
            app, members, options, args, kwargs, producer, group_id, chord, lazily=is_lazy(self.tasks)
        )
        return self._sent(group_id, results, add_to_parent)

    def _sending_options(self, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Give the id this group goes by, and the options for all its members."""
        given = {key: value for key, value in options.items() if value is not None}
        merged = dict(self._merge(options=given)[2])
        group_id = merged.pop("task_id", None) or uuid()
        merged.pop("group_index", None)  # each member has its own
        merged.pop("add_to_parent", None)  # real Celery leaves it with groups in groups
        merged["group_id"] = group_id
        return group_id, merged

    def _sent(self, group_id: str, results: Any, add_to_parent: bool) -> Any:
        """Give the result of a group that was sent, and tell the running task of it."""
        app = self.app
        result = app.GroupResult(group_id, results)
        if len(result) == 1 and isinstance(result[0], GroupResult):
            # A single chain that ends in a group: its result is that group's.
            result = result[0]
        parent_task = app.current_worker_task
        if add_to_parent and parent_task:
            parent_task.add_trail(result)
        return result

    def apply(self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run the members here, one after the other, and give their results as a group."""
        if not self.tasks:
            return self.freeze()
        group_id, options = self._sending_options(options)
        callbacks = callbacks_in(options)
        args = (*(args or ()), *self.args)
        results = []
        for member in members_of(self.tasks, self._app):
            member = member.clone()
            callbacks.link_to(member)
            results.append(member.apply(args=args, kwargs=kwargs, **options))
        return self.app.GroupResult(group_id, results)

    # -- ids

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> Any:
        """Fix the ids of the group and of its members, and give their results as a group.

        *group_id*, *chord* and *group_index* tell of a group or chord that this one is a part of.
        """
        return self.app.GroupResult(
            *self._freeze_group_tasks(
                _id=_id, group_id=group_id, chord=chord, root_id=root_id, parent_id=parent_id, group_index=group_index
            )
        )

    def _freeze_group_tasks(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> tuple[str, Any]:
        """Freeze in place; give the group's id and the members' results, lazily if the members are lazy."""
        options = self["options"]
        own_id = options.get("task_id")
        if own_id is None:
            own_id = options["task_id"] = _id or uuid()
        for key, value in (("group_id", group_id), ("chord", chord)):
            if value:
                options[key] = value
        if group_index is not None:
            options["group_index"] = group_index
        root_id = options["root_id"] = options.get("root_id") or root_id
        parent_id = options["parent_id"] = options.get("parent_id") or parent_id
        frozen = self._frozen_members(
            self.tasks,
            group_id=group_id,
            chord=chord,
            root_id=root_id,
            parent_id=parent_id,
            # Members of a group that counts towards a chord further out are numbered among that chord's.
            first_index=(group_index or 0) if chord is not None else 0,
        )
        if is_lazy(self.tasks):
            pairs = regen(frozen)
            self.tasks = regen(member for member, _ in pairs)
            return own_id, regen(result for _, result in pairs)
        pairs = list(frozen)
        self.tasks = [member for member, _ in pairs]
        return own_id, [result for _, result in pairs]

    def _frozen_members(
        self,
        tasks: Iterable[Any],
        *,
        group_id: str | None,
        chord: Any,
        root_id: str | None,
        parent_id: str | None,
        first_index: int,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield ``(member, result)``: copies of the members with ids, numbered by what they complete."""
        index = first_index
        for member in members_of(tasks, self._app):
            member = member.clone()
            # Now, before the next member is asked for: a generator's expressions see what is then.
            read_generators(member)
            if chord is not None:
                _give_an_end(member, self.app)
            result = member.freeze(
                group_id=group_id, chord=chord, root_id=root_id, parent_id=parent_id, group_index=index
            )
            yield member, result
            index += max(completions(member), 1)

    # -- callbacks

    def link(self, sig: Any) -> Any:
        """Have *sig* called when the *first* member has ended, without its value.

        A group has no end of its own; for something to be called when all have ended make a chord:
        ``group | sig``.
        """
        if not self.tasks:
            raise IndexError(f"A group without members never ends, so {sig!r} would never be called.")
        return self.tasks[0].link(as_signature(sig, taker="link()").clone().set(immutable=True))

    def link_error(self, sig: Any) -> Any:
        """Have a copy of *sig* called for each member that fails.  Give these copies."""
        sig = as_signature(sig, taker="link_error()")
        return tuple(task.link_error(sig.clone()) for task in self.tasks)

    def set_immutable(self, immutable: bool) -> None:
        """Make all members immutable, or none."""
        for task in self.tasks:
            task.set_immutable(immutable)

    # -- as a value

    def _own_app(self) -> Any:
        app = super()._own_app()
        if app is None and self.tasks:
            # Of a generator no more than the first is read for it.
            app = app_of_any([self.tasks[0]] if is_lazy(self.tasks) else self.tasks)
        return app

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return bool(self.tasks)

    def __repr__(self) -> str:
        if not self.tasks:
            return "group(<empty>)"
        return shortened(self.tasks[0]["task"], f"group({self.tasks!r})")


def _send_members(
    app: Celery,
    members: Iterable[tuple[Any, Any]],
    options: dict[str, Any],
    args: Iterable[Any],
    kwargs: Mapping[str, Any] | None,
    producer: Any,
    group_id: str,
    chord: Any,
    lazily: bool = False,
) -> list[Any]:
    """Send members as one batch and give their results, in order.

    *lazily*: they come from a generator, which may take its time; what it has given does not wait for the rest.
    *chord* is the body that waits for the members, if they are a header; the store is told their
    number before the last of them leaves, since only then is a generator's length known.
    """
    callbacks = callbacks_in(options)
    options.pop("chord", None)
    results: list[Any] = []
    size = 0
    with _together(app, producer, lazily) as making:
        for (member, result), following in lookahead(members):
            body = chord if chord is not None else member.options.get("chord")
            size += completions(member)
            if body is not None and following is None and counted_in(member) == group_id:
                app.backend.set_chord_size(group_id, size)
            callbacks.link_to(member)
            with making:
                member.apply_async(
                    args=args, kwargs=kwargs, producer=producer, add_to_parent=False, chord=body, **options
                )
            results.append(result)
    return results


def _together(
    app: Celery, producer: Any, lazily: bool
) -> AbstractContextManager[AbstractContextManager[None]]:
    """Give the context in which calls leave as one batch, or by *producer*, and what is held while one is made."""
    if producer is not None:
        return nullcontext(nullcontext())
    return app.amqp.publishing_as_they_come() if lazily else _as_one_batch(app)


@contextmanager
def _as_one_batch(app: Celery) -> Iterator[AbstractContextManager[None]]:
    with app.publishing_together():
        yield nullcontext()
