"""``celery worker``: from options to a worker.

Called by ``bin.celery``.  It turns options into arguments of ``app.Worker`` and runs that; everything
that a worker does is in ``apps.worker`` and below.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click
from click import ParamType
from click.core import ParameterSource
from click.types import StringParamType

from celery_clone import concurrency
from celery_clone.app.settings import parse_assignment
from celery_clone.apps.start_report import StartReport
from celery_clone.exceptions import CeleryCommandException, ImproperlyConfigured, SecurityError
from celery_clone.platforms import EX_FAILURE, EX_OK, create_pidlock, detached, maybe_drop_privileges
from celery_clone.utils.log import get_logger
from celery_clone.utils.nodenames import default_nodename, host_format, node_format
from celery_clone.utils.sysinfo import AUTO_CONCURRENCY, is_auto_concurrency

from .base import (
    COMMA_SEPARATED_LIST,
    LOG_LEVEL,
    CeleryDaemonCommand,
    CeleryOption,
    handle_preload_options,
)

if TYPE_CHECKING:
    _ValueType = ParamType[Any]
else:
    _ValueType = ParamType

__all__ = (
    "AUTOSCALE",
    "CELERY_BEAT",
    "HOSTNAME",
    "WORKERS_POOL",
    "Autoscale",
    "CeleryBeat",
    "Hostname",
    "WorkersPool",
    "detach",
    "worker",
)

logger = get_logger("celery.bin.worker")

DETACHED_PID = "CELERY_DETACHED_PID"
"""Environment variable with the id of the process that went into the background and started itself anew."""

C_FAKEFORK = os.environ.get("C_FAKEFORK")
"""Debugging aid: do everything that ``--detach`` does, but stay in the foreground."""

FEATURES = {
    "autoscale": ("--autoscale", "celery_clone.worker.autoscale"),
    "beat": ("-B", "celery_clone.beat"),
    "heartbeat_interval": ("--heartbeat-interval", "celery_clone.worker.consumer.heart"),
    "task_events": ("-E", "celery_clone.worker.consumer.events"),
}
"""Options that are of use only where this module is installed: parameter to (spelling, module)."""


class CeleryBeat(_ValueType):
    """The flag for the embedded beat."""

    name = "beat"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value and ctx is not None and ctx.obj.app.IS_WINDOWS:
            self.fail("-B option does not work on Windows: run `celery beat` as a service of its own.", param, ctx)
        return value


class WorkersPool(click.Choice[Any]):
    """The name of a pool, converted to its class.

    A pool that is not asked for is the one of the setting ``worker_pool``.
    """

    name = "pool"

    def __init__(self) -> None:
        super().__init__(concurrency.get_available_pool_names())

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, type):
            return value
        chosen = super().convert(value, param, ctx)
        if ctx is not None and param is not None and param.name is not None:
            asked = ctx.get_parameter_source(param.name)
            if asked in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP):
                chosen = ctx.obj.app.conf.worker_pool or chosen
        try:
            return concurrency.get_implementation(chosen)
        except ImproperlyConfigured as error:
            self.fail(str(error), param, ctx)


class Hostname(StringParamType):
    """The name of a node, completed and with its ``%h``, ``%n`` and ``%d`` filled in."""

    name = "hostname"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return host_format(default_nodename(value))


class Autoscale(_ValueType):
    """``10,3`` or ``10``: the largest and the smallest number of processes, as a tuple in this order."""

    name = "<min workers>, <max workers>"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        parts = value.split(",") if isinstance(value, str) else [*value]
        try:
            numbers = sorted((int(part) for part in parts), reverse=True)
        except (TypeError, ValueError):
            self.fail(f"Expected one or two integers, separated by a comma. Got {value!r} instead.", param, ctx)
        if len(numbers) > 2 or numbers[-1] < 0:
            self.fail(f"Expected one or two numbers from 0 up. Got {value!r} instead.", param, ctx)
        return (*numbers, 0)[:2]


CELERY_BEAT = CeleryBeat()
WORKERS_POOL = WorkersPool()
HOSTNAME = Hostname()
AUTOSCALE = Autoscale()


def _concurrency(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """A number, ``"auto"``, or ``None`` to leave it to the settings (also for 0)."""
    if not value:
        return None
    if is_auto_concurrency(value):
        return AUTO_CONCURRENCY
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number < 0:
        raise click.BadParameter(f"must be a non-negative integer or 'auto', got {value!r}", ctx, param)
    return number or None


def _not_negative(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """A number from 0 up, or ``None`` to leave it to the settings."""
    if value is not None and value < 0:
        raise click.BadParameter(f"must be a number from 0 up, got {value:g}", ctx, param)
    return value


def detach(
    path: str,
    argv: Sequence[str],
    logfile: str | None = None,
    pidfile: str | None = None,
    uid: int | str | None = None,
    gid: int | str | None = None,
    umask: int | str | None = None,
    workdir: str | None = None,
    fake: bool | int = False,
    app: Any = None,
    executable: str | None = None,
    hostname: str | None = None,
) -> int:
    """Go into the background and become the program *executable* (else *path*) with the words *argv*.

    *logfile* must be writable and *pidfile* not in use, since nobody would see an error later; the other
    options are those of :func:`celery_clone.platforms.detached`.  Returns an exit code if the program
    cannot be started; where it can, this does not return.
    """
    node = default_nodename(hostname)
    logfile = node_format(logfile, node) if logfile else None
    pidfile = node_format(pidfile, node) if pidfile else None
    program = executable or path
    fake = bool(fake or C_FAKEFORK)
    if pidfile and not fake:
        # Here, while the exit code that tells of a second one is still ours to give.
        create_pidlock(pidfile).release()
    report = None if fake else StartReport("worker", logfile)
    with detached(logfile, pidfile, uid, gid, umask, workdir, fake, report, after_forkers=False):
        os.environ[DETACHED_PID] = str(os.getpid())
        try:
            os.execvp(program, [program, *argv])
        except OSError:
            # The terminal is gone: what went wrong can only be told in the log file.
            if app is not None:
                app.log.setup_logging_subsystem("ERROR", logfile, hostname=node)
            logger.critical("Can't exec %r", " ".join([program, *argv]), exc_info=True)
            return EX_FAILURE


def _is_detached() -> bool:
    """Are we what :func:`detach` started?  Programs that we start inherit the mark, but not our id."""
    return os.environ.get(DETACHED_PID) == str(os.getpid())


def _refuse_missing_features(options: dict[str, Any]) -> None:
    for name, (spelling, module) in FEATURES.items():
        if options.get(name) and find_spec(module) is None:
            raise click.UsageError(f"{spelling} is not part of this version (there is no {module}). Leave it out.")


def _absolute(path: str | None) -> str | None:
    return os.path.abspath(path) if path else None


worker_option = partial(click.option, cls=CeleryOption, help_group="Worker Options")
pool_option = partial(click.option, cls=CeleryOption, help_group="Pool Options")
queue_option = partial(click.option, cls=CeleryOption, help_group="Queue Options")
feature_option = partial(click.option, cls=CeleryOption, help_group="Features")
beat_option = partial(click.option, cls=CeleryOption, help_group="Embedded Beat Options")


def _setting(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return an option callback: the value given, else the setting *name*."""

    def value_or_setting(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        return getattr(ctx.obj.app.conf, name) if value is None else value

    return value_or_setting


@click.command(cls=CeleryDaemonCommand, context_settings={"allow_extra_args": True})
@worker_option(
    "-n",
    "--hostname",
    default="celery@%h",
    type=HOSTNAME,
    help="Name of the node, for instance 'w1@%%h'. Filled in: %%h (host), %%n (name) and %%d (domain).",
)
@worker_option("-D", "--detach", is_flag=True, default=False, help="Run in the background.")
@worker_option(
    "-S",
    "--statedb",
    type=click.Path(),
    callback=_setting("worker_state_db"),
    help="File that keeps revoked ids; '.db' may be appended to its name.",
)
@worker_option("-l", "--loglevel", default="WARNING", type=LOG_LEVEL, help="Least level that is logged.")
@worker_option(
    "-O",
    "--optimization",
    default="default",
    type=click.Choice(("default", "fair")),
    help="How tasks are given to processes. Processes take their next task themselves, so both are fair.",
)
@worker_option(
    "--prefetch-multiplier",
    type=int,
    callback=_not_negative,
    metavar="<prefetch multiplier>",
    help="How many tasks may wait in this worker, for each of its processes; 0 for no bound.",
)
@worker_option(
    "--disable-prefetch",
    is_flag=True,
    default=None,
    help="Take a task only when a process is free for it.",
)
@pool_option(
    "-c",
    "--concurrency",
    type=str,
    metavar="<concurrency>",
    callback=_concurrency,
    help="How many tasks run at once; one per processor of this machine without it. "
    "'auto' asks the limits of the container and of the process, too.",
)
@pool_option("-P", "--pool", default="prefork", type=WORKERS_POOL, help="What runs the tasks.")
@pool_option(
    "-E",
    "--task-events",
    "--events",
    is_flag=True,
    default=None,
    help="Send events about tasks, for monitors such as `celery events`.",
)
@pool_option(
    "--time-limit", type=float, callback=_not_negative, help="Seconds after which the process of a task is killed."
)
@pool_option(
    "--soft-time-limit",
    type=float,
    callback=_not_negative,
    help="Seconds after which a task gets SoftTimeLimitExceeded.",
)
@pool_option("--max-tasks-per-child", type=int, callback=_not_negative, help="Replace a process after so many tasks.")
@pool_option(
    "--pool-start-method",
    type=click.Choice(["fork", "spawn"]),
    help="How processes are started: as copies of this one (fork, the default), or afresh (spawn), which is "
    "slower, and safe with threads and libraries that do not bear copying.",
)
@pool_option(
    "--max-memory-per-child",
    type=int,
    callback=_not_negative,
    help="Replace a process, after its task, that holds more kilobytes of memory than this.",
)
@queue_option("--purge", "--discard", is_flag=True, help="Delete all waiting tasks before the start.")
@queue_option("--queues", "-Q", type=COMMA_SEPARATED_LIST, help="Consume from these queues alone: a,b,c.")
@queue_option("--exclude-queues", "-X", type=COMMA_SEPARATED_LIST, help="Do not consume from these queues.")
@queue_option("--include", "-I", type=COMMA_SEPARATED_LIST, help="Further modules with tasks: a.tasks,b.tasks.")
@feature_option("--without-gossip", is_flag=True, help="Do not listen to events of other workers.")
@feature_option("--without-mingle", is_flag=True, help="Do not ask other workers for their state at the start.")
@feature_option("--without-heartbeat", is_flag=True, help="Send no heartbeat events.")
@feature_option("--heartbeat-interval", type=int, callback=_not_negative, help="Seconds between heartbeat events.")
@feature_option("--autoscale", type=AUTOSCALE, help="Largest and smallest number of processes, such as 10,3.")
@feature_option(
    "--health-file",
    metavar="<path>",
    help="File that is there, and young, while the worker is alive; with '.ready' behind its name while it consumes. "
    "Filled in: %h, %n and %d.",
)
@feature_option(
    "--health-address",
    metavar="<host:port>",
    help="Answer HTTP probes at /live and /ready here; ':port' for all addresses of this machine.",
)
@beat_option("-B", "--beat", type=CELERY_BEAT, is_flag=True, help="Run the periodic task scheduler, too.")
@beat_option(
    "-s",
    "--schedule-filename",
    "--schedule",
    callback=_setting("beat_schedule_filename"),
    help="File that keeps when periodic tasks ran last; '.db' may be appended to its name.",
)
@beat_option("--scheduler", help="Class of the scheduler, as module:Class.")
@click.pass_context
@handle_preload_options
def worker(
    ctx: click.Context,
    hostname: str,
    pool: Any = None,
    loglevel: Any = None,
    logfile: str | None = None,
    pidfile: str | None = None,
    statedb: str | None = None,
    uid: str | None = None,
    gid: str | None = None,
    umask: str | None = None,
    executable: str | None = None,
    detach: bool = False,
    disable_prefetch: bool | None = None,
    **kwargs: Any,
) -> None:
    """Start worker instance.

    Words that are no options set up the application: celery worker -- broker.heartbeat=10

    \b
    Examples
    --------

    \b
    $ celery --app=proj worker -l INFO
    $ celery -A proj worker -l INFO -Q hipri,lopri
    $ celery -A proj worker --concurrency=4
    $ celery -A proj worker --concurrency=1000 -P eventlet
    $ celery worker --autoscale=10,0

    """
    app = ctx.obj.app
    _refuse_missing_features(kwargs)
    if disable_prefetch is not None:
        app.conf.worker_disable_prefetch = disable_prefetch
    if detach and not _is_detached():
        ctx.exit(_go_into_background(ctx, hostname, logfile, pidfile, uid, gid, umask, executable))
    try:
        app.conf.update(dict(parse_assignment(word, "worker") for word in ctx.args))
    except (KeyError, ValueError) as error:
        raise click.UsageError(
            f"Unable to parse extra configuration from command line.\nReason: {error.args[0]}", ctx=ctx
        ) from error
    if not _is_detached():
        _become(uid, gid, umask)
    try:
        program = app.Worker(
            hostname=hostname,
            pool_cls=pool,
            loglevel=loglevel,
            logfile=logfile,
            pidfile=node_format(pidfile, hostname) if pidfile else None,
            statedb=node_format(statedb, hostname) if statedb else None,
            no_color=ctx.obj.no_color or None,
            quiet=ctx.obj.quiet,
            executable=executable,
            **kwargs,
        )
    except SecurityError as error:
        ctx.obj.error(error.args[0])
        ctx.exit(EX_FAILURE)
    except OSError as error:
        if error.filename is None:
            raise
        raise click.FileError(os.fsdecode(error.filename), error.strerror) from error
    program.start()
    ctx.exit(program.exitcode or EX_OK)


def _become(uid: str | None, gid: str | None, umask: str | None) -> None:
    """Become another user or group, and set the mask of new files."""
    try:
        maybe_drop_privileges(uid=uid, gid=gid)
    except (KeyError, SecurityError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.args[0]
        text = f"Cannot become user {uid} and group {gid}: {reason}"
        raise CeleryCommandException(message=text, exit_code=EX_FAILURE) from error
    if umask is not None:
        try:
            os.umask(int(umask, 8 if umask.startswith("0") else 10))
        except ValueError as error:
            raise click.BadParameter(f"{umask!r} is no number.", param_hint="--umask") from error


def _go_into_background(
    ctx: click.Context,
    hostname: str,
    logfile: str | None,
    pidfile: str | None,
    uid: str | None,
    gid: str | None,
    umask: str | None,
    executable: str | None,
) -> int:
    """Start this very command line again in the background, from where it was started."""
    start_folder = ctx.meta.get("celery.start_folder") or os.getcwd()
    return detach(
        sys.executable,
        sys.orig_argv[1:],
        logfile=_absolute(logfile),
        pidfile=_absolute(pidfile),
        uid=uid,
        gid=gid,
        umask=umask,
        workdir=start_folder,
        app=ctx.obj.app,
        executable=executable,
        hostname=hostname,
    )
