"""Does a call fit the function?  Answered by counting, before a message is sent.

``app.base`` makes one checker for each task; ``Task.apply_async`` calls it with the
arguments of every call.  A call that does not fit raises the ``TypeError`` that calling
the function would raise, in the same words.

Nothing of the user's is ever called here, and no code is generated: the words come
from an empty function that is given the signature of the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from celery_clone.utils.functional import reflection

__all__ = ("checker",)

_TAKES_ANY_POSITION = 0x04  # inspect.CO_VARARGS
_TAKES_ANY_KEYWORD = 0x08  # inspect.CO_VARKEYWORDS


class Shape(NamedTuple):
    """The parameters of a function, as far as calling it is concerned."""

    name: str
    positional: tuple[str, ...]
    """Names that may be given by position."""

    positional_only: int
    """How many of these, from the left, may not be given by name."""

    keyword_only: tuple[str, ...]
    defaults: tuple[Any, ...]
    """Defaults of the last of the positional ones."""

    keyword_defaults: Mapping[str, Any]
    any_position: bool
    any_keyword: bool


def checker(fun: Callable[..., Any], bound: bool = False) -> Callable[..., None]:
    """What checks the arguments of calls of *fun*; *bound* functions are given ``self`` by the task.

    Decorated functions are taken as they are: a wrapper that accepts anything accepts anything.
    """
    shape = _shape_of(fun)
    if shape is None:
        return _accept_anything
    if bound and shape.positional:
        shape = shape._replace(
            positional=shape.positional[1:],
            positional_only=max(shape.positional_only - 1, 0),
            defaults=shape.defaults[-(len(shape.positional) - 1) or len(shape.defaults) :],
        )
    return _counting(shape)


def _accept_anything(*args: Any, **kwargs: Any) -> None:
    """For callables that do not tell their parameters."""


def _counting(shape: Shape) -> Callable[..., None]:
    names = shape.positional
    most = len(names)
    required = names[: most - len(shape.defaults)]
    required_keywords = {name for name in shape.keyword_only if name not in shape.keyword_defaults}
    # Indexed by the number of arguments given by position.
    missing = [frozenset((*required[given:], *required_keywords)) for given in range(most + 1)]
    taken = [frozenset(names[shape.positional_only : given]) for given in range(most + 1)]
    free = [
        frozenset((*names[max(given, shape.positional_only) :], *shape.keyword_only))
        for given in range(most + 1)
    ]
    any_position, any_keyword = shape.any_position, shape.any_keyword
    # A value under the name of one of these goes to **keywords and is none for it.
    least = min(len(required), shape.positional_only)

    # Hot: runs once per call of a task.  A few set comparisons: half a microsecond for the usual call.
    def check(*args: Any, **kwargs: Any) -> None:
        given = len(args)
        if given > most:
            if not any_position:
                _complain(shape, args, kwargs)
            given = most
        if not kwargs:
            if missing[given]:
                _complain(shape, args, kwargs)
        elif given < least or not missing[given] <= kwargs.keys():
            _complain(shape, args, kwargs)
        elif any_keyword:
            if not taken[given].isdisjoint(kwargs):
                _complain(shape, args, kwargs)
        elif not kwargs.keys() <= free[given]:
            _complain(shape, args, kwargs)

    return check


def _complain(shape: Shape, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Call an empty function of that shape, so that the interpreter words the error."""
    _empty_function(shape)(*args, **kwargs)


def _empty_function(shape: Shape) -> Callable[..., None]:
    def empty() -> None: ...

    code = empty.__code__
    variables = [*shape.positional, *shape.keyword_only]
    flags = code.co_flags
    if shape.any_position:
        flags |= _TAKES_ANY_POSITION
        variables.append("*")
    if shape.any_keyword:
        flags |= _TAKES_ANY_KEYWORD
        variables.append("**")
    code = code.replace(
        co_argcount=len(shape.positional),
        co_posonlyargcount=shape.positional_only,
        co_kwonlyargcount=len(shape.keyword_only),
        co_nlocals=len(variables),
        co_varnames=tuple(variables),
        co_flags=flags,
    )
    made = FunctionType(code, {}, shape.name, shape.defaults)
    made.__qualname__ = shape.name
    made.__kwdefaults__ = dict(shape.keyword_defaults)
    return made


def _shape_of(fun: Any) -> Shape | None:
    if isinstance(fun, FunctionType):
        return _shape_of_code(fun.__code__, fun)
    try:
        signature = reflection().signature(fun, follow_wrapped=False)
    except (TypeError, ValueError):
        return None  # written in C, without a signature
    parameters = signature.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return Shape(
        name=getattr(fun, "__qualname__", None) or type(fun).__qualname__,
        positional=tuple(p.name for p in positional),
        positional_only=sum(p.kind is p.POSITIONAL_ONLY for p in positional),
        keyword_only=tuple(p.name for p in keyword_only),
        defaults=tuple(p.default for p in positional if p.default is not p.empty),
        keyword_defaults={p.name: p.default for p in keyword_only if p.default is not p.empty},
        any_position=any(p.kind is p.VAR_POSITIONAL for p in parameters),
        any_keyword=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _shape_of_code(code: CodeType, fun: FunctionType) -> Shape:
    keyword_only_from = code.co_argcount
    return Shape(
        name=fun.__qualname__,
        positional=code.co_varnames[:keyword_only_from],
        positional_only=code.co_posonlyargcount,
        keyword_only=code.co_varnames[keyword_only_from : keyword_only_from + code.co_kwonlyargcount],
        defaults=fun.__defaults__ or (),
        keyword_defaults=fun.__kwdefaults__ or {},
        any_position=bool(code.co_flags & _TAKES_ANY_POSITION),
        any_keyword=bool(code.co_flags & _TAKES_ANY_KEYWORD),
    )
