"""Warnings about what is deprecated: until which version it stays, and what to use instead.

Used by ``app``, ``app.settings`` and the old names.  Warns only; what is deprecated still works.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable as _Callable
from functools import wraps
from typing import Any

from celery_clone.exceptions import CDeprecationWarning, CPendingDeprecationWarning
from celery_clone.utils.imports import qualname

__all__ = ("Callable", "Property", "warn")


def warn(
    description: str | None = None,
    deprecation: str | None = None,
    removal: str | None = None,
    alternative: str | None = None,
    stacklevel: int = 2,
) -> None:
    """Warn that *description* goes away in version *removal*; *alternative* says what to do.

    With *deprecation*, the version from which it is deprecated, the warning is a pending one.
    """
    warning: Warning
    if deprecation is not None:
        warning = CPendingDeprecationWarning(
            f"{description} is scheduled for deprecation in version {deprecation} "
            f"and removal in version v{removal}. {alternative or ''}".rstrip()
        )
    else:
        warning = CDeprecationWarning(
            f"{description} is deprecated and scheduled for removal in version {removal}. "
            f"{alternative or ''}".rstrip()
        )
    warnings.warn(warning, stacklevel=stacklevel)


def Callable(  # noqa: N802 (Celery's public name)
    deprecation: str | None = None,
    removal: str | None = None,
    alternative: str | None = None,
    description: str | None = None,
) -> _Callable[[_Callable[..., Any]], _Callable[..., Any]]:
    """Decorate a function so that calling it warns (see :func:`warn`)."""

    def decorate(fun: _Callable[..., Any]) -> _Callable[..., Any]:
        @wraps(fun)
        def warning_first(*args: Any, **kwargs: Any) -> Any:
            warn(description or qualname(fun), deprecation, removal, alternative, stacklevel=3)
            return fun(*args, **kwargs)

        return warning_first

    return decorate


def Property(  # noqa: N802 (Celery's public name)
    deprecation: str | None = None,
    removal: str | None = None,
    alternative: str | None = None,
    description: str | None = None,
) -> _Callable[[_Callable[[Any], Any]], _WarningProperty]:
    """Decorate the getter of a property so that using the property warns (see :func:`warn`)."""

    def decorate(fun: _Callable[[Any], Any]) -> _WarningProperty:
        facts = {
            "description": description or fun.__name__,
            "deprecation": deprecation,
            "removal": removal,
            "alternative": alternative,
        }
        return _WarningProperty(fun, facts=facts)

    return decorate


class _WarningProperty:
    """A property that warns each time it is read, set or deleted."""

    def __init__(
        self,
        getter: _Callable[[Any], Any],
        setter: _Callable[[Any, Any], None] | None = None,
        deleter: _Callable[[Any], None] | None = None,
        *,
        facts: dict[str, str | None],
    ) -> None:
        self._getter = getter
        self._setter = setter
        self._deleter = deleter
        self._facts = facts
        self.__name__ = getter.__name__
        self.__module__ = getter.__module__
        self.__doc__ = getter.__doc__

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        if obj is None:
            return self
        warn(**self._facts, stacklevel=3)
        return self._getter(obj)

    def __set__(self, obj: Any, value: Any) -> None:
        if self._setter is None:
            raise AttributeError("cannot set attribute")
        warn(**self._facts, stacklevel=3)
        self._setter(obj, value)

    def __delete__(self, obj: Any) -> None:
        if self._deleter is None:
            raise AttributeError("cannot delete attribute")
        warn(**self._facts, stacklevel=3)
        self._deleter(obj)

    def setter(self, setter: _Callable[[Any, Any], None]) -> _WarningProperty:
        """Return this property with *setter*."""
        return type(self)(self._getter, setter, self._deleter, facts=self._facts)

    def deleter(self, deleter: _Callable[[Any], None]) -> _WarningProperty:
        """Return this property with *deleter*."""
        return type(self)(self._getter, self._setter, deleter, facts=self._facts)
