"""Exceptions to and from the form in which they are stored, and the calls of error callbacks.

Used by ``backends.backend`` and ``backends.chords``.  Knows no store; it may send tasks, since error
callbacks are tasks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from celery_clone.canvas import group
from celery_clone.exceptions import ChordError, NotRegistered, SecurityError
from celery_clone.execution.context import Context
from celery_clone.utils.functional import arity_greater
from celery_clone.utils.log import get_logger
from celery_clone.utils.serialization import create_exception_cls, ensure_serializable

__all__ = (
    "call_errbacks",
    "chord_error",
    "described",
    "exception_class",
    "fake_request",
    "restored",
    "stored_module",
)

logger = get_logger("celery.backends.base")

OURS = "celery_clone"
THEIRS = "celery"

LIBRARIES = frozenset({f"{OURS}.exceptions", "billiard.exceptions", "kombu.exceptions", "amqp.exceptions"})
"""Modules that are imported when a stored error names them.  Of any other module, only what the program
has imported itself is looked at: a stored text must not be able to import things."""

DEFAULT_MODULE = f"{OURS}.exceptions"


# -- names ------------------------------------------------------------------


def stored_module(module: str) -> str:
    """The name under which a module is stored: ours are written as Celery's, so that both can read them."""
    if module == OURS or module.startswith(OURS + "."):
        return THEIRS + module[len(OURS) :]
    return module


def local_module(module: str) -> str:
    """Undo :func:`stored_module`."""
    if module == THEIRS or module.startswith(THEIRS + "."):
        return OURS + module[len(THEIRS) :]
    return module


# -- exceptions to values and back ------------------------------------------


def described(exc: BaseException, encode: Callable[[Any], Any]) -> dict[str, Any]:
    """*exc* as the mapping that is stored; arguments that *encode* refuses become their ``repr``."""
    kind = type(exc)
    return {
        "exc_type": getattr(kind, "__qualname__", kind.__name__),
        "exc_message": ensure_serializable(exc.args, encode),
        "exc_module": stored_module(kind.__module__),
    }


def restored(stored: Any) -> BaseException | None:
    """The exception that *stored* describes; a class that is not known here is made up.

    Raises:
        TypeError, ValueError: *stored* does not describe an exception.
        SecurityError: it names something that is not an exception.
    """
    if not stored:
        return None
    if not isinstance(stored, Mapping):
        try:
            stored = dict(stored)
        except (TypeError, ValueError) as exc:
            raise TypeError(
                "If the stored exception isn't an instance of BaseException, it must be a dictionary.\n"
                f"Instead got: {stored}"
            ) from exc
    try:
        name = stored["exc_type"]
    except KeyError as exc:
        raise ValueError("Exception information must include the exception type") from exc
    module, message = stored.get("exc_module"), stored.get("exc_message", "")
    cls = exception_class(module, name)
    # Calling it before this is known would run whatever a stored text names, such as os.system.
    if not isinstance(cls, type) or not issubclass(cls, BaseException):
        kind = name if module is None else f"{module}.{name}"
        raise SecurityError(f"Expected an exception class, got {kind} with payload {message}")
    return instance(cls, tuple(message) if isinstance(message, (list, tuple)) else (message,))


def exception_class(module: str | None, name: str) -> Any:
    """What *name* is in *module*; a new exception class if there is nothing of that name."""
    if module is None:
        return create_exception_cls(name, __name__)
    place = local_module(module)
    found: Any = sys.modules.get(place)
    if found is None and place in LIBRARIES:
        found = import_module(place)
    if found is None:
        found = sys.modules.get(module)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        return create_exception_cls(name, place if place.startswith(OURS) else DEFAULT_MODULE)
    return found


def instance(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """An exception of *cls*, made without its constructor if that wants other arguments than it keeps."""
    try:
        return cls(*args)
    except Exception:  # noqa: BLE001 user code; whatever it raises, the type is still known
        try:
            made = cls.__new__(cls, *args)
            made.args = args
            str(made), repr(made)
        except Exception:  # noqa: BLE001 its text needs what the constructor would have set
            return Exception(f"{cls}({args})")
        return made


def chord_error(message: str, cause: BaseException | None = None) -> ChordError:
    """The error of a chord's body, with the error of the member as its cause."""
    error = ChordError(message)
    if isinstance(cause, Exception):
        error.__cause__ = cause
    return error


# -- error callbacks --------------------------------------------------------


def fake_request(task_id: str | None, errbacks: Any = None, task_name: str = "unknown", **extra: Any) -> Context:
    """A request for the error callbacks of a task that never ran."""
    return Context({"id": task_id, "errbacks": errbacks or [], "delivery_info": {}, "task": task_name, **extra})


def call_errbacks(app: Any, request: Any, exc: BaseException, traceback: str | None) -> None:
    """Call each error callback of *request* once.

    One that takes ``(request, exc, traceback)`` is called here; others are sent as tasks with the id
    of the failed task.  An error of one keeps none of the others from being called.
    """
    as_tasks = []
    for errback in request.errbacks or ():
        signature = app.signature(errback)
        if not signature._app:
            signature._app = app
        try:
            here = takes_failure(signature)
        except NotRegistered:
            here = False  # another worker may know it
        if not here:
            as_tasks.append(signature)
            continue
        try:
            signature(request, exc, traceback)
        except Exception:
            logger.exception("Errback %r raised an exception", signature.name)
    if as_tasks:
        send_errbacks(app, as_tasks, request)


def takes_failure(errback: Any) -> bool:
    """Does *errback* want more than the id of the task?  Then it is called in place.

    A bound task is always sent, because it may want to retry.
    """
    task = errback.type
    # What a task was made from; its ``__header__`` only checks arguments and tells none.
    function = getattr(task, "__wrapped__", None) if hasattr(task, "__header__") else None
    if function is None or getattr(function, "__self__", None) == task:
        return False
    if not errback.immutable and (errback.args or errback.kwargs):
        try:
            # What is stored on the signature is not asked for any more.
            return arity_greater(partial(function, *errback.args, **errback.kwargs), 1)
        except (TypeError, ValueError):
            pass  # the stored arguments do not fit; the call will say so
    return arity_greater(function, 1)


def send_errbacks(app: Any, errbacks: list[Any], request: Any) -> None:
    """Send error callbacks of the old kind: tasks that get the id of the failed one."""
    task_id = request.id
    options = {"parent_id": task_id, "root_id": request.root_id or task_id}
    together = group(errbacks, app=app)
    eager = app.conf.task_always_eager or (request.delivery_info or {}).get("is_eager", False)
    try:
        (together.apply if eager else together.apply_async)((task_id,), **options)
    except Exception:
        # Raised further, the failure would be handled a second time, and every callback called again.
        logger.exception("Errbacks %r of task %s could not be sent", errbacks, task_id)
