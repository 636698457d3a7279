"""A distributed task queue that is Celery to its users: the front door.

Imported by the users' code as ``celery_clone`` (or as ``celery``, through ``celery_clone.alias``).
It names what is public and loads the module behind a name when the name is first used, so that
``import celery_clone`` costs next to nothing.  No module of the package may import it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from celery_clone._version import SERIES, VERSION, VERSION_BANNER, __version__, version_info, version_info_t

if TYPE_CHECKING:
    from celery_clone._state import current_app as current_app
    from celery_clone._state import current_task as current_task
    from celery_clone.app import bugreport as bugreport
    from celery_clone.app import shared_task as shared_task
    from celery_clone.app.base import Celery as Celery
    from celery_clone.app.task import Task as Task
    from celery_clone.canvas.chain import chain as chain
    from celery_clone.canvas.chord import chord as chord
    from celery_clone.canvas.group import group as group
    from celery_clone.canvas.maps import chunks as chunks
    from celery_clone.canvas.maps import xmap as xmap
    from celery_clone.canvas.maps import xstarmap as xstarmap
    from celery_clone.canvas.signature import Signature as Signature
    from celery_clone.canvas.signature import maybe_signature as maybe_signature
    from celery_clone.canvas.signature import signature as signature
    from celery_clone.canvas.signature import subtask as subtask
    from celery_clone.utils.ids import uuid as uuid

__all__ = (
    "SERIES",
    "VERSION",
    "VERSION_BANNER",
    "Celery",
    "Signature",
    "Task",
    "__version__",
    "bugreport",
    "chain",
    "chord",
    "chunks",
    "current_app",
    "current_task",
    "group",
    "maybe_patch_concurrency",
    "maybe_signature",
    "shared_task",
    "signature",
    "subtask",
    "uuid",
    "version_info",
    "version_info_t",
    "xmap",
    "xstarmap",
)

#: Public name to the module that defines it.
_HOME = {
    "Celery": "celery_clone.app.base",
    "Signature": "celery_clone.canvas",
    "Task": "celery_clone.app.task",
    "bugreport": "celery_clone.app",
    "chain": "celery_clone.canvas",
    "chord": "celery_clone.canvas",
    "chunks": "celery_clone.canvas",
    "current_app": "celery_clone._state",
    "current_task": "celery_clone._state",
    "group": "celery_clone.canvas",
    "maybe_signature": "celery_clone.canvas",
    "shared_task": "celery_clone.app",
    "signature": "celery_clone.canvas",
    "subtask": "celery_clone.canvas",
    "uuid": "celery_clone.utils.ids",
    "xmap": "celery_clone.canvas",
    "xstarmap": "celery_clone.canvas",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def maybe_patch_concurrency(
    argv: Sequence[str] | None = None,
    short_opts: Sequence[str] | None = None,
    long_opts: Sequence[str] | None = None,
    patches: Mapping[str, Callable[[], None]] | None = None,
) -> None:
    """Patch the standard library for the green pool that the command line asks for, if any.

    *argv* defaults to ``sys.argv``; *short_opts* and *long_opts* are the spellings of the pool
    option (``-P`` and ``--pool``); *patches* gives the function that patches for each pool name.

    Call it before anything else is imported: what already holds a socket, a lock or a thread of
    the standard library keeps the unpatched one.
    """
    pool = _option_value(argv or sys.argv, short_opts or ("-P",), long_opts or ("--pool",))
    if pool is None:
        return
    patch = (patches or {"eventlet": _patch_eventlet, "gevent": _patch_gevent}).get(pool)
    if patch is not None:
        patch()
    # The pool's module is loaded at once, so that it meets the patched library and nothing else.
    concurrency = import_module("celery_clone.concurrency")
    if pool in concurrency.get_available_pool_names():
        try:
            concurrency.get_implementation(pool)
        except import_module("celery_clone.exceptions").ImproperlyConfigured:
            pass  # the command says it, as it says what else is wrong with its options


def _option_value(argv: Sequence[str], short_opts: Sequence[str], long_opts: Sequence[str]) -> str | None:
    """Return the value of an option, in any of the spellings click accepts; ``None`` without it."""
    following = [*argv[1:], None]
    for word, after in zip(argv, following, strict=True):
        name, has_value, value = word.partition("=")
        if word.startswith("--"):
            if name in long_opts:
                return value if has_value else after
        elif word in short_opts:
            return after
        elif word.startswith("-") and word[:2] in short_opts:
            return word[2:].removeprefix("=")
    return None


def _patch_eventlet() -> None:
    import_module("eventlet").monkey_patch()
    # Seconds the loop may be blocked before eventlet raises; 0 or unset: no detection.
    longest_block_s = float(os.environ.get("EVENTLET_NOBLOCK", 0))
    if longest_block_s:
        import_module("eventlet.debug").hub_blocking_detection(longest_block_s, longest_block_s)


def _patch_gevent() -> None:
    import_module("gevent.monkey").patch_all()
    import_module("gevent.signal")
