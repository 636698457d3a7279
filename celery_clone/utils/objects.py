"""Small helpers about objects: attribute look-up along the MRO, item properties, cached properties.

Used by ``app.task``, ``canvas.signature`` and ``app.base``.  Knows nothing of tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import reduce
from threading import RLock
from types import GenericAlias, TracebackType
from typing import TYPE_CHECKING, Any

__all__ = ("Bunch", "FallbackContext", "cached_property", "getitem_property", "mro_lookup")


class Bunch:
    """An object whose attributes are the given keyword arguments."""

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"


def mro_lookup(
    cls: type,
    attr: str,
    stop: Collection[type] | None = None,
    monkey_patched: Collection[str] | None = None,
) -> type | None:
    """Return the first class of the MRO of *cls* that defines *attr* itself, or ``None``.

    The search ends at the classes in *stop*, which count only if somebody patched the attribute
    there: if the module that defined the value is not one of *monkey_patched*.
    """
    for owner in cls.mro():
        if stop and owner in stop:
            origin = getattr(owner.__dict__.get(attr), "__module__", None)
            patched = origin is not None and origin not in (monkey_patched or ())
            return owner if patched else None
        if attr in owner.__dict__:
            return owner
    return None


class FallbackContext:
    """A context that gives *provided*, or enters ``fallback(*args, **kwargs)`` when that is ``None``.

    What was provided belongs to the caller and is left open; what was made here is closed.
    """

    __class_getitem__: classmethod[Any, Any, GenericAlias] = classmethod(GenericAlias)

    def __init__(
        self,
        provided: Any,
        fallback: Callable[..., AbstractContextManager[Any]],
        *fb_args: Any,
        **fb_kwargs: Any,
    ) -> None:
        self.provided = provided
        self.fallback = fallback
        self.fb_args = fb_args
        self.fb_kwargs = fb_kwargs
        self._context: AbstractContextManager[Any] | None = None

    def __enter__(self) -> Any:
        if self.provided is not None:
            return self.provided
        context = self.fallback(*self.fb_args, **self.fb_kwargs)
        value = context.__enter__()
        self._context = context
        return value

    def __exit__(
        self,
        *exc_info: type[BaseException] | BaseException | TracebackType | None,
    ) -> bool | None:
        context, self._context = self._context, None
        return context.__exit__(*exc_info) if context is not None else None  # type: ignore[arg-type]


class getitem_property:
    """An attribute that reads and writes a key of the object, which is a mapping.

    *keypath* is the key, or a dotted path such as ``"options.task_id"``.  A missing last key reads
    as ``None``; a missing step on the way is a ``KeyError``.
    """

    def __init__(self, keypath: str, doc: str | None = None) -> None:
        path, _, self.key = keypath.rpartition(".")
        self.path: list[str] = path.split(".") if path else []
        self.__doc__ = doc

    def _owner(self, obj: Any) -> Any:
        return reduce(lambda mapping, key: mapping[key], self.path, obj)

    def __get__(self, obj: Any, type: type | None = None) -> Any:
        if obj is None:
            return type
        return self._owner(obj).get(self.key)

    def __set__(self, obj: Any, value: Any) -> None:
        self._owner(obj)[self.key] = value


_MISSING = object()


class cached_property(functools.cached_property[Any]):
    """A property computed once per object, that may be set and deleted.

    With :meth:`setter` the given function turns a value into the one that is kept; with
    :meth:`deleter` the given function is told the value that goes.
    """

    def __init__(
        self,
        fget: Callable[[Any], Any] | None = None,
        fset: Callable[[Any, Any], Any] | None = None,
        fdel: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        super().__init__(fget)  # type: ignore[arg-type]
        self._turn = fset
        self._told = fdel
        # Python 3.12 took the lock away; two threads must still see one and the same value.
        self.lock = RLock()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        value = instance.__dict__.get(self.attrname, _MISSING)
        if value is not _MISSING:
            return value
        with self.lock:
            return super().__get__(instance, owner)

    def __set__(self, instance: Any, value: Any) -> None:
        with self.lock:
            if self._turn is not None:
                value = self._turn(instance, value)
            instance.__dict__[self.attrname] = value

    def __delete__(self, instance: Any) -> None:
        with self.lock:
            value = instance.__dict__.pop(self.attrname, _MISSING)
            if self._told is not None and value is not _MISSING:
                self._told(instance, value)

    def setter(self, fset: Callable[[Any, Any], Any]) -> cached_property:
        """Return this property with *fset* turning the values that are set."""
        return type(self)(self.func, fset, self._told)

    def deleter(self, fdel: Callable[[Any, Any], Any]) -> cached_property:
        """Return this property with *fdel* told of the value that is deleted."""
        return type(self)(self.func, self._turn, fdel)
