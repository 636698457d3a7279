"""Lets ``import celery`` mean this package: after ``import celery_clone.alias`` both names are the same modules.

Imported by projects and by the distribution that is called ``celery``, before anything that imports
Celery.  Classes and functions then name ``celery.*`` as their module, so that what is pickled here can be
loaded where real Celery runs, and the other way round.
Nothing inside the package may import it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ("AliasFinder", "install")

REAL = "celery_clone"
ALIAS = "celery"

ALREADY_IMPORTED = (
    "Cannot make {alias!r} mean {real!r}: real Celery ({file}) was imported before. "
    "Put `import {real}.alias` before every import of {alias!r}, at the very top of the program."
)


def _renamed(name: str, old: str, new: str) -> str | None:
    """*name* with its first part *old* replaced by *new*; ``None`` if it begins with another."""
    first, dot, rest = name.partition(".")
    return f"{new}{dot}{rest}" if first == old else None


class AliasLoader(Loader):
    """Loads a module by taking the one with the real name."""

    def __init__(self, real_name: str) -> None:
        self.real_name = real_name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self.real_name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # It was executed under its real name; the import system has just replaced its spec by ours.
        module.__spec__ = self._spec

    def get_code(self, fullname: str) -> CodeType | None:
        """The code of the module, which ``python -m celery`` asks for."""
        spec = importlib.util.find_spec(self.real_name)
        loader: Any = spec and spec.loader
        code: CodeType | None = loader.get_code(self.real_name)
        return code


class AliasFinder(MetaPathFinder):
    """Answers for ``celery.*`` with our modules, and sees to it that ours appear there when they are loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of either name; ``None`` for others."""
        if _renamed(fullname, REAL, ALIAS) is not None:
            return self._watched(PathFinder.find_spec(fullname, path, target))
        real_name = _renamed(fullname, ALIAS, REAL)
        if real_name is None:
            return None
        real = importlib.util.find_spec(real_name)
        if real is None:
            return None
        return ModuleSpec(
            fullname,
            AliasLoader(real_name),
            origin=real.origin,
            is_package=real.submodule_search_locations is not None,
        )

    @staticmethod
    def _watched(spec: ModuleSpec | None) -> ModuleSpec | None:
        """*spec*, with a loader that gives the module its second name."""
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            # On the instance: the loader stays what it is to inspect, pkgutil and importlib.resources.
            loader.exec_module = _adopting(loader.exec_module)
        return spec


def _adopting(execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def exec_module(module: ModuleType) -> None:
        # Not before it is complete: who waits for an import in another thread waits for one name only.
        try:
            execute(module)
        except BaseException:
            sys.modules.pop(_renamed(module.__name__, REAL, ALIAS) or "", None)
            raise
        adopt(module)

    return exec_module


def adopt(module: ModuleType) -> None:
    """Make a loaded module known by its second name, and have what it defines say that it is from there."""
    alias = _renamed(module.__name__, REAL, ALIAS)
    if alias is None:
        return
    sys.modules[alias] = module
    for value in [*vars(module).values()]:
        # By its true type: a proxy would be asked for what it stands for, and make the default app here and now.
        if issubclass(type(value), (type, FunctionType)) and value.__module__ == module.__name__:
            first_line = vars(value).get("__firstlineno__")
            value.__module__ = alias
            if first_line is not None:
                # From Python 3.13 a class forgets where its source begins when its module is changed.
                value.__firstlineno__ = first_line


def install() -> None:
    """Make ``celery`` mean this package.  Legal twice.

    Raises:
        ImportError: real Celery was imported already.
    """
    if any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        return
    stranger = sys.modules.get(ALIAS)
    if stranger is not None and stranger is not sys.modules.get(REAL):
        file = getattr(stranger, "__file__", None) or "a namespace package"
        raise ImportError(ALREADY_IMPORTED.format(alias=ALIAS, real=REAL, file=file), name=ALIAS)
    sys.meta_path.insert(0, AliasFinder())
    for module in [*sys.modules.values()]:
        if isinstance(module, ModuleType):
            adopt(module)


install()
