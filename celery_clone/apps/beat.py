"""Beat as a program: its banner, its logging, and what process signals do to it.

Made as ``app.Beat`` by ``celery beat``, run once per process, in its main thread.  What beat does is in
``beat``.
"""

from __future__ import annotations

import socket
import sys
from datetime import datetime
from types import FrameType
from typing import Any

from celery_clone import beat, platforms
from celery_clone._version import VERSION_BANNER
from celery_clone.apps.start_report import tell_up
from celery_clone.utils.imports import qualname
from celery_clone.utils.log import LOG_LEVELS, get_logger
from celery_clone.utils.time import humanize_seconds

__all__ = ("Beat",)

logger = get_logger("celery.beat")

STARTUP_INFO = """\
LocalTime -> {timestamp}
Configuration ->
    . broker -> {conninfo}
    . loader -> {loader}
    . scheduler -> {scheduler}
{scheduler_info}
    . logfile -> {logfile}@%{loglevel}
    . maxinterval -> {hmax_interval} ({max_interval}s)
{remote_control_info}"""


class Beat:
    """Beat that owns its process.

    Arguments:
        max_interval: seconds to sleep at most.
        app: the app.
        socket_timeout: seconds after which a socket that does not answer is given up; 0 for never.
        pidfile: file to keep a second one away.
        no_color: ``True`` for no colours; ``None`` to let the terminal decide.
        loglevel, logfile: of the log.
        schedule: file of the persistent scheduler.
        scheduler, scheduler_cls: class of the scheduler.
        redirect_stdouts, redirect_stdouts_level: turn what is printed into log records.
        quiet: print no banner?
        remote_control: answer ``inspect ping``?
        hostname: node name for that.
    """

    Service = beat.Service
    app: Any = None

    def __init__(
        self,
        max_interval: float | None = None,
        app: Any = None,
        socket_timeout: float = 30,
        pidfile: str | None = None,
        no_color: bool | None = None,
        loglevel: Any = "WARN",
        logfile: str | None = None,
        schedule: str | None = None,
        scheduler: Any = None,
        scheduler_cls: Any = None,
        redirect_stdouts: bool | None = None,
        redirect_stdouts_level: Any = None,
        quiet: bool = False,
        remote_control: bool | None = None,
        hostname: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.app = app = app or self.app
        either = app.either
        self.loglevel = loglevel if isinstance(loglevel, int) else LOG_LEVELS[loglevel.upper()]
        self.logfile = logfile
        self.schedule = either("beat_schedule_filename", schedule)
        self.scheduler_cls = either("beat_scheduler", scheduler, scheduler_cls)
        self.redirect_stdouts = either("worker_redirect_stdouts", redirect_stdouts)
        self.redirect_stdouts_level = either("worker_redirect_stdouts_level", redirect_stdouts_level)
        self.quiet = quiet
        self.remote_control = remote_control
        self.hostname = hostname
        self.max_interval = max_interval
        self.socket_timeout = socket_timeout
        self.no_color = no_color
        self.colored = app.log.colored(logfile, enabled=None if no_color is None else not no_color)
        self.pidfile = pidfile

    def run(self) -> None:
        """Run until a process signal ends it."""
        if not self.quiet:
            print(self.colored.cyan(f"celery beat v{VERSION_BANNER} is starting."), flush=True)
        self.init_loader()
        self.set_process_title()
        self.start_scheduler()

    def init_loader(self) -> None:
        """Import the tasks."""
        self.app.loader.init_worker()
        self.app.finalize()

    def set_process_title(self) -> None:
        """Show what this is in lists of processes."""
        words = sys.argv[2:] if "manage" in sys.argv[0] else sys.argv[1:]
        platforms.set_process_title("celery beat", info=" ".join(words))

    def start_scheduler(self) -> None:
        """Make the service and run it.

        Raises:
            Exception: what ended beat, after it was logged.
        """
        lock = platforms.create_pidlock(self.pidfile) if self.pidfile else None
        service = self.Service(
            app=self.app,
            max_interval=self.max_interval,
            scheduler_cls=self.scheduler_cls,
            schedule_filename=self.schedule,
            remote_control=self.remote_control,
            hostname=self.hostname,
        )
        if not self.quiet:
            print(self.banner(service), flush=True)
        self.setup_logging()
        if self.socket_timeout:
            logger.debug("Setting default socket timeout to %r", self.socket_timeout)
            socket.setdefaulttimeout(self.socket_timeout)
        try:
            self.install_sync_handler(service)
            tell_up()
            service.start()
        except Exception as exc:
            logger.critical("beat raised exception %s: %r", type(exc), exc, exc_info=True)
            raise
        finally:
            if lock is not None:
                lock.release()

    def setup_logging(self, colorize: bool | None = None) -> None:
        """Set up logging."""
        if colorize is None and self.no_color is not None:
            colorize = not self.no_color
        self.app.log.setup(
            self.loglevel,
            self.logfile,
            self.redirect_stdouts,
            self.redirect_stdouts_level,
            colorize=colorize,
        )

    def banner(self, service: Any) -> str:
        """A picture, and :meth:`startup_info`."""
        paint = self.colored
        dash = paint.magenta("-")
        picture = paint.blue("__    ", dash, paint.blue("    ... __   "), dash, paint.blue("        _\n"))
        return f"{picture}{paint.reset(self.startup_info(service))}"

    def startup_info(self, service: Any) -> str:
        """Where tasks go, by which scheduler, and where it remembers them."""
        scheduler = service.get_scheduler(lazy=True)
        node = beat.beat_nodename(service.hostname)
        return STARTUP_INFO.format(
            timestamp=datetime.now().replace(microsecond=0),
            conninfo=self.app.connection().as_uri(),
            loader=qualname(self.app.loader),
            scheduler=qualname(scheduler),
            scheduler_info=scheduler.info,
            logfile=self.logfile or "[stderr]",
            loglevel=LOG_LEVELS[self.loglevel],
            hmax_interval=humanize_seconds(scheduler.max_interval),
            max_interval=scheduler.max_interval,
            remote_control_info=f"    . remote control -> {node}" if service.remote_control else "",
        )

    def install_sync_handler(self, service: Any) -> None:
        """Have TERM and INT end beat, which writes down what ran."""

        def end(signum: int, frame: FrameType | None) -> None:
            service.end_soon()

        platforms.signals.update(SIGTERM=end, SIGINT=end)
