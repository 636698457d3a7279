"""Reads settings and imports task modules, and says when a worker passes a stage.

Called by ``app.base`` (settings, task discovery) and by the worker and its pool
processes (``init_worker`` and the hooks).  Projects subclass :class:`BaseLoader`.
It may not know which settings exist: how to convert one is asked of the app.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from functools import cached_property
from types import ModuleType
from typing import Any

from celery_clone import signals
from celery_clone.utils.collections import DictAttribute, force_mapping
from celery_clone.utils.functional import maybe_list
from celery_clone.utils.imports import NotAPackage, find_module, import_from_cwd, symbol_by_name
from celery_clone.utils.serialization import strtobool

__all__ = ("BaseLoader", "autodiscover_tasks", "find_related_module")

CONFIG_INVALID_NAME = """\
Error: Module '{module}' doesn't exist, or it's not a valid \
Python module name.
"""

CONFIG_WITH_SUFFIX = (
    CONFIG_INVALID_NAME
    + """\
Did you mean '{suggest}'?
"""
)

#: Stands for settings that were not read yet.
unconfigured = object()

#: Types that ``key=(type)value`` on a command line may name.
COMMAND_LINE_TYPES: dict[str, Callable[[str], Any]] = {
    "string": str,
    "int": int,
    "float": float,
    "any": lambda value: value,
    "bool": strtobool,
    "dict": json.loads,
    "tuple": json.loads,
    "json": json.loads,
}

#: Types that are written as JSON there.
WRITTEN_AS_JSON = {"tuple": "json", "list": "json", "dict": "json"}


class BaseLoader:
    """Settings, task modules and worker hooks of one app.

    The methods whose names begin with ``on_`` do nothing here; override them to
    be called at that stage.
    """

    #: Modules imported for every app with this loader.
    builtin_modules: frozenset[str] = frozenset()

    #: Whether settings were found.
    configured = False

    #: Result stores to use instead of those of the same name.
    override_backends: dict[str, str] = {}

    #: Whether :meth:`init_worker` has run.
    worker_initialized = False

    _conf: Any = unconfigured

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self.app = app
        self.task_modules: set[str] = set()

    def now(self, utc: bool = True) -> datetime:
        """Return the current time, in UTC or as a wall time of this system."""
        return datetime.now(timezone.utc) if utc else datetime.now()

    # .. hooks

    def on_task_init(self, task_id: str, task: Any) -> None:
        """Called before a task runs."""

    def on_process_cleanup(self) -> None:
        """Called after a task ran."""

    def on_worker_init(self) -> None:
        """Called when the worker starts."""

    def on_worker_shutdown(self) -> None:
        """Called when the worker ends."""

    def on_worker_process_init(self) -> None:
        """Called when a pool process starts."""

    # .. stages of a worker

    def init_worker(self) -> None:
        """Import the task modules; done once."""
        if not self.worker_initialized:
            self.worker_initialized = True
            self.import_default_modules()
            self.on_worker_init()

    def shutdown_worker(self) -> None:
        """Say that the worker ends."""
        self.on_worker_shutdown()

    def init_worker_process(self) -> None:
        """Say that a pool process starts."""
        self.on_worker_process_init()

    # .. modules

    def import_module(self, module: str, package: str | None = None) -> ModuleType:
        """Import a module."""
        return importlib.import_module(module, package=package)

    def import_from_cwd(self, module: str, imp: Callable[..., Any] | None = None, package: str | None = None) -> Any:
        """Import a module, looking into the current directory first."""
        return import_from_cwd(module, self.import_module if imp is None else imp, package=package)

    def import_task_module(self, module: str) -> Any:
        """Import a module and remember that it holds tasks."""
        self.task_modules.add(module)
        return self.import_from_cwd(module)

    def find_module(self, module: str) -> Any:
        """Return where a module is; raise if one of its parents is no package."""
        return find_module(module)

    def import_default_modules(self) -> list[Any]:
        """Import all modules with tasks of this app and return them.

        An error of a receiver of ``import_modules`` is raised: it would be lost
        otherwise, since there is no log yet.
        """
        for _, response in signals.import_modules.send(sender=self.app):
            if isinstance(response, Exception):
                raise response
        return [self.import_task_module(module) for module in self.default_modules]

    @cached_property
    def default_modules(self) -> tuple[str, ...]:
        """Names of the modules the settings ``imports`` and ``include`` ask for."""
        conf = self.app.conf
        return (*self.builtin_modules, *(maybe_list(conf.imports) or ()), *(maybe_list(conf.include) or ()))

    def autodiscover_tasks(self, packages: Iterable[str], related_name: str | None = "tasks") -> None:
        """Import the module ``related_name`` of each package that has one."""
        found = autodiscover_tasks(packages or (), related_name)
        self.task_modules.update(module.__name__ for module in found if module)

    # .. settings

    @property
    def conf(self) -> Any:
        """The settings, read when they are first asked for."""
        if self._conf is unconfigured:
            self._conf = self.read_configuration()
        return self._conf

    def read_configuration(self, env: str = "CELERY_CONFIG_MODULE") -> Any:
        """Return the settings of the module the environment names, else ``None``."""
        name = os.environ.get(env)
        return DictAttribute(self._import_config_module(name)) if name else None

    def config_from_object(self, obj: Any, silent: bool = False) -> bool:
        """Take the settings from an object, or from the one a text names.

        Returns whether it worked; only with ``silent`` a text that names
        nothing is not an error.
        """
        if isinstance(obj, str):
            try:
                obj = self._smart_import(obj, imp=self.import_from_cwd)
            except (ImportError, AttributeError):
                if silent:
                    return False
                raise
        self._conf = force_mapping(obj)
        if self._conf.get("override_backends") is not None:
            self.override_backends = self._conf["override_backends"]
        return True

    def _smart_import(self, path: str, imp: Callable[..., Any] | None = None) -> Any:
        """Return what ``module``, ``module:name`` or ``module.name`` stands for."""
        importer = self.import_module if imp is None else imp
        if ":" not in path:
            try:
                return importer(path)
            except ImportError:
                pass  # not a module, so the last part may be a name in one
        return symbol_by_name(path, imp=importer)

    def _import_config_module(self, name: str) -> Any:
        try:
            self.find_module(name)
        except NotAPackage as error:
            text = CONFIG_INVALID_NAME
            if name.endswith(".py"):
                text = CONFIG_WITH_SUFFIX
            raise NotAPackage(text.format(module=name, suggest=name.removesuffix(".py"))) from error
        return self.import_from_cwd(name)

    def cmdline_config_parser(
        self,
        args: Sequence[str],
        namespace: str = "celery",
        re_type: re.Pattern[str] = re.compile(r"\((\w+)\)"),
        extra_types: dict[str, Callable[[str], Any]] | None = None,
        override_types: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return the settings that arguments such as ``worker.concurrency=4`` stand for.

        A key without its first part belongs to ``namespace``.  A value is
        converted to the type of its setting, or to the one written before it:
        ``=(float)3``.  ``re_type`` finds that type, ``extra_types`` and
        ``override_types`` add to and rename the known ones.
        Raises :exc:`ValueError` for a value that does not fit and
        :exc:`KeyError` for an unknown setting or type.
        """
        types = {**COMMAND_LINE_TYPES, **(extra_types or {})}
        renamed = WRITTEN_AS_JSON if override_types is None else override_types
        settings = {}
        for argument in args:
            written_key, separator, text = argument.partition("=")
            if not separator:
                raise ValueError(f"Not a setting: {argument!r}. Write it as key=value, without spaces.")
            key = written_key.lower().replace(".", "_")
            if key.startswith("_"):
                key = f"{namespace.lower()}{key}" if namespace else key[1:]
            cast = re_type.match(text)
            if cast is not None:
                type_name = cast.group(1)
                settings[key] = types[renamed.get(type_name, type_name)](text[cast.end() :])
                continue
            try:
                settings[key] = self._setting(key).to_python(text)
            except ValueError as error:
                raise ValueError(f"{key!r}: {error}") from error
        return settings

    def _setting(self, key: str) -> Any:
        """Return the description of a setting, as the app knows it."""
        namespace, _, name = key.partition("_")
        found = self.app.conf.find_option(name, namespace)
        if found is None or found.namespace != namespace or found.key != name:
            raise KeyError(f"Unknown setting: {key!r}. Write namespace and name, such as worker.concurrency=4.")
        return found.type


class _Discovery(threading.local):
    """Whether this thread is already discovering tasks."""

    running = False


_discovery = _Discovery()


def autodiscover_tasks(packages: Iterable[str], related_name: str | None = "tasks") -> Sequence[ModuleType | None]:
    """Import the module ``related_name`` of each package; ``None`` where there is none.

    A task module that asks for discovery while it is imported gets nothing: it
    would meet half-imported modules, its own among them.
    """
    if _discovery.running:
        return ()
    _discovery.running = True
    try:
        return [find_related_module(package, related_name) for package in packages]
    finally:
        _discovery.running = False


def find_related_module(package: str, related_name: str | None) -> ModuleType | None:
    """Import and return a module of a package, ``None`` if there is none.

    ``package`` may also name something inside a package, as the settings of
    Django do.  Without ``related_name`` the package itself is meant.  Errors of
    the module, a missing import of its own included, are raised.
    """
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError:
        package = package.rpartition(".")[0]
        if not package:
            raise
    else:
        if not related_name:
            return module
    wanted = f"{package}.{related_name}"
    try:
        return importlib.import_module(wanted)
    except ModuleNotFoundError as error:
        if error.name == wanted:
            return None
        raise
