"""Make exceptions and values storable.

Called by the result stores (to keep an exception beside a failed task), by the
tracer and the pools (to carry an exception between processes), and by the
reports that turn settings into JSON.
It may not know which serializer is in use: whoever has one hands it in.
"""

from __future__ import annotations

import numbers
import pickle
import sys
from base64 import b64decode as _decode_base64
from base64 import b64encode as _encode_base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from functools import partial
from itertools import takewhile
from typing import Any, NoReturn

__all__ = (
    "UnpickleableExceptionWrapper",
    "subclass_exception",
    "find_pickleable_exception",
    "create_exception_cls",
    "ensure_serializable",
    "get_pickleable_exception",
    "get_pickleable_etype",
    "get_pickled_exception",
    "itermro",
    "jsonify",
    "raise_with_context",
    "strtobool",
    "b64encode",
    "b64decode",
)

#: Ancestors that say nothing about an error and therefore never stand in for one.
unwanted_base_classes: tuple[type, ...] = (Exception, BaseException, object)

STRTOBOOL_DEFAULT_TABLE: dict[str, bool] = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


# -- exceptions ------------------------------------------------------------


def subclass_exception(name: str, parent: type[BaseException], module: str) -> type[BaseException]:
    """Return a new exception class called ``name`` that says it lives in ``module``."""
    return type(name, (parent,), {"__module__": module})


def create_exception_cls(name: str, module: str, parent: type[BaseException] | None = None) -> type[BaseException]:
    """Return a stand-in for an exception class that cannot be imported here."""
    return subclass_exception(name, parent or Exception, module)


def itermro(cls: type, stop: Iterable[type]) -> Iterator[type]:
    """Yield ``cls`` and its ancestors, in resolution order, up to the first in ``stop``."""
    stops = tuple(stop)
    return takewhile(lambda ancestor: ancestor not in stops, cls.__mro__)


def find_pickleable_exception(
    exc: BaseException,
    loads: Callable[[bytes], Any] = pickle.loads,
    dumps: Callable[[Any], bytes] = pickle.dumps,
) -> BaseException | None:
    """Return ``exc`` rebuilt as the nearest of its classes that survives a round trip.

    ``None`` if only :exc:`Exception` or its ancestors would, since those would
    hide what happened.
    """
    arguments = getattr(exc, "args", ())
    for ancestor in itermro(type(exc), unwanted_base_classes):
        try:
            candidate = ancestor(*arguments)
            loads(dumps(candidate))
        except Exception:  # noqa: BLE001, S112 - any failure of a class means: try its parent
            continue
        return candidate  # type: ignore[no-any-return]
    return None


def ensure_serializable(items: Iterable[Any], encoder: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Return the items, those that ``encoder`` refuses replaced by their ``repr``."""
    return tuple(item if _passes(encoder, item) else _safe_text(item) for item in items)


def _passes(encoder: Callable[[Any], Any], item: Any) -> bool:
    try:
        encoder(item)
    except Exception:  # noqa: BLE001 - however it fails, it does not pass
        return False
    return True


def _safe_text(value: Any) -> str:
    """Return ``repr(value)``, or a text saying why there is none."""
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - user code, and a text is needed
        return f"<Unrepresentable {type(value)!r}: {error!r}>"


def _pickle_round_trip(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


class UnpickleableExceptionWrapper(Exception):
    """Carries an exception that cannot be pickled, as names and safe arguments.

    ``text`` is the ``repr`` of the original, which is also what ``str()`` gives.
    """

    #: Module of the original exception class.
    exc_module: str | None = None

    #: Name of the original exception class.
    exc_cls_name: str | None = None

    #: Arguments of the original; what could not be pickled is a text here.
    exc_args: tuple[Any, ...] | None = None

    def __init__(self, exc_module: str, exc_cls_name: str, exc_args: Iterable[Any], text: str | None = None) -> None:
        safe_arguments = ensure_serializable(exc_args, _pickle_round_trip)
        self.exc_module = exc_module
        self.exc_cls_name = exc_cls_name
        self.exc_args = safe_arguments
        self.text = text
        super().__init__(exc_module, exc_cls_name, safe_arguments, text)

    @classmethod
    def from_exception(cls, exc: BaseException) -> UnpickleableExceptionWrapper:
        """Wrap ``exc``, keeping its traceback for as long as it stays in this process."""
        kind = type(exc)
        wrapper = cls(kind.__module__, kind.__name__, getattr(exc, "args", ()), _safe_text(exc))
        return wrapper.with_traceback(exc.__traceback__)

    def restore(self) -> BaseException:
        """Return an exception whose class carries the original names."""
        name, module = self.exc_cls_name or type(self).__name__, self.exc_module or __name__
        return create_exception_cls(name, module)(*self.exc_args or ())

    def __str__(self) -> str:
        if self.text is None:
            return f"{self.exc_module}.{self.exc_cls_name}{self.exc_args!r}"
        return self.text


def get_pickleable_exception(exc: BaseException) -> BaseException:
    """Return ``exc`` itself if it can be pickled, else the nearest thing that can."""
    if _passes(_pickle_round_trip, exc):
        return exc
    return find_pickleable_exception(exc) or UnpickleableExceptionWrapper.from_exception(exc)


def get_pickleable_etype(
    cls: type[BaseException],
    loads: Callable[[bytes], Any] = pickle.loads,
    dumps: Callable[[Any], bytes] = pickle.dumps,
) -> type[BaseException]:
    """Return ``cls`` if another process can import it, else :exc:`Exception`."""
    try:
        loads(dumps(cls))
    except Exception:  # noqa: BLE001 - however it fails, the class cannot travel
        return Exception
    return cls


def get_pickled_exception(exc: BaseException) -> BaseException:
    """Undo :func:`get_pickleable_exception`."""
    if isinstance(exc, UnpickleableExceptionWrapper):
        return exc.restore()
    return exc


def raise_with_context(exc: BaseException) -> NoReturn:
    """Raise ``exc`` with the exception being handled, if any, as its cause."""
    handled = sys.exc_info()[1]
    if handled is exc:
        raise  # the caller is inside the handler
    raise exc from handled


# -- values ----------------------------------------------------------------


def b64encode(s: str | bytes) -> str:
    """Return the base64 text of ``s``; text is taken as UTF-8."""
    return _encode_base64(s.encode() if isinstance(s, str) else s).decode("ascii")


def b64decode(s: str | bytes) -> bytes:
    """Return the bytes that a base64 text stands for."""
    return _decode_base64(s.encode() if isinstance(s, str) else s)


def strtobool(term: Any, table: Mapping[str, bool] | None = None) -> Any:
    """Return the truth that a word such as ``"yes"`` or ``"off"`` stands for.

    Values that are not text are returned as they are.
    Raises :exc:`TypeError` for any other word.
    """
    if not isinstance(term, str):
        return term
    known = STRTOBOOL_DEFAULT_TABLE if table is None else table
    try:
        return known[term.lower()]
    except KeyError:
        raise TypeError(f"Cannot coerce {term!r} to type bool. Use one of: {', '.join(sorted(known))}.") from None


def _date_text(value: date | time) -> str:
    """Return the ECMA-262 form: milliseconds at most, ``Z`` for UTC."""
    text = value.isoformat()
    if isinstance(value, datetime):
        if value.microsecond:
            text = text[:23] + text[26:]
        return f"{text[:-6]}Z" if text.endswith("+00:00") else text
    if isinstance(value, time) and value.microsecond:
        return text[:12]
    return text


def _describes_itself(value: Any) -> bool:
    """Tell whether ``value`` is a queue, exchange or binding of kombu.

    Asked by name, because nothing in ``utils`` may load kombu.
    """
    return any(kind.__module__ == "kombu.abstract" and kind.__name__ == "Object" for kind in type(value).__mro__)


def jsonify(
    obj: Any,
    builtin_types: tuple[type, ...] = (numbers.Real, str),
    key: Any = None,
    keyfilter: Callable[[Any], bool] | None = None,
    unknown_type_filter: Callable[[Any], Any] | None = None,
) -> Any:
    """Return ``obj`` made of what JSON knows.

    ``keyfilter`` says which keys of mappings to keep; ``unknown_type_filter``
    converts what is left over.  Without it such a value raises
    :exc:`ValueError` that names ``key``, the place where it was found.
    """
    nested = partial(jsonify, builtin_types=builtin_types, keyfilter=keyfilter, unknown_type_filter=unknown_type_filter)
    if obj is None or isinstance(obj, builtin_types):
        return obj
    if _describes_itself(obj):
        obj = obj.as_dict(recurse=True)
    if isinstance(obj, (tuple, list)):
        return [nested(item, key=key) for item in obj]
    if isinstance(obj, dict):
        return {name: nested(item, key=name) for name, item in obj.items() if keyfilter is None or keyfilter(name)}
    if isinstance(obj, (date, time)):
        return _date_text(obj)
    if isinstance(obj, timedelta):
        return str(obj)
    if unknown_type_filter is None:
        raise ValueError(
            f"Unsupported type: {type(obj)!r} {obj!r} (parent: {key}). Convert it, or pass unknown_type_filter."
        )
    return unknown_type_filter(obj)
