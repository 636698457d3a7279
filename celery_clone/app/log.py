"""``app.log``: handlers, levels and formats of the loggers, from the settings.

Called by the programs (worker, beat) when they start, and by pool processes, which take
what the parent was told from ``CELERY_LOG_*``.  It replaces handlers of the root logger
unless the settings forbid it or a receiver of ``setup_logging`` does the work; the tree of
loggers itself is that of ``utils.log``.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from logging.handlers import WatchedFileHandler
from typing import Any

from celery_clone import signals
from celery_clone._state import get_current_task
from celery_clone.exceptions import CDeprecationWarning, CPendingDeprecationWarning
from celery_clone.local import class_property
from celery_clone.platforms import isatty
from celery_clone.utils.log import (
    ColorFormatter,
    LoggingProxy,
    get_logger,
    get_multiprocessing_logger,
    mlevel,
    reset_multiprocessing_logger,
)
from celery_clone.utils.nodenames import node_format
from celery_clone.utils.term import colored

__all__ = ("Logging", "TaskFormatter")

# Loggers whose own handlers would print a record a second time once the root logger has one.
_OWN_LOGGERS = ("celery", "celery.task", "celery.redirected")

UNKNOWN_TASK = "???"


class TaskFormatter(ColorFormatter):
    """Formats records of task loggers; fills in ``%(task_name)s`` and ``%(task_id)s``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; outside a task, name and id are question marks."""
        task = get_current_task()
        if task and task.request:
            record.__dict__.update(task_id=task.request.id, task_name=task.name)
        else:
            record.__dict__.setdefault("task_name", UNKNOWN_TASK)
            record.__dict__.setdefault("task_id", UNKNOWN_TASK)
        return super().format(record)


class Logging:
    """Sets up logging for *app*, once per process, whichever app comes first."""

    #: Was logging set up in this process?
    _setup = False

    def __init__(self, app: Any) -> None:
        self.app = app
        self.loglevel = mlevel(logging.WARNING)
        self.format = app.conf.worker_log_format
        self.datefmt = app.conf.worker_log_datefmt
        self.task_format = app.conf.worker_task_log_format
        self.task_datefmt = app.conf.worker_task_log_datefmt
        self.colorize = app.conf.worker_log_color

    def _was_set_up(cls) -> bool:  # noqa: N805 read by the property of the class below
        """Was logging set up in this process?  Set it to false to have it done again."""
        return bool(cls._setup)

    def _note_set_up(cls, was_set_up: bool) -> None:  # noqa: N805 as above
        cls._setup = was_set_up

    already_setup = class_property(_was_set_up, _note_set_up)

    # -- everything at once

    def setup(
        self,
        loglevel: int | str | None = None,
        logfile: Any = None,
        redirect_stdouts: bool = False,
        redirect_level: int | str = "WARNING",
        colorize: bool | None = None,
        hostname: str | None = None,
    ) -> Any:
        """Set up logging for a program and leave word for its child processes.

        Arguments:
            loglevel: level of the root logger, as a name or a number.
            logfile: path or open file; standard error without it.  ``%n``, ``%h``,
                ``%i`` and ``%I`` in a path are filled in.
            redirect_stdouts: turn what is printed into log records.
            redirect_level: the level of those.
            colorize: colour lines by level; by default if standard error is a terminal.
            hostname: node name for the fields of *logfile*.

        Returns:
            The answers of the receivers of ``setup_logging``; if there are any, nothing
            else was set up.  ``None`` if it had been set up before.
        """
        loglevel = mlevel(loglevel)
        handled = self.setup_logging_subsystem(loglevel, logfile, colorize=colorize, hostname=hostname)
        if redirect_stdouts and not handled:
            self.redirect_stdouts(redirect_level)
        os.environ.update(
            CELERY_LOG_LEVEL=str(loglevel) if loglevel else "",
            CELERY_LOG_FILE=logfile if isinstance(logfile, str) else "",
        )
        # Python hides deprecations outside of __main__, where nobody who runs a worker would see them.
        warnings.filterwarnings("always", category=CDeprecationWarning)
        warnings.filterwarnings("always", category=CPendingDeprecationWarning)
        logging.captureWarnings(True)
        return handled

    def setup_logging_subsystem(
        self,
        loglevel: int | str | None = None,
        logfile: Any = None,
        format: str | None = None,
        colorize: bool | None = None,
        hostname: str | None = None,
        datefmt: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Set up the root logger, that of the process library and that of tasks; see :meth:`setup`."""
        if self.already_setup:
            return None
        Logging._setup = True
        if isinstance(logfile, str) and hostname:
            logfile = node_format(logfile, hostname)
        loglevel = mlevel(loglevel or self.loglevel)
        format = format or self.format
        colorize = self.supports_color(colorize, logfile)
        reset_multiprocessing_logger()
        facts = {"loglevel": loglevel, "logfile": logfile, "format": format, "colorize": colorize}
        receivers = signals.setup_logging.send(sender=None, **facts)
        if not receivers:
            root = logging.getLogger()
            looks = {"format": format, "colorize": colorize, "datefmt": datefmt or self.datefmt, **kwargs}
            self._setup_root(root, logfile, loglevel, looks)
            process_level = loglevel if os.environ.get("MP_LOG") else logging.ERROR
            self._configure(get_multiprocessing_logger(), logfile, process_level, **looks)
            signals.after_setup_logger.send(sender=None, logger=root, **facts)
            self.setup_task_loggers(loglevel, logfile, colorize=colorize)
        # Read by billiard in a spawned process, before it knows any app.
        os.environ.update(
            _MP_FORK_LOGLEVEL_=str(loglevel),
            _MP_FORK_LOGFILE_=logfile if isinstance(logfile, str) else "",
            _MP_FORK_LOGFORMAT_=format,
        )
        return receivers

    def _setup_root(self, root: logging.Logger, logfile: Any, loglevel: Any, looks: dict[str, Any]) -> None:
        if self.app.conf.worker_hijack_root_logger:
            for logger in (root, *map(get_logger, _OWN_LOGGERS)):
                logger.handlers = []
        elif _has_handler(root):
            # The root logger is the application's, level and all; only our own records are let through.
            own = get_logger("celery")
            if own.level == logging.NOTSET:
                own.setLevel(loglevel)
            return
        self._configure(root, logfile, loglevel, **looks)

    def setup_task_loggers(
        self,
        loglevel: int | str | None = None,
        logfile: Any = None,
        format: str | None = None,
        colorize: bool | None = None,
        propagate: bool = False,
        datefmt: str | None = None,
        **kwargs: Any,
    ) -> logging.Logger:
        """Set up ``celery.task``, which tasks log to, with its own format; returns it.

        Its records do not go on to the root logger unless *propagate* is set.
        """
        loglevel = mlevel(loglevel or self.loglevel)
        format = format or self.task_format
        colorize = self.supports_color(colorize, logfile)
        logger = get_logger("celery.task")
        self._configure(
            logger,
            logfile,
            loglevel,
            format=format,
            colorize=colorize,
            formatter=TaskFormatter,
            datefmt=datefmt or self.task_datefmt,
            **kwargs,
        )
        logger.propagate = bool(propagate)
        signals.after_setup_task_logger.send(
            sender=None, logger=logger, loglevel=loglevel, logfile=logfile, format=format, colorize=colorize
        )
        return logger

    def _configure(self, logger: logging.Logger, logfile: Any, loglevel: Any, **looks: Any) -> None:
        self.setup_handlers(logger, logfile, **looks)
        logger.setLevel(loglevel)

    # -- handlers

    def setup_handlers(
        self,
        logger: logging.Logger,
        logfile: Any,
        format: str,
        colorize: bool | None,
        formatter: Any = ColorFormatter,
        datefmt: str | None = None,
        **kwargs: Any,
    ) -> logging.Logger:
        """Give *logger* a handler that writes to *logfile*, unless it has one; returns the logger."""
        if not _has_handler(logger):
            handler = self._handler_for(logfile)
            handler.setFormatter(formatter(format, use_color=colorize, datefmt=datefmt))
            logger.addHandler(handler)
        return logger

    def _handler_for(self, logfile: Any) -> logging.Handler:
        target: Any = sys.__stderr__ if logfile is None else logfile
        if hasattr(target, "write"):
            return logging.StreamHandler(target)
        # Watched: tools that rotate logs move the file away under us.
        return WatchedFileHandler(target, encoding="utf-8")

    def get_default_logger(self, name: str = "celery", **kwargs: Any) -> logging.Logger:
        """The logger called *name*."""
        return get_logger(name)

    # -- colours

    def supports_color(self, colorize: bool | None = None, logfile: Any = None) -> bool:
        """Whether to colour lines: if that is wanted, or not refused, and they go to a terminal."""
        colorize = self.colorize if colorize is None else colorize
        if self.app.IS_WINDOWS or colorize is False:
            return False
        return logfile is None and bool(isatty(sys.stderr))

    def colored(self, logfile: Any = None, enabled: bool | None = None) -> colored:
        """What makes coloured text for the program's own output."""
        return colored(enabled=self.supports_color(enabled, logfile))

    # -- standard output and error

    def redirect_stdouts(self, loglevel: int | str | None = None, name: str = "celery.redirected") -> None:
        """Turn what this process and its children print into records of the logger *name*."""
        self.redirect_stdouts_to_logger(get_logger(name), loglevel=loglevel)
        os.environ.update(CELERY_LOG_REDIRECT="1", CELERY_LOG_REDIRECT_LEVEL=str(loglevel or ""))

    def redirect_stdouts_to_logger(
        self,
        logger: logging.Logger,
        loglevel: int | str | None = None,
        stdout: bool = True,
        stderr: bool = True,
    ) -> LoggingProxy:
        """Turn what this process prints into records of *logger*; returns the file put in place."""
        proxy = LoggingProxy(logger, loglevel)
        if stdout:
            sys.stdout = proxy
        if stderr:
            sys.stderr = proxy
        return proxy


def _has_handler(logger: logging.Logger) -> bool:
    return any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers)
