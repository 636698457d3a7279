"""The worker: takes tasks from the broker and has them run.

Used by ``apps.worker`` and by embedders.  The name is loaded when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .worker import WorkController as WorkController

__all__ = ("WorkController",)


def __getattr__(name: str) -> Any:
    if name != "WorkController":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("celery_clone.worker.worker").WorkController
