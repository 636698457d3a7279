"""Helpers about functions, iterables and values that are not there yet.

Used all over the house.  The names that Celery takes from kombu (``LRUCache``, ``lazy``,
``memoize`` and others) are written here: loading kombu would take longer than all of this package.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections import OrderedDict, UserDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import partial, wraps
from importlib import import_module
from itertools import islice
from typing import Any, TypeVar

__all__ = (
    "LRUCache",
    "chunks",
    "dictfilter",
    "first",
    "firstmethod",
    "fun_accepts_kwargs",
    "head_from_fun",
    "is_lazy",
    "is_list",
    "lazy",
    "mattrgetter",
    "maybe",
    "maybe_evaluate",
    "maybe_list",
    "memoize",
    "mlazy",
    "noop",
    "padlist",
    "regen",
    "uniq",
)

Item = TypeVar("Item")


# -- values that are not there yet


class lazy:
    """A call that is made when its value is asked for, anew each time.

    Calling it, :meth:`evaluate`, ``str()``, ``repr()`` and ``==`` ask for the value.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._fun = fun
        self._args = args
        self._kwargs = kwargs

    def __call__(self) -> Any:
        return self.evaluate()

    def evaluate(self) -> Any:
        """Make the call and return what it returns."""
        return self._fun(*self._args, **self._kwargs)

    def __str__(self) -> str:
        return str(self.evaluate())

    def __repr__(self) -> str:
        return repr(self.evaluate())

    def __eq__(self, rhs: object) -> Any:
        return self.evaluate() == rhs

    def __ne__(self, rhs: object) -> Any:
        return self.evaluate() != rhs

    def __deepcopy__(self, memo: dict[int, Any]) -> lazy:
        memo[id(self)] = self
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._fun,), {"_args": self._args, "_kwargs": self._kwargs}


class mlazy(lazy):
    """A :class:`lazy` whose call is made once; its value is kept."""

    #: Was the call made already?
    evaluated = False
    _value: Any = None

    def evaluate(self) -> Any:
        if not self.evaluated:
            self._value = super().evaluate()
            self.evaluated = True
        return self._value


def _is_one_of(value: Any, module: str, name: str) -> bool:
    """Is *value* an instance of a class of a library?  If that is not loaded, nothing can be."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(value, cls)


def maybe_evaluate(value: Any) -> Any:
    """Return the value of a :class:`lazy` (kombu's included); anything else as it is."""
    if isinstance(value, lazy) or _is_one_of(value, "kombu.utils.functional", "lazy"):
        return value.evaluate()
    return value


def evaluate_promises(it: Iterable[Any]) -> Iterator[Any]:
    """Give the values of *it*; of ``vine`` promises what calling them returns."""
    for value in it:
        yield value() if _is_one_of(value, "vine.promises", "promise") else value


# -- caches


class LRUCache(UserDict):  # type: ignore[type-arg]
    """A mapping of at most *limit* keys (``None``: no bound) that drops the least recently used one.

    Reading and writing a key uses it.  Safe to use from several threads; what it gives to iterate
    over is a snapshot.
    """

    data: OrderedDict[Any, Any]

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.mutex = threading.RLock()
        self.data = OrderedDict()

    def __getitem__(self, key: Any) -> Any:
        with self.mutex:
            value = self.data[key]
            self.data.move_to_end(key)
            return value

    def __setitem__(self, key: Any, value: Any) -> None:
        with self.mutex:
            if self.limit and key not in self.data and len(self.data) >= self.limit:
                self.data.popitem(last=False)
            self.data[key] = value

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take over the items of a mapping, an iterable of pairs, and the keyword arguments."""
        with self.mutex:
            self.data.update(*args, **kwargs)
            while self.limit and len(self.data) > self.limit:
                self.data.popitem(last=False)

    def popitem(self, last: bool = True) -> tuple[Any, Any]:
        """Take out the most recently added pair, or the oldest with ``last=False``."""
        with self.mutex:
            return self.data.popitem(last)

    def __iter__(self) -> Iterator[Any]:
        with self.mutex:
            return iter(list(self.data))

    def keys(self) -> Any:
        return self.data.keys()

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        with self.mutex:
            return iter(list(self.data.values()))

    def items(self) -> Iterator[tuple[Any, Any]]:  # type: ignore[override]
        with self.mutex:
            return iter(list(self.data.items()))

    iterkeys, itervalues, iteritems = keys, values, items

    def incr(self, key: Any, delta: int = 1) -> int:
        """Add to a number that is kept as text, as memcached does; return the new number."""
        with self.mutex:
            number = int(self.data[key]) + delta
            self.data[key] = str(number)
            self.data.move_to_end(key)
            return number

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "mutex"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, mutex=threading.RLock())


_KEYWORDS_FOLLOW = object()


def memoize(
    maxsize: int | None = None,
    keyfun: Callable[[tuple[Any, ...], dict[str, Any]], Hashable] | None = None,
    Cache: Callable[..., Any] = LRUCache,  # noqa: N803 (Celery's public name)
) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function so that it is called once for equal arguments.

    Keeps the last *maxsize* results (``None``: all).  *keyfun* makes the key of a call out of its
    ``args`` and ``kwargs``.  The decorated function has ``hits``, ``misses``, ``clear()`` and
    ``original_func``.
    """

    def decorate(fun: Callable[..., Any]) -> Any:
        lock = threading.Lock()
        cache = Cache(limit=maxsize)

        @wraps(fun)
        def remembering(*args: Any, **kwargs: Any) -> Any:
            key = keyfun(args, kwargs) if keyfun else (*args, _KEYWORDS_FOLLOW, *sorted(kwargs.items()))
            try:
                with lock:
                    value = cache[key]
            except KeyError:
                value = fun(*args, **kwargs)
                remembering.misses += 1  # type: ignore[attr-defined]
                with lock:
                    cache[key] = value
            else:
                remembering.hits += 1  # type: ignore[attr-defined]
            return value

        def clear() -> None:
            """Forget all results and start counting anew."""
            cache.clear()
            remembering.hits = remembering.misses = 0  # type: ignore[attr-defined]

        remembering.clear = clear  # type: ignore[attr-defined]
        remembering.original_func = fun  # type: ignore[attr-defined]
        remembering.hits = remembering.misses = 0  # type: ignore[attr-defined]
        return remembering

    return decorate


# -- iterables and mappings


def is_list(
    obj: Any,
    scalars: tuple[type, ...] | None = (Mapping, str),
    iters: tuple[type, ...] = (Iterable,),
) -> bool:
    """Can *obj* be iterated over, and is it none of *scalars* (mappings and texts)?"""
    return isinstance(obj, iters) and not isinstance(obj, scalars or ())


def maybe_list(obj: Any, scalars: tuple[type, ...] | None = (Mapping, str)) -> Any:
    """Return *obj* if it is a list of things or ``None``; put a single thing into a list."""
    return obj if obj is None or is_list(obj, scalars) else [obj]


def dictfilter(d: Mapping[str, Any] | None = None, **kw: Any) -> dict[str, Any]:
    """Return the items of *d* and the keyword arguments whose value is not ``None``."""
    items = {**d, **kw} if d is not None else kw
    return {key: value for key, value in items.items() if value is not None}


def first(predicate: Callable[[Any], Any] | None, it: Iterable[Any]) -> Any:
    """Return the first value that *predicate* accepts (``None``: that is not ``None``), or ``None``."""
    for value in evaluate_promises(it):
        if (value is not None) if predicate is None else predicate(value):
            return value
    return None


def firstmethod(method: str, on_call: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return a function that asks objects one after another by calling their *method*.

    It is given the objects (a :class:`lazy` among them is evaluated) and the arguments, and returns
    the first answer that is not ``None``.  ``on_call(bound_method, *args)`` makes the call if given.
    """

    def ask(it: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        for obj in it:
            bound = getattr(maybe_evaluate(obj), method, None)
            if bound is None:
                continue
            answer = on_call(bound, *args, **kwargs) if on_call else bound(*args, **kwargs)
            if answer is not None:
                return answer
        return None

    return ask


def chunks(it: Iterator[Item], n: int) -> Iterator[list[Item]]:
    """Cut an iterator into lists of *n* items; the last may be shorter.

    *it* must be an iterator: a list would be begun anew for each chunk.
    """
    for item in it:
        yield [item, *islice(it, n - 1)]


def padlist(container: Iterable[Any], size: int, default: Any = None) -> list[Any]:
    """Return the first *size* items, filled up with *default* if there are fewer."""
    items = list(container)[:size]
    return items + [default] * (size - len(items))


def mattrgetter(*attrs: str) -> Callable[[Any], dict[str, Any]]:
    """Return a function that reads these attributes of an object; missing ones are ``None``."""
    return lambda obj: {attr: getattr(obj, attr, None) for attr in attrs}


def uniq(it: Iterable[Item]) -> Iterator[Item]:
    """Give each item once, in the order of their first appearance."""
    seen: set[Item] = set()
    for item in it:
        if item not in seen:
            seen.add(item)
            yield item


def lookahead(it: Iterable[Item]) -> Iterator[tuple[Item, Item | None]]:
    """Give ``(item, the one after it)``; after the last there is ``None``."""
    items = iter(it)
    for item in items:
        for following in items:
            yield item, following
            item = following
        yield item, None


def seq_concat_item(seq: Any, item: Any) -> Any:
    """Return a new sequence like *seq* with *item* at its end."""
    return (*seq, item) if isinstance(seq, tuple) else seq + [item]


def seq_concat_seq(a: Any, b: Any) -> Any:
    """Return ``a + b`` as the type of the longer one (of the first if they are equally long)."""
    kind = type(max(a, b, key=len))
    return (a if isinstance(a, kind) else kind(a)) + (b if isinstance(b, kind) else kind(b))


def regen(it: Any) -> Any:
    """Return *it* if it is a list or a tuple, else a list of its items that is filled when read.

    So a generator can be read many times, and no earlier than somebody does.
    """
    return it if isinstance(it, (list, tuple)) else _regen(it)


def is_lazy(items: Any) -> bool:
    """Is it what :func:`regen` makes of a generator, so that whoever reads it runs the generator?"""
    return isinstance(items, _regen)


class _regen(list[Any]):  # noqa: N801 (shown in its repr)
    """A list of what an iterable gives, filled as far as it was read.

    Serializers, which go by the length or iterate, find all its items.
    """

    def __init__(self, it: Iterable[Any]) -> None:
        super().__init__()
        self._rest: Iterator[Any] | None = iter(it)
        self._source = it

    def _take(self) -> bool:
        """Read one more item.  False if there is none."""
        if self._rest is not None:
            for item in self._rest:
                list.append(self, item)
                return True
            self._rest = None
        return False

    def concrete(self) -> _regen:
        """Read all that is left, and return this list."""
        rest, self._rest = self._rest, None
        if rest is not None:
            list.extend(self, rest)
        return self

    def map(self, func: Callable[[Any], Any]) -> None:
        """Replace each item by ``func(item)``: those read already now, the others when read."""
        list.__setitem__(self, slice(None), [func(item) for item in list.__iter__(self)])
        if self._rest is not None:
            self._rest = map(func, self._rest)

    @property
    def data(self) -> list[Any]:
        """All items, as a plain list."""
        return list(self.concrete())

    def __iter__(self) -> Iterator[Any]:
        # By position, since others may read this list, or read it on, meanwhile.
        position = 0
        while position < list.__len__(self) or self._take():
            yield list.__getitem__(self, position)
            position += 1

    def __length_hint__(self) -> int:
        return list.__len__(self) + operator.length_hint(self._rest or (), 0)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) or operator.index(index) < 0:
            return list.__getitem__(self.concrete(), index)
        while list.__len__(self) <= index and self._take():
            pass
        return list.__getitem__(self, index)

    def __bool__(self) -> bool:
        return list.__len__(self) > 0 or self._take()

    def __repr__(self) -> str:
        more = "" if self._rest is None else "..."
        return f"<_regen: [{', '.join(map(repr, list.__iter__(self)))}{more}]>"

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self.data,)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def __add__(self, other: Any) -> Any:
        return self.data + list(other)

    def __radd__(self, other: Any) -> Any:
        return list(other) + self.data


def _reads_all(name: str) -> Callable[..., Any]:
    method = getattr(list, name)

    @wraps(method)
    def reading_all(self: _regen, *args: Any, **kwargs: Any) -> Any:
        return method(self.concrete(), *args, **kwargs)

    return reading_all


for _name in (
    *("__len__", "__contains__", "__reversed__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
    *("__mul__", "__rmul__", "__iadd__", "__imul__", "__setitem__", "__delitem__", "append", "clear", "copy"),
    *("count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"),
):
    setattr(_regen, _name, _reads_all(_name))
del _name


# -- functions


def noop(*args: Any, **kwargs: Any) -> None:
    """Do nothing, with any arguments."""


def pass1(arg: Item, *args: Any, **kwargs: Any) -> Item:
    """Return the first argument."""
    return arg


def maybe(typ: Callable[[Any], Any], val: Any) -> Any:
    """Return ``typ(val)``, or ``None`` for ``None``."""
    return typ(val) if val is not None else None


def is_numeric_value(value: Any) -> bool:
    """Is it a number?  True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


CO_VARKEYWORDS = 0x08
CO_COROUTINE = 0x80


def reflection() -> Any:
    """The module ``inspect``, which costs 4 ms: more than the rest of what most programs load from here."""
    return import_module("inspect")


def is_coroutine_function(fun: Any) -> bool:
    """Is it an ``async def``?"""
    code = getattr(getattr(fun, "__func__", fun), "__code__", None)
    return code is not None and bool(code.co_flags & CO_COROUTINE)


def arity_greater(fun: Callable[..., Any], n: int) -> bool:
    """Does *fun* take more than *n* positional arguments?"""
    spec = reflection().getfullargspec(fun)
    return spec.varargs is not None or len(spec.args) > n


def fun_takes_argument(name: str, fun: Callable[..., Any], position: int | None = None) -> bool:
    """Does *fun* take an argument called *name*, or at least *position* positional ones?"""
    spec = reflection().getfullargspec(fun)
    if spec.varargs is not None or spec.varkw is not None:
        return True
    return len(spec.args) >= position if position else name in spec.args


def fun_accepts_kwargs(fun: Callable[..., Any]) -> bool:
    """Does *fun* take arbitrary keyword arguments?"""
    code = getattr(fun, "__code__", None)
    if code is not None:
        return bool(code.co_flags & CO_VARKEYWORDS)
    parameters = reflection().signature(fun).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def head_from_fun(fun: Callable[..., Any], bound: bool = False) -> Callable[..., Any]:
    """Return a function that takes the arguments *fun* takes and does nothing with them.

    Calling it raises the ``TypeError`` that calling *fun* would.  With *bound* its first argument is
    given already.  What wraps a function counts, not the function that is wrapped.
    """
    if reflection().isroutine(fun) or hasattr(fun, "__code__"):
        name = getattr(fun, "__name__", "function")
    else:
        name, fun = type(fun).__name__, fun.__call__  # type: ignore[operator]
    signature = reflection().signature(getattr(fun, "__func__", fun), follow_wrapped=False)
    head = signature.replace(
        parameters=[
            parameter.replace(
                annotation=parameter.empty,
                default=parameter.empty if parameter.default is parameter.empty else None,
            )
            for parameter in signature.parameters.values()
        ],
        return_annotation=signature.empty,
    )
    # The interpreter checks a call far faster than Signature.bind does, and words the error itself.
    source = f"def {name if name.isidentifier() else 'function'}{head}:\n    return 1\n"
    namespace: dict[str, Any] = {"__name__": getattr(fun, "__module__", None)}
    exec(source, namespace)
    made = namespace[name if name.isidentifier() else "function"]
    made.__name__ = made.__qualname__ = name
    made._source = source
    return partial(made, object()) if bound else made


class DummyContext:
    """A context that does nothing."""

    def __enter__(self) -> DummyContext:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None
