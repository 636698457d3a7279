"""Beat inside a worker (``worker -B``): a process or a thread that ends with it.

Made by ``worker.components``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from threading import Thread
from typing import Any

from billiard.context import Process

from celery_clone import platforms
from celery_clone.beat.service import Service, find_scheduler_class
from celery_clone.utils.log import get_logger, iter_open_logger_fds

__all__ = ("EmbeddedService",)

logger = get_logger("celery.beat")

STOP_S = 10.0
"""What an embedded beat gets to end by itself."""


class ThreadedService(Thread):
    """Beat in a thread."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(name="Beat", daemon=True)
        self.app = app
        self.service = Service(app, **kwargs)

    def run(self) -> None:
        """Tick until stopped."""
        self.app.set_current()
        self.service.start()

    def stop(self) -> None:
        """End, and wait until what ran is written down.  Legal early and twice."""
        self.service.stop(wait=False)
        if self.is_alive():
            self.join(STOP_S)


class ProcessService(Process):
    """Beat in a process of its own, which ends with its parent."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(name="Beat")
        self.app = app
        self.service = Service(app, **kwargs)

    def run(self) -> None:
        """Tick until told to stop by TERM."""
        platforms.set_pdeathsig("SIGTERM")
        platforms.signals.reset("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT")
        # Ctrl-C is sent to all processes of a terminal; the worker tells us when it is our turn.
        platforms.signals.ignore("SIGINT")
        platforms.signals["SIGTERM"] = lambda signum, frame: self.service.end_soon()
        platforms.close_open_fds([*standard_streams(), *iter_open_logger_fds()])
        self.app.set_default()
        self.app.set_current()
        self.service.start(embedded_process=True)

    def stop(self) -> None:
        """End it; one that does not react is killed.  Legal early and twice."""
        self.service.stop()
        if self._popen is None or not self.is_alive():
            return
        self.terminate()
        self.join(STOP_S)
        if self.is_alive():
            logger.error("beat: The embedded scheduler did not end within %s seconds and is killed.", STOP_S)
            os.kill(self.pid, platforms.signals.signum("SIGKILL"))
            self.join(STOP_S)


def standard_streams() -> Iterable[Any]:
    """The streams that the process was started with."""
    return [stream for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__) if stream is not None]


def EmbeddedService(app: Any, max_interval: float | None = None, **kwargs: Any) -> Any:  # noqa: N802 Celery's name
    """A beat for use inside a worker: a process, or with ``thread=True`` a thread.

    Other arguments are those of :class:`Service`.  It does not answer pings unless asked to: the worker does.

    Raises:
        ImproperlyConfigured: the class of the scheduler is not there.
    """
    # Here, where somebody is told; in its process it would be a traceback among the log of a worker that goes on.
    kwargs["scheduler_cls"] = find_scheduler_class(kwargs.get("scheduler_cls"))
    kwargs.setdefault("remote_control", False)
    if kwargs.pop("thread", False):
        return ThreadedService(app, max_interval=max_interval or 1, **kwargs)
    return ProcessService(app, max_interval=max_interval, **kwargs)
