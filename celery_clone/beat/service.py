"""The loop of beat: a scheduler ticks in it until it is told to stop.

Run by ``apps.beat`` as a program and by ``beat.embedded`` inside a worker.
"""

from __future__ import annotations

import time
from functools import cached_property
from threading import Event
from typing import Any

from celery_clone import platforms, signals
from celery_clone.beat.persistent import PersistentScheduler
from celery_clone.beat.pidbox import BeatPidbox
from celery_clone.utils.imports import load_extension_class_names, symbol_by_name
from celery_clone.utils.log import get_logger
from celery_clone.utils.time import humanize_seconds

__all__ = ("Service",)

logger = get_logger("celery.beat")


class Service:
    """Has a scheduler tick until it is told to stop.

    Arguments:
        app: the app.
        max_interval: seconds to sleep at most; ``beat_max_loop_interval`` by default.
        schedule_filename: file of the persistent scheduler; ``beat_schedule_filename`` by default.
        scheduler_cls: scheduler, by itself, as ``"module:name"``, or by the name of an entry point.
        remote_control: answer ``inspect ping``?  ``beat_enable_remote_control`` by default.
        hostname: node name for that.
    """

    scheduler_cls: Any = PersistentScheduler

    def __init__(
        self,
        app: Any,
        max_interval: float | None = None,
        schedule_filename: str | None = None,
        scheduler_cls: Any = None,
        remote_control: bool | None = None,
        hostname: str | None = None,
    ) -> None:
        conf = app.conf
        self.app = app
        self.max_interval = max_interval or conf.beat_max_loop_interval
        self.scheduler_cls = scheduler_cls or self.scheduler_cls
        self.schedule_filename = schedule_filename or conf.beat_schedule_filename
        self.remote_control = conf.beat_enable_remote_control if remote_control is None else remote_control
        self.hostname = hostname
        #: What the scheduler chose; noted here, as the mailbox' thread must not make the scheduler.
        self.effective_max_interval: float | None = None
        self._last_tick: float | None = None
        self._pidbox: BeatPidbox | None = None
        self._asked_to_end = False
        self._is_shutdown = Event()
        self._is_stopped = Event()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.app,
            self.max_interval,
            self.schedule_filename,
            self.scheduler_cls,
            self.remote_control,
            self.hostname,
        )

    def start(self, embedded_process: bool = False) -> None:
        """Tick until :meth:`stop`, an interrupt or ``SystemExit``; then write down what ran."""
        logger.info("beat: Starting...")
        scheduler = self.scheduler
        logger.debug("beat: Ticking with max interval->%s", humanize_seconds(scheduler.max_interval))
        signals.beat_init.send(sender=self)
        if embedded_process:
            signals.beat_embedded_init.send(sender=self)
            platforms.set_process_title("celery beat")
        self.effective_max_interval = scheduler.max_interval
        if self.remote_control:
            self._pidbox = BeatPidbox(self)
            self._pidbox.start()
        # A beat that hangs in its first turn is stuck, too.
        self._last_tick = time.monotonic()
        try:
            while not (self._is_shutdown.is_set() or self._asked_to_end):
                interval = scheduler.tick()
                self._last_tick = time.monotonic()
                if interval and interval > 0.0 and not self._asked_to_end:
                    logger.debug("beat: Waking up %s.", humanize_seconds(interval, prefix="in "))
                    self._is_shutdown.wait(interval)
                    if scheduler.should_sync():
                        scheduler._do_sync()
        except (KeyboardInterrupt, SystemExit):
            self._is_shutdown.set()
        finally:
            # What ran is worth more than a proper goodbye: whoever ended us may not wait long.
            self.sync()
            if self._pidbox is not None:
                self._pidbox.stop()

    def sync(self) -> None:
        """Write down what ran, and let go of the broker."""
        self.scheduler.close()
        self._is_stopped.set()

    def stop(self, wait: bool = False) -> None:
        """Have :meth:`start` return; *wait* until it has written everything down."""
        logger.info("beat: Shutting down...")
        self._is_shutdown.set()
        if wait:
            self._is_stopped.wait()

    def end_soon(self) -> None:
        """For signal handlers: end, but not between noting a run and sending it, unless asked again.

        Raises:
            SystemExit: there is nothing to wait for.
        """
        asked_before, self._asked_to_end = self._asked_to_end, True
        if asked_before or not getattr(self.__dict__.get("scheduler"), "_sending", False):
            raise SystemExit(0)

    def get_scheduler(self, lazy: bool = False, extension_namespace: str = "celery.beat_schedulers") -> Any:
        """Make the scheduler; *lazy* for one to look at."""
        name = self.scheduler_cls
        if isinstance(name, str) and name.startswith("celery.beat"):
            name = f"celery_clone.beat{name.removeprefix('celery.beat')}"
        aliases = dict(load_extension_class_names(extension_namespace))
        return symbol_by_name(name, aliases=aliases)(
            app=self.app,
            schedule_filename=self.schedule_filename,
            max_interval=self.max_interval,
            lazy=lazy,
        )

    @cached_property
    def scheduler(self) -> Any:
        """The scheduler, made when it is first asked for."""
        return self.get_scheduler()
