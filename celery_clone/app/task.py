"""The task: its options, its binding to an app, and how it is called.

Used by everybody who declares or calls tasks; ``app.base`` makes the classes, ``app.trace`` runs
them.  It sends nothing itself: ``apply_async`` hands over to the app, and eager runs are traced by
a function that the app gives.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

from celery_clone._state import _task_stack, current_app
from celery_clone.canvas import _chain, chunks, signature, xmap, xstarmap
from celery_clone.canvas.chain import ends_in_group, followed
from celery_clone.canvas.signature import calls_back
from celery_clone.canvas.stamping import inherit_stamps
from celery_clone.exceptions import (
    Ignore,
    ImproperlyConfigured,
    MaxRetriesExceededError,
    OperationalError,
    Reject,
    Retry,
)
from celery_clone.execution.context import Context
from celery_clone.local import class_property
from celery_clone.result import EagerResult, denied_join_result
from celery_clone.utils import abstract, deprecated
from celery_clone.utils.functional import maybe_list
from celery_clone.utils.ids import uuid
from celery_clone.utils.imports import instantiate
from celery_clone.utils.serialization import raise_with_context
from celery_clone.utils.threads import LocalStack

from .annotations import resolve_all as resolve_all_annotations
from .registry import _unpickle_task_v2
from .utils import appstr

if TYPE_CHECKING:
    from celery_clone.result import AsyncResult

__all__ = ("Context", "Task")

EXECUTION_ATTRIBUTES = (
    "queue",
    "routing_key",
    "exchange",
    "priority",
    "expires",
    "serializer",
    "delivery_mode",
    "compression",
    "time_limit",
    "soft_time_limit",
    "immediate",
    "mandatory",
)
"""Attributes of a task that are options of every call of it."""

ROUTING_ATTRIBUTES = ("queue", "exchange", "exchange_type", "routing_key", "delivery_mode", "priority")


def actual_ignore_result(task: Any, request: Any) -> bool:
    """Is the result of this run thrown away?  The call's own wish wins over the task's option.

    ``Context.ignore_result`` has a class-level default, so only a value set on the request counts.
    """
    wish = None
    if isinstance(request, Context):
        wish = request.__dict__.get("ignore_result")
    elif request is not None:
        wish = getattr(request, "ignore_result", None)
    return bool(task.ignore_result if wish is None else wish)


def describe(task: Any, shape: str, flags: Sequence[str] = ()) -> str:
    """The repr of a task class or instance."""
    text = shape.format(task, app=appstr(task._app) if task._app is not None else None)
    return f"{text[:-1]} ({', '.join(flags)})>" if flags else text


def merge_retry_arguments(run: Any, request: Context, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Fill in, for ``retry(args=...)`` or ``retry(kwargs=...)``, the half that was not given.

    A parameter must not arrive both by position and by name, so inherited values that the new ones
    replace are left out.  A function without a readable signature gets the halves as they are.
    """
    inherited_args = request.args if args is None else args
    inherited_kwargs = request.kwargs if kwargs is None else kwargs
    given_args_only = args is not None and kwargs is None and request.kwargs
    given_kwargs_only = kwargs is not None and args is None and request.args
    if not (given_args_only or given_kwargs_only):
        return inherited_args, inherited_kwargs
    import inspect  # noqa: PLC0415 costs 4 ms at start-up, and few retries change their arguments

    try:
        parameters = inspect.signature(run)
    except (TypeError, ValueError):
        return inherited_args, inherited_kwargs
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if given_args_only:
        by_position = [
            each
            for each in parameters.parameters.values()
            if each.kind in (inspect.Parameter.POSITIONAL_ONLY, either)
        ]
        replaced = {each.name for each in by_position[: len(args)] if each.kind is either}
        return args, {name: value for name, value in request.kwargs.items() if name not in replaced}
    try:
        bound = parameters.bind_partial(*request.args)
    except TypeError:
        return inherited_args, inherited_kwargs
    rest = dict(kwargs)
    for name in kwargs:
        if name in bound.arguments and parameters.parameters[name].kind is either:
            bound.arguments[name] = rest.pop(name)
    return bound.args, {**bound.kwargs, **rest}


@abstract.CallableTask.register
class Task:
    """A unit of work that can be sent by message.

    Subclass it and define :meth:`run`, or let ``@app.task`` do so.  Options that are ``None`` here
    take their value from the configuration when the task is bound to an app.
    """

    __trace__: Any = None
    __v2_compat__ = False
    __header__: Any
    __wrapped__: Any

    MaxRetriesExceededError = MaxRetriesExceededError
    OperationalError = OperationalError

    #: How the worker treats messages of this task, as ``"module:name"``.
    Strategy: ClassVar[Any] = "celery_clone.worker.strategy:default"
    #: The parent's view of one message of this task, as ``"module:name"``.
    Request: ClassVar[Any] = "celery_clone.worker.request:Request"

    _app: Any = None
    #: Name on the wire.
    name: Any = None
    #: Check the arguments of a call before it is sent?
    typing: bool | None = None
    #: Retries before giving up; ``None`` for no end.
    max_retries: int | None = 3
    #: Seconds before a retry that names no time.
    default_retry_delay: float = 3 * 60
    #: Runs per time on each worker: ``"100/m"``, or a number per second.
    rate_limit: Any = None
    #: Keep no result?
    ignore_result: Any = None
    #: Remember the calls that a run makes as its children?
    trail: bool = True
    #: Send events about this task?
    send_events: bool = True
    #: Keep errors even when results are ignored?
    store_errors_even_if_ignored: Any = None
    #: Name of the serializer of its calls.
    serializer: Any = None
    #: Seconds after which the process that runs it is killed.
    time_limit: Any = None
    #: Seconds after which ``SoftTimeLimitExceeded`` is raised in it.
    soft_time_limit: Any = None
    #: Store the state STARTED?
    track_started: Any = None
    #: Acknowledge after the run instead of before it?
    acks_late: Any = None
    acks_on_failure_or_timeout: Any = None
    acks_on_failure: Any = None
    acks_on_timeout: Any = None
    #: Give the message back when the process that ran it died?
    reject_on_worker_lost: Any = None
    #: Send a retry when the process that ran it died?
    retry_on_worker_lost: Any = None
    #: Errors that are expected of it: logged without a traceback.
    throws: Any = ()
    #: Seconds, or a time, after which a call that did not begin is dropped.
    expires: Any = None
    priority: Any = None
    #: Bound of the result's repr in logs and events, in characters.
    resultrepr_maxsize: int = 1024
    #: Stack of the requests that run in this context.
    request_stack: Any = None
    abstract = True

    _default_request: Context | None = None
    _exec_options: dict[str, Any] | None = None
    _dump_pydantic_arguments: Any = None
    _backend: Any = None
    __bound__ = False

    from_config: ClassVar[tuple[tuple[str, str], ...]] = (
        ("serializer", "task_serializer"),
        ("rate_limit", "task_default_rate_limit"),
        ("priority", "task_default_priority"),
        ("time_limit", "task_time_limit"),
        ("soft_time_limit", "task_soft_time_limit"),
        ("track_started", "task_track_started"),
        ("acks_late", "task_acks_late"),
        ("acks_on_failure_or_timeout", "task_acks_on_failure_or_timeout"),
        ("acks_on_failure", "task_acks_on_failure"),
        ("acks_on_timeout", "task_acks_on_timeout"),
        ("reject_on_worker_lost", "task_reject_on_worker_lost"),
        ("retry_on_worker_lost", "task_retry_on_worker_lost"),
        ("ignore_result", "task_ignore_result"),
        ("store_eager_result", "task_store_eager_result"),
        ("store_errors_even_if_ignored", "task_store_errors_even_if_ignored"),
    )

    # --- binding -----------------------------------------------------------

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Connect the task to *app* and take from its configuration what the task leaves open."""
        was_bound, cls.__bound__ = cls.__bound__, True
        cls._app = app
        cls._exec_options = None
        conf = app.conf
        if not was_bound:
            for attribute in ROUTING_ATTRIBUTES:
                if attribute in cls.__dict__:
                    deprecated.warn(
                        description=f"The {attribute!r} task attribute",
                        removal="6.0",
                        alternative="Use the task_routes setting instead.",
                    )
        if cls.typing is None:
            cls.typing = app.strict_typing
        for attribute, setting in cls.from_config:
            if getattr(cls, attribute, None) is None:
                setattr(cls, attribute, conf[setting])
        both = True if cls.acks_on_failure_or_timeout is None else cls.acks_on_failure_or_timeout
        if cls.acks_on_failure is None:
            cls.acks_on_failure = both
        if cls.acks_on_timeout is None:
            cls.acks_on_timeout = both
        if not was_bound:
            cls.annotate()
            cls.request_stack = LocalStack()
        cls.on_bound(app)
        return app

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Called when the class was bound to *app*; for subclasses."""

    @classmethod
    def _get_app(cls) -> Any:
        if cls._app is None:
            cls._app = current_app
        if not cls.__bound__:
            # The app's own Task class is bound through its attribute, its subclasses on first use.
            cls.bind(cls._app)
        return cls._app

    app = class_property(_get_app, bind)

    @classmethod
    def annotate(cls) -> None:
        """Apply the ``task_annotations`` setting."""
        for annotation in resolve_all_annotations(cls.app.annotations, cls):
            for key, value in annotation.items():
                if key.startswith("@"):
                    cls.add_around(key[1:], value)
                else:
                    setattr(cls, key, value)

    @classmethod
    def add_around(cls, attr: str, around: Any) -> None:
        """Replace the method *attr* by ``around(original)``."""
        original = getattr(cls, attr)
        replacement = around(original)
        replacement.__wrapped__ = getattr(original, "__wrapped__", original)
        setattr(cls, attr, replacement)

    # --- running -----------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task here and now, without a message.  That of an ``async def`` is awaited by the caller."""
        stack = self.request_stack
        running = stack.top
        if running is not None and not running.called_directly and not running._protected and len(stack) == 1:
            # A custom __call__ that the tracer called, calling super(): its request is in place already.
            running._protected = 1
            return self.run(*args, **kwargs)
        _task_stack.push(self)
        self.push_request(args=args, kwargs=kwargs)
        try:
            value = self.run(*args, **kwargs)
        finally:
            self.pop_request()
            _task_stack.pop()
        return self._awaited(value, args, kwargs) if type(value) is CoroutineType else value

    async def _awaited(self, coroutine: Any, args: Any, kwargs: Any) -> Any:
        """Await the body of a task that was called directly, as its current task."""
        _task_stack.push(self)
        self.push_request(args=args, kwargs=kwargs)
        try:
            return await coroutine
        finally:
            self.pop_request()
            _task_stack.pop()

    def __reduce__(self) -> Any:
        module = type(self).__module__
        module_name = module if module and module in sys.modules else None
        return (_unpickle_task_v2, (self.name, module_name), None)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The body of the task; subclasses define it."""
        raise NotImplementedError("Tasks must define the run method.")

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Any:
        """The message handler of this task in a worker."""
        return instantiate(self.Strategy, self, app, consumer, **kwargs)

    # --- calling -----------------------------------------------------------

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """Send a call with these arguments; the short form of :meth:`apply_async`."""
        return cast("AsyncResult", self.apply_async(args, kwargs))

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        """Send a call of this task.

        Arguments:
            args, kwargs: arguments of the task.
            task_id: id of the call; made when missing.
            producer: a kombu producer to send with, instead of the app's own.
            link, link_error: signatures to call when the run succeeds or fails.
            shadow: name shown in logs and monitors.
            options: ``countdown`` (seconds), ``eta``, ``expires`` (seconds or a time), ``queue``,
                ``exchange``, ``routing_key``, ``priority``, ``serializer``, ``compression``,
                ``time_limit`` and ``soft_time_limit`` (seconds), ``headers``, ``retry``,
                ``retry_policy``, ``ignore_result``, ``add_to_parent`` and whatever
                :meth:`kombu.Producer.publish` takes.

        Raises:
            TypeError: the arguments do not fit the task's function.
            ValueError: the soft time limit is above the hard one.
            kombu.exceptions.EncodeError: an argument cannot be serialised; nothing was sent.
            kombu.exceptions.OperationalError: the broker could not be reached in time.
        """
        if self.soft_time_limit and self.time_limit and self.soft_time_limit > self.time_limit:
            raise ValueError(
                f"soft_time_limit must be less than or equal to time_limit: task {self.name} has "
                f"{self.soft_time_limit} and {self.time_limit}. Lower soft_time_limit or raise time_limit."
            )
        app = self._get_app()
        if self.typing:
            check_arguments = getattr(self, "__header__", None)
            if check_arguments is not None:
                check_arguments(*(args or ()), **(kwargs or {}))
        shadow = shadow or self.shadow_name(args, kwargs, options)
        task_id = task_id or uuid()
        if (
            not (shadow or link or link_error or producer or self._dump_pydantic_arguments)
            and not app.conf.task_always_eager
            and app.amqp.send_alike(self, task_id, args, kwargs, options)
        ):
            result = self.AsyncResult(task_id)
            result.ignored = self.ignore_result
            if not (options or self.ignore_result):
                result.backend.on_task_sent(result)
            return result
        preset = self._exec_options
        if preset is None:
            preset = self._get_exec_options()
        options = {**preset, **options}
        if "queue" in options:
            # Celery sends such a call without a priority, where it sends others with 0.
            options.setdefault("priority", None)
        if self._dump_pydantic_arguments is not None and options.get("serializer") != "pickle":
            args, kwargs = self._dump_pydantic_arguments(args, kwargs)
        options.setdefault("ignore_result", self.ignore_result)
        if app.conf.task_always_eager:
            args, kwargs = app.amqp.through_the_serializer(args, kwargs, options.get("serializer"), producer)
            with denied_join_result():
                return self.apply(
                    args, kwargs, task_id=task_id, link=link, link_error=link_error, **options
                )
        return app.send_task(
            self.name,
            args,
            kwargs,
            task_id=task_id,
            producer=producer,
            link=link,
            link_error=link_error,
            result_cls=self.AsyncResult,
            shadow=shadow,
            task_type=self,
            **options,
        )

    def shadow_name(self, args: Any, kwargs: Any, options: Mapping[str, Any]) -> str | None:
        """The name to show for this call in logs and monitors; ``None`` for the task's own."""
        return None

    def signature_from_request(
        self,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        queue: Any = None,
        **extra_options: Any,
    ) -> Any:
        """The signature of the call that *request* (default: the running one) came from."""
        request = self.request if request is None else request
        args = request.args if args is None else args
        kwargs = request.kwargs if kwargs is None else kwargs
        options = {
            **request.as_execution_options(),
            "ignore_result": actual_ignore_result(self, request),
            **extra_options,
        }
        delivery_info = request.delivery_info or {}
        if delivery_info.get("priority") is not None:
            options["priority"] = delivery_info["priority"]
        if queue:
            options["queue"] = queue
        elif delivery_info.get("exchange") == "" and delivery_info.get("routing_key"):
            # Sent through the anonymous exchange: the routing key is the queue.
            options["queue"] = delivery_info["routing_key"]
        else:
            options.update(delivery_info)
        return self.signature(args, kwargs, options, type=self, **extra_options)

    subtask_from_request = signature_from_request

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Send the running call again, later, with the same id.

        Arguments:
            args, kwargs: new arguments; the running ones when missing.
            exc: the error to raise when no retry is left.
            throw: raise :exc:`Retry`, which ends the run; else return it.
            eta, countdown: when (a time, or seconds from now); default ``default_retry_delay``.
            max_retries: bound for this call; default the task's.

        Raises:
            Retry: always, unless *throw* is off.
            MaxRetriesExceededError: no retry is left and no *exc* was given.
            Reject: the retry could not be sent.
        """
        request = self.request
        retries = request.retries + 1
        if max_retries is not None:
            self.override_max_retries = max_retries
        limit = self.max_retries if max_retries is None else max_retries
        if request.called_directly:
            raise_with_context(exc or Retry("Task can be retried", None))
        if not eta and countdown is None:
            countdown = self.default_retry_delay
        args, kwargs = merge_retry_arguments(self.run, request, args, kwargs)
        again = self.signature_from_request(
            request, args, kwargs, countdown=countdown, eta=eta, retries=retries, **options
        )
        if limit is not None and retries > limit:
            if exc:
                raise_with_context(exc)
            raise self.MaxRetriesExceededError(
                f"Can't retry {self.name}[{request.id}] args:{again.args} kwargs:{again.kwargs}",
                task_args=again.args,
                task_kwargs=again.kwargs,
            )
        sentinel = Retry(exc=exc, when=eta or countdown, is_eager=request.is_eager, sig=again)
        if not request.is_eager:
            # An eager run is retried by apply(), which reads the signature off the sentinel.
            try:
                again.apply_async()
            except Exception as error:
                raise Reject(error, requeue=False) from error
        if throw:
            raise sentinel
        return sentinel

    def apply(
        self,
        args: Any = None,
        kwargs: Any = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        retries: int | None = None,
        throw: bool | None = None,
        logfile: str | None = None,
        loglevel: int | None = None,
        headers: Any = None,
        **options: Any,
    ) -> EagerResult:
        """Run the task in this process, with everything around it that a worker does.

        With *throw* (default: the setting ``task_eager_propagates``) errors are raised here.
        """
        app = self._get_app()
        args, kwargs = args or (), kwargs or {}
        task_id, retries = task_id or uuid(), retries or 0
        if throw is None:
            throw = app.conf.task_eager_propagates
        parent = _task_stack.top
        parent_request = parent.request if parent else None
        task = app._tasks[self.name]
        no_limit = self.time_limit is None and self.soft_time_limit is None
        request: dict[str, Any] = {
            "id": task_id,
            "task": self.name,
            "parent_id": parent_request.id if parent_request else None,
            "root_id": (parent_request.root_id or task_id) if parent_request else task_id,
            "retries": retries,
            "is_eager": True,
            "logfile": logfile,
            "loglevel": loglevel or 0,
            "hostname": socket.gethostname(),
            "callbacks": calls_back(link, "link"),
            "errbacks": calls_back(link_error, "link_error"),
            "headers": headers,
            "timelimit": None if no_limit else [self.time_limit, self.soft_time_limit],
            "ignore_result": options.get("ignore_result", self.ignore_result),
            "delivery_info": {
                "is_eager": True,
                "exchange": options.get("exchange"),
                "routing_key": options.get("routing_key"),
                "priority": options.get("priority"),
            },
        }
        if "stamped_headers" in options:
            names = maybe_list(options["stamped_headers"]) or []
            request["stamped_headers"] = names
            request["stamps"] = {name: maybe_list(options.get(name, [])) for name in names}
        value, state, traceback = app.run_eagerly(task, task_id, args, kwargs, request, propagate=throw)
        if isinstance(value, Retry) and value.sig is not None:
            return value.sig.apply(retries=retries + 1)  # type: ignore[no-any-return]  # a signature is untyped
        return EagerResult(task_id, value, state, traceback=traceback, name=self.name)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult:  # noqa: N802 Celery's name
        """The result of the call with this id."""
        # mypy cannot know the class that an app makes for itself.
        return self._get_app().AsyncResult(  # type: ignore[no-any-return]
            task_id, backend=self.backend, task_name=self.name, **kwargs
        )

    # --- signatures --------------------------------------------------------

    def signature(self, args: Any = None, *starargs: Any, **starkwargs: Any) -> Any:
        """A call of this task as a value: ``add.signature((2, 2), countdown=10)``."""
        starkwargs.setdefault("app", self.app)
        return signature(self, args, *starargs, **starkwargs)

    subtask = signature

    def s(self, *args: Any, **kwargs: Any) -> Any:
        """The signature with these arguments."""
        return self.signature(args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Any:
        """The immutable signature with these arguments: results of others are not added to it."""
        return self.signature(args, kwargs, immutable=True)

    def chunks(self, it: Any, n: int) -> Any:
        """Split the argument tuples *it* into calls that run *n* of them each."""
        return chunks(self.s(), it, n, app=self.app)

    def map(self, it: Any) -> Any:
        """One call that runs this task for each item of *it*."""
        return xmap(self.s(), it, app=self.app)

    def starmap(self, it: Any) -> Any:
        """One call that runs this task for each argument tuple of *it*."""
        return xstarmap(self.s(), it, app=self.app)

    # --- for the body of a bound task ---------------------------------------

    def send_event(
        self, type_: str, retry: bool = True, retry_policy: Mapping[str, Any] | None = None, **fields: Any
    ) -> Any:
        """Send a monitoring event about the running call."""
        request = self.request
        if retry_policy is None:
            retry_policy = self.app.conf.task_publish_retry_policy
        with self.app.events.default_dispatcher(hostname=request.hostname) as dispatcher:
            return dispatcher.send(type_, uuid=request.id, retry=retry, retry_policy=retry_policy, **fields)

    def replace(self, sig: Any) -> Any:
        """End the run and let *sig* take its place, with its id, callbacks, chord and stamps.

        Raises:
            Ignore: always, outside eager runs; it ends the run.
            ImproperlyConfigured: *sig* is part of a chord already, or an empty chain.
        """
        request = self.request
        chord = request.chord
        if "chord" in sig.options:
            raise ImproperlyConfigured(
                "A signature replacing a task must not be part of a chord. Remove its 'chord' option."
            )
        if isinstance(sig, _chain) and not getattr(sig, "tasks", True):
            raise ImproperlyConfigured("Cannot replace with an empty chain. Return a value instead.")
        if ends_in_group(sig):
            # A group has no end of its own, to have an id and to hang callbacks on: follow it by one.
            sig = followed(sig, self.app.tasks["celery.accumulate"].s(index=0))
        if request.stamps:
            inherit_stamps(sig, {name: request.stamps.get(name) for name in request.stamped_headers or ()})
        for callback in maybe_list(request.callbacks) or []:
            sig.link(callback)
        for errback in maybe_list(request.errbacks) or []:
            sig.link_error(errback)
        if isinstance(sig, _chain) and "link" in sig.options:
            # More steps may be added below; what follows the replacement must follow its own last step.
            sig.tasks[-1].options.setdefault("link", []).extend(maybe_list(sig.options.pop("link")))
        sig.freeze(request.id)
        nesting = request.get("replaced_task_nesting", 0) + 1
        sig.set(
            chord=chord,
            group_id=request.group,
            group_index=request.group_index,
            root_id=request.root_id,
            replaced_task_nesting=nesting,
        )
        if isinstance(sig, _chain):
            for step in sig.tasks or []:
                step.set(replaced_task_nesting=nesting)
        for each in reversed(request.chain or []):
            step = signature(each, app=self.app)
            step.set(replaced_task_nesting=nesting)
            sig |= step
        return self.on_replace(sig)

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:
        """Add a member to the chord that the running call is a member of.

        Raises:
            ValueError: the running call is not member of a chord.
        """
        request = self.request
        if not request.chord:
            raise ValueError(
                f"Current task {self.name}[{request.id}] is not member of any chord: call it in the header of one."
            )
        sig.set(
            group_id=request.group,
            group_index=request.group_index,
            chord=request.chord,
            root_id=request.root_id,
        )
        result = sig.freeze()
        self.backend.add_to_chord(request.group, result)
        return sig.delay() if not lazy else sig

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Store a state of the running call (or of *task_id*), with *meta* as its result."""
        if task_id is None:
            task_id = self.request.id
        self.backend.store_result(task_id, meta, state, request=self.request, **kwargs)

    def add_trail(self, result: Any) -> Any:
        """Remember *result* as a child of the running call."""
        if self.trail:
            self.request.children.append(result)
        return result

    # --- handlers, for subclasses -------------------------------------------

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called before the body, in the process that runs it."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called after the body returned and its result was stored."""

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the run ends in a retry."""

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the run failed."""

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Called after the run ended, whatever its state."""

    def on_replace(self, sig: Any) -> Any:
        """Called by :meth:`replace` with the finished replacement; sends it and ends the run."""
        if self.request.is_eager:
            # It was run here and now: there is nothing to wait for.
            return sig.apply().get(disable_sync_subtasks=False)
        sig.delay()
        return self._replaced()

    def _replaced(self) -> NoReturn:
        raise Ignore("Replaced by new task")

    # --- requests ----------------------------------------------------------

    def push_request(self, *args: Any, **kwargs: Any) -> None:
        """Make a request the current one."""
        self.request_stack.push(Context(*args, **{**self.request.__dict__, **kwargs}))

    def pop_request(self) -> None:
        """Undo :meth:`push_request`."""
        self.request_stack.pop()

    def _get_request(self) -> Any:
        stack = self.request_stack
        request = stack.top if stack is not None else None
        if request is None:
            # Not running: code outside a run may still read the defaults.
            if self._default_request is None:
                self._default_request = Context()
            return self._default_request
        return request

    request = property(_get_request)

    def _get_exec_options(self) -> dict[str, Any]:
        options = self._exec_options
        if options is None:
            found = {name: getattr(self, name, None) for name in EXECUTION_ATTRIBUTES}
            options = {name: value for name, value in found.items() if value is not None}
            type(self)._exec_options = options
        return options

    @property
    def backend(self) -> Any:
        """Where results of this task are stored; the app's backend unless set."""
        backend = self._backend
        return self.app.backend if backend is None else backend

    @backend.setter
    def backend(self, value: Any) -> None:
        self._backend = value

    @property
    def __name__(self) -> str:
        return cast(str, type.__getattribute__(type(self), "__name__"))

    def __repr__(self) -> str:
        flags = ["v2 compatible"] if self.__v2_compat__ else []
        return describe(
            self, "<@task: {0.name} of {app}>" if self._app is not None else "<unbound {0.__name__}>", flags
        )


BaseTask = Task
TaskType = type
