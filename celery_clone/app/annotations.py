"""The setting ``task_annotations``: attributes of tasks, changed from outside.

``app.base`` prepares the setting once; ``app.task`` asks :func:`resolve_all` when a
task is bound.  Changes nothing by itself: the task applies what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery_clone.utils.functional import firstmethod, mlazy
from celery_clone.utils.imports import instantiate

__all__ = ("MapAnnotation", "prepare", "resolve_all")

_first_for_task = firstmethod("annotate")
_first_for_any = firstmethod("annotate_any")


class MapAnnotation(dict[str, Any]):
    """Annotations as a mapping of task name to attributes; ``"*"`` stands for every task."""

    def annotate_any(self) -> dict[str, Any] | None:
        """The attributes for every task."""
        found = self.get("*")
        return None if found is None else dict(found)

    def annotate(self, task: Any) -> dict[str, Any] | None:
        """The attributes for *task* alone."""
        found = self.get(task.name)
        return None if found is None else dict(found)


def prepare(annotations: Any) -> Any:
    """Turn the setting into a sequence of objects with ``annotate`` and ``annotate_any``.

    Paths of classes among them are imported when the first task is bound.
    """
    if annotations is None:
        return ()
    if not isinstance(annotations, (list, tuple)):
        annotations = (annotations,)
    return [_prepared(annotation) for annotation in annotations]


def _prepared(annotation: Any) -> Any:
    if isinstance(annotation, Mapping):
        return MapAnnotation(annotation)
    if isinstance(annotation, str):
        return mlazy(instantiate, annotation)
    return annotation


def resolve_all(anno: Iterable[Any], task: Any) -> Iterator[dict[str, Any]]:
    """What applies to *task*: the first annotation for it by name, then the first for all."""
    return (found for found in (_first_for_task(anno, task), _first_for_any(anno)) if found)
