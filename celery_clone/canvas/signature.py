"""``Signature``: a call that was not made yet, as a dictionary that can be stored and sent.

Made by ``Task.s()`` and its kin, read back from messages by ``app.trace`` and ``backends``; the base
of every canvas type.  Knows nothing of chains, groups and chords: what ``|`` makes is told by
``canvas.pipe``, how stamps are put on by ``canvas.stamping``, through the hooks ``_pipe`` and ``_walk``.
It may not talk to a broker or a result store: tasks and the app do that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableSequence
from copy import deepcopy
from functools import partial
from itertools import chain as joined
from types import GenericAlias
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, cast

from celery_clone._state import get_current_app
from celery_clone.utils import abstract
from celery_clone.utils.functional import is_list, maybe_list
from celery_clone.utils.ids import uuid
from celery_clone.utils.objects import getitem_property

if TYPE_CHECKING:
    from celery_clone.result import AsyncResult

__all__ = ("Signature", "maybe_signature", "maybe_subtask", "signature", "subtask")

#: Types whose values need no copy; asked first, as most options are of these.
_PLAIN = frozenset({str, int, float, bool, type(None)})

Kind = TypeVar("Kind", bound="type[Signature]")
Options = dict[str, Any]

#: What a dictionary made by hand may leave out.
_DEFAULTS: dict[str, Any] = {
    "task": None,
    "args": (),
    "kwargs": {},
    "options": {},
    "subtask_type": None,
    "immutable": False,
}


def copied(value: Any) -> Any:
    """Copy the containers and signatures in *value*; what they contain is shared.

    ``copy.deepcopy`` would copy connections, lazy arguments and every payload along.
    """
    kind = type(value)
    if isinstance(value, Signature):
        return value.clone()
    if kind is dict:
        return {key: each if type(each) in _PLAIN else copied(each) for key, each in value.items()}
    if kind is list or kind is tuple:
        return kind(copied(each) for each in value)
    return value


def options_copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """Copy sending options; but the body of the chord that waits for a call is shared.

    Nobody changes it there, and within bodies there are members with bodies again: to copy them all
    takes a time that doubles with every level of nesting.
    """
    return {key: each if type(each) in _PLAIN or key == "chord" else copied(each) for key, each in options.items()}


def as_signature(value: Any, app: Any = None, *, taker: str) -> Any:
    """Give *value* as a signature; *taker* says in the error who wanted one."""
    if isinstance(value, Signature) or isinstance(value, abstract.CallableSignature):  # noqa: SIM101 (fast first)
        return value
    if isinstance(value, Mapping) and "task" in value:
        return Signature.from_dict(cast("dict[str, Any]", value), app=app)
    _refuse(value, taker)


def is_several(value: Any) -> bool:
    """Is it an iterable of signatures?  Not a signature, and not a task, whose proxy can be iterated too."""
    return is_list(value) and not isinstance(value, abstract.CallableTask)


def refuse_no_signature(value: Any, *, taker: str) -> None:
    """Raise :exc:`TypeError` if *value* is neither a signature nor the dictionary of one."""
    if not isinstance(value, (dict, abstract.CallableSignature)):
        _refuse(value, taker)


def calls_back(value: Any, taker: str) -> list[Any] | None:
    """The signatures of an option such as ``link``, as a list; ``None`` if there are none.

    Raises:
        TypeError: one is no signature.
    """
    if value is None:
        return None
    found = [*(maybe_list(value) or ())]
    for each in found:
        refuse_no_signature(each, taker=taker)
    return found


def _refuse(value: Any, taker: str) -> NoReturn:
    name = getattr(value, "name", None)
    remedy = f"{name}.s(...)" if isinstance(value, abstract.CallableTask) and name else "task.s(...)"
    raise TypeError(f"{taker} takes signatures, but got {value!r}. Make a signature of the call: {remedy}.")


def shortened(first_task: str, text: str) -> str:
    """Remove the module of *first_task* from *text* wherever it stands again after its first place."""
    module, dot, _ = first_task.rpartition(".")
    if not dot:
        return text
    head, found, tail = text.partition(module + dot)
    return head + found + tail.replace(module + dot, "")


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - a repr is for reading: it may not break what shows it
        return f"<{type(value).__name__}: repr failed with {type(error).__name__}>"


def written_call(name: str, args: Iterable[Any], kwargs: Mapping[str, Any] | None) -> str:
    """Write a call as it stands in source: ``tasks.add(2, y=3)``."""
    words = [*map(_shown, args), *(f"{key}={_shown(value)}" for key, value in (kwargs or {}).items())]
    return f"{name}({', '.join(words)})"


class Signature(dict[str, Any]):
    """A task, its arguments and its sending options: all that is needed to call it later.

    A dictionary with the keys ``task``, ``args``, ``kwargs``, ``options``, ``subtask_type`` and
    ``immutable``, which every serializer understands.  *task* is a task or its name; or a dictionary
    of that shape, which is taken over as it is.  Make one with ``task.s(...)`` or :func:`signature`.
    """

    TYPES: ClassVar[dict[str, type[Signature]]] = {}

    #: Keys of ``options`` that, once set, stay: the work of others is counted by them.
    _IMMUTABLE_OPTIONS: ClassVar[set[str]] = {"group_id", "stamped_headers"}

    #: What ``left | right`` makes.  Set by ``canvas.pipe``.
    _pipe: ClassVar[Any]
    #: How a signature and all in it are stamped.  Set by ``canvas.stamping``.
    _walk: ClassVar[Any]

    _app: Any = None
    _type: Any = None

    __class_getitem__: classmethod[Any, Any, GenericAlias] = classmethod(GenericAlias)

    @classmethod
    def register_type(cls, name: str | None = None) -> Callable[[Kind], Kind]:
        """Decorate a subclass: signatures whose ``subtask_type`` is *name* are made by its ``from_dict``."""

        def register(subclass: Kind) -> Kind:
            cls.TYPES[name or subclass.__name__] = subclass
            return subclass

        return register

    @classmethod
    def from_dict(cls, d: dict[str, Any], app: Any = None) -> Any:
        """Make a signature of a dictionary; its ``subtask_type`` says of which class."""
        kind = d.get("subtask_type")
        if kind:
            try:
                target = cls.TYPES[kind]
            except KeyError:
                raise KeyError(
                    f"There is no signature type {kind!r}. Known are: {', '.join(sorted(cls.TYPES))}. Import "
                    "the module that registers it with Signature.register_type()."
                ) from None
            if target is not cls:
                return target.from_dict(d, app=app)
        return Signature(d, app=app)

    def __init__(
        self,
        task: Any = None,
        args: Iterable[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        type: Any = None,
        subtask_type: str | None = None,
        immutable: bool = False,
        app: Any = None,
        **ex: Any,
    ) -> None:
        if app is not None:
            self._app = app
        if type is not None:
            self._type = type
        if isinstance(task, dict):
            super().__init__(task)
            if len(self) < len(_DEFAULTS):
                for part, default in _DEFAULTS.items():
                    self.setdefault(part, copied(default))
            return
        name = task
        if not isinstance(task, str):
            name = getattr(task, "name", None)
            if name is None:
                name = task
            else:
                self._type = task
        self.update(
            {
                "task": name,
                "args": tuple(args or ()),
                "kwargs": kwargs or {},
                "options": {**options, **ex} if options else ex,
                "subtask_type": subtask_type,
                "immutable": immutable,
            }
        )

    # -- calling

    def __call__(self, *partial_args: Any, **partial_kwargs: Any) -> Any:
        """Run the task here, like a function, and give what it returns."""
        args, kwargs, _ = self._merge(partial_args, partial_kwargs, None)
        return self.type(*args, **kwargs)

    def delay(self, *partial_args: Any, **partial_kwargs: Any) -> Any:
        """Send the call; the arguments given here come first."""
        return self.apply_async(partial_args, partial_kwargs)

    def apply(self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run the task here with its callbacks, and give an ``EagerResult``."""
        args, kwargs, options = self._merge(args, kwargs, _given(options))
        return self.type.apply(args, kwargs, **options)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> Any:
        """Send the call and give its result.

        *args* are put before the arguments of the signature, *kwargs* and *options* (those of
        ``Task.apply_async``; ``None`` means not given) win over its own.  *route_name* is the task name
        that routers are to go by.
        """
        options = _given(options)
        if route_name is not None:
            options["route_name"] = route_name
        if args or kwargs or options:
            args, kwargs, options = self._merge(args, kwargs, options)
        else:
            args, kwargs, options = self.args, self.kwargs, self.options
        return self._apply_async(args, kwargs, **options)

    @property
    def _apply_async(self) -> Callable[..., Any]:
        try:
            return cast("Callable[..., Any]", self.type.apply_async)
        except KeyError:  # a task of another program, known by its name only
            return partial(self.app.send_task, self["task"])

    def election(self) -> Any:
        """Have exactly one of the running workers run this call; the workers agree which."""
        task_id = self.options.get("task_id") or uuid()
        task = self.type
        app = task.app
        with app.producer_or_acquire(None) as producer:
            properties = task.backend.on_task_call(producer, task_id) or {}
            call = self.clone(task_id=task_id, **properties)
            app.control.election(task_id, "task", call, connection=producer.connection)
            return task.AsyncResult(task_id)

    def __invert__(self) -> Any:
        """``~sig``: send the call and wait for its value."""
        return self.apply_async().get()

    # -- arguments and options

    def _merge(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> tuple[Any, Any, Any]:
        """Give arguments and options with these added; an immutable signature takes options only.

        Options that others rely on, and stamps, stay as they are.  *force* overrules immutability.
        """
        merged = own = self["options"]
        if options:
            fixed: Iterable[str] = self._IMMUTABLE_OPTIONS
            if "stamped_headers" in own:
                fixed = {*fixed, *(own["stamped_headers"] or ())}
            merged = {**own, **options, **{key: own[key] for key in fixed if key in own}}
        elif options is not None:
            merged = dict(own)
        if self["immutable"] and not force:
            return self["args"], self["kwargs"], merged
        return (
            (*args, *self["args"]) if args else self["args"],
            {**self["kwargs"], **kwargs} if kwargs else self["kwargs"],
            merged,
        )

    def clone(self, args: Any = None, kwargs: Any = None, **opts: Any) -> Any:
        """Copy the signature, with *args* put before its own, *kwargs* and *opts* over its own.

        Options, callbacks included, are copied; the values of the arguments are shared.
        """
        if args or kwargs or opts:
            args, kwargs, options = self._merge(args, kwargs, opts)
        else:
            args, kwargs, options = self["args"], self["kwargs"], self["options"]
        if type(self) is Signature and not self["subtask_type"]:
            # Hot: every member of every group passes here.
            twin = Signature.__new__(Signature)
            twin.update(self)
            twin["args"] = tuple(args)
            twin["kwargs"] = dict(kwargs)
            twin["options"] = options_copied(options) if options else {}
            twin._app, twin._type = self._app, self._type
            return twin
        return self._twin(tuple(args), dict(kwargs), options_copied(options))

    def partial(self, args: Any = None, kwargs: Any = None, **opts: Any) -> Any:
        """Old name of :meth:`clone`."""
        return self.clone(args, kwargs, **opts)

    def _twin(self, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Any:
        """Give a signature of the same type with these parts."""
        # Types that are not registered under their subtask_type know best how to make themselves.
        maker = Signature if self["subtask_type"] else type(self)
        twin = maker.from_dict(
            {
                "task": self["task"],
                "args": args,
                "kwargs": kwargs,
                "options": options,
                "subtask_type": self["subtask_type"],
                "immutable": self["immutable"],
            },
            app=self._app,
        )
        # Not every type's constructor takes these two.
        twin["args"], twin["immutable"] = args, self["immutable"]
        twin._type = self._type
        return twin

    def replace(
        self,
        args: Iterable[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
    ) -> Any:
        """Copy the signature with the given parts in the place of its own."""
        copy = self.clone()
        for part, value in (("args", args), ("kwargs", kwargs), ("options", options)):
            if value is not None:
                copy[part] = value
        return copy

    def set(self, immutable: bool | None = None, **options: Any) -> Any:
        """Set sending options; give the signature itself, so that calls can follow."""
        if immutable is not None:
            self.set_immutable(immutable)
        self.options.update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """An immutable signature takes no arguments from callers, nor the result of the step before."""
        self["immutable"] = immutable

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> Any:
        """Fix the id of the call and give the result it will have.

        An id that it has already is kept, and so is its group; so freezing twice changes nothing.  Send
        a frozen signature only once: a second message would carry the same id.

        :param _id: id to take instead of a new one.
        :param group_id: group that the call is a member of.
        :param chord: body of the chord that waits for the call.
        :param root_id: id of the first call of the workflow.
        :param parent_id: id of the call that sends this one.
        :param group_index: place in the group.
        """
        options = self["options"]
        task_id = options.get("task_id")
        if task_id is None:
            task_id = options["task_id"] = _id or uuid()
        if root_id:
            options["root_id"] = root_id
        if parent_id:
            options["parent_id"] = parent_id
        if "reply_to" not in options:
            options["reply_to"] = self.app.thread_oid
        if group_id and "group_id" not in options:
            options["group_id"] = group_id
        if chord is not None:
            options["chord"] = chord
        if group_index is not None:
            options["group_index"] = group_index
        return self.AsyncResult(task_id)

    def _freeze(self, *args: Any, **kwargs: Any) -> Any:
        """Old name of :meth:`freeze`."""
        return self.freeze(*args, **kwargs)

    def _unfolded(self) -> Signature:
        """Give the signature that stands for this one as a step or member; itself, for most."""
        return self

    # -- callbacks

    def _with_list_option(self, key: str) -> MutableSequence[Any]:
        found = self.options.setdefault(key, [])
        if not isinstance(found, MutableSequence):
            found = self.options[key] = [found]
        return cast("MutableSequence[Any]", found)

    def append_to_list_option(self, key: str, value: Any) -> Any:
        """Add *value* to the list that is option *key*, unless it is there.  Give the value."""
        items = self._with_list_option(key)
        if value not in items:
            items.append(value)
        return value

    def extend_list_option(self, key: str, value: Any) -> None:
        """Add *value*, one thing or several, to the list that is option *key*."""
        self._with_list_option(key).extend(maybe_list(value) or ())

    def link(self, callback: Any) -> Any:
        """Have *callback* called with the return value of the task.  Give the callback."""
        refuse_no_signature(callback, taker="link()")
        return self.append_to_list_option("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Have *errback* called if the task fails.  Give the errback."""
        refuse_no_signature(errback, taker="link_error()")
        return self.append_to_list_option("link_error", errback)

    def on_error(self, errback: Any) -> Any:
        """Like :meth:`link_error`, but give the signature itself, so that calls can follow."""
        self.link_error(errback)
        return self

    def flatten_links(self) -> list[Any]:
        """Give the signature, its callbacks, their callbacks and so on."""
        links = (maybe_signature(link, app=self._app) for link in maybe_list(self.options.get("link")) or ())
        return [self, *joined.from_iterable(link.flatten_links() for link in links)]

    # -- composing

    def __or__(self, other: Any) -> Any:
        """``a | b``: when *a* has ended, *b* is called with its value.  See ``canvas.pipe``."""
        return self._pipe(self, other)

    def __ior__(self, other: Any) -> Any:
        # dict would merge the two in place.
        return self._pipe(self, other)

    # -- stamps

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Mark the call, all calls in it and their callbacks with *headers* and what *visitor* says.

        A stamp that is there already gets the new value; with *append_stamps* a list of both.
        """
        return self._walk.stamp(self, visitor, append_stamps, headers)

    def stamp_links(self, visitor: Any, append_stamps: bool = False, **headers: Any) -> None:
        """Mark the callbacks and errbacks of this signature only."""
        self._walk.stamp_links(self, visitor, append_stamps, headers)

    def _stamp_headers(
        self,
        visitor_headers: dict[str, Any] | None = None,
        append_stamps: bool = False,
        self_headers: bool = True,
        **headers: Any,
    ) -> dict[str, Any]:
        """Give the stamps of caller, visitor and (with *self_headers*) of this signature together."""
        own = self.options if self_headers else None
        return cast("dict[str, Any]", self._walk.combined(headers, visitor_headers, own, append=append_stamps))

    # -- where it belongs

    def _own_app(self) -> Any:
        """The app this signature was bound to, or ``None`` if it would go by the current one."""
        if self._app is not None:
            return self._app
        return getattr(self._type, "app", None)

    @property
    def app(self) -> Any:
        """The app whose task this is."""
        return self._app or self._own_app() or get_current_app()

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    @property
    def type(self) -> Any:
        """The task; :exc:`NotRegistered` if the app does not know it."""
        return self._type or self.app.tasks[self["task"]]

    @type.setter
    def type(self, task: Any) -> None:
        self._type = task

    @property
    def AsyncResult(self) -> Callable[[str], AsyncResult]:  # noqa: N802 (Celery's public name)
        """What makes a result of the call out of its id."""
        try:
            return cast("Callable[[str], AsyncResult]", self.type.AsyncResult)
        except KeyError:
            return cast("Callable[[str], AsyncResult]", self.app.AsyncResult)

    @property
    def name(self) -> Any:
        """Name of the task, as tasks have it."""
        return self["task"]

    id = getitem_property("options.task_id", "Id of the call, once frozen.")
    parent_id = getitem_property("options.parent_id", "Id of the call that sends this one.")
    root_id = getitem_property("options.root_id", "Id of the first call of the workflow.")
    task = getitem_property("task", "Name of the task.")
    args = getitem_property("args", "Positional arguments.")
    kwargs = getitem_property("kwargs", "Keyword arguments.")
    options = getitem_property("options", "Sending options.")
    subtask_type = getitem_property("subtask_type", "Kind of signature; ``None`` for a plain one.")
    immutable = getitem_property("immutable", "Does it take no further arguments?")

    # -- as a value

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """Write the call, with these arguments added, as it stands in source."""
        args, kwargs, _ = self._merge(args, kwargs, None, force=True)
        return written_call(self["task"], args, kwargs)

    def __repr__(self) -> str:
        return self.reprcall()

    def items(self) -> Any:
        """The keys and values of the dictionary."""
        return super().items()

    def __json__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = memo[id(self)] = self.clone()
        copy["options"] = deepcopy(self["options"], memo)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        # The task and the app are found again by name where it is read.
        return signature, (dict(self),)


abstract.CallableSignature.register(Signature)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out the options that are ``None``."""
    return {key: value for key, value in options.items() if value is not None}


def signature(varies: Any, *args: Any, **kwargs: Any) -> Any:
    """Make a signature of a task or a task name; copy one; or read one from its dictionary.

    The other arguments are those of :class:`Signature`.  :exc:`TypeError` is raised for anything else.
    """
    if isinstance(varies, dict):
        if isinstance(varies, abstract.CallableSignature):
            return varies.clone()
        return as_signature(varies, kwargs.get("app"), taker="signature()")
    if not isinstance(varies, str) and getattr(varies, "name", None) is None:
        raise TypeError(
            f"signature() takes a task, the name of one, or the dictionary of a signature, but got {varies!r}."
        )
    return Signature(varies, *args, **kwargs)


def maybe_signature(d: Any, app: Any = None, clone: bool = False) -> Any:
    """Give *d*, a signature or its dictionary, as a signature bound to *app*; ``None`` stays ``None``.

    With *clone* a signature is copied first.
    """
    if d is None:
        return None
    if isinstance(d, Signature) or isinstance(d, abstract.CallableSignature):  # noqa: SIM101 (fast first)
        if clone:
            d = d.clone()
    elif isinstance(d, dict):
        d = Signature.from_dict(d, app=app)
    if app is not None:
        d._app = app
    return d


def bound(task: Any, app: Any) -> Any:
    """Give a member or step as a signature, bound to *app* if it belongs to none yet."""
    if not isinstance(task, Signature):
        return maybe_signature(as_signature(task, app, taker="A workflow"), app=app)
    if app is not None and task._own_app() is None:
        task._app = app
    return task


def app_of_any(tasks: Iterable[Any]) -> Any:
    """Give the app that the first of *tasks* with an app of its own belongs to, or ``None``."""
    signatures = (as_signature(task, taker="A workflow") for task in tasks)
    return next((app for app in (sig._own_app() for sig in signatures) if app is not None), None)


subtask = signature
maybe_subtask = maybe_signature
