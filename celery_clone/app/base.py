"""``Celery``: the app object.  It owns configuration, registry and parts, and has no logic of its own.

Made by users; every other part of the package receives it.  What it does is decided elsewhere:
options of a call in ``app.calls``, sending in ``app.amqp``, running in ``app.trace``.
"""

from __future__ import annotations

import os
import sys
import threading
import typing
import warnings
import weakref
from collections import UserDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from datetime import timezone as datetime_timezone
from operator import attrgetter
from types import GenericAlias
from typing import Any

from kombu.clocks import LamportClock

from celery_clone import canvas, platforms, signals
from celery_clone._state import (
    _announce_app_finalized,
    _deregister_app,
    _register_app,
    _set_current_app,
    _task_stack,
    connect_on_app_finalize,
    get_current_app,
    get_current_worker_task,
    set_default_app,
)
from celery_clone.canvas.signature import calls_back
from celery_clone.exceptions import (
    AlwaysEagerIgnored,
    DuplicateTaskNameWarning,
    ImproperlyConfigured,
)
from celery_clone.loaders import get_loader_cls
from celery_clone.local import PromiseProxy, maybe_evaluate
from celery_clone.utils import abstract
from celery_clone.utils.collections import AttributeDictMixin
from celery_clone.utils.dispatch import Signal
from celery_clone.utils.functional import first
from celery_clone.utils.ids import uuid
from celery_clone.utils.imports import gen_task_name, instantiate, qualname, symbol_by_name
from celery_clone.utils.log import get_logger
from celery_clone.utils.objects import FallbackContext, mro_lookup
from celery_clone.utils.time import timezone

from . import backends
from .annotations import prepare as prepare_annotations
from .arguments import checker
from .autoretry import add_autoretry_behaviour
from .components import COMPONENTS
from .registry import TaskRegistry
from .settings import Settings, detect_settings, find_deprecated_settings
from .utils import AppPickler, appstr, bugreport, certificates_must_be_readable, unreadable_url

__all__ = ("App", "Celery")

logger = get_logger(__name__)

BUILTIN_FIXUPS = frozenset({"celery_clone.fixups.django:fixup"})
OMITTED: Any = object()
"""Tells "not given" from ``None``, which clears a task's own option."""

DUPLICATE_TASK_NAME = (
    "Task name {0!r} is used by two callables: {1} and {2}. {3} Give one of them another name=."
)


def app_has_custom(app: Any, attr: str) -> Any:
    """Does the class of *app* override *attr* of :class:`Celery`?"""
    return mro_lookup(app.__class__, attr, stop={Celery, object}, monkey_patched=[__name__])


def _unpickle_appattr(reverse_name: str, args: tuple[Any, ...]) -> Any:
    """An attribute of the current app, called with *args*: how bound classes are pickled."""
    return get_current_app()._rgetattr(reverse_name)(*args)


def _unpickle_app(cls: type[Celery], kwargs: dict[str, Any]) -> Celery:
    """An app from what :meth:`Celery.__reduce_keys__` gave; it does not become the current one."""
    return cls(set_as_current=False, **kwargs)


def caller_level() -> int:
    """How many frames up the user's code is, for warnings."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("celery_clone"):
        level, frame = level + 1, frame.f_back
    return level


class PendingConfiguration(UserDict[str, Any], AttributeDictMixin):
    """``app.conf`` before it was read: keeps what is set, loads everything when a key is read.

    Arguments:
        conf: where values are kept meanwhile.
        callback: loads the configuration and returns it.
    """

    callback: Any = None
    _data: Any = None

    def __init__(self, conf: dict[str, Any], callback: Callable[[], Any]) -> None:
        object.__setattr__(self, "_data", conf)
        object.__setattr__(self, "callback", callback)

    def __setitem__(self, key: str, value: Any) -> None:
        self._data[key] = value

    def clear(self) -> None:
        self._data.clear()

    def update(self, *args: Any, **kwargs: Any) -> None:
        self._data.update(*args, **kwargs)

    def setdefault(self, *args: Any, **kwargs: Any) -> Any:
        return self._data.setdefault(*args, **kwargs)

    def __contains__(self, key: object) -> bool:
        # Only what was set by now: asking must not load, or setdefault() would.
        return key in self._data

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return repr(self.data)

    @property
    def data(self) -> Any:  # type: ignore[override]  # computed here, an attribute there
        """The loaded configuration."""
        return self.callback()


class Once:
    """An attribute computed on first use and kept on the instance.

    For parts without a lifetime: classes, clients, tables.  Setting the attribute replaces it.
    """

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute = compute
        self.name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self.name] = self.compute(instance)
        return value


_opened: weakref.WeakSet[Celery] = weakref.WeakSet()
"""Apps that hold something a forked child must let go of.  Weak: a registration at the interpreter never ends."""


def _after_fork_of_all() -> None:
    for app in list(_opened):
        app._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_of_all)


class Celery:
    """A task application.

    Arguments:
        main: name of the main module, when the app's module runs as a script; prefix of task names.
        broker: URL of the broker (setting ``broker_url``).
        backend: URL of the result backend (setting ``result_backend``).
        include: modules that a worker imports (setting ``include``).
        loader, amqp, events, log, control, task_cls: other classes for the parts, or their names.
        set_as_current: make it the current app of the process?
        tasks: a task registry to use.
        changes: settings to begin with.
        config_source: object or name of a module to read settings from, silently missing if asked.
        fixups: names of adaptations to other frameworks.
        autofinalize: evaluate pending task declarations on first use?
        namespace: prefix of the settings in the configuration source.
        strict_typing: check call arguments against the function before sending?
        kwargs: further settings.
    """

    Pickler = AppPickler

    SYSTEM = platforms.SYSTEM
    IS_macOS, IS_WINDOWS = platforms.IS_macOS, platforms.IS_WINDOWS

    main: str | None = None
    user_options: Any = None
    steps: Any = None
    builtin_fixups: Any = BUILTIN_FIXUPS

    amqp_cls: Any = COMPONENTS["amqp"]
    backend_cls: Any = None
    events_cls: Any = COMPONENTS["events"]
    loader_cls: Any = None
    log_cls: Any = COMPONENTS["log"]
    control_cls: Any = COMPONENTS["control"]
    task_cls: Any = COMPONENTS["task"]
    registry_cls: Any = TaskRegistry

    #: Sent when the configuration is about to be loaded.
    on_configure: Any = None
    #: Sent when the configuration was loaded.
    on_after_configure: Any = None
    #: Sent when the tasks declared so far are all registered and bound.
    on_after_finalize: Any = None
    #: Sent in each process forked from this one.
    on_after_fork: Any = None

    _fixups: Any = None
    _pool: Any = None
    _conf: Any = None

    def __init__(
        self,
        main: str | None = None,
        loader: Any = None,
        backend: Any = None,
        amqp: Any = None,
        events: Any = None,
        log: Any = None,
        control: Any = None,
        set_as_current: bool = True,
        tasks: Any = None,
        broker: str | None = None,
        include: Any = None,
        changes: Mapping[str, Any] | None = None,
        config_source: Any = None,
        fixups: Any = None,
        task_cls: Any = None,
        autofinalize: bool = True,
        namespace: str | None = None,
        strict_typing: bool = True,
        config_source_silent: bool = False,
        **kwargs: Any,
    ) -> None:
        self._local = threading.local()
        self._backend_cache: Any = None
        self._backend_mutex = threading.RLock()
        self.clock = LamportClock()
        self.main = main
        self.amqp_cls = amqp or self.amqp_cls
        self.events_cls = events or self.events_cls
        self.loader_cls = loader or self._get_default_loader()
        self.log_cls = log or self.log_cls
        self.control_cls = control or self.control_cls
        self._custom_task_cls_used = bool(task_cls) or bool(app_has_custom(self, "task_cls"))
        self.task_cls = task_cls or self.task_cls
        self.set_as_current = set_as_current
        self.registry_cls = symbol_by_name(self.registry_cls)
        self.user_options = defaultdict(set)
        self.steps = defaultdict(set)
        self.autofinalize = autofinalize
        self.namespace = namespace
        self.strict_typing = strict_typing

        self.configured = False
        self._config_source = config_source
        self._config_source_silent = config_source_silent
        self._pending_defaults: deque[Callable[[], Any]] = deque()
        self._pending_periodic_tasks: deque[tuple[str, dict[str, Any], str | None]] = deque()

        self.finalized = False
        self._finalize_mutex = threading.RLock()
        self._pending: deque[Any] = deque()
        self._duplicate_names_warned: set[str] = set()
        self._tasks = tasks if isinstance(tasks, TaskRegistry) else self.registry_cls(tasks or {})

        self._preconf: dict[str, Any] = dict(changes or {})
        self._preconf_set_by_auto: set[str] = set()
        for key, value in {
            "broker_url": broker,
            "result_backend": backend,
            "include": include,
            **kwargs,
        }.items():
            if value is not None:
                self._preconf[key] = value
                self._preconf_set_by_auto.add(key)
        self._conf = Settings(
            PendingConfiguration(self._preconf, self._finalize_pending_conf),
            prefix=self.namespace,
        )

        self.fixups = set(self.builtin_fixups) if fixups is None else fixups
        self._fixups = [symbol_by_name(fixup)(self) for fixup in self.fixups]
        if self.set_as_current:
            self.set_current()
        if self.on_configure is None:
            self.on_configure = Signal(name="app.on_configure")
        self.on_after_configure = Signal(name="app.on_after_configure", providing_args={"source"})
        self.on_after_finalize = Signal(name="app.on_after_finalize")
        self.on_after_fork = Signal(name="app.on_after_fork")

        #: Is this process a worker that runs this app's tasks?
        self.use_fast_trace_task = False
        self.on_init()
        _register_app(self)

    def _get_default_loader(self) -> Any:
        return os.environ.get("CELERY_LOADER") or self.loader_cls or "celery_clone.loaders.app:AppLoader"

    def on_init(self) -> None:
        """Called at the end of construction; for subclasses."""

    # --- life --------------------------------------------------------------

    def set_current(self) -> None:
        """Make this the current app of the thread."""
        _set_current_app(self)

    def set_default(self) -> None:
        """Make this the app of all threads that have no current one."""
        set_default_app(self)

    def _ensure_after_fork(self) -> None:
        _opened.add(self)

    def _after_fork(self) -> None:
        """In a forked child: let go of what belongs to the parent."""
        try:
            self._pool = None
            # Both name the process, and the parent's replies are not ours.
            vars(self).pop("oid", None)
            vars(self._local).pop("oid", None)
            # A thread of the parent may have held it.
            self._backend_mutex = threading.RLock()
            amqp = self.__dict__.get("amqp")
            if amqp is not None and hasattr(amqp, "after_fork"):
                amqp.after_fork()
            self.on_after_fork.send(sender=self)
        except Exception as exc:
            logger.info("after forker raised exception: %r", exc, exc_info=True)

    def close(self) -> None:
        """Let go of pools and connections and leave the list of apps.  Legal twice."""
        self._pool = None
        amqp = vars(self).get("amqp")
        if amqp is not None and hasattr(amqp, "close"):
            amqp.close()
        if self._backend_cache is not None and hasattr(self._backend_cache, "close"):
            self._backend_cache.close()
        _deregister_app(self)

    def __enter__(self) -> Celery:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self, argv: list[str] | None = None) -> Any:
        """Run the ``celery`` command with this app; *argv* defaults to ``sys.argv``."""
        run = symbol_by_name(COMPONENTS["command"])
        return run(self, sys.argv if argv is None else argv)

    def worker_main(self, argv: list[str] | None = None) -> None:
        """Run ``celery worker`` with this app.

        Raises:
            ValueError: *argv* does not name the worker sub-command.
        """
        argv = sys.argv if argv is None else argv
        if "worker" not in argv:
            raise ValueError(
                "The worker sub-command must be specified in argv.\n"
                "Use app.start() to programmatically start other commands."
            )
        self.start(argv=argv)

    # --- tasks -------------------------------------------------------------

    def task(self, *args: Any, **opts: Any) -> Any:
        """Make a task of a function: ``@app.task`` or ``@app.task(name=..., bind=True, ...)``.

        Arguments:
            name: name on the wire; made from module and function when missing.
            base: class of the task.
            bind: give the task itself as first argument?
            shared: register it with other apps too?
            filter: called with the task; what it returns is the decorator's value.
            lazy: wait with the declaration until the app is used?
            opts: attributes of the task.
        """

        def declare(
            shared: bool = True, filter: Any = None, lazy: bool = True, **options: Any
        ) -> Callable[[Callable[..., Any]], Any]:
            def create(function: Callable[..., Any]) -> Any:
                if shared:

                    def cons(app: Celery) -> Any:
                        return app._task_from_fun(function, **options)

                    cons.__name__ = function.__name__
                    connect_on_app_finalize(cons)
                if not lazy or self.finalized:
                    task = self._task_from_fun(function, **options)
                else:
                    task = PromiseProxy(self._task_from_fun, (function,), options, __doc__=function.__doc__)
                    self._pending.append(task)
                return filter(task) if filter else task

            return create

        if len(args) == 1:
            if callable(args[0]):
                return declare(**opts)(*args)
            raise TypeError("argument 1 to @task() must be a callable")
        if args:
            raise TypeError(f"@task() takes exactly 1 argument ({len(args) + len(opts)} given)")
        return declare(**opts)

    def type_checker(self, fun: Any, bound: bool = False) -> Any:
        """What checks the arguments of calls of *fun*, as a static method."""
        return staticmethod(checker(fun, bound=bound))

    def _task_from_fun(
        self,
        fun: Any,
        name: str | None = None,
        base: Any = None,
        bind: bool = False,
        pydantic: bool = False,
        pydantic_strict: bool = False,
        pydantic_context: dict[str, Any] | None = None,
        pydantic_dump_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        if not self.finalized and not self.autofinalize:
            raise RuntimeError("Contract breach: app not finalized. Call app.finalize() first.")
        decorated = fun
        name = name or self.gen_task_name(fun.__name__, fun.__module__)
        base = base or self.Task
        known = self._tasks.get(name)
        if known is not None:
            self._warn_if_duplicate(known, decorated, name)
            return known
        dump_arguments = None
        if pydantic:
            pydantic_wrapper = symbol_by_name(COMPONENTS["pydantic"])
            fun = pydantic_wrapper(self, fun, name, pydantic_strict, pydantic_context, pydantic_dump_kwargs)
            dump_arguments = staticmethod(fun.argument_dumper(bound=bind))
        run = fun if bind else staticmethod(fun)
        attributes = {
            "app": self,
            "name": name,
            "run": run,
            "_decorated": True,
            "_dump_pydantic_arguments": dump_arguments,
            "__doc__": fun.__doc__,
            "__module__": fun.__module__,
            "__annotations__": getattr(fun, "__annotations__", {}),
            "__header__": self.type_checker(fun, bound=bind),
            "__wrapped__": run,
            "_decorated_fun": staticmethod(decorated),
            **options,
        }
        task = type(fun.__name__, (base,), attributes)()
        try:
            task.__qualname__ = fun.__qualname__
        except AttributeError:
            pass  # a callable object, say, has none
        self._tasks[name] = task
        task.bind(self)
        add_autoretry_behaviour(task, **options)
        return task

    def register_task(self, task: Any, **options: Any) -> Any:
        """Register a task class or instance; returns the instance."""
        task = task() if isinstance(task, type) else task
        if not task.name:
            task_cls = type(task)
            task.name = self.gen_task_name(task_cls.__name__, task_cls.__module__)
        known = self.tasks.get(task.name)
        if known is not None and known is not task:
            self._warn_duplicate(
                task.name,
                qualname(getattr(known, "_decorated_fun", None) or type(known)),
                qualname(getattr(task, "_decorated_fun", None) or type(task)),
                "The new callable replaced the existing one; calls under this name now reach the new callable.",
            )
        add_autoretry_behaviour(task, **options)
        self.tasks[task.name] = task
        task._app = self
        task.bind(self)
        return task

    def _warn_if_duplicate(self, task: Any, fun: Any, name: str) -> None:
        existing = getattr(task, "_decorated_fun", None)
        if existing is None or existing is fun:
            return
        self._warn_duplicate(
            name,
            qualname(existing),
            qualname(fun),
            "The new callable was not registered; calls under this name reach the callable registered first.",
        )

    def _warn_duplicate(self, name: str, existing: str, new: str, consequence: str) -> None:
        if name in self._duplicate_names_warned:
            return
        self._duplicate_names_warned.add(name)
        text = DUPLICATE_TASK_NAME.format(name, existing, new, consequence)
        warnings.warn(DuplicateTaskNameWarning(text), stacklevel=caller_level())

    def gen_task_name(self, name: str, module: str) -> str:
        """The name of a task made from function *name* of *module*."""
        return gen_task_name(self, name, module)

    def finalize(self, auto: bool = False) -> None:
        """Evaluate pending declarations, add built-in and shared tasks, bind all.

        Raises:
            RuntimeError: it happens by itself and ``autofinalize`` is off.
        """
        with self._finalize_mutex:
            if self.finalized:
                return
            if auto and not self.autofinalize:
                raise RuntimeError("Contract breach: app not finalized. Call app.finalize() first.")
            self.finalized = True
            symbol_by_name(COMPONENTS["builtins"])(self)
            _announce_app_finalized(self)
            while self._pending:
                maybe_evaluate(self._pending.popleft())
            for task in self._tasks.values():
                task.bind(self)
            self.on_after_finalize.send(sender=self)

    @Once
    def tasks(self) -> Any:
        """The registry of tasks; reading it finalizes the app."""
        self.finalize(auto=True)
        return self._tasks

    def run_eagerly(
        self, task: Any, uuid: str, args: Any, kwargs: Any, request: Mapping[str, Any], *, propagate: bool
    ) -> tuple[Any, str, str | None]:
        """Run *task* here, as a worker would: (value or error, state, traceback text)."""
        run = symbol_by_name(COMPONENTS["run_eagerly"])
        return typing.cast(
            "tuple[Any, str, str | None]", run(self, task, uuid, args, kwargs, request, propagate=propagate)
        )

    # --- configuration -------------------------------------------------------

    @property
    def conf(self) -> Any:
        """The configuration; reading a setting loads it."""
        if self._conf is None:
            self._conf = self._load_config()
        return self._conf

    @conf.setter
    def conf(self, d: Any) -> None:
        self._conf = d

    def add_defaults(self, fun: Any) -> Any:
        """Add defaults: a mapping, or a function that gives one when the configuration is loaded."""
        if not callable(fun):
            values = fun
            fun = lambda: values  # noqa: E731 a one-line constant
        if self.configured:
            return self._conf.add_defaults(fun())
        self._pending_defaults.append(fun)
        return None

    def config_from_object(
        self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> Any:
        """Read settings from an object or module (or its name), now if *force*, else when needed."""
        self._config_source = obj
        self._config_source_silent = silent
        self.namespace = namespace or self.namespace
        if (force or self.configured) and self.loader.config_from_object(obj, silent=silent):
            self._conf = None
            return self.conf
        return None

    def config_from_envvar(self, variable_name: str, silent: bool = False, force: bool = False) -> Any:
        """Read settings from the module that an environment variable names.

        Raises:
            ImproperlyConfigured: the variable is not set and *silent* is off.
        """
        module_name = os.environ.get(variable_name)
        if not module_name:
            if silent:
                return False
            raise ImproperlyConfigured(
                f"The environment variable {variable_name!r} is not set, so there is no configuration to load. "
                "Set it to the name of the configuration module."
            )
        return self.config_from_object(module_name, silent=silent, force=force)

    def config_from_cmdline(self, argv: list[str], namespace: str = "celery") -> None:
        """Read settings from words like ``worker.concurrency=2``."""
        self._conf.update(self.loader.cmdline_config_parser(argv, namespace))

    def _finalize_pending_conf(self) -> Any:
        try:
            conf = self._conf = self._load_config()
        except AttributeError as error:
            # The mapping would take it for a missing key and recurse.
            raise ModuleNotFoundError(*error.args) from error
        return conf

    def _load_config(self) -> Any:
        if isinstance(self.on_configure, Signal):
            self.on_configure.send(sender=self)
        else:
            self.on_configure()
        if self._config_source:
            self.loader.config_from_object(self._config_source, silent=self._config_source_silent)
        self.configured = True
        settings = detect_settings(
            self.prepare_config(self.loader.conf),
            self._preconf,
            ignore_keys=self._preconf_set_by_auto,
            prefix=self.namespace,
        )
        if self._conf is not None:
            # In place: somebody may hold on to app.conf from before it was loaded.
            self._conf.swap_with(settings)
        else:
            self._conf = settings
        while self._pending_defaults:
            self._conf.add_defaults(maybe_evaluate(self._pending_defaults.popleft()()))
        while self._pending_periodic_tasks:
            key, entry, name = self._pending_periodic_tasks.popleft()
            self._add_periodic_task(key, entry, name=name)
        self.on_after_configure.send(sender=self, source=self._conf)
        return self._conf

    def prepare_config(self, c: Any) -> Any:
        """Called with the loaded configuration before it is used; for subclasses."""
        return find_deprecated_settings(c)

    def setup_security(
        self,
        allowed_serializers: Any = None,
        key: str | None = None,
        key_password: bytes | None = None,
        cert: str | None = None,
        store: str | None = None,
        digest: str = "sha256",
        serializer: str = "json",
    ) -> Any:
        """Sign messages with the ``auth`` serializer; the other arguments name its files."""
        setup = symbol_by_name(COMPONENTS["security"])
        return setup(allowed_serializers, key, key_password, cert, store, digest, serializer, app=self)

    def autodiscover_tasks(
        self, packages: Any = None, related_name: str | None = "tasks", force: bool = False
    ) -> Any:
        """Import ``<package>.<related_name>`` of these packages when task modules are imported.

        *packages* may be a function; without it the fixups (Django's) name them.
        """
        if force:
            return self._autodiscover_tasks(packages, related_name)

        def discover(**_: Any) -> Any:
            return self._autodiscover_tasks(packages, related_name)

        signals.import_modules.connect(discover, weak=False, sender=self)
        return None

    def _autodiscover_tasks(self, packages: Any, related_name: str | None, **kwargs: Any) -> Any:
        if not packages:
            packages = [
                package
                for fixup in self._fixups
                if hasattr(fixup, "autodiscover_tasks")
                for package in fixup.autodiscover_tasks()
            ]
        return self.loader.autodiscover_tasks(packages() if callable(packages) else packages, related_name)

    def either(self, default_key: str, *defaults: Any) -> Any:
        """The first of *defaults* that is not ``None``, else the setting *default_key*."""
        value = first(None, defaults)
        return self.conf.get(default_key) if value is None else value

    def select_queues(self, queues: Any = None) -> Any:
        """Consume from these queues alone."""
        return self.amqp.queues.select(queues)

    def bugreport(self) -> str:
        """Versions and settings, for a bug report."""
        return bugreport(self)

    # --- sending -----------------------------------------------------------

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        connection: Any = None,
        router: Any = None,
        result_cls: Any = None,
        expires: Any = OMITTED,
        publisher: Any = None,
        link: Any = None,
        link_error: Any = None,
        add_to_parent: bool = True,
        group_id: str | None = None,
        group_index: int | None = None,
        retries: int = 0,
        chord: Any = None,
        reply_to: str | None = None,
        time_limit: Any = OMITTED,
        soft_time_limit: Any = OMITTED,
        root_id: str | None = None,
        parent_id: str | None = None,
        route_name: str | None = None,
        shadow: str | None = None,
        chain: Any = None,
        task_type: Any = None,
        replaced_task_nesting: int = 0,
        **options: Any,
    ) -> Any:
        """Send a call of the task *name*, which need not be known here.

        Takes the options of :meth:`celery_clone.app.task.Task.apply_async`.
        """
        amqp = self.amqp
        task_id = task_id or uuid()
        producer = producer or publisher
        conf = self.conf
        if conf.task_always_eager:
            warnings.warn(AlwaysEagerIgnored("task_always_eager has no effect on send_task"), stacklevel=2)
        if task_type is None:
            # A plain call by name: a task of that name known here lends its options.
            task_type = self._tasks.get(name)
            if task_type is not None and hasattr(task_type, "_get_exec_options"):
                options = {**task_type._get_exec_options(), **options}
        task_time_limit = options.pop("time_limit", None)
        task_soft_time_limit = options.pop("soft_time_limit", None)
        task_expires = options.pop("expires", None)
        if time_limit is OMITTED:
            time_limit = task_time_limit
        if soft_time_limit is OMITTED:
            soft_time_limit = task_soft_time_limit
        if expires is OMITTED:
            expires = task_expires
        ignore_result = options.pop("ignore_result", None)
        options = (router or amqp.router).route(options, route_name or name, args, kwargs, task_type)
        if eta or countdown:
            amqp.route_delayed(options, eta, countdown)
        if expires is not None:
            options["expiration"] = amqp.expiration(expires, task_id)
        parent = None
        if add_to_parent or not root_id or not parent_id:
            parent = get_current_worker_task()
        if parent is not None and not (root_id and parent_id):
            request = parent.request
            root_id = root_id or request.root_id or request.id
            parent_id = parent_id or request.id
            if conf.task_inherit_parent_priority:
                options.setdefault("priority", (request.delivery_info or {}).get("priority"))
        message = amqp.create_task_message(
            task_id,
            name,
            args,
            kwargs,
            countdown,
            eta,
            group_id,
            group_index,
            expires,
            retries,
            chord,
            calls_back(link, "link"),
            calls_back(link_error, "link_error"),
            reply_to or self.thread_oid,
            time_limit,
            soft_time_limit,
            conf.task_send_sent_event,
            root_id,
            parent_id,
            shadow,
            chain,
            ignore_result=ignore_result,
            replaced_task_nesting=replaced_task_nesting,
            **options,
        )
        for stamp in options.pop("stamped_headers", None) or ():
            options.pop(stamp, None)
        if connection:
            producer = amqp.Producer(connection, auto_declare=False)
        if not ignore_result:
            self.backend.on_task_call(producer, task_id)
        amqp.send_task_message(producer, name, message, **options)
        result = (result_cls or self.AsyncResult)(task_id)
        result.ignored = ignore_result
        if not ignore_result:
            result.backend.on_task_sent(result)
        if add_to_parent and parent is not None:
            parent.add_trail(result)
        return result

    _shipped_send_task = send_task
    """Tells whether somebody put another function in its place, which has to see every call."""

    @contextmanager
    def publishing_together(self) -> Iterator[None]:
        """Inside, calls are gathered and leave as one batch at the end; see ``AMQP.publishing_together``."""
        with self.amqp.publishing_together():
            yield

    def signature(self, *args: Any, **kwargs: Any) -> Any:
        """A signature bound to this app."""
        kwargs["app"] = self
        return canvas.signature(*args, **kwargs)

    # --- connections ---------------------------------------------------------

    def connection_for_read(self, url: str | None = None, **kwargs: Any) -> Any:
        """A connection for consuming."""
        return self._connection(url or self.conf.broker_read_url, **kwargs)

    def connection_for_write(self, url: str | None = None, **kwargs: Any) -> Any:
        """A connection for publishing."""
        return self._connection(url or self.conf.broker_write_url, **kwargs)

    def connection(
        self,
        hostname: str | None = None,
        userid: str | None = None,
        password: str | None = None,
        virtual_host: str | None = None,
        port: int | None = None,
        ssl: Any = None,
        connect_timeout: float | None = None,
        transport: Any = None,
        transport_options: Mapping[str, Any] | None = None,
        heartbeat: float | None = None,
        login_method: str | None = None,
        failover_strategy: Any = None,
        **kwargs: Any,
    ) -> Any:
        """A connection for publishing, with the settings of the app for what is not given."""
        return self.connection_for_write(
            hostname or self.conf.broker_write_url,
            userid=userid,
            password=password,
            virtual_host=virtual_host,
            port=port,
            ssl=ssl,
            connect_timeout=connect_timeout,
            transport=transport,
            transport_options=transport_options,
            heartbeat=heartbeat,
            login_method=login_method,
            failover_strategy=failover_strategy,
            **kwargs,
        )

    broker_connection = connection

    def _connection(
        self,
        url: str | None,
        userid: str | None = None,
        password: str | None = None,
        virtual_host: str | None = None,
        port: int | None = None,
        ssl: Any = None,
        connect_timeout: float | None = None,
        transport: Any = None,
        transport_options: Mapping[str, Any] | None = None,
        heartbeat: float | None = None,
        login_method: str | None = None,
        failover_strategy: Any = None,
        **kwargs: Any,
    ) -> Any:
        conf = self.conf
        certificates_must_be_readable("broker_use_ssl", self.either("broker_use_ssl", ssl))
        try:
            return self.amqp.Connection(
                url,
                userid or conf.broker_user,
                password or conf.broker_password,
                virtual_host or conf.broker_vhost,
                port or conf.broker_port,
                transport=transport or conf.broker_transport,
                ssl=self.either("broker_use_ssl", ssl),
                heartbeat=heartbeat,
                login_method=login_method or conf.broker_login_method,
                failover_strategy=failover_strategy or conf.broker_failover_strategy,
                transport_options={**(conf.broker_transport_options or {}), **(transport_options or {})},
                connect_timeout=self.either("broker_connection_timeout", connect_timeout),
            )
        except KeyError as exc:
            explained = self.amqp.explain_unknown_transport(exc)
            if explained is None:
                raise
            raise ImproperlyConfigured(explained) from None
        except ValueError as exc:
            raise ImproperlyConfigured(unreadable_url(url, exc)) from None

    def _acquire_connection(self, pool: bool = True) -> Any:
        if not pool:
            return self.connection_for_write()
        return self.amqp.acquire(self.pool, "connection")

    def _acquire_producer(self, timeout: float | None = None) -> Any:
        return self.amqp.acquire(self.producer_pool, "producer", timeout)

    def connection_or_acquire(
        self, connection: Any = None, pool: bool = True, *_: Any, **__: Any
    ) -> FallbackContext:
        """Context manager: *connection*, or one of the pool."""
        return FallbackContext(connection, self._acquire_connection, pool=pool)

    default_connection = connection_or_acquire

    def producer_or_acquire(self, producer: Any = None) -> FallbackContext:
        """Context manager: *producer*, or one of the pool."""
        return FallbackContext(producer, self._acquire_producer)

    default_producer = producer_or_acquire

    @property
    def pool(self) -> Any:
        """Pool of broker connections."""
        if self._pool is None:
            self._ensure_after_fork()
            self._pool = self.amqp.connection_pool()
        return self._pool

    @property
    def producer_pool(self) -> Any:
        """Pool of producers."""
        return self.amqp.producer_pool

    # --- periodic tasks --------------------------------------------------------

    def add_periodic_task(
        self, schedule: Any, sig: Any, args: Any = (), kwargs: Any = (), name: str | None = None, **opts: Any
    ) -> str:
        """Have beat send *sig* on *schedule*; returns the key of the entry."""
        kwargs = kwargs or {}
        if isinstance(sig, abstract.CallableSignature):
            sig = sig.clone(args, kwargs)
        else:
            sig = self.signature(sig.name, args, kwargs)
        key = name or repr(sig)
        entry = {
            "schedule": schedule,
            "task": sig.name,
            "args": sig.args,
            "kwargs": sig.kwargs,
            "options": {**sig.options, **opts},
        }
        if self.configured:
            self._add_periodic_task(key, entry, name=name)
        else:
            self._pending_periodic_tasks.append((key, entry, name))
        return key

    def _add_periodic_task(self, key: str, entry: dict[str, Any], name: str | None = None) -> None:
        schedule = self._conf.beat_schedule
        if name is None and key in schedule:
            logger.warning(
                "Periodic task key='%s' shadowed a previous unnamed periodic task."
                " Pass a name kwarg to add_periodic_task to silence this warning.",
                key,
            )
        schedule[key] = entry

    # --- time ----------------------------------------------------------------

    def now(self) -> datetime:
        """The time now, in the zone of the app."""
        return datetime.now(datetime_timezone.utc).astimezone(self.timezone)

    def uses_utc_timezone(self) -> bool:
        """Is the zone of the app UTC?"""
        return bool(self.timezone == timezone.utc)

    @Once
    def timezone(self) -> Any:
        """The zone of the app: setting ``timezone``, else UTC or the system's."""
        conf = self.conf
        if conf.timezone:
            return timezone.get_timezone(conf.timezone)
        return timezone.utc if conf.enable_utc else timezone.local

    # --- parts ---------------------------------------------------------------

    def create_task_cls(self) -> Any:
        """The base class of this app's tasks."""
        return self.subclass_with_self(
            self.task_cls, name="Task", attribute="_app", keep_reduce=True, abstract=True
        )

    def subclass_with_self(
        self,
        Class: Any,  # noqa: N803 public name
        name: str | None = None,
        attribute: str = "app",
        reverse: str | None = None,
        keep_reduce: bool = False,
        **kw: Any,
    ) -> Any:
        """A subclass of *Class* (or of the class so named) that knows this app as *attribute*.

        Instances are pickled as a call of *reverse* of the app that is current where they are loaded.
        """
        Class = symbol_by_name(Class)  # noqa: N806 a class
        reverse_name = reverse or Class.__name__

        def __reduce__(self: Any) -> Any:  # noqa: N807 becomes the method
            return _unpickle_appattr, (reverse_name, self.__reduce_args__())

        attributes = {attribute: self, "__module__": Class.__module__, "__doc__": Class.__doc__, **kw}
        if not keep_reduce:
            attributes["__reduce__"] = __reduce__
        return type(name or Class.__name__, (Class,), attributes)

    @Once
    def Worker(self) -> Any:  # noqa: N802 Celery's name
        """The worker program."""
        return self.subclass_with_self(COMPONENTS["Worker"])

    @Once
    def WorkController(self) -> Any:  # noqa: N802 Celery's name
        """The embeddable worker."""
        return self.subclass_with_self(COMPONENTS["WorkController"])

    @Once
    def Beat(self) -> Any:  # noqa: N802 Celery's name
        """The beat program."""
        return self.subclass_with_self(COMPONENTS["Beat"])

    @Once
    def Task(self) -> Any:  # noqa: N802 Celery's name
        """The base class of this app's tasks."""
        return self.create_task_cls()

    @Once
    def AsyncResult(self) -> Any:  # noqa: N802 Celery's name
        """Results of calls of this app."""
        return self.subclass_with_self(COMPONENTS["AsyncResult"])

    @Once
    def ResultSet(self) -> Any:  # noqa: N802 Celery's name
        """Sets of results of this app."""
        return self.subclass_with_self(COMPONENTS["ResultSet"])

    @Once
    def GroupResult(self) -> Any:  # noqa: N802 Celery's name
        """Results of groups of this app."""
        return self.subclass_with_self(COMPONENTS["GroupResult"])

    @Once
    def annotations(self) -> Any:
        """The prepared ``task_annotations``."""
        return prepare_annotations(self.conf.task_annotations)

    @Once
    def amqp(self) -> Any:
        """Queues, messages, sending."""
        return instantiate(self.amqp_cls, app=self)

    @Once
    def control(self) -> Any:
        """The client for remote control of workers."""
        return instantiate(self.control_cls, app=self)

    @Once
    def events(self) -> Any:
        """Monitoring events."""
        return instantiate(self.events_cls, app=self)

    @Once
    def loader(self) -> Any:
        """What reads configuration and imports task modules."""
        return get_loader_cls(self.loader_cls)(app=self)

    @Once
    def log(self) -> Any:
        """Logging."""
        return instantiate(self.log_cls, app=self)

    @property
    def backend(self) -> Any:
        """The result backend; one for all threads if it is thread-safe, else one each."""
        backend = self._backend
        if backend is None:
            # One at a time: a get() that registered with one backend and waited on another would never end.
            self._ensure_after_fork()
            with self._backend_mutex:
                backend = self._backend
                if backend is None:
                    cls, url = backends.by_url(self.backend_cls or self.conf.result_backend, self.loader)
                    backend = cls(app=self, url=url)
                    self._backend = backend
        return backend

    @property
    def _backend(self) -> Any:
        return self._backend_cache or getattr(self._local, "backend", None)

    @_backend.setter
    def _backend(self, backend: Any) -> None:
        if backend.thread_safe:
            self._backend_cache = backend
        else:
            self._local.backend = backend

    @property
    def current_task(self) -> Any:
        """The task running in this context, if any."""
        return _task_stack.top

    @property
    def current_worker_task(self) -> Any:
        """The task that a worker runs in this context, if any."""
        return get_current_worker_task()

    @Once
    def oid(self) -> str:
        """Identity of this app in this process, where replies go."""
        self._ensure_after_fork()
        return str(self.amqp.identity(threads=False))

    @property
    def thread_oid(self) -> str:
        """Identity of this app in this thread."""
        try:
            return typing.cast(str, self._local.oid)
        except AttributeError:
            self._ensure_after_fork()
            self._local.oid = identity = str(self.amqp.identity(threads=True))
            return identity

    # --- as a value ------------------------------------------------------------

    __class_getitem__: Any = classmethod(GenericAlias)

    def _rgetattr(self, path: str) -> Any:
        return attrgetter(path)(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {appstr(self)}>"

    def __reduce__(self) -> Any:
        return _unpickle_app, (self.__class__, self.__reduce_keys__())

    def __reduce_keys__(self) -> dict[str, Any]:
        """The arguments that make this app again in another process."""
        return {
            "main": self.main,
            "changes": self._conf.changes if self.configured else self._preconf,
            "loader": self.loader_cls,
            "backend": self.backend_cls,
            "amqp": self.amqp_cls,
            "events": self.events_cls,
            "log": self.log_cls,
            "control": self.control_cls,
            "fixups": self.fixups,
            "config_source": self._config_source,
            "config_source_silent": self._config_source_silent,
            "task_cls": self.task_cls,
            "namespace": self.namespace,
        }


App = Celery
