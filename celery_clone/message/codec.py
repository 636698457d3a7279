"""Body bytes to ``(args, kwargs, embed)`` and back, through kombu's serializers.

Used by the publishers of ``transport``, by ``message.delivery``, and by ``app.trace`` where a task
runs.  Serializers, content types and accept lists are kombu's, so whatever an application
registered there works here.  JSON, which nearly every message is, takes a shorter way to the same
bytes and the same values.  It may not send anything.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kombu.compression import compress, decompress
from kombu.exceptions import DecodeError, EncodeError
from kombu.serialization import dumps as kombu_dumps
from kombu.serialization import loads as kombu_loads
from kombu.serialization import prepare_accept_content, registry
from kombu.utils import json as kombu_json

from celery_clone.exceptions import InvalidTaskError

__all__ = ("Encoded", "accepted", "call_of", "dumps", "encode", "loads", "split_call", "uncompressed")

JSON_TYPE = "application/json"

# The way through kombu's functions builds a new encoder per message and calls a Python hook for each
# JSON object.  Both shortcuts below stand only while those functions are the ones registered.
encode_json = kombu_json.JSONEncoder().encode
decode_json = json.JSONDecoder().decode

TYPED_MARKS = ("__type__", "\\u005", "\\u006", "\\u007")
"""A JSON text without any of these holds no value of kombu's own types."""

DEEPEST = 40
"""How many containers deep the search for an unserializable value goes."""


class Encoded(NamedTuple):
    """A serialised body as kombu's producer would have prepared it."""

    body: Any
    content_type: str
    content_encoding: str


def accepted(content: Iterable[str] | None) -> frozenset[str] | None:
    """Names of serializers or content types as the set of content types that :func:`loads` wants.

    ``None`` leaves the choice to kombu's list of disabled content types.

    Raises:
        kombu.exceptions.SerializerNotInstalled: a name is not registered.
    """
    types = prepare_accept_content(content)
    return None if types is None else frozenset(types)


# -- to bytes ---------------------------------------------------------------------------------------------


def dumps(body: Any, serializer: str | None = "json") -> tuple[str, str, Any]:
    """``(content type, content encoding, data)`` of *body*, as :func:`kombu.serialization.dumps`.

    Raises:
        kombu.exceptions.EncodeError: naming the argument that cannot be serialised, and its type.
        kombu.exceptions.SerializerNotInstalled: there is no such serializer.
    """
    if serializer == "json" and json_is_kombus():
        try:
            return JSON_TYPE, "utf-8", encode_json(body)
        except Exception as exc:  # a user's __json__ may raise anything; kombu wraps it the same way
            raise unserializable(body, "json", exc) from exc
    try:
        content_type, content_encoding, data = kombu_dumps(body, serializer=serializer)
    except EncodeError as exc:
        raise unserializable(body, serializer or "the default serializer", exc.__cause__ or exc) from exc
    return content_type, content_encoding, data


def encode(
    body: Any,
    headers: dict[str, Any],
    serializer: str | None = "json",
    compression: str | None = None,
    content_type: str | None = None,
    content_encoding: str | None = None,
) -> Encoded:
    """A body ready to be sent; says in *headers* when it was compressed.

    With *content_type* the body is taken as serialised already.

    Raises:
        kombu.exceptions.EncodeError, kombu.exceptions.SerializerNotInstalled: as :func:`dumps`.
    """
    if content_type is None:
        content_type, content_encoding, data = dumps(body, serializer)
    else:
        data = body
        if isinstance(data, str):
            content_encoding = content_encoding or "utf-8"
            data = data.encode(content_encoding)
        content_encoding = content_encoding or "binary"
    if compression:
        data, headers["compression"] = compress(data, compression)
    return Encoded(data, content_type, content_encoding or "utf-8")


def json_is_kombus() -> bool:
    """Are the functions registered for JSON the ones that kombu ships?"""
    row = registry._encoders.get("json")
    return row is not None and row.encoder is kombu_json.dumps


def unserializable(body: Any, serializer: str, exc: BaseException) -> EncodeError:
    """The error for *body*, with the place of the value that is to blame when it can be found."""
    for place, value in values_of_call(body):
        if not serializes(value, serializer):
            place, value = deepest(place, value, serializer)
            return EncodeError(
                f"{place} (a value of type {type_name(value)}) cannot be serialised as {serializer}: {exc}  "
                "Pass plain data, such as an id to look the object up by, or choose a serializer that knows "
                "the type."
            )
    return EncodeError(f"The message cannot be serialised as {serializer}: {exc}")


def values_of_call(body: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a body with names that a caller knows."""
    args: Any = ()
    kwargs: Any = {}
    embed: Any = {}
    if isinstance(body, tuple | list) and len(body) == 3:
        args, kwargs, embed = body
    elif isinstance(body, Mapping):
        args, kwargs = body.get("args") or (), body.get("kwargs") or {}
        embed = {key: value for key, value in body.items() if key not in ("args", "kwargs")}
    for position, value in enumerate(args or ()):
        yield f"Positional argument {position}", value
    for name, value in (kwargs or {}).items():
        yield f"Keyword argument {name!r}", value
    for name, value in (embed or {}).items():
        yield f"Option {name!r} of the call", value


def deepest(place: str, value: Any, serializer: str) -> tuple[str, Any]:
    """Follow *value* down to the smallest part that cannot be serialised."""
    for _ in range(DEEPEST):
        if isinstance(value, Mapping):
            parts: Iterable[tuple[Any, Any]] = value.items()
        elif isinstance(value, list | tuple):
            parts = enumerate(value)
        else:
            break
        found = next(((key, part) for key, part in parts if not serializes(part, serializer)), None)
        if found is None:
            break
        place, value = f"{place}[{found[0]!r}]", found[1]
    return place, value


def serializes(value: Any, serializer: str) -> bool:
    """Can *value* alone be serialised?"""
    try:
        kombu_dumps(value, serializer=serializer if serializer in registry._encoders else None)
    except (EncodeError, RecursionError):
        return False
    return True


def type_name(value: Any) -> str:
    """``module.Name`` of the type of *value*, without the module for built-in types."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# -- from bytes -------------------------------------------------------------------------------------------


def loads(
    data: Any,
    content_type: str | None,
    content_encoding: str | None,
    accept: Collection[str] | None = None,
) -> Any:
    """The value of *data*, as :func:`kombu.serialization.loads`.

    *accept* is a set of content types, see :func:`accepted`.

    Raises:
        kombu.exceptions.ContentDisallowed: the content type is not accepted.
        kombu.exceptions.DecodeError: *data* is not what its content type says.
    """
    if content_type == JSON_TYPE and data and json_is_allowed(accept):
        text = as_plain_json(data)
        if text is not None:
            try:
                return decode_json(text)
            except (ValueError, RecursionError) as exc:
                raise DecodeError(exc) from exc
    return kombu_loads(data, content_type, content_encoding, accept=accept)


def json_is_allowed(accept: Collection[str] | None) -> bool:
    """May JSON be read here, and by kombu's own decoder?"""
    if registry._decoders.get(JSON_TYPE) is not kombu_json.loads:
        return False
    return JSON_TYPE in accept if accept is not None else JSON_TYPE not in registry._disabled_content_types


def as_plain_json(data: Any) -> str | None:
    """*data* as text if no object in it can be one of kombu's typed values, else ``None``.

    The mark of a typed value is the key ``__type__``, whose characters may be written as escapes.
    """
    if isinstance(data, memoryview | bytearray):
        data = bytes(data)
    if isinstance(data, bytes):
        try:
            data = data.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise DecodeError(exc) from exc
    if not isinstance(data, str) or any(mark in data for mark in TYPED_MARKS):
        return None
    return data


def uncompressed(data: Any, headers: Mapping[str, Any]) -> Any:
    """*data*, decompressed if the headers name a compression.

    Raises:
        kombu.exceptions.DecodeError: the compression is unknown, or *data* is damaged.
    """
    compression = headers.get("compression") if headers else None
    if not compression:
        return data
    try:
        return decompress(data, compression)
    except KeyError as exc:
        raise DecodeError(
            f"The body is compressed with {compression!r}, which is not installed here.  Install it, "
            "or send without it."
        ) from exc
    except Exception as exc:  # each compression library has errors of its own
        raise DecodeError(f"The body is not valid {compression!r} data: {exc}") from exc


def split_call(body: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """``(args, kwargs, embed)`` of a decoded protocol 2 body.

    Raises:
        InvalidTaskError: the body has another shape; the text names the part that is wrong.
    """
    if not isinstance(body, list | tuple) or len(body) != 3:
        raise InvalidTaskError(
            f"The body of the message is {describe(body)}; it must be a list of three: positional arguments, "
            "keyword arguments and a mapping with callbacks, errbacks, chain and chord."
        )
    args, kwargs, embed = body
    if not isinstance(args, list | tuple):
        raise InvalidTaskError(f"The positional arguments are {describe(args)}; they must be a list.")
    if not isinstance(kwargs, dict):
        raise InvalidTaskError(f"The keyword arguments are {describe(kwargs)}; they must be a mapping.")
    if embed is not None and not isinstance(embed, dict):
        raise InvalidTaskError(f"The last part of the body is {describe(embed)}; it must be a mapping or null.")
    return args, kwargs, embed or {}


def call_of(
    data: Any,
    content_type: str | None,
    content_encoding: str | None,
    accept: Collection[str] | None = None,
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """:func:`loads` and :func:`split_call` in one."""
    return split_call(loads(data, content_type, content_encoding, accept))


def describe(value: Any) -> str:
    """A few words on a value of the wrong shape."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"of type {type_name(value)}"
