"""What a type annotation means to tasks that convert their arguments (``pydantic=True``).

Used by ``app.base``.  Pure; knows nothing of pydantic.
"""

from __future__ import annotations

import types
import typing
from typing import Any

__all__ = ("annotation_is_class", "annotation_issubclass", "get_optional_arg", "is_none_type")


def is_none_type(value: Any) -> bool:
    """Is it the type of ``None``?"""
    return value is types.NoneType


def get_optional_arg(annotation: Any) -> Any:
    """Return ``X`` of ``Optional[X]`` (or ``X | None``); ``None`` for any other annotation."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return None
    members = typing.get_args(annotation)
    others = [member for member in members if not is_none_type(member)]
    return others[0] if len(members) == 2 and len(others) == 1 else None


def annotation_is_class(annotation: Any) -> bool:
    """Can it be the second argument of ``issubclass``?"""
    # Python 3.10 takes list[str] for a class.
    return isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)


def annotation_issubclass(annotation: Any, cls: type) -> bool:
    """Is it a class, and *cls* or a subclass of it?"""
    return annotation_is_class(annotation) and issubclass(annotation, cls)
