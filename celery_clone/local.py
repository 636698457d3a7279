"""``Proxy`` and ``PromiseProxy``: objects that stand for another object.

Used for ``current_app``, ``current_task`` and what ``shared_task`` returns: they exist before the
object they stand for does.  The lowest floor, loaded first: it may import nothing of the package.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from importlib import import_module
from types import GenericAlias, ModuleType
from typing import Any

__all__ = ("PromiseProxy", "Proxy", "class_property", "maybe_evaluate", "try_import")

# The slots of a proxy are reached past its own attribute access, which is the target's.
_fetch = object.__getattribute__
_put = object.__setattr__
_drop = object.__delattr__


def try_import(module: str, default: Any = None) -> ModuleType | Any:
    """Import the module of this name, or return *default* when there is none."""
    try:
        return import_module(module)
    except ImportError:
        return default


def maybe_evaluate(obj: Any) -> Any:
    """Return the object a :class:`PromiseProxy` stands for; anything else is returned as it is."""
    try:
        evaluate = obj.__maybe_evaluate__
    except AttributeError:
        return obj
    return evaluate()


class _TextOnTheClass(str):
    """A class attribute that is text when the class is asked and computed when an instance is.

    ``Proxy.__module__`` and ``Proxy.__doc__`` must be strings for pickle and for documentation
    tools, while those of a proxy are the target's.
    """

    _read: Callable[[Any], Any]

    def __new__(cls, text: str, read: Callable[[Any], Any]) -> _TextOnTheClass:
        self = super().__new__(cls, text)
        self._read = read
        return self

    def __get__(self, proxy: Any, owner: type | None = None) -> Any:
        return self if proxy is None else self._read(proxy)


def _module_of(proxy: Proxy) -> Any:
    return proxy._get_current_object().__module__


def _doc_of(proxy: Proxy) -> Any:
    try:
        return _fetch(proxy, "_Proxy__own_doc")
    except AttributeError:
        return proxy._get_current_object().__doc__


_PROXY_DOC = """Stands for the object that ``local(*args, **kwargs)`` returns, asked anew at each use.

*local* is a function, or a context local (``utils.threads.Local``) whose attribute *name* is
meant.  *name* and *__doc__* are what the proxy itself answers to ``__name__``, ``__qualname__``
and ``__doc__``; without them the target is asked.

Everything done with the proxy is done with the target, ``isinstance`` included.  A proxy whose
function raises ``RuntimeError`` is unbound: it is false, and its repr says so.
"""

_PROMISE_DOC = """A :class:`Proxy` that asks for its target once and keeps it.

``__then__(function, *args)`` runs the function as soon as the target is there.
"""


def _unary(operate: Callable[[Any], Any]) -> Callable[[Proxy], Any]:
    def method(self: Proxy) -> Any:
        return operate(self._get_current_object())

    return method


def _binary(operate: Callable[[Any, Any], Any]) -> Callable[[Proxy, Any], Any]:
    def method(self: Proxy, other: Any) -> Any:
        return operate(self._get_current_object(), other)

    return method


def _reflected(operate: Callable[[Any, Any], Any]) -> Callable[[Proxy, Any], Any]:
    def method(self: Proxy, other: Any) -> Any:
        return operate(other, self._get_current_object())

    return method


class Proxy:
    __doc__ = _TextOnTheClass(_PROXY_DOC, _doc_of)
    __module__ = _TextOnTheClass(__name__, _module_of)

    __slots__ = ("__args", "__kwargs", "__local", "__own_doc", "__own_name", "__weakref__")

    def __init__(
        self,
        local: Any,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        name: str | None = None,
        __doc__: str | None = None,
    ) -> None:
        _put(self, "_Proxy__local", local)
        _put(self, "_Proxy__args", args or ())
        _put(self, "_Proxy__kwargs", kwargs or {})
        if name is not None:
            _put(self, "_Proxy__own_name", name)
        if __doc__ is not None:
            _put(self, "_Proxy__own_doc", __doc__)

    def _get_current_object(self) -> Any:
        """Return the target itself, to work on it directly or to hand it to another context."""
        local = _fetch(self, "_Proxy__local")
        if not hasattr(local, "__release_local__"):
            return local(*_fetch(self, "_Proxy__args"), **_fetch(self, "_Proxy__kwargs"))
        name = _fetch(self, "_Proxy__own_name")
        try:
            return getattr(local, name)
        except AttributeError:
            raise RuntimeError(f"no object bound to {name}") from None

    # -- what the proxy says of itself

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._get_current_object().__class__

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        try:
            return self._get_current_object().__dict__
        except RuntimeError:
            raise AttributeError("__dict__") from None

    @property
    def __name__(self) -> Any:
        try:
            return _fetch(self, "_Proxy__own_name")
        except AttributeError:
            return self._get_current_object().__name__

    def __repr__(self) -> str:
        try:
            target = self._get_current_object()
        except RuntimeError:
            return f"<{type(self).__name__} unbound>"
        return repr(target)

    def __bool__(self) -> bool:
        try:
            return bool(self._get_current_object())
        except RuntimeError:
            return False

    def __dir__(self) -> list[str]:
        try:
            return dir(self._get_current_object())
        except RuntimeError:
            return []

    def __reduce__(self) -> Any:
        return self._get_current_object().__reduce__()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._get_current_object().__reduce_ex__(protocol)

    # -- attributes

    def __getattr__(self, name: str) -> Any:
        if name == "__qualname__":
            # A class body cannot define it: Python takes it for the name of the class.
            try:
                return _fetch(self, "_Proxy__own_name")
            except AttributeError:
                pass
        elif name == "__dict__":
            raise AttributeError(name)  # the property above found the proxy unbound
        return getattr(self._get_current_object(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._get_current_object(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._get_current_object(), name)

    # -- calls, containers and contexts

    def __call__(self, *a: Any, **kw: Any) -> Any:
        return self._get_current_object()(*a, **kw)

    def __len__(self) -> int:
        return len(self._get_current_object())

    def __getitem__(self, i: Any) -> Any:
        return self._get_current_object()[i]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._get_current_object()[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._get_current_object()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._get_current_object())

    def __contains__(self, i: Any) -> bool:
        return i in self._get_current_object()

    def __enter__(self) -> Any:
        return self._get_current_object().__enter__()

    def __exit__(self, *a: Any, **kw: Any) -> Any:
        return self._get_current_object().__exit__(*a, **kw)

    # -- operators

    def __eq__(self, other: object) -> Any:
        return self._get_current_object() == other

    def __ne__(self, other: object) -> Any:
        return self._get_current_object() != other

    def __hash__(self) -> int:
        return hash(self._get_current_object())

    def __or__(self, other: Any) -> Any:
        return self._get_current_object() | other

    def __invert__(self) -> Any:
        return ~self._get_current_object()

    __str__ = _unary(str)
    __neg__ = _unary(operator.neg)
    __pos__ = _unary(operator.pos)
    __abs__ = _unary(operator.abs)
    __int__ = _unary(int)
    __float__ = _unary(float)
    __complex__ = _unary(complex)
    __index__ = _unary(operator.index)

    __lt__ = _binary(operator.lt)
    __le__ = _binary(operator.le)
    __gt__ = _binary(operator.gt)
    __ge__ = _binary(operator.ge)

    __add__, __radd__ = _binary(operator.add), _reflected(operator.add)
    __sub__, __rsub__ = _binary(operator.sub), _reflected(operator.sub)
    __mul__, __rmul__ = _binary(operator.mul), _reflected(operator.mul)
    __truediv__, __rtruediv__ = _binary(operator.truediv), _reflected(operator.truediv)
    __floordiv__, __rfloordiv__ = _binary(operator.floordiv), _reflected(operator.floordiv)
    __mod__, __rmod__ = _binary(operator.mod), _reflected(operator.mod)
    __divmod__, __rdivmod__ = _binary(divmod), _reflected(divmod)
    __pow__, __rpow__ = _binary(operator.pow), _reflected(operator.pow)
    __lshift__, __rlshift__ = _binary(operator.lshift), _reflected(operator.lshift)
    __rshift__, __rrshift__ = _binary(operator.rshift), _reflected(operator.rshift)
    __and__, __rand__ = _binary(operator.and_), _reflected(operator.and_)
    __xor__, __rxor__ = _binary(operator.xor), _reflected(operator.xor)
    __ror__ = _reflected(operator.or_)


class PromiseProxy(Proxy):
    __doc__ = _TextOnTheClass(_PROMISE_DOC, _doc_of)
    __module__ = _TextOnTheClass(__name__, _module_of)

    __slots__ = ("__thing", "__waiting")

    def _get_current_object(self) -> Any:
        try:
            return _fetch(self, "_PromiseProxy__thing")
        except AttributeError:
            return self.__evaluate__()

    def __then__(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``fun(*args, **kwargs)``: now if the target is there, else as soon as it is."""
        if self.__evaluated__():
            return fun(*args, **kwargs)
        try:
            waiting = _fetch(self, "_PromiseProxy__waiting")
        except AttributeError:
            waiting = []
            _put(self, "_PromiseProxy__waiting", waiting)
        waiting.append((fun, args, kwargs))
        return None

    def __evaluated__(self) -> bool:
        """Is the target there already?"""
        try:
            _fetch(self, "_PromiseProxy__thing")
        except AttributeError:
            return False
        return True

    def __maybe_evaluate__(self) -> Any:
        return self._get_current_object()

    def __evaluate__(self) -> Any:
        """Ask for the target, keep it, and run what waits for it."""
        thing = Proxy._get_current_object(self)
        _put(self, "_PromiseProxy__thing", thing)
        # What made the target is let go: it may hold a module or a whole app.
        for slot in ("_Proxy__local", "_Proxy__args", "_Proxy__kwargs"):
            try:
                _drop(self, slot)
            except AttributeError:
                pass  # the function evaluated this very proxy
        try:
            waiting = _fetch(self, "_PromiseProxy__waiting")
        except AttributeError:
            return thing
        try:
            while waiting:
                fun, args, kwargs = waiting.pop(0)
                fun(*args, **kwargs)
        finally:
            _drop(self, "_PromiseProxy__waiting")
        return thing


class class_property:  # noqa: N801 (the name Celery gives it)
    """A property of the class itself, read and set as ``Class.name`` or through an instance.

    Setting it through the class replaces it, as Python does for every class attribute; setting it
    through an instance calls the setter with the class.
    """

    __class_getitem__: classmethod[Any, Any, GenericAlias] = classmethod(GenericAlias)

    def __init__(
        self,
        getter: Callable[[Any], Any],
        setter: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self._getter = getattr(getter, "__func__", getter)
        self._setter = getattr(setter, "__func__", setter)
        self.__doc__ = self._getter.__doc__
        self.__name__ = self._getter.__name__
        self.__module__ = self._getter.__module__

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        return self._getter(type(obj) if owner is None else owner)

    def __set__(self, obj: Any, value: Any) -> None:
        if self._setter is None:
            raise AttributeError(f"{self.__name__!r} of {type(obj).__name__!r} cannot be set")
        self._setter(type(obj), value)

    def setter(self, setter: Callable[[Any, Any], Any]) -> class_property:
        """Return this property with *setter*, called with the class and the value."""
        return type(self)(self._getter, setter)
