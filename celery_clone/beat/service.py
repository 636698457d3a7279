"""The loop of beat: a scheduler ticks in it until it is told to stop.

Run by ``apps.beat`` as a program and by ``beat.embedded`` inside a worker.
"""

from __future__ import annotations

import time
from functools import cached_property
from threading import Event
from typing import Any

from kombu.exceptions import OperationalError

from celery_clone import platforms, signals
from celery_clone.beat.lease import POLL_S, Lease, open_lease
from celery_clone.beat.persistent import PersistentScheduler
from celery_clone.beat.pidbox import BeatPidbox, beat_nodename
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.imports import load_extension_class_names, symbol_by_name
from celery_clone.utils.log import get_logger
from celery_clone.utils.suggest import hint
from celery_clone.utils.time import humanize_seconds

__all__ = ("Service", "find_scheduler_class")

logger = get_logger("celery.beat")

WAITING = (
    "beat: Waiting, as another beat sends for this schedule: %s. This one goes on when that one ends. If they are "
    "different schedules, give each a beat_lease_name."
)

UNREACHABLE = "beat: Cannot connect to %s: %s. Trying again in %.0f seconds..."

UNREACHABLE_S = 2.0
"""How long to wait before a broker that cannot be reached is asked for the lease again."""


def find_scheduler_class(asked: Any, extension_namespace: str = "celery.beat_schedulers") -> Any:
    """The class of the scheduler *asked* for: a class, ``"module:Class"``, or the name of an entry point.

    Raises:
        ImproperlyConfigured: there is none.
    """
    if not isinstance(asked, str):
        return asked
    name = f"celery_clone.beat{asked.removeprefix('celery.beat')}" if asked.startswith("celery.beat") else asked
    aliases = dict(load_extension_class_names(extension_namespace))
    path = str(aliases.get(name, name))
    module = path.rpartition(":" if ":" in path else ".")[0] or path
    try:
        found = symbol_by_name(name, aliases=aliases)
        if callable(found):
            return found
        reason = f"{found!r} is no class"
    except (AttributeError, ValueError) as error:
        reason = str(error)
    except ModuleNotFoundError as error:
        # That a scheduler which is there lacks something is its own matter, and told with its traceback.
        if error.name != module and not module.startswith(f"{error.name}."):
            raise
        reason = str(error)
    known = f", or one of {', '.join(sorted(aliases))}" if aliases else ""
    raise ImproperlyConfigured(
        f"The scheduler {asked!r} cannot be found: {reason}.{hint(asked, aliases)} "
        f"Name its class as module:Class{known} (--scheduler, beat_scheduler)."
    )


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
        """Tick until :meth:`stop`, an interrupt or ``SystemExit``; then write down what ran.

        Where another beat sends for the same schedule, wait until that one is gone.
        """
        logger.info("beat: Starting...")
        if embedded_process:
            platforms.set_process_title("celery beat")
        # A beat that hangs in its first turn is stuck, too.
        self._last_tick = time.monotonic()
        lease = open_lease(self.app, self.scheduler_cls, beat_nodename(self.hostname))
        try:
            if self.remote_control:
                self._pidbox = BeatPidbox(self)
                self._pidbox.start()
            while not self._ending:
                if lease is None or self._wait_for(lease):
                    self._tick_until_the_end(lease, embedded_process)
        except (KeyboardInterrupt, SystemExit):
            self._is_shutdown.set()
        finally:
            # What ran is worth more than a proper goodbye: whoever ended us may not wait long.
            self.sync()
            if lease is not None:
                lease.let_go()
            if self._pidbox is not None:
                self._pidbox.stop()

    @property
    def _ending(self) -> bool:
        return self._is_shutdown.is_set() or self._asked_to_end

    def _wait_for(self, lease: Lease) -> bool:
        """Wait until the lease is ours; ``False``: we were told to end."""
        told = ""
        while not self._ending:
            self._last_tick = time.monotonic()
            try:
                if lease.take():
                    if told:
                        logger.warning("beat: Taking over from %s.", told)
                    return True
            except OperationalError as exc:
                reason = str(exc.__cause__ or exc).rstrip(".")
                logger.error(UNREACHABLE, lease.where, reason, UNREACHABLE_S)  # noqa: TRY400 said again and again
                self._is_shutdown.wait(UNREACHABLE_S)
                continue
            if lease.holder != told:
                told = lease.holder
                logger.warning(WAITING, told)
            self._is_shutdown.wait(lease.poll_s)
        return False

    def _tick_until_the_end(self, lease: Lease | None, embedded_process: bool) -> None:
        """Tick until told to end, or until the lease is lost."""
        scheduler = self.scheduler
        if lease is not None:
            scheduler.lease = lease
            try:
                lease.adopt(scheduler.schedule)
            except OperationalError as exc:
                logger.error("beat: Connection error: %s. Trying again...", exc)  # noqa: TRY400 it will be tried again
                return
        logger.debug("beat: Ticking with max interval->%s", humanize_seconds(scheduler.max_interval))
        signals.beat_init.send(sender=self)
        if embedded_process:
            signals.beat_embedded_init.send(sender=self)
        self.effective_max_interval = scheduler.max_interval
        while not self._ending:
            if lease is not None and not lease.keep():
                logger.warning("beat: The lease of the schedule was lost to %s: sending no more.", lease.holder)
                self.__dict__.pop("scheduler", None)
                scheduler.abandon()
                return
            interval = scheduler.tick()
            self._last_tick = time.monotonic()
            if interval and interval > 0.0 and not self._asked_to_end:
                logger.debug("beat: Waking up %s.", humanize_seconds(interval, prefix="in "))
                self._sleep(interval, lease)
                if scheduler.should_sync():
                    scheduler._do_sync()

    def _sleep(self, seconds: float, lease: Lease | None) -> None:
        """Sleep until something is to be done; the lease is kept meanwhile."""
        end = time.monotonic() + seconds
        while not self._ending:
            left = end - time.monotonic()
            if left <= 0 or not (lease is None or lease.keep()):
                return
            # Never long: what a signal handler raises may be lost, what it notes is not.
            self._is_shutdown.wait(min(left, POLL_S if lease is None else lease.poll_s))

    def sync(self) -> None:
        """Write down what ran, and let go of the broker."""
        scheduler = self.__dict__.get("scheduler")
        if scheduler is not None:
            scheduler.close()
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
        """Make the scheduler; *lazy* for one to look at.

        Raises:
            ImproperlyConfigured: its class is not there.
        """
        return find_scheduler_class(self.scheduler_cls, extension_namespace)(
            app=self.app,
            schedule_filename=self.schedule_filename,
            max_interval=self.max_interval,
            lazy=lazy,
        )

    @cached_property
    def scheduler(self) -> Any:
        """The scheduler, made when it is first asked for."""
        return self.get_scheduler()
