"""``xmap``, ``xstarmap`` and ``chunks``: one task for many arguments.

Made by ``Task.map``, ``Task.starmap`` and ``Task.chunks``; the tasks ``celery.map``, ``celery.starmap`` and
``celery.chunks`` of ``app.builtins`` do the work.  A generator of arguments is read when it is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from celery_clone.canvas.group import group
from celery_clone.canvas.signature import Signature, maybe_signature
from celery_clone.utils.functional import chunks as cut
from celery_clone.utils.functional import regen
from celery_clone.utils.text import truncate

__all__ = ("chunks", "xmap", "xstarmap")


def _name_of(task: Any) -> Any:
    """The name of a task given as signature, task or name."""
    return getattr(task, "name", task)


class _Mapping(Signature):
    """A task called for each item of *it*, one after the other, inside one task."""

    _task_name: ClassVar[str]
    _item: ClassVar[str]

    @classmethod
    def from_dict(cls, d: dict[str, Any], app: Any = None) -> Any:
        """Make it of its dictionary."""
        kwargs = d["kwargs"]
        return cls(_read(kwargs["task"], app), kwargs["it"], app=app, **d.get("options") or {})

    def __init__(self, task: Any, it: Iterable[Any], **options: Any) -> None:
        super().__init__(self._task_name, (), {"task": task, "it": regen(it)}, immutable=True, **options)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> Any:
        """Send the call.  It is routed as the mapped task is, and takes no further arguments."""
        given = {key: value for key, value in options.items() if value is not None}
        _, _, merged = self._merge(options=given)
        merged = dict(merged)
        stored_name = merged.pop("route_name", None)
        task, items = self.kwargs["task"], self.kwargs["it"]
        return self.type.apply_async(
            (), {"task": task, "it": list(items)}, route_name=route_name or stored_name or _name_of(task), **merged
        )

    def __repr__(self) -> str:
        task, items = self.kwargs["task"], self.kwargs["it"]
        return f"[{_name_of(task)}({self._item}) for x in {truncate(repr(items), 100)}]"


def _read(task: Any, app: Any) -> Any:
    return maybe_signature(task, app=app) if isinstance(task, dict) else task


@Signature.register_type()
class xmap(_Mapping):
    """``[task(x) for x in it]``, as one task.  The items are not run in parallel: see ``group``."""

    _task_name = "celery.map"
    _item = "x"


@Signature.register_type()
class xstarmap(_Mapping):
    """``[task(*x) for x in it]``, as one task."""

    _task_name = "celery.starmap"
    _item = "*x"


@Signature.register_type()
class chunks(Signature):
    """The items of *it* in lists of *n*, each list one ``xstarmap``; called, they run as a group."""

    @classmethod
    def from_dict(cls, d: dict[str, Any], app: Any = None) -> Any:
        """Make it of its dictionary."""
        kwargs = d["kwargs"]
        return cls(_read(kwargs["task"], app), kwargs["it"], kwargs["n"], app=app, **d.get("options") or {})

    def __init__(self, task: Any, it: Iterable[Any], n: int, **options: Any) -> None:
        super().__init__("celery.chunks", (), {"task": task, "it": regen(it), "n": n}, immutable=True, **options)

    def __call__(self, **options: Any) -> Any:
        return self.apply_async(**options)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **opts: Any,
    ) -> Any:
        """Send the chunks as a group, routed as the mapped task is."""
        route_name = route_name or _name_of(self.kwargs["task"])
        return self.group().apply_async(args, kwargs, route_name=route_name, **opts)

    def apply(self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run the chunks here, and give their results as a group."""
        return self.group().apply(args, kwargs, **options)

    def group(self) -> Any:
        """The chunks as a group; the options of this signature are the group's."""
        task, items, size = (self.kwargs[key] for key in ("task", "it", "n"))
        parts = (xstarmap(task, part, app=self._app) for part in cut(iter(items), size))
        return group(parts, app=self._app, **self.options)

    def _unfolded(self) -> Any:
        return self.group()

    @classmethod
    def apply_chunks(cls, task: Any, it: Iterable[Any], n: int, app: Any = None) -> Any:
        """Send *it* in chunks of *n* at once."""
        return cls(task, it, n, app=app)()
