"""The logger tree, and the stream that turns prints into records.

Called by nearly every module for its logger, by tasks for theirs
(:func:`get_task_logger`) and by ``app.log`` to set everything up.
It may not configure anything on import beyond giving the loggers a place in the
tree: handlers, levels and formats are the business of ``app.log``.

Every logger of the house inherits from ``celery``, every task logger from
``celery.task``; users configure and silence them by these names.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from celery_clone import platforms
from celery_clone.utils.term import colored

__all__ = (
    "ColorFormatter",
    "LoggingProxy",
    "base_logger",
    "set_in_sighandler",
    "in_sighandler",
    "get_logger",
    "get_task_logger",
    "mlevel",
    "get_multiprocessing_logger",
    "reset_multiprocessing_logger",
    "iter_open_logger_fds",
    "current_process",
    "current_process_index",
    "LOG_LEVELS",
)

#: Level numbers by name and names by number.
LOG_LEVELS: dict[Any, Any] = {
    **{logging.getLevelName(level): level for level in (0, 10, 20, 30, 40, 50)},
    **{level: logging.getLevelName(level) for level in (0, 10, 20, 30, 40, 50)},
    "WARN": logging.WARNING,
    "FATAL": logging.FATAL,
}

RESERVED_LOGGER_NAMES = frozenset({"celery", "celery.task"})

_process_aware = False
_in_sighandler = False


# -- the tree --------------------------------------------------------------


def _quiet_logger(name: str) -> logging.Logger:
    """Return the logger, which stays silent instead of printing until it is set up."""
    found = logging.getLogger(name)
    if not found.handlers:
        found.addHandler(logging.NullHandler())
    return found


base_logger = logger = _quiet_logger("celery")

HOUSE = __name__.partition(".")[0]


def logger_isa(logger: logging.Logger, ancestor: logging.Logger) -> bool:
    """Tell whether records of ``logger`` pass through ``ancestor``.

    Raises :exc:`RuntimeError` if the parents of ``logger`` form a circle.
    """
    passed: set[logging.Logger] = set()
    current: logging.Logger | None = logger
    while current is not None:
        if current is ancestor:
            return True
        if current in passed:
            raise RuntimeError(
                f"Logger {logger.name!r} is its own ancestor: its records would never stop. Fix its parent."
            )
        passed.add(current)
        current = current.parent
    return False


def _placed_under(parent: logging.Logger, child: logging.Logger) -> logging.Logger:
    if not logger_isa(child, parent):
        child.parent = parent
    return child


def get_logger(name: str) -> logging.Logger:
    """Return the logger called ``name``; one below the top level inherits from ``celery``.

    Modules of this package, which give their ``__name__``, log under Celery's: ``celery.worker.strategy`` and
    the like are what people configure.
    """
    package, dot, module = name.partition(".")
    found = _quiet_logger(f"celery.{module}" if dot and package == HOUSE else name)
    if found is base_logger or logging.root in (found, found.parent):
        return found
    return _placed_under(base_logger, found)


task_logger = get_logger("celery.task")
worker_logger = get_logger("celery.worker")


def get_task_logger(name: str) -> logging.Logger:
    """Return a logger for the tasks of a module, below ``celery.task``.

    Its records can show ``%(task_id)s`` and ``%(task_name)s`` while a task runs.
    Raises :exc:`RuntimeError` for the names the house itself uses.
    """
    if name in RESERVED_LOGGER_NAMES:
        raise RuntimeError(f"Logger name {name!r} is reserved! Use the name of your module: __name__.")
    return _placed_under(task_logger, get_logger(name))


def mlevel(level: int | str | None) -> Any:
    """Return the number of a log level given by name; numbers are returned as they are.

    Raises :exc:`KeyError` for an unknown name.
    """
    return LOG_LEVELS[level.upper()] if level and isinstance(level, str) else level


def iter_open_logger_fds() -> Iterator[Any]:
    """Yield the stream of every handler of every logger, each handler once."""
    seen: set[int] = set()
    known: list[Any] = [*logging.Logger.manager.loggerDict.values(), logging.getLogger()]
    for known_logger in known:
        for handler in getattr(known_logger, "handlers", ()):  # place holders have none
            if id(handler) not in seen and hasattr(handler, "stream"):
                seen.add(id(handler))
                yield handler.stream


# -- process signals -------------------------------------------------------


def set_in_sighandler(value: bool) -> None:
    """Say whether the main thread is inside a handler of a process signal."""
    global _in_sighandler
    _in_sighandler = value


@contextmanager
def in_sighandler() -> Iterator[None]:
    """Mark the body as running inside a handler of a process signal.

    Logging may hold a lock there, so prints go to the real standard error.
    """
    set_in_sighandler(True)
    try:
        yield
    finally:
        set_in_sighandler(False)


# -- formatting ------------------------------------------------------------


class ColorFormatter(logging.Formatter):
    """Formats records, coloured by level if ``use_color`` is set."""

    #: Names of the colours of a terminal.
    COLORS = colored().names

    #: Colour of each level; levels not named stay plain.
    colors = {
        "DEBUG": COLORS["blue"],
        "WARNING": COLORS["yellow"],
        "ERROR": COLORS["red"],
        "CRITICAL": COLORS["magenta"],
    }

    def __init__(self, fmt: str | None = None, use_color: bool = True, datefmt: str | None = None) -> None:
        super().__init__(fmt, datefmt)
        self.use_color = use_color

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return the traceback text; a bare true value means the exception being handled."""
        return super().formatException(ei if not ei or isinstance(ei, tuple) else sys.exc_info())

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        color = self.colors.get(record.levelname) if self.use_color else None
        return text if color is None else str(color(text))


class _Recursion(threading.local):
    """Whether this thread is already writing to a logger through a proxy."""

    inside = False


class LoggingProxy:
    """A file-like object whose lines become records of ``logger``.

    Stands in for standard output and error of a worker, so that what tasks
    print is found in the log.
    """

    mode = "w"
    name: str | None = None
    closed = False
    loglevel: int = logging.ERROR
    encoding = "utf-8"
    _thread = _Recursion()

    def __init__(self, logger: logging.Logger, loglevel: int | str | None = None) -> None:
        self.logger = logger
        self.loglevel = mlevel(loglevel or self.logger.level or self.loglevel)
        self._report_errors_to_real_stderr()

    def _report_errors_to_real_stderr(self) -> None:
        """Keep the errors of the handlers away from this proxy, which would feed them back."""
        for handler in self.logger.handlers:
            handler.handleError = _print_error  # type: ignore[method-assign]

    def write(self, data: str | bytes) -> int:
        """Log ``data`` without its line ends; return the number of characters logged."""
        text = data.decode(errors="replace") if isinstance(data, bytes) else str(data)
        if _in_sighandler:
            print(text, file=sys.__stderr__)
            return len(text)
        if self.closed or self._thread.inside:
            return 0
        text = text.rstrip("\n")
        if not text:
            return 0
        self._thread.inside = True
        try:
            self.logger.log(self.loglevel, text)
        finally:
            self._thread.inside = False
        return len(text)

    def writelines(self, sequence: Iterable[str]) -> None:
        """Log each of the texts."""
        for part in sequence:
            self.write(part)

    def flush(self) -> None:
        """Do nothing: every write is logged at once."""

    def close(self) -> None:
        """Drop what is written from now on."""
        self.closed = True

    def isatty(self) -> bool:
        """Return false: a log is not a terminal."""
        return False


def _print_error(record: logging.LogRecord) -> None:
    """Print the error of a handler to the standard error the process was started with."""
    try:
        traceback.print_exc(None, sys.__stderr__)
    except OSError:
        pass  # standard error is gone: there is nobody left to tell


# -- processes -------------------------------------------------------------


def get_multiprocessing_logger() -> logging.Logger:
    """Return the logger of the process library."""
    return platforms.multiprocessing_util.get_logger()  # type: ignore[no-any-return]


def reset_multiprocessing_logger() -> None:
    """Make the process library set its logger up again, as a fresh process must."""
    if hasattr(platforms.multiprocessing_util, "_logger"):
        platforms.multiprocessing_util._logger = None


def current_process() -> Any:
    """Return the object of the process this code runs in."""
    return platforms.current_process()


def current_process_index(base: int = 1) -> int | None:
    """Return the number of this pool process, counted from ``base``; ``None`` in the parent."""
    index = getattr(current_process(), "index", None)
    return None if index is None else index + base
