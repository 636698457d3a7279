"""The pools by name.

Asked by the worker and by the command line.  A pool's module is imported when it is chosen, and only then.
"""

from __future__ import annotations

import os
from typing import Any

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.imports import symbol_by_name
from celery_clone.utils.suggest import closest

__all__ = ("get_available_pool_names", "get_implementation")

ALIASES: dict[str, str | None] = {
    "prefork": f"{__name__}.prefork:TaskPool",
    "eventlet": f"{__name__}.eventlet:TaskPool",
    "gevent": f"{__name__}.gevent:TaskPool",
    "solo": f"{__name__}.solo:TaskPool",
    "asyncio": f"{__name__}.asyncio:TaskPool",
    "processes": f"{__name__}.prefork:TaskPool",
    "threads": f"{__name__}.thread:TaskPool",
    "custom": os.environ.get("CELERY_CUSTOM_WORKER_POOL"),
}
"""Short names.  ``custom`` is the class that the environment names, as ``package.module:Class``."""


def get_implementation(cls: Any) -> Any:
    """Return the pool class called *cls*: a short name, a path, or the class itself.

    Raises ``ImproperlyConfigured`` if there is none, with what to do.
    """
    if not isinstance(cls, str):
        return cls
    path = ALIASES.get(cls, cls)
    if path is None:
        raise ImproperlyConfigured(
            "The pool 'custom' was chosen, but CELERY_CUSTOM_WORKER_POOL is not set. "
            "Set it to your class, as in package.module:Class."
        )
    if cls not in ALIASES and "." not in cls and ":" not in cls:
        near = closest(cls, [*ALIASES])
        hint = f" Did you mean {near!r}?" if near else f" Choose one of {', '.join(ALIASES)}."
        raise ImproperlyConfigured(f"There is no pool called {cls!r}.{hint}")
    try:
        return symbol_by_name(path)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if missing == path.partition(":")[0] and cls in ALIASES and cls != "custom":
            remedy = "It is not part of this version: choose prefork, threads or solo."
        else:
            remedy = f"It needs the module {missing!r}: install it (for gevent: celery_clone[gevent])."
        raise ImproperlyConfigured(f"The pool {cls!r} cannot be loaded. {remedy}") from exc
    except AttributeError as exc:
        raise ImproperlyConfigured(f"The pool {cls!r} cannot be loaded: {exc}. Name a class that is there.") from exc


def get_available_pool_names() -> tuple[str, ...]:
    """Return the short names of all pools."""
    return tuple(ALIASES)
