"""The tree of errors and warnings, and the billiard, kombu and click errors users catch with them.

Raised and caught everywhere; the lowest floor, so it may import nothing of the package.

The errors that belong to other libraries are fetched when they are first asked for: loading
billiard, kombu and click would cost more time than all the rest of ``import celery_clone``.
"""

from __future__ import annotations

import pickle
from datetime import datetime
from importlib import import_module
from numbers import Number
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
    from click import ClickException
    from kombu.exceptions import OperationalError

__all__ = (
    "AlreadyRegistered",
    "AlwaysEagerIgnored",
    "BackendError",
    "BackendGetMetaError",
    "BackendStoreError",
    "CDeprecationWarning",
    "CPendingDeprecationWarning",
    "CeleryCommandException",
    "CeleryError",
    "CeleryWarning",
    "ChordError",
    "DuplicateNodenameWarning",
    "DuplicateTaskNameWarning",
    "FixupWarning",
    "Ignore",
    "ImproperlyConfigured",
    "IncompleteStream",
    "InvalidTaskError",
    "MaxRetriesExceededError",
    "NotConfigured",
    "NotRegistered",
    "OperationalError",
    "QueueNotFound",
    "Reject",
    "Retry",
    "RetryTaskError",
    "SecurityError",
    "SecurityWarning",
    "SoftTimeLimitExceeded",
    "SystemTerminate",
    "TaskError",
    "TaskPredicate",
    "TaskRevokedError",
    "Terminated",
    "TimeLimitExceeded",
    "TimeoutError",
    "WorkerLostError",
    "WorkerShutdown",
    "WorkerTerminate",
    "reraise",
)


def reraise(tp: type[BaseException], value: BaseException, tb: TracebackType | None = None) -> NoReturn:
    """Raise *value* with *tb* as its traceback.  *tp* is its type, kept for callers of ``exc_info()``."""
    if value.__traceback__ is not tb:
        raise value.with_traceback(tb)
    raise value


# -- warnings


class CeleryWarning(UserWarning):
    """Base of all warnings of this package."""


class AlwaysEagerIgnored(CeleryWarning):
    """``send_task`` was called with ``task_always_eager`` on.

    A task called by name has no code here, so the message is sent.  Call the task object instead.
    """


class DuplicateNodenameWarning(CeleryWarning):
    """Two workers answer to the same node name.

    Give each its own with ``-n``: replies to remote control cannot be told apart otherwise.
    """


class DuplicateTaskNameWarning(CeleryWarning):
    """Two functions were registered under one task name; the later one is ignored.

    Rename one, or pass ``name=`` to the decorator.
    """


class FixupWarning(CeleryWarning):
    """A fixup (for instance Django's) could not be set up completely."""


class NotConfigured(CeleryWarning):
    """No configuration module was found, so the defaults are in force.

    Provide ``celeryconfig.py`` or set ``CELERY_CONFIG_MODULE``.
    """


class SecurityWarning(CeleryWarning):
    """The configuration works but is unsafe."""


class CPendingDeprecationWarning(PendingDeprecationWarning):
    """Something will be deprecated in a later version."""


class CDeprecationWarning(DeprecationWarning):
    """Something is deprecated and will be removed."""


# -- errors


class CeleryError(Exception):
    """Base of all errors of this package."""


class ImproperlyConfigured(CeleryError):
    """A setting is missing, unknown or contradicts another one."""


class SecurityError(CeleryError):
    """A message could not be signed, or its signature is not trusted."""


# -- how a task may end itself without failing


class TaskPredicate(CeleryError):
    """Base of the exceptions that tell the worker how to end a task, rather than that it failed."""


class Ignore(TaskPredicate):
    """Raise it in a task to end without storing a state or a result."""


class Reject(TaskPredicate):
    """Raise it in a task with ``acks_late`` to refuse its message.

    ``reason`` is logged; with ``requeue`` the broker delivers the message again, without it the
    message is dropped or goes to the dead-letter exchange of its queue.
    """

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:
        self.reason = reason
        self.requeue = requeue
        super().__init__(reason, requeue)

    def __repr__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"


class Retry(TaskPredicate):
    """The task was sent again and will be tried later.  Raised by ``Task.retry``.

    ``exc`` is the exception that made it necessary, ``excs`` the repr of it (a plain text given as
    *exc* is kept there).  ``when`` is the delay in seconds, or the time, of the next try.
    ``is_eager`` tells that the caller runs the task in place, and ``sig`` what to run then.
    """

    #: Why the task is retried, in words.
    message: str | None = None
    #: The exception that caused the retry.
    exc: BaseException | None = None
    #: Seconds until the next try, or the time of it.
    when: float | datetime | None = None

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | str | None = None,
        when: float | datetime | None = None,
        is_eager: bool = False,
        sig: Any = None,
        **kwargs: Any,
    ) -> None:
        self.message = message
        self.excs: str | None
        if isinstance(exc, str):
            self.exc, self.excs = None, exc
        else:
            self.exc, self.excs = exc, None if exc is None else _text_of(exc)
        self.when = when
        self.is_eager = is_eager
        self.sig = sig
        super().__init__(message, exc, when, **kwargs)

    def humanize(self) -> str:
        """Say when the next try is: ``in 10s``, or ``at`` the given time."""
        return f"in {self.when}s" if isinstance(self.when, Number) else f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        return f"Retry {self.humanize()}: {self.excs}" if self.excs else f"Retry {self.humanize()}"

    def __reduce__(self) -> tuple[Any, ...]:
        # A cause that cannot cross to another process travels as its text: the retry itself must.
        cause = self.exc if self.exc is not None and _survives_pickling(self.exc) else self.excs
        return type(self), (self.message, cause, self.when)


#: Old name of :class:`Retry`.
RetryTaskError = Retry


# -- errors around a task


class TaskError(CeleryError):
    """Base of the errors that concern one task."""


class QueueNotFound(KeyError, TaskError):
    """A task was routed to a queue that is not in ``task_queues``.

    Declare it there, or allow automatic queues with ``task_create_missing_queues = True``.
    """


class IncompleteStream(TaskError):
    """A stream of data ended before the data was complete."""


class NotRegistered(KeyError, TaskError):
    """No task of this name is registered in this process.

    Import the module that defines it: list it in ``imports`` or ``include``, or use
    ``app.autodiscover_tasks()``.
    """

    def __repr__(self) -> str:
        return f"Task of kind {self} never registered, please make sure it's imported."


class AlreadyRegistered(TaskError):
    """A task of this name is registered already."""


class TimeoutError(TaskError):
    """The operation took longer than the caller was ready to wait."""


class MaxRetriesExceededError(TaskError):
    """The task was retried ``max_retries`` times and did not succeed.

    ``task_args`` and ``task_kwargs`` are the arguments it was called with.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.task_args = kwargs.pop("task_args", [])
        self.task_kwargs = kwargs.pop("task_kwargs", {})
        super().__init__(*args, **kwargs)


class TaskRevokedError(TaskError):
    """The task was revoked, so there is no result."""


class InvalidTaskError(TaskError):
    """A message does not describe a task that can be run."""


class ChordError(TaskError):
    """A member of a chord's header failed, so the body cannot run."""


# -- errors of result stores


class BackendError(Exception):
    """The result store could not be read or written."""


class BackendGetMetaError(BackendError):
    """The result of ``task_id`` could not be read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args)
        self.task_id: str = kwargs.get("task_id", "")

    def __repr__(self) -> str:
        return f"{super().__repr__()} task_id:{self.task_id}"


class BackendStoreError(BackendError):
    """The result of ``task_id`` could not be written as ``state``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args)
        self.state: str = kwargs.get("state", "")
        self.task_id: str = kwargs.get("task_id", "")

    def __repr__(self) -> str:
        return f"{super().__repr__()} state:{self.state} task_id:{self.task_id}"


# -- how a worker is asked to end


class WorkerTerminate(SystemExit):
    """The worker shall end at once, without waiting for running tasks."""


#: Old name of :class:`WorkerTerminate`.
SystemTerminate = WorkerTerminate


class WorkerShutdown(SystemExit):
    """The worker shall take no more tasks, finish the running ones and end."""


# -- errors that live elsewhere

if TYPE_CHECKING:

    class CeleryCommandException(ClickException):
        """A command failed; the program ends with ``exit_code``."""

        def __init__(self, message: str, exit_code: int) -> None: ...


#: Name to the module it is fetched from, once somebody asks for it.
_ELSEWHERE = {
    "OperationalError": "kombu.exceptions",
    "SoftTimeLimitExceeded": "billiard.exceptions",
    "Terminated": "billiard.exceptions",
    "TimeLimitExceeded": "billiard.exceptions",
    "WorkerLostError": "billiard.exceptions",
}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        found = getattr(import_module(_ELSEWHERE[name]), name)
    elif name == "CeleryCommandException":
        found = _command_exception()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _command_exception() -> type[Exception]:
    """Make the error class of commands.  click must be loaded to subclass its exception."""
    base: type[Any] = import_module("click.exceptions").ClickException

    def __init__(self: Any, message: str, exit_code: int) -> None:  # noqa: N807
        base.__init__(self, message)
        self.exit_code = exit_code

    def __reduce__(self: Any) -> tuple[Any, ...]:  # noqa: N807
        return type(self), (self.message, self.exit_code)

    return type(
        "CeleryCommandException",
        (base,),
        {
            "__doc__": "A command failed; the program ends with ``exit_code``.",
            "__module__": __name__,
            "__init__": __init__,
            "__reduce__": __reduce__,
        },
    )


def _text_of(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception as fault:  # noqa: BLE001 (the repr is the user's code)
        return f"<{type(error).__qualname__}: its repr raised {type(fault).__qualname__}>"


def _survives_pickling(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (pickling runs the user's code)
        return False
    return True
