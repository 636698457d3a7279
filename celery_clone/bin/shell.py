"""``celery shell``: a Python prompt with the app and its tasks at hand.

Called by ``bin.celery``.
"""

from __future__ import annotations

import code
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

import click

from celery_clone import canvas
from celery_clone.app.task import Task
from celery_clone.local import try_import

from .base import CeleryCommand, CeleryOption, handle_preload_options

__all__ = ("shell",)

Symbols = dict[str, Any]


def _python(symbols: Symbols) -> None:
    readline = try_import("readline")
    if readline is not None:
        readline.set_completer(import_module("rlcompleter").Completer(symbols).complete)
        readline.parse_and_bind("tab:complete")
    code.interact(local=symbols)


def _bpython(symbols: Symbols) -> None:
    import_module("bpython").embed(symbols)


def _ipython(symbols: Symbols) -> None:
    import_module("IPython").start_ipython(argv=[], user_ns=symbols)


class Shell(NamedTuple):
    """A kind of prompt: how it is started, and the module it needs, if any."""

    start: Callable[[Symbols], None]
    module: str | None = None


#: Shells by the option that asks for them, the best first.
SHELLS: Mapping[str, Shell] = MappingProxyType(
    {"ipython": Shell(_ipython, "IPython"), "bpython": Shell(_bpython, "bpython"), "python": Shell(_python)}
)

#: What replaces the blocking parts of the standard library, by option.
PATCHES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"eventlet": ("eventlet", "monkey_patch"), "gevent": ("gevent.monkey", "patch_all")}
)

CANVAS = ("chord", "group", "chain", "chunks", "xmap", "xstarmap", "subtask", "signature")


def shell_option(*names: str, help: str) -> Callable[[Any], Any]:
    """An option of this command."""
    return click.option(*names, is_flag=True, cls=CeleryOption, help_group="Shell Options", help=help)


@click.command(cls=CeleryCommand, context_settings={"allow_extra_args": True})
@shell_option("-I", "--ipython", help="Use IPython.")
@shell_option("-B", "--bpython", help="Use bpython.")
@shell_option("--python", help="Use Python's own prompt.")
@shell_option("-T", "--without-tasks", help="Do not offer the tasks by their names.")
@shell_option("--eventlet", help="Patch the standard library for eventlet first.")
@shell_option("--gevent", help="Patch the standard library for gevent first.")
@click.pass_context
@handle_preload_options
def shell(
    ctx: click.Context,
    ipython: bool = False,
    bpython: bool = False,
    python: bool = False,
    without_tasks: bool = False,
    eventlet: bool = False,
    gevent: bool = False,
    **kwargs: Any,
) -> None:
    """Start shell session with convenient access to celery symbols.

    \b
    The following symbols are there:
    - app, celery: the current application
    - Task, chord, group, chain, chunks, xmap, xstarmap, subtask, signature
    - all tasks of the application, by the names of their functions
    """
    for library, wanted in (("eventlet", eventlet), ("gevent", gevent)):
        if wanted:
            module, function = PATCHES[library]
            _require(ctx, module, library)
            getattr(import_module(module), function)()
    sys.path.insert(0, os.getcwd())
    app = ctx.obj.app
    app.loader.import_default_modules()
    asked = {"ipython": ipython, "bpython": bpython, "python": python}
    _choose(ctx, [name for name, wanted in asked.items() if wanted])(_symbols(app, with_tasks=not without_tasks))


def _choose(ctx: click.Context, asked: Sequence[str]) -> Callable[[Symbols], None]:
    """The first shell that was asked for; else the best that is installed."""
    for name in asked:
        chosen = SHELLS[name]
        if chosen.module is not None:
            _require(ctx, chosen.module, name)
        return chosen.start
    installed = (each for each in SHELLS.values() if each.module is None or try_import(each.module) is not None)
    return next(installed).start


def _require(ctx: click.Context, module: str, name: str) -> None:
    if try_import(module) is None:
        raise click.UsageError(f"--{name} needs the package {name}, which is not installed.", ctx)


def _symbols(app: Any, *, with_tasks: bool) -> Symbols:
    symbols: Symbols = {"app": app, "celery": app, "Task": Task}
    symbols.update({name: getattr(canvas, name) for name in CANVAS})
    if with_tasks:
        own = (task for task in app.tasks.values() if not task.name.startswith("celery."))
        symbols.update({task.__name__: task for task in own})
    return symbols
