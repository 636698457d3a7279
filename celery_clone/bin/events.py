"""``celery events``: look at the events of workers, as lines, on a screen, or with a camera.

Called by ``bin.celery``.  It chooses one of the monitors of ``events`` and runs it.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any

import click

from celery_clone.events.dumper import evdump
from celery_clone.events.snapshot import evcam
from celery_clone.platforms import EX_OK, detached, set_process_title, signals, strargv

from .base import (
    LOG_LEVEL,
    CeleryDaemonCommand,
    CeleryOption,
    become,
    handle_preload_options,
    handle_remote_command_error,
)

__all__ = ("events",)

NO_CURSES = (
    "The screen needs the curses module, which this Python was built without. "
    "Use --dump, or a Python with curses (on Windows: pip install windows-curses)."
)

dumper_option = partial(click.option, cls=CeleryOption, help_group="Dumper")
snapshot_option = partial(click.option, cls=CeleryOption, help_group="Snapshot")


class EventsCommand(CeleryDaemonCommand):
    """A command two of whose options are abbreviated alike."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The parameters; click's warning about the abbreviation is of no use to those who type commands."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return super().get_params(ctx)

    def make_parser(self, ctx: click.Context) -> Any:
        """The parser; see :meth:`get_params`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return super().make_parser(ctx)


@click.command(cls=EventsCommand)
@dumper_option("-d", "--dump", is_flag=True, help="Print events as they come.")
@snapshot_option("-c", "--camera", help="Take snapshots with this class, module.Class.")
@snapshot_option(
    "-d", "--detach", is_flag=True, help="Run the camera in the background; without a camera, -d is --dump."
)
@snapshot_option("-F", "--frequency", "--freq", type=float, default=1.0, help="Seconds between two snapshots.")
@snapshot_option("-r", "--maxrate", help="At most so many snapshots, such as 10/m.")
@snapshot_option("-l", "--loglevel", default="WARNING", type=LOG_LEVEL, help="Least level that is logged.")
@click.pass_context
@handle_preload_options
def events(
    ctx: click.Context,
    dump: bool,
    camera: str | None,
    detach: bool,
    frequency: float,
    maxrate: str | None,
    loglevel: Any,
    logfile: str | None = None,
    pidfile: str | None = None,
    uid: str | None = None,
    gid: str | None = None,
    umask: str | None = None,
    executable: str | None = None,
    **kwargs: Any,
) -> None:
    """Event-stream utilities.

    Without options: a screen with the tasks and workers that events tell about.
    """
    become(ctx, executable)
    app = ctx.obj.app
    try:
        if dump or (detach and not camera):
            _show_in_process_list("dump")
            signals["TERM"] = _end
            evdump(app=app)
        elif camera:
            _show_in_process_list("cam")
            take = partial(
                evcam,
                camera,
                app=app,
                freq=frequency,
                maxrate=maxrate,
                loglevel=loglevel,
                logfile=logfile,
                pidfile=pidfile,
            )
            signals["TERM"] = _end
            if detach:
                with detached(logfile, pidfile, uid, gid, umask):
                    take()
            else:
                take()
        else:
            _run_screen(app)
    except Exception as error:  # noqa: BLE001 whatever a monitor fails with is told in one line
        handle_remote_command_error("events", error)


def _end(signum: int, frame: FrameType | None) -> None:
    """Signal handler: end in order, so that the camera is put away and the pid file with it."""
    raise SystemExit(EX_OK)


def _run_screen(app: Any) -> None:
    try:
        # Not every Python has curses, and the others want it only here.
        monitor = import_module("celery_clone.events.cursesmon")
    except ModuleNotFoundError as error:
        if error.name not in ("_curses", "curses"):
            raise
        raise click.UsageError(NO_CURSES) from error
    _show_in_process_list("top")
    monitor.evtop(app=app)


def _show_in_process_list(monitor: str) -> None:
    set_process_title(f"celery events:{monitor}", info=strargv(sys.argv))
