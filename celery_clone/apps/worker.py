"""The worker as a program: its banner, its logging, and what process signals do to it.

Made as ``app.Worker`` by ``celery worker``, started once per process, in its main thread.
A signal handler only says what happens and nudges the worker; the worker's loop acts on it.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import cache
from importlib import import_module
from types import FrameType
from typing import Any, NamedTuple

from billiard.common import REMAP_SIGTERM

from celery_clone import platforms, signals
from celery_clone._version import VERSION_BANNER
from celery_clone.app.trace import setup_worker_optimizations
from celery_clone.apps.start_report import tell_made, tell_up
from celery_clone.loaders.app import AppLoader
from celery_clone.platforms import EX_FAILURE, EX_OK, check_privileges, isatty
from celery_clone.utils import static, term
from celery_clone.utils.debug import cry
from celery_clone.utils.imports import qualname
from celery_clone.utils.log import get_logger, in_sighandler
from celery_clone.utils.text import pluralize
from celery_clone.utils.time import humanize_seconds
from celery_clone.worker.lifecycle import Nudge, Phase
from celery_clone.worker.worker import WorkController

__all__ = ("Worker",)

# That of the system: eventlet puts another into os, which may not be called where signals are handled.
write_now = vars(sys.modules.get("posix") or os)["write"]

logger = get_logger("celery.apps.worker")

ARTLINES = (
    " --------------",
    "--- ***** -----",
    "-- ******* ----",
    "- *** --- * ---",
    "- ** ----------",
    "- ** ----------",
    "- ** ----------",
    "- ** ----------",
    "- *** --- * ---",
    "-- ******* ----",
    "--- ***** -----",
    " --------------",
)
ART_INDENT = " " * 16

BANNER = """\
{hostname} v{version}

{platform} {timestamp}

[config]
.> app:         {app}
.> transport:   {transport}
.> results:     {results}
.> concurrency: {concurrency}
.> task events: {events}

[queues]
{queues}
"""

EVENTS_OFF = "OFF (enable -E to monitor tasks in this worker)"

AGAIN_FOR_COLD = "worker: Hitting Ctrl+C again will initiate cold shutdown, terminating all running tasks!"
AGAIN_FOR_KILL = "worker: Hitting Ctrl+C again will terminate all running tasks!"
WARM = "worker: Warm shutdown (MainProcess)"
SOFT = "worker: Soft shutdown (MainProcess), running tasks have {seconds:g} seconds to finish"
COLD = "worker: Cold shutdown (MainProcess)"
DEAD = "worker: Killed (MainProcess)"


class Push(NamedTuple):
    """What a process signal does."""

    nudge: Nudge
    exitcode: int


PUSHES = {
    "SIGTERM": Push(Nudge.QUIT, EX_FAILURE) if REMAP_SIGTERM == "SIGQUIT" else Push(Nudge.TERM, EX_OK),
    "SIGQUIT": Push(Nudge.QUIT, EX_FAILURE),
    "SIGINT": Push(Nudge.INT, EX_FAILURE),
}

WORDS: dict[Phase, tuple[str, ...]] = {
    Phase.WARM: (WARM,),
    Phase.SOFT: (AGAIN_FOR_KILL, SOFT),
    Phase.COLD: (AGAIN_FOR_KILL, COLD),
    Phase.DEAD: (DEAD,),
}
"""What is said when a phase is entered."""


def safe_say(msg: str, f: Any = None) -> None:
    """Write a line past every buffer and lock, as a signal handler must; nothing if that is impossible."""
    target: Any = sys.__stderr__ if f is None else f
    try:
        write_now(target.fileno(), f"\n{msg}\n".encode())
    except (AttributeError, ValueError, OSError):
        pass  # no such stream, or nobody reads it: the worker ends all the same


def described_platform() -> str:
    """System, release, machine and C library, as :func:`platform.platform` has it.

    That one starts another program to learn the name of the processor, which takes a while.
    """
    if platforms.SYSTEM != "Linux":
        return platform.platform()
    system = os.uname()
    library = "".join(platform.libc_ver())
    return f"{system.sysname}-{system.release}-{system.machine}" + (f"-with-{library}" if library else "")


class Worker(WorkController):
    """A worker that owns its process.

    Arguments are those of :class:`~celery_clone.worker.WorkController`, and:

    Arguments:
        quiet: print no banner?
        purge: delete all waiting tasks before the start?
        no_color: ``True`` for no colours; ``None`` to let the terminal decide.
        redirect_stdouts, redirect_stdouts_level: turn what is printed into log records.
        executable: the Python that runs after a restart; the running one without it.
    """

    quiet = False
    executable: str | None = None
    autoscale: Any = None

    # -- hooks of the controller, in the order they are called

    def on_before_init(self, quiet: bool = False, **kwargs: Any) -> None:
        """Before the options are read: receivers of ``celeryd_init`` may change them and the settings."""
        self.quiet = quiet
        _restart_at_exit()
        setup_worker_optimizations(self.app, self.hostname)
        signals.celeryd_init.send(sender=self.hostname, instance=self, conf=self.app.conf, options=kwargs)
        check_privileges(self.app.conf.accept_content)

    def on_after_init(
        self,
        purge: bool = False,
        no_color: bool | None = None,
        redirect_stdouts: bool | None = None,
        redirect_stdouts_level: Any = None,
        executable: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the options of the program."""
        self.redirect_stdouts = self.app.either("worker_redirect_stdouts", redirect_stdouts)
        self.redirect_stdouts_level = self.app.either("worker_redirect_stdouts_level", redirect_stdouts_level)
        self.purge = purge
        self.no_color = no_color
        self.executable = executable
        self._isatty = isatty(sys.stdout)
        self.colored = self.app.log.colored(self.logfile, enabled=None if no_color is None else not no_color)

    def on_init_blueprint(self) -> None:
        """Set up logging, then the tasks: their modules may log."""
        self._custom_logging = self.setup_logging()
        setup_worker_optimizations(self.app, self.hostname)

    def on_start(self) -> None:
        """Everything is made and nothing runs yet."""
        super().on_start()
        tell_made()
        conf = self.app.conf
        # Receivers may still change queues, for instance.
        signals.celeryd_after_setup.send(sender=self.hostname, instance=self, conf=conf)
        if self.purge:
            self.purge_messages()
        if not self.quiet:
            self.emit_banner()
        self.set_process_status("-active-")
        self.install_platform_tweaks(self)
        if not self._custom_logging and self.redirect_stdouts:
            self.app.log.redirect_stdouts(self.redirect_stdouts_level)
        # The settings of a Django project are its own matter; they are not rewritten by `celery upgrade`.
        from_django = str(self.app._config_source).lower() == "django.conf:settings"
        if not from_django and conf.maybe_warn_deprecated_settings():
            logger.warning(
                "Please run `celery upgrade settings path/to/settings.py` to avoid these warnings and to allow "
                "a smoother upgrade to Celery 6.0."
            )

    def on_consumer_ready(self, consumer: Any) -> None:
        """Tasks can be received."""
        tell_up()
        signals.worker_ready.send(sender=consumer)
        logger.info("%s ready.", self.hostname)

    # -- parts of the start

    def setup_logging(self, colorize: bool | None = None) -> Any:
        """Set up logging; returns true if a receiver of ``setup_logging`` did."""
        if colorize is None and self.no_color is not None:
            colorize = not self.no_color
        return self.app.log.setup(
            self.loglevel, self.logfile, redirect_stdouts=False, colorize=colorize, hostname=self.hostname
        )

    def purge_messages(self) -> None:
        """Delete the tasks that wait in the consumed queues."""
        with self.app.connection_for_write() as connection:
            self._connect(connection)
            count = self.app.control.purge(connection=connection)
        if count:
            print(f"purge: Erased {count} {pluralize(count, 'message')} from the queue.\n", flush=True)

    def _connect(self, connection: Any) -> None:
        conf = self.app.conf
        retry = conf.broker_connection_retry_on_startup
        if not (conf.broker_connection_retry if retry is None else retry):
            connection.connect()
            return

        def report(exc: BaseException, interval: float) -> None:
            when = humanize_seconds(interval, "in", " ")
            logger.error("purge: Connection error: %s. Trying again %s...", exc, when)

        connection.ensure_connection(report, conf.broker_connection_max_retries)

    def emit_banner(self) -> None:
        """Print what this worker is, past the redirection of standard output."""
        with_picture = term.supports_images()
        if with_picture:
            print(term.imgcat(static.logo()), file=sys.__stdout__)
        info = self.colored.cyan(" \n", self.startup_info(artlines=not with_picture))
        text = f"{info}{self.colored.reset(self.extra_info() or '')}"
        encoding = getattr(sys.__stdout__, "encoding", None) or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=sys.__stdout__, flush=True)

    def startup_info(self, artlines: bool = True) -> str:
        """The banner: versions, where tasks come from and results go to, and the queues."""
        lines = BANNER.format(
            hostname=self.hostname,
            version=VERSION_BANNER,
            platform=described_platform(),
            timestamp=datetime.now().replace(microsecond=0),
            app=self._described_app(),
            transport=self.app.connection().as_uri(),
            results=self.app.backend.as_uri(),
            concurrency=self._described_concurrency(),
            events="ON" if self.task_events else EVENTS_OFF,
            queues=self.app.amqp.queues.format(indent=0, indent_first=False),
        ).splitlines()
        if artlines:
            art = [f"{line} " for line in ARTLINES] + [ART_INDENT] * len(lines)
            lines = [f"{ornament}{line}" for ornament, line in zip(art, lines, strict=False)]
        return "\n".join(lines) + "\n"

    def _described_app(self) -> str:
        app = self.app
        text = f"{app.main or '__main__'}:{id(app):#x}"
        if isinstance(app.loader, AppLoader):
            return text
        package, found, name = qualname(app.loader).partition(".loaders.")
        return f"{text} ({name if found else package})"

    def _described_concurrency(self) -> str:
        count = str(self.concurrency)
        if self.autoscale:
            highest, lowest = self.autoscale
            count = f"{{min={lowest}, max={highest}}}"
        pool = self.pool_cls if isinstance(self.pool_cls, str) else self.pool_cls.__module__
        return f"{count} ({pool.rpartition('.')[2]})"

    def extra_info(self) -> str | None:
        """The list of tasks, at the levels INFO and DEBUG (there with those of the package itself)."""
        if self.loglevel is None or self.loglevel > logging.INFO:
            return None
        return f"\n[tasks]\n{self.tasklist(include_builtins=self.loglevel <= logging.DEBUG)}\n"

    def tasklist(self, include_builtins: bool = True, sep: str = "\n", int_: str = "celery.") -> str:
        """The names of the tasks, a line each; *int_* begins those of the package itself."""
        names = sorted(self.app.tasks)
        return sep.join(f"  . {name}" for name in names if include_builtins or not name.startswith(int_))

    def set_process_status(self, info: str) -> Any:
        """Show the node name and *info* in lists of processes."""
        return platforms.set_mp_process_title(
            "celeryd", info=f"{info} ({platforms.strargv(sys.argv)})", hostname=self.hostname
        )

    # -- process signals

    def install_platform_tweaks(self, worker: Any) -> None:
        """Install the handlers of process signals."""
        if self.app.IS_macOS:
            self.macOS_proxy_detection_workaround()
        for name, push in PUSHES.items():
            platforms.signals[name] = shutdown_handler(worker, name, push)
        # Closing the terminal must not send the worker into the background.
        if not self._isatty:
            platforms.signals["SIGHUP"] = restart_handler(worker)
        platforms.signals["SIGUSR1"] = say_stacks
        if os.environ.get("CELERY_RDBSIG"):
            platforms.signals["SIGUSR2"] = debug_handler()

    def macOS_proxy_detection_workaround(self) -> None:  # noqa: N802 Celery's name
        """Keep macOS from asking for proxies, which it cannot do in a forked process."""
        os.environ.setdefault("celery_dummy_proxy", "set_by_celeryd")


# -- handlers of process signals

Handler = Callable[[int, "FrameType | None"], None]


def shutdown_handler(worker: Worker, name: str, push: Push) -> Handler:
    """Return the handler of the signal *name*, which ends *worker* further."""
    owner = os.getpid()

    def end_further(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            return  # a child that has not set up its own handlers yet; its parent was told too
        with in_sighandler():
            _restart_command.clear()  # the last word counts: whoever ends a worker does not want it back
            before = worker.phase
            phase = worker.nudge(push.nudge, push.exitcode)
            if before is Phase.RUNNING and push.nudge is Nudge.INT:
                safe_say(AGAIN_FOR_COLD, sys.__stdout__)
            seconds = float(worker.app.conf.worker_soft_shutdown_timeout or 0)
            for words in WORDS.get(phase, ()):
                safe_say(words.format(seconds=seconds), sys.__stdout__)
            if phase is Phase.DEAD:
                kill(worker)
            if phase is not before:
                how = "Warm" if phase is Phase.WARM else "Cold"
                signals.worker_shutting_down.send(sender=worker.hostname, sig=name, how=how, exitcode=push.exitcode)

    return end_further


def kill(worker: Worker) -> None:
    """End the processes of the pool and this one at once, with nothing put in order."""
    info = worker.pool.info if worker.pool is not None else {}
    for pid in info.get("processes", ()):
        if pid != os.getpid():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass  # it has ended already
    os._exit(EX_FAILURE)


_restart_command: list[str] = []
"""The program to become when this process has ended, if any."""


def _restart_if_asked() -> None:
    if _restart_command:
        platforms.close_open_fds([sys.__stdin__, sys.__stdout__, sys.__stderr__])
        os.execvp(_restart_command[0], _restart_command)
    # From here on Python takes its handlers away, and a signal that comes late would change the exit status.
    for name in PUSHES:
        signal.signal(getattr(signal, name), signal.SIG_IGN)


@cache
def _restart_at_exit() -> None:
    """Have the process look for a restart when it ends.  Once: what is registered first runs last."""
    atexit.register(_restart_if_asked)


def restart_handler(worker: Worker) -> Handler:
    """Return the handler that ends *worker* warm and then runs the same command line again."""
    command = [worker.executable or sys.executable, *sys.orig_argv[1:]]
    owner = os.getpid()

    def restart(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            return
        with in_sighandler():
            safe_say(f"Restarting celery worker ({' '.join(sys.argv)})", sys.__stdout__)
            _restart_command[:] = command
            worker.nudge(Nudge.TERM, EX_OK)

    return restart


def say_stacks(signum: int, frame: FrameType | None) -> None:
    """Signal handler: write what every thread is doing to standard error."""
    with in_sighandler():
        safe_say(cry())


def debug_handler() -> Handler:
    """Return the handler that opens a debugger, to be reached with telnet, where the worker stands."""
    rdb = import_module("celery_clone.contrib.rdb")

    def debug(signum: int, frame: FrameType | None) -> None:
        with in_sighandler():
            rdb.set_trace(frame)

    return debug
