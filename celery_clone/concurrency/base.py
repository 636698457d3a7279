"""What every pool has in common, and what pools written by others subclass.

Used by the pools of this package and by projects that name a class of their own with
``CELERY_CUSTOM_WORKER_POOL``.  A subclass has to write :meth:`BasePool.on_apply`; how the worker's jobs get
there is the business of ``concurrency.adapter``.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from billiard.einfo import ExceptionInfo

from celery_clone.exceptions import WorkerLostError, WorkerShutdown, WorkerTerminate, reraise
from celery_clone.utils import timer2
from celery_clone.utils.log import get_logger
from celery_clone.utils.saferepr import saferepr

from .adapter import JobsByCalls

__all__ = ("BasePool", "apply_target")

logger = get_logger("celery.pool")

LOGGED_CHARACTERS = 1024


def apply_target(
    target: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    callback: Callable[[Any], Any] | None = None,
    accept_callback: Callable[[int, float], Any] | None = None,
    pid: int | None = None,
    getpid: Callable[[], int] = os.getpid,
    propagate: tuple[type[BaseException], ...] = (),
    monotonic: Callable[[], float] = time.monotonic,
    **_: Any,
) -> None:
    """Call *target* here and give what it returns to *callback*.

    An ``Exception`` is the caller's; ``SystemExit`` and the like would end the worker, so *callback* gets
    them as the ``ExceptionInfo`` of a ``WorkerLostError``, unless they are the worker's own orders to end.
    """
    if accept_callback:
        accept_callback(pid or getpid(), monotonic())
    try:
        value = target(*args, **(kwargs or {}))
    except propagate:
        raise
    except (Exception, WorkerShutdown, WorkerTerminate):
        raise
    except BaseException as exc:  # noqa: BLE001 a task must not end the worker
        try:
            reraise(WorkerLostError, WorkerLostError(repr(exc)), sys.exc_info()[2])
        except WorkerLostError:
            value = ExceptionInfo()
    if callback:
        callback(value)


class BasePool(JobsByCalls):
    """A pool of *limit* processes, threads or greenlets."""

    RUN: ClassVar[int] = 0x1
    CLOSE: ClassVar[int] = 0x2
    TERMINATE: ClassVar[int] = 0x3

    #: The timer of workers that have no hub.
    Timer: Any = timer2.Timer

    #: May the pool be ended from within a signal handler?
    signal_safe: bool = True

    #: Does it run greenlets?
    is_green: bool = False

    #: Does it bound its calls with the worker's semaphore?
    uses_semaphore: bool = False

    #: Would waiting for a result inside a task block the pool?
    task_join_will_block: bool = True

    #: May the body of a message be handed over as a buffer?
    body_can_be_buffer: bool = False

    _state: int | None = None
    _pool: Any = None

    def __init__(
        self,
        limit: int | None = None,
        putlocks: bool = True,
        forking_enable: bool = True,
        callbacks_propagate: tuple[type[BaseException], ...] = (),
        app: Any = None,
        **options: Any,
    ) -> None:
        self.limit: Any = limit
        self.putlocks = putlocks
        self.options = options
        self.forking_enable = forking_enable
        self.callbacks_propagate = callbacks_propagate
        self.app = app

    # -- for subclasses

    def on_start(self) -> None:
        """Called by :meth:`start`."""

    def did_start_ok(self) -> bool:
        """Has no process failed to start so far?"""
        return True

    def flush(self) -> None:
        """Called when the connection to the broker was lost."""

    def on_stop(self) -> None:
        """Called by :meth:`stop`: wait for what runs."""

    def register_with_event_loop(self, loop: Any) -> None:
        """Called before the loop runs, to register descriptors."""

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:
        """Called by :meth:`apply_async`: have the function called."""

    def on_terminate(self) -> None:
        """Called by :meth:`terminate`: end what runs."""

    def on_close(self) -> None:
        """Called by :meth:`close`: take nothing more."""

    def on_soft_timeout(self, job: Any) -> None:
        """Called when a job has reached its soft time limit."""

    def on_hard_timeout(self, job: Any) -> None:
        """Called when a job has reached its hard time limit."""

    def maintain_pool(self, *args: Any, **kwargs: Any) -> None:
        """Called now and then, to replace dead processes."""

    def terminate_job(self, pid: int, signal: int | None = None) -> Any:
        """End what runs in *pid*."""
        raise NotImplementedError(f"{type(self)} does not implement kill_job")

    def restart(self) -> None:
        """Replace the processes."""
        raise NotImplementedError(f"{type(self)} does not implement restart")

    # -- life

    def start(self) -> None:
        """Start."""
        self.prepare()
        self.on_start()
        self._state = self.RUN

    def close(self) -> None:
        """Take nothing more."""
        self._state = self.CLOSE
        self.on_close()

    def stop(self, *, deadline: float | None = None) -> None:
        """Wait for what runs, and end.  Jobs that have not begun are taken back."""
        self.recall()
        self.on_stop()
        self.unbind()
        self._state = self.TERMINATE

    def terminate(self) -> None:
        """End without waiting."""
        self._state = self.TERMINATE
        self.recall()
        self.on_terminate()
        self.unbind()

    @property
    def active(self) -> bool:
        """Was it started, and neither closed nor ended?"""
        return self._state == self.RUN

    # -- calls

    def apply_async(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Have ``target(*args, **kwargs)`` called in the pool.

        *options* are those of the pool; all know ``callback`` (given what it returns) and ``accept_callback``
        (given pid and monotonic time when it begins).  Callbacks hold up the thread they are called in.
        """
        args, kwargs = args or [], kwargs or {}
        if logger.isEnabledFor(logging.DEBUG):
            shown = (saferepr(value, LOGGED_CHARACTERS) for value in (args, kwargs))
            logger.debug("TaskPool: Apply %s (args:%s kwargs:%s)", target, *shown)
        options = {
            "waitforslot": self.putlocks,
            "callbacks_propagate": self.callbacks_propagate,
            **options,
        }
        return self.on_apply(target, args, kwargs, **options)

    # -- facts

    def _get_info(self) -> dict[str, Any]:
        """What :attr:`info` shows; subclasses add to it.  Values must fit into JSON."""
        return {
            "implementation": f"{type(self).__module__}:{type(self).__name__}",
            "max-concurrency": self.limit,
        }

    @property
    def info(self) -> dict[str, Any]:
        """Configuration and numbers, for ``inspect stats``."""
        return self._get_info()

    @property
    def num_processes(self) -> Any:
        """How many calls can run at once."""
        return self.limit
