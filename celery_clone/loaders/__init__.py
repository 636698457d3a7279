"""Loaders by name.

Called by ``app.base`` to find the class that reads settings and imports task
modules for an app.
"""

from __future__ import annotations

from typing import Any

from celery_clone.utils.imports import import_from_cwd, symbol_by_name

__all__ = ("get_loader_cls",)

ROOT = __name__.partition(".")[0]

#: Short names of the loaders of the house.
LOADER_ALIASES = {
    "app": f"{ROOT}.loaders.app:AppLoader",
    "default": f"{ROOT}.loaders.default:Loader",
}


def get_loader_cls(loader: Any) -> Any:
    """Return a loader class given by itself, by alias or as ``"module:name"``."""
    return symbol_by_name(loader, LOADER_ALIASES, imp=import_from_cwd)
