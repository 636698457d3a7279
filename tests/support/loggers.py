"""Loggers as they were: what setting logging up changes is one test's alone.

Used by tests that set it up in their own process: of logging, and of the worker program.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

CHANGED = (None, "celery", "celery.task", "celery.redirected", "multiprocessing")
"""The loggers that setting logging up changes; ``None`` is the root."""


@contextmanager
def loggers_restored(*names: str | None) -> Iterator[None]:
    """Give back handlers, level and propagation to these loggers, by default to all of :data:`CHANGED`."""
    loggers = [logging.getLogger(name) for name in names or CHANGED]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagates in before:
        for handler in [handler for handler in logger.handlers if handler not in handlers]:
            handler.close()
        logger.handlers = handlers
        logger.setLevel(level)
        logger.propagate = propagates
