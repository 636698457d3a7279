"""``celery beat``: from options to the beat program.

Called by ``bin.celery``.  It turns options into arguments of ``app.Beat`` and runs that; everything that
beat does is in ``apps.beat`` and below.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from celery_clone.app.settings import parse_assignment
from celery_clone.apps.start_report import StartReport
from celery_clone.exceptions import CeleryCommandException, SecurityError
from celery_clone.platforms import EX_FAILURE, create_pidlock, detached, maybe_drop_privileges

from .base import LOG_LEVEL, CeleryDaemonCommand, CeleryOption, become, handle_preload_options

__all__ = ("beat",)

CANNOT_READ_SETTINGS = "Unable to parse extra configuration from command line.\nReason: {0}"
CANNOT_BECOME = "Cannot become user {uid} and group {gid}: {reason}"

beat_option = partial(click.option, cls=CeleryOption, help_group="Beat Options")


def _setting(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """An option callback: the value given, else the setting *name*."""

    def value_or_setting(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        return value or getattr(ctx.obj.app.conf, name)

    return value_or_setting


@click.command(cls=CeleryDaemonCommand, context_settings={"allow_extra_args": True})
@beat_option("--detach", is_flag=True, default=False, help="Run in the background.")
@beat_option(
    "-s",
    "--schedule",
    callback=_setting("beat_schedule_filename"),
    help="File that keeps when tasks ran last; '.db' may be appended to its name. `celerybeat-schedule` without it.",
)
@beat_option("-S", "--scheduler", callback=_setting("beat_scheduler"), help="Class of the scheduler, as module:Class.")
@beat_option("--max-interval", type=int, help="Seconds to sleep at most between two looks at the schedule.")
@beat_option(
    "--enable-remote-control/--no-enable-remote-control",
    "remote_control",
    default=None,
    help="Answer `celery inspect ping`, so that it can be seen if beat is well; else as beat_enable_remote_control.",
)
@beat_option("-n", "--hostname", default=None, help="Name to answer under; celerybeat@%%h without it.")
@beat_option("-l", "--loglevel", default="WARNING", type=LOG_LEVEL, help="Least level that is logged.")
@click.pass_context
@handle_preload_options
def beat(
    ctx: click.Context,
    detach: bool = False,
    logfile: str | None = None,
    pidfile: str | None = None,
    uid: str | None = None,
    gid: str | None = None,
    umask: str | None = None,
    executable: str | None = None,
    **kwargs: Any,
) -> None:
    """Start the beat periodic task scheduler.

    Words that are no options set up the application: celery beat -- beat.max_loop_interval=10
    """
    become(ctx, executable)
    app = ctx.obj.app
    try:
        app.conf.update(dict(parse_assignment(word, "beat") for word in ctx.args))
    except (KeyError, ValueError) as error:
        raise click.UsageError(CANNOT_READ_SETTINGS.format(error.args[0]), ctx=ctx) from error
    program = partial(
        app.Beat,
        logfile=logfile,
        pidfile=pidfile,
        quiet=ctx.obj.quiet,
        no_color=ctx.obj.no_color or None,
        **kwargs,
    )
    try:
        if not detach:
            maybe_drop_privileges(uid=uid, gid=gid)
            background = None
        else:
            if pidfile:
                # Only here can a second one be told of with an exit code.
                create_pidlock(pidfile).release()
            report = StartReport("beat", logfile)
            background = detached(logfile, pidfile, uid, gid, umask, os.getcwd(), report=report)
    except (KeyError, SecurityError, PermissionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.args[0]
        text = CANNOT_BECOME.format(uid=uid, gid=gid, reason=reason)
        raise CeleryCommandException(message=text, exit_code=EX_FAILURE) from error
    if background is None:
        program().run()
        return
    with background:
        program().run()
