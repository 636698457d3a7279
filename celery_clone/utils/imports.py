"""Finding modules and symbols by name, and naming tasks after where they are defined.

Used by loaders, by ``app`` and by everything that takes a class "by path".  Imports what it is
asked for and nothing of the package.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module, reload
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_clone.app.base import Celery

__all__ = (
    "NotAPackage",
    "cwd_in_path",
    "find_module",
    "gen_task_name",
    "import_from_cwd",
    "instantiate",
    "load_extension_class_names",
    "load_extension_classes",
    "module_file",
    "qualname",
    "reload_from_cwd",
    "symbol_by_name",
)

#: The file of the program's ``__main__`` module when billiard started this process afresh (spawn):
#: tasks defined there must keep the name they have in the parent.
MP_MAIN_FILE = os.environ.get("MP_MAIN_FILE")


class NotAPackage(Exception):
    """A dotted module name goes through a module that is not a package."""


def qualname(obj: Any) -> str:
    """Return ``module.Class`` of a class, a function, or of the class of any other object."""
    if not hasattr(obj, "__name__") and hasattr(obj, "__class__"):
        obj = obj.__class__
    name: str = getattr(obj, "__qualname__", None) or obj.__name__
    return name if "." in name else f"{obj.__module__}.{name}"


def symbol_by_name(
    name: Any,
    aliases: Mapping[str, Any] | None = None,
    imp: Callable[..., Any] | None = None,
    package: str | None = None,
    sep: str = ".",
    default: Any = None,
    **kwargs: Any,
) -> Any:
    """Return the object called *name*: ``"module.Class"`` or ``"module:Class"``.

    What is not a text is returned as it is.  *aliases* gives short names a full one.  A name
    without separator is a module; if *package* is given it means that package itself.  *imp*
    replaces ``import_module`` and is passed *kwargs*.

    Raises ``ImportError`` or ``AttributeError`` if there is no such object and no *default*, and
    ``ValueError`` if the name cannot be one of a module.
    """
    if not isinstance(name, str):
        return name
    name = (aliases or {}).get(name) or name
    if not isinstance(name, str):
        return name
    module_name, _, symbol = name.rpartition(":" if ":" in name else sep)
    if not module_name:
        module_name, symbol = package or symbol, ""
    try:
        try:
            module = (imp or import_module)(module_name, package=package, **kwargs)
        except ValueError as error:
            raise ValueError(f"Couldn't import {name!r}: {error}") from error
        return getattr(module, symbol) if symbol else module
    except (ImportError, AttributeError):
        if default is None:
            raise
    return default


def instantiate(name: Any, *args: Any, **kwargs: Any) -> Any:
    """Make an object of the class called *name* (see :func:`symbol_by_name`)."""
    return symbol_by_name(name)(*args, **kwargs)


@contextmanager
def cwd_in_path() -> Iterator[str | None]:
    """Let modules of the current directory be imported, before all others, inside this context."""
    try:
        directory = os.getcwd()
    except FileNotFoundError:
        directory = ""  # it was removed under us
    if not directory or directory in sys.path:
        yield None
        return
    sys.path.insert(0, directory)
    try:
        yield directory
    finally:
        # Whoever ran meanwhile may have taken it out already.
        if directory in sys.path:
            sys.path.remove(directory)


def find_module(
    module: str,
    path: Any = None,
    imp: Callable[[str], Any] | None = None,
) -> Any:
    """Import *module*, the current directory included.  *path* is there for callers of ``imp``.

    Raises :exc:`NotAPackage` if a dotted name goes through a module that has no submodules, which
    says more than the ``ImportError`` raised otherwise.
    """
    load = imp or import_module
    with cwd_in_path():
        try:
            return load(module)
        except ImportError:
            parts = module.split(".")
            for depth in range(1, len(parts)):
                package = ".".join(parts[:depth])
                try:
                    found = load(package)
                except ImportError:
                    break  # that one is missing, as the first error says
                if not hasattr(found, "__path__"):
                    raise NotAPackage(package) from None
            raise


def import_from_cwd(module: str, imp: Callable[..., Any] | None = None, package: str | None = None) -> Any:
    """Import *module*; those of the current directory win over those of ``sys.path``."""
    with cwd_in_path():
        return (imp or import_module)(module, package=package)


def reload_from_cwd(module: ModuleType, reloader: Callable[[ModuleType], Any] | None = None) -> Any:
    """Load *module* anew, the current directory included."""
    with cwd_in_path():
        return (reloader or reload)(module)


def module_file(module: ModuleType) -> str:
    """Return the source file of *module*, also where it was loaded from its compiled form."""
    name = module.__file__ or ""
    return name[:-1] if name.endswith(".pyc") else name


def gen_task_name(app: Celery, name: str, module_name: str | None) -> str:
    """Return the name of the task defined as *name* in *module_name*.

    In the program's own file, which Python calls ``__main__``, the app's ``main`` takes the place
    of the module, so that workers know the task under the same name.
    """
    module_name = module_name or "__main__"
    module = sys.modules.get(module_name)
    if module is not None:
        module_name = module.__name__
        if MP_MAIN_FILE and getattr(module, "__file__", None) == MP_MAIN_FILE:
            module_name = "__main__"
    if module_name == "__main__" and app.main:
        return f"{app.main}.{name}"
    return ".".join(part for part in (module_name, name) if part)


@cache
def load_extension_class_names(namespace: str) -> tuple[tuple[str, str], ...]:
    """Return ``(name, "module:Class")`` of every entry point of the group *namespace*.

    Read from the installed packages once per process: it takes a scan of the disk.
    """
    # Loaded with the first scan: it brings the e-mail parser along, and most programs never scan.
    entry_points = import_module("importlib.metadata").entry_points
    return tuple((entry.name, entry.value) for entry in entry_points(group=namespace))


def load_extension_classes(namespace: str) -> Iterator[tuple[str, Any]]:
    """Give ``(name, class)`` of every entry point of the group *namespace* that can be imported.

    Of the others a warning tells: a broken plugin may not keep the program from starting.
    """
    for name, class_name in load_extension_class_names(namespace):
        try:
            cls = symbol_by_name(class_name)
        except (ImportError, SyntaxError) as error:
            warnings.warn(f"Cannot load {namespace} extension {class_name!r}: {error!r}", stacklevel=2)
        else:
            yield name, cls
