"""The tasks an app knows, by name.

Owned by ``app.base``; looked at by workers for every message.  It only keeps: binding
tasks to an app and wrapping them is done before they come here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from celery_clone._state import get_current_app
from celery_clone.exceptions import InvalidTaskError, NotRegistered

__all__ = ("TaskRegistry",)


class TaskRegistry(dict[str, Any]):
    """Name to task.  Asking for an unknown name raises :exc:`NotRegistered`."""

    NotRegistered = NotRegistered

    def __missing__(self, key: str) -> Any:
        raise self.NotRegistered(key)

    def register(self, task: Any) -> None:
        """Add a task, or an instance of a task class, under its name.

        Raises:
            InvalidTaskError: if it has no name.
        """
        if task.name is None:
            owner = task if isinstance(task, type) else type(task)
            raise InvalidTaskError(
                f"Task class {owner.__name__!r} must specify .name attribute; "
                "app.register_task() makes one up from where the class is defined."
            )
        self[task.name] = task() if isinstance(task, type) else task

    def unregister(self, name: Any) -> None:
        """Remove a task, given itself or by name.

        Raises:
            NotRegistered: if it is not here.
        """
        name = getattr(name, "name", name)
        try:
            self.pop(name)
        except KeyError:
            raise self.NotRegistered(name) from None

    def regular(self) -> dict[str, Any]:
        """The tasks that are not periodic by class."""
        return self.filter_types("regular")

    def periodic(self) -> dict[str, Any]:
        """The tasks that are periodic by class, as in Celery 3."""
        return self.filter_types("periodic")

    def filter_types(self, type: str) -> dict[str, Any]:
        """The tasks whose attribute ``type`` is *type*; without it a task is ``"regular"``."""
        return {name: task for name, task in self.items() if getattr(task, "type", "regular") == type}


def _unpickle_task(name: str) -> Any:
    """The task of the current app that a pickle names."""
    return get_current_app().tasks[name]


def _unpickle_task_v2(name: str, module: str | None = None) -> Any:
    """The same, with the module to import first, which registers it."""
    if module:
        import_module(module)
    return get_current_app().tasks[name]
