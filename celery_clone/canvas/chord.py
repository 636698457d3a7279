"""``chord``: a group whose results, once all are there, are given to a body.

Made by users, by ``canvas.pipe`` and ``canvas.chain`` out of ``group | task``, read back by
``app.builtins`` and ``backends``.  Owns how header and body are given their ids and sent; counting the
ends of the header and sending the body is the result store's work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celery_clone.canvas.counting import completions_of_all
from celery_clone.canvas.group import _send_members, group, handed_down, is_empty_group
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
from celery_clone.result import allow_join_result
from celery_clone.utils import abstract
from celery_clone.utils.functional import is_lazy, maybe_list, regen
from celery_clone.utils.ids import uuid
from celery_clone.utils.objects import getitem_property

__all__ = ("chord", "earliest", "without_header_links")

#: Options that say when the header starts; the same words given to ``run`` are for polling.
DELAYS = ("countdown", "eta")

#: Arguments of the sending itself: they cannot travel, so the body does not get them.
BY_HAND = ("producer", "connection", "router", "result_cls")


def earliest(result: Any) -> Any:
    """Follow the parents of *result* to that of the first step; refuse to go round in a circle."""
    seen = set()
    while result.parent is not None:
        seen.add(result.id)
        result = result.parent
        if result.id in seen:
            raise RuntimeError(
                f"Recursive result parents: {result.id} stands before itself. The same signature was "
                "frozen as two steps of one workflow; use a clone() for one of them."
            )
    return result


def without_header_links(sig: Any) -> None:
    """Take the body out of the header members of chords in *sig* that are not sent yet.

    Freezing puts it there, but a chord carries its body already, and puts it into each member when it
    is sent.  Left in, what is sent doubles with every level.
    """
    kind = sig.get("subtask_type")
    if kind == "chord":
        header = sig.tasks
        if isinstance(header, group):
            header.options.pop("chord", None)
            header = header.tasks
        for member in header:
            _unlink_end(member)
            without_header_links(member)
        if sig.body is not None:
            without_header_links(sig.body)
    elif kind in ("group", "chain"):
        for member in sig.tasks:
            without_header_links(member)


def _unlink_end(sig: Any) -> None:
    """Remove the chord option wherever the end of *sig* would report to the chord."""
    sig.options.pop("chord", None)
    kind = sig.get("subtask_type")
    if kind == "group":
        for member in sig.tasks:
            _unlink_end(member)
    elif kind == "chain" and sig.tasks:
        _unlink_end(sig.tasks[-1])
    elif kind == "chord" and sig.body is not None:
        _unlink_end(sig.body)


def _member(value: Any, app: Any) -> Any:
    """A member of a header of its own; a task stands for its call without arguments, as in Celery."""
    if isinstance(value, abstract.CallableTask) and not isinstance(value, abstract.CallableSignature):
        return value.s()
    return as_signature(value, app, taker="chord()").clone()


def _header_members(header: Any, app: Any) -> Any:
    """Give what is taken for a header as a sequence of signatures."""
    if isinstance(header, dict):
        header = maybe_signature(header, app=app)
        if isinstance(header, group):
            members = (handed_down(header, maybe_signature(task)) for task in header.tasks)
            return regen(members) if is_lazy(header.tasks) else type(header.tasks)(members)
        if header.get("subtask_type") == "chain":
            # As in Celery: the steps become members.  For one member that is a chain give [chain].
            return list(header.tasks)
        return [header]
    members = regen(header if is_several(header) else [header])
    taken = (_member(task, app) for task in members)
    return regen(taken) if is_lazy(members) else list(taken)


def _body(given: Any, app: Any = None) -> Any:
    """Give what is taken for a body as a signature; ``None`` stays ``None``."""
    return None if given is None else maybe_signature(as_signature(given, app, taker="chord()"), app=app)


@Signature.register_type(name="chord")
class chord(Signature):
    """A header of parallel tasks and a body that is called with the list of their results.

        >>> chord([add.s(2, 2), add.s(4, 4)], xsum.s())().get()
        12

    *header* is a group or an iterable of signatures; *body* may be given when the chord is called.
    """

    tasks = getitem_property("kwargs.header", "The header.")
    body = getitem_property("kwargs.body", "What is called with the results of the header.")

    @classmethod
    def from_dict(cls, d: dict[str, Any], app: Any = None) -> Any:
        """Make a chord of its dictionary; header and body may be signatures or dictionaries."""
        kwargs = dict(d.get("kwargs") or {})
        header, body = kwargs.pop("header", None), kwargs.pop("body", None)
        made = cls(
            (),
            body,
            task=d.get("task", "celery.chord"),
            args=d.get("args"),
            kwargs=kwargs,
            app=app,
            options=d.get("options"),
            immutable=bool(d.get("immutable")),
        )
        if isinstance(header, dict):
            members = _header_members(header, app)
        else:
            read = (maybe_signature(task, app=app) for task in header or ())
            members = regen(read) if is_lazy(header) else list(read)
        made["kwargs"]["header"] = members
        return made

    def __init__(
        self,
        header: Any,
        body: Any = None,
        task: str = "celery.chord",
        args: Iterable[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        app: Any = None,
        **options: Any,
    ) -> None:
        header_kwargs = (kwargs or {}).get("kwargs", kwargs or {})
        parts = {
            "kwargs": header_kwargs,
            "header": _header_members(header, app),
            "body": _body(body, app),
        }
        super().__init__(task, args, parts, app=app, **options)
        self["subtask_type"] = "chord"

    def __call__(self, body: Any = None, **options: Any) -> Any:
        return self.apply_async((), {} if body is None else {"body": body}, **options)

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """Copy the chord with its header and body; *args* and *kwargs* are for the header."""
        return self._clone(*args, **kwargs)

    def _clone(self, args: Any = None, kwargs: Any = None, **opts: Any) -> Any:
        args, _, options = self._merge(args, None, opts or None)
        kwargs = dict(kwargs or {})
        parts = {"header": self._header_copied(), "body": maybe_signature(self.body, clone=True)}
        for part in parts:
            if part in kwargs:
                parts[part] = kwargs.pop(part)
        parts["kwargs"] = {**(self.kwargs.get("kwargs") or {}), **kwargs}
        return self._twin(tuple(args), parts, options_copied(options))

    def _header_copied(self) -> Any:
        header = self.tasks
        if isinstance(header, group):
            return header.clone()
        copies = (maybe_signature(task, clone=True) for task in header)
        return regen(copies) if is_lazy(header) else type(header)(copies)

    def with_body(self, body: Any) -> Any:
        """Give a chord of the same header with another body; the members of the header are shared."""
        return self._twin(tuple(self.args), {**self.kwargs, "body": body}, options_copied(self.options))

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
        """Fix the ids of header and body, and give the result of the body.

        *_id*, *group_id*, *chord* and *group_index* are for the body, since its end is the chord's.
        """
        header = self._header_as_group()
        header_result = header.freeze(parent_id=parent_id, root_id=root_id, chord=self.body)
        self.id = header.id
        if self.body is None:
            return None
        result = self.body.freeze(_id, root_id=root_id, chord=chord, group_id=group_id, group_index=group_index)
        earliest(result).parent = header_result
        return result

    def _header_as_group(self) -> Any:
        if not isinstance(self.tasks, group):
            self.tasks = group(self.tasks, app=self._app or self.app)
            if self.id is not None:
                self.tasks.id = self.id
        return self.tasks

    # -- sending

    def apply_async(  # type: ignore[override]  # Celery's arguments
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        publisher: Any = None,
        connection: Any = None,
        router: Any = None,
        result_cls: Any = None,
        **options: Any,
    ) -> Any:
        """Send the header and give the result of the body; that of the header is its parent.

        *args* and *kwargs* are for the members of the header; ``kwargs["body"]`` is taken as the body.
        *task_id* becomes the id of the body.  The other options are for members and body alike, but
        ``countdown`` and ``eta`` delay the header, and callbacks are the body's.  *publisher* is an old
        name of *producer*.
        """
        kwargs = {**(self.kwargs.get("kwargs") or {}), **(kwargs or {})}
        body = self.body_or_refuse(kwargs.pop("body", None))
        args = (*args, *self.args) if args and not self.immutable else self.args
        options = {key: value for key, value in options.items() if value is not None}
        app = self._app_with(body)
        if app.conf.task_always_eager:
            body, options = self._with_callbacks(body, {**self.options, **options})
            with allow_join_result():
                return self.apply(args, kwargs, body=body, task_id=task_id, **options)
        # An id that was set, and not given to the body by freezing, is for both header and body.
        own_id = self.id
        by_hand = (producer or publisher, connection, router, result_cls)
        return self.run(
            group(self.tasks, app=app, task_id=own_id or uuid()),
            body,
            args,
            app=app,
            task_id=task_id or own_id,
            kwargs=kwargs,
            header_delay={key: options.pop(key) for key in DELAYS if key in options},
            **options,
            **{key: value for key, value in zip(BY_HAND, by_hand, strict=True) if value is not None},
        )

    def body_or_refuse(self, given: Any = None) -> Any:
        """Give the body, or *given* in its place; :exc:`TypeError` if there is none that does anything."""
        body = self.body if given is None else _body(given)
        if body is None or (body.get("subtask_type") == "chain" and not body.tasks):
            raise TypeError(
                f"{self!r} has no body: nothing would take the results. Give it one, as in "
                "chord(header)(body) or chord(header, body); or send a group."
            )
        return body

    def run(
        self,
        header: Any,
        body: Any,
        partial_args: Iterable[Any],
        app: Any = None,
        interval: float | None = None,
        countdown: float = 1,
        max_retries: int | None = None,
        eager: bool = False,
        task_id: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        header_delay: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Send *header*, a group, with *body* to follow, and give the result of the body.

        :param interval: seconds between two looks at the header, on stores that do not count.
        :param countdown: seconds before the first look.
        :param max_retries: how many looks.
        :param eager: run all of it here.
        :param task_id: id for the body.
        :param kwargs: keyword arguments for the members of the header.
        :param header_delay: ``countdown`` or ``eta`` of the header.
        """
        app = app or self._app_with(body)
        body = bound(body, app)
        options = {key: value for key, value in {**self.options, **options}.items() if value is not None}
        delay = {key: options.pop(key, None) for key in DELAYS}
        delay.update(header_delay or {})
        by_hand = {key: options.pop(key) for key in BY_HAND if key in options}
        options.pop("task_id", None)
        add_to_parent = options.pop("add_to_parent", True)
        body, options = self._with_callbacks(body, options)
        # The member of the header that ends last sends the body, and is its parent.
        body = body.clone(**{key: value for key, value in options.items() if key != "parent_id"})
        if eager:
            with allow_join_result():
                return self._run_here(header, body, partial_args, kwargs, task_id)

        group_id = header.id or uuid()
        root_id = body.options.get("root_id")
        result = body.freeze(
            task_id or uuid(),
            group_id=options.get("group_id") or group_id,
            chord=options.get("chord"),
            root_id=root_id,
            group_index=options.get("group_index"),
        )
        without_header_links(body)

        header.id = group_id
        carried = app.backend.body_to_send(group_id, body)
        _, member_results = header._freeze_group_tasks(group_id=group_id, chord=carried, root_id=root_id)
        if header.tasks:
            app.backend.apply_chord(
                (group_id, member_results), body, interval=interval, countdown=countdown, max_retries=max_retries
            )
            # What follows the chord follows its body; its place in a chord further out is the body's too.
            _, sending = header._sending_options(
                {key: value for key, value in options.items() if key not in ("chain", "chord")}
                | {"task_id": group_id}
                | delay
                | by_hand
            )
            producer = sending.pop("producer", None)
            sent = _send_members(
                app,
                zip(header.tasks, member_results, strict=True),
                sending,
                (*partial_args, *header.args),
                kwargs,
                producer,
                group_id,
                carried,
                lazily=is_lazy(header.tasks),
            )
            header_result = header._sent(group_id, sent, add_to_parent)
        else:
            body.apply_async(([],))
            header_result = app.GroupResult(group_id, [])
        earliest(result).parent = header_result
        return result

    def _with_callbacks(self, body: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Give *body*, or a copy of it with the callbacks in *options*, and the options without them."""
        options = dict(options)
        callbacks = maybe_list(options.pop("link", None)) or ()
        errbacks = maybe_list(options.pop("link_error", None)) or ()
        if not callbacks and not errbacks:
            return body, options
        body = body.clone()
        for callback in callbacks:
            callback = maybe_signature(copied(callback))
            if is_empty_group(body):
                body.append_to_list_option("link", callback)
            else:
                body.link(callback)
        for errback in errbacks:
            errback = maybe_signature(copied(errback))
            if isinstance(body, group):
                body.link_error(errback)
            else:
                # Where the failure of a header looks for it.
                body.append_to_list_option("link_error", errback)
        return body, options

    def apply(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        propagate: bool = True,
        body: Any = None,
        **options: Any,
    ) -> Any:
        """Run header and body here, and give the result of the body.

        With *propagate* an error in the header is raised; else the body gets it among the results.
        *options* are for the body.
        """
        body = self.body_or_refuse(body)
        header = group(self.tasks, app=self._app_with(body))
        kwargs = {**(self.kwargs.get("kwargs") or {}), **(kwargs or {})}
        return self._run_here(header, body, args or (), kwargs, options.get("task_id"), propagate)

    @staticmethod
    def _run_here(
        header: Any,
        body: Any,
        args: Iterable[Any],
        kwargs: Mapping[str, Any] | None,
        task_id: str | None,
        propagate: bool = True,
    ) -> Any:
        header_result = header.apply(args, kwargs)
        values = header_result.get(propagate=propagate, disable_sync_subtasks=False)
        result = body.apply((values,), task_id=task_id)
        if result is not None:
            earliest(result).parent = header_result
        return result

    # -- callbacks

    def link(self, callback: Any) -> Any:
        """Have *callback* called with the value of the body."""
        self.body_or_refuse().link(callback)
        return callback

    def link_error(self, errback: Any) -> Any:
        """Have *errback* called if the chord fails, in header or body.

        It is linked to the body, which fails with its header; a chord in the header too fails the body,
        so the errback is called once.  With ``task_allow_error_cb_on_chord_header`` each member of the
        header gets a copy of it besides.
        """
        errback = as_signature(errback, taker="link_error()")
        body = self.body_or_refuse()
        if self.app.conf.task_allow_error_cb_on_chord_header:
            for member in self.tasks.tasks if isinstance(self.tasks, group) else self.tasks:
                member.link_error(errback.clone())
        body.link_error(errback)
        return errback

    def set_immutable(self, immutable: bool) -> None:
        """Make the members of the header immutable, or none; the body stays as it is."""
        header = self.tasks
        for member in header.tasks if isinstance(header, group) else header:
            member.set_immutable(immutable)

    # -- where it belongs

    def _own_app(self) -> Any:
        return self._bound_app(self.body)

    def _bound_app(self, body: Any) -> Any:
        app = super()._own_app()
        header = self.tasks.tasks if isinstance(self.tasks, group) else self.tasks
        if app is None and header:
            app = app_of_any([header[0]] if is_lazy(header) else header)
        return body._own_app() if app is None and body is not None else app

    def _app_with(self, body: Any) -> Any:
        """The app of the chord when it is sent with this body."""
        return self._bound_app(body) or self.app

    # -- as a value

    def __length_hint__(self) -> int:
        """How many completions the body waits for."""
        return completions_of_all(self.tasks)

    def __repr__(self) -> str:
        body = self.body
        if body is None:
            return f"<chord without body: {self.tasks!r}>"
        if body.get("subtask_type") == "chain" and body.tasks:
            first, *rest = body.tasks
            words = [first.reprcall(self.tasks), *map(repr, rest)]
            return shortened(first["task"], f"%({' | '.join(words)})")
        return "%" + shortened(body["task"], body.reprcall(self.tasks))


_chord = chord
