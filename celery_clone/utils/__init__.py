"""The utility names that Celery's users import from ``celery.utils``.

For users only: inside, the module that defines a name is imported.  Loads that module when a name
is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_clone.utils.functional import chunks, memoize, noop
    from celery_clone.utils.ids import gen_unique_id, uuid
    from celery_clone.utils.imports import gen_task_name, import_from_cwd, instantiate
    from celery_clone.utils.imports import qualname as get_full_cls_name
    from celery_clone.utils.imports import symbol_by_name as get_cls_by_name
    from celery_clone.utils.log import LOG_LEVELS
    from celery_clone.utils.nodenames import nodename, nodesplit, worker_direct
    from celery_clone.utils.objects import cached_property

__all__ = (
    "LOG_LEVELS",
    "cached_property",
    "chunks",
    "gen_task_name",
    "gen_unique_id",
    "get_cls_by_name",
    "get_full_cls_name",
    "import_from_cwd",
    "instantiate",
    "memoize",
    "nodename",
    "nodesplit",
    "noop",
    "uuid",
    "worker_direct",
)

#: Public name to ``module:name``.
_HOME = {
    "LOG_LEVELS": "log:LOG_LEVELS",
    "cached_property": "objects:cached_property",
    "chunks": "functional:chunks",
    "gen_task_name": "imports:gen_task_name",
    "gen_unique_id": "ids:gen_unique_id",
    "get_cls_by_name": "imports:symbol_by_name",
    "get_full_cls_name": "imports:qualname",
    "import_from_cwd": "imports:import_from_cwd",
    "instantiate": "imports:instantiate",
    "memoize": "functional:memoize",
    "nodename": "nodenames:nodename",
    "nodesplit": "nodenames:nodesplit",
    "noop": "functional:noop",
    "uuid": "ids:uuid",
    "worker_direct": "nodenames:worker_direct",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, symbol = _HOME[name].partition(":")
    found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), symbol)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
