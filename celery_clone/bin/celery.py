"""``celery``: the group of all commands, as a table of names that are loaded when they are used.

Called by ``__main__`` (the console scripts) and by ``app.start`` and ``app.worker_main``.
It finds the app of ``--app`` and hands everything else to one command.
It may not import a command itself: starting one would load them all.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from celery_clone._version import VERSION_BANNER
from celery_clone.app.utils import find_app
from celery_clone.exceptions import CeleryCommandException
from celery_clone.platforms import EX_FAILURE
from celery_clone.utils.suggest import hint

from .base import CeleryOption, CLIContext, consume_preload_options, explained

__all__ = ("COMMANDS", "celery", "main")


class Place(NamedTuple):
    """Where a command is, and its line in the list of all commands."""

    path: str
    short_help: str


COMMANDS: Mapping[str, Place] = MappingProxyType(
    {
        "amqp": Place("celery_clone.bin.amqp:amqp", "AMQP Administration Shell."),
        "beat": Place("celery_clone.bin.beat:beat", "Start the beat periodic task scheduler."),
        "call": Place("celery_clone.bin.call:call", "Call a task by name."),
        "control": Place("celery_clone.bin.control:control", "Send the COMMAND control command to the workers."),
        "events": Place("celery_clone.bin.events:events", "Event-stream utilities."),
        "graph": Place("celery_clone.bin.graph:graph", "Draw graphs of steps and workers, for Graphviz."),
        "inspect": Place(
            "celery_clone.bin.control:inspect", "Inspect the workers by sending them the COMMAND inspect command."
        ),
        "list": Place("celery_clone.bin.list:list_", "Get info from broker."),
        "logtool": Place("celery_clone.bin.logtool:logtool", "Read the log files of workers."),
        "migrate": Place("celery_clone.bin.migrate:migrate", "Migrate tasks from one broker to another."),
        "multi": Place("celery_clone.bin.multi:multi", "Start multiple worker instances."),
        "purge": Place("celery_clone.bin.purge:purge", "Erase all messages from all known task queues."),
        "report": Place("celery_clone.bin.report:report", "Show versions and settings, for a bug report."),
        "result": Place("celery_clone.bin.result:result", "Print the return value for a given task id."),
        "shell": Place("celery_clone.bin.shell:shell", "Start shell session with convenient access to celery symbols."),
        "status": Place("celery_clone.bin.control:status", "Show list of workers that are online."),
        "upgrade": Place("celery_clone.bin.upgrade:upgrade", "Perform upgrade between versions."),
        "worker": Place("celery_clone.bin.worker:worker", "Start worker instance."),
    }
)
"""The commands of this package.  The lines are repeated here so that the list needs no command loaded."""

PLUGIN_GROUP = "celery.commands"

#: Letters that a command of another package may say about itself in the list.
SHORT_HELP_WIDTH = 80

#: The folder the program was started in, kept in ``ctx.meta`` when ``--workdir`` leaves it.
START_FOLDER = "celery.start_folder"

UNABLE_TO_LOAD = "\nUnable to load celery application.\n"
MODULE_NOT_FOUND = (
    "The module {0} was not found.\n"
    "Tried to import it for --app {1}, from the folder {2} and from Python's path. "
    "Check the spelling, or start in the folder that holds it (--workdir)."
)
LOADING_FAILED = "While trying to load the module {0} the following error occurred:\n{1}"

APP_OPTION_MISPLACED = """\
You are using `{option}` as an option of the {command} sub-command:
celery {command} {option} celeryapp <...>

The support for this usage was removed in Celery 5.0. Instead you should use `{option}` as a global option:
celery {option} celeryapp {command} <...>"""


class CommandTable(MutableMapping[str, click.Command]):
    """Commands by name, each loaded when it is asked for.

    Arguments:
        places: the commands of this package.
        more: gives further places, as entry points; called when a name is not in *places*, or all are wanted.
    """

    def __init__(self, places: Mapping[str, Place], more: Callable[[], Mapping[str, EntryPoint]]) -> None:
        self._commands: dict[str, Any] = dict(places)
        self._more: Callable[[], Mapping[str, EntryPoint]] | None = more

    def _add_more(self) -> None:
        more, self._more = self._more, None
        if more is not None:
            self._commands = {**more(), **self._commands}

    def short_help_of(self, name: str) -> str | None:
        """The line of a command in the list of all; ``None`` if it is not to be listed."""
        found = self._commands[name]
        if isinstance(found, Place):
            return found.short_help
        command = self[name]
        return None if command.hidden else command.get_short_help_str(SHORT_HELP_WIDTH)

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._commands:
            self._add_more()
        found: Any = self._commands[name]
        if not isinstance(found, click.Command):
            found = self._commands[name] = _load(name, found)
        command: click.Command = found
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        self._add_more()
        del self._commands[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._commands:
            self._add_more()
        return name in self._commands

    def __iter__(self) -> Iterator[str]:
        self._add_more()
        return iter(self._commands)

    def __len__(self) -> int:
        self._add_more()
        return len(self._commands)


def _load(name: str, place: Place | EntryPoint) -> click.Command:
    if isinstance(place, Place):
        module, _, attribute = place.path.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command
    try:
        plugin: click.Command = place.load()
    except Exception as error:  # noqa: BLE001 a foreign command that is broken must not take the others along
        return broken_command(name, place, error)
    return plugin


def broken_command(name: str, place: EntryPoint, error: BaseException) -> click.Command:
    """A command in the place of one of another package that cannot be imported; it says why."""
    trace = "".join(traceback.format_exception(error))

    def explain(**_: Any) -> None:
        click.echo(f"The command {name!r} ({place.value}) cannot be loaded:\n\n{trace}", err=True)
        click.get_current_context().exit(EX_FAILURE)

    return click.Command(
        name,
        callback=explain,
        params=[click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True},
        help=f"Broken: {error!r}. Run it to see why.",
    )


class CommandGroup(click.Group):
    """A group that knows its commands by name, and what is near a wrong name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first of *args* names.

        Raises:
            click.UsageError: there is none; names the nearest.
        """
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command {name!r}.{hint(name, self.commands)} `celery --help` lists them all.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, without loading those whose lines are known."""
        table = self.commands
        if not isinstance(table, CommandTable):
            super().format_commands(ctx, formatter)
            return
        lines = [(name, table.short_help_of(name)) for name in sorted(table)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, line in lines if line is not None])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; explain errors that the user caused, such as ``-A`` behind the command."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            if error.option_name in ("-A", "--app") and error.ctx is not None and isinstance(ctx.obj, CLIContext):
                explanation = APP_OPTION_MISPLACED.format(option=error.option_name, command=error.ctx.info_name)
                ctx.obj.error(explanation, fg="red")
            raise
        except Exception as error:
            told = explained(error)
            if told is None:
                raise
            text, code = told
            raise CeleryCommandException(message=text, exit_code=code) from error


def _plugins() -> dict[str, EntryPoint]:
    """The commands that other packages bring along.  Looking through all packages takes its time."""
    return {entry_point.name: entry_point for entry_point in entry_points(group=PLUGIN_GROUP)}


def _change_folder(ctx: click.Context, param: click.Parameter, workdir: Path | None) -> None:
    if workdir is not None:
        ctx.meta[START_FOLDER] = os.getcwd()
        try:
            os.chdir(workdir)
        except OSError as error:
            raise click.BadParameter(f"cannot change to {str(workdir)!r}: {error.strerror}", ctx, param) from error


@click.group(cls=CommandGroup, invoke_without_command=True)
@click.option(
    "-A",
    "--app",
    envvar="APP",
    cls=CeleryOption,
    # Embedders may hand in an app, which must stay what it is.
    type=click.UNPROCESSED,
    help_group="Global Options",
    help="The application, as module or module:attribute.",
)
@click.option(
    "-b", "--broker", envvar="BROKER_URL", cls=CeleryOption, help_group="Global Options", help="URL of the broker."
)
@click.option(
    "--result-backend",
    envvar="RESULT_BACKEND",
    cls=CeleryOption,
    help_group="Global Options",
    help="URL of the result backend.",
)
@click.option(
    "--loader",
    envvar="LOADER",
    cls=CeleryOption,
    help_group="Global Options",
    help="Loader of the application, as a name or module.Class.",
)
@click.option(
    "--config",
    envvar="CONFIG_MODULE",
    cls=CeleryOption,
    help_group="Global Options",
    help="Module that holds the configuration.",
)
@click.option(
    "--workdir",
    cls=CeleryOption,
    type=click.Path(path_type=Path),
    callback=_change_folder,
    is_eager=True,
    expose_value=True,
    help_group="Global Options",
    help="Change to this folder first.",
)
@click.option(
    "-C",
    "--no-color",
    envvar="NO_COLOR",
    is_flag=True,
    cls=CeleryOption,
    help_group="Global Options",
    help="Print without colours.",
)
@click.option("-q", "--quiet", is_flag=True, cls=CeleryOption, help_group="Global Options", help="Print less.")
@click.option(
    "--version", cls=CeleryOption, is_flag=True, help_group="Global Options", help="Print the version and exit."
)
@click.option(
    "--skip-checks",
    envvar="SKIP_CHECKS",
    cls=CeleryOption,
    is_flag=True,
    help_group="Global Options",
    help="Skip the checks of Django at the start.",
)
@click.pass_context
def celery(
    ctx: click.Context,
    app: Any,
    broker: str | None,
    result_backend: str | None,
    loader: str | None,
    config: str | None,
    workdir: Path | None,
    no_color: bool,
    quiet: bool,
    version: bool,
    skip_checks: bool,
) -> None:
    """Run workers, and whatever else a distributed task queue needs."""
    if version:
        click.echo(VERSION_BANNER)
        ctx.exit()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit()
    # Apps read these when they are made or configured, and so do the processes we start.
    environment = {
        "CELERY_LOADER": loader,
        "CELERY_BROKER_URL": broker,
        "CELERY_RESULT_BACKEND": result_backend,
        "CELERY_CONFIG_MODULE": config,
        "CELERY_SKIP_CHECKS": "true" if skip_checks else None,
    }
    os.environ.update({name: value for name, value in environment.items() if value})
    if ctx.obj is not None and ctx.get_parameter_source("app") is not ParameterSource.COMMANDLINE:
        app = ctx.obj
    elif isinstance(app, str):
        app = _find(ctx, app)
    ctx.obj = CLIContext(app=app, no_color=no_color, workdir=workdir, quiet=quiet)
    _add_options_of_the_app(ctx, ctx.obj.app.user_options)


celery.commands = CommandTable(COMMANDS, _plugins)


def _find(ctx: click.Context, name: str) -> Any:
    """The app called *name*; ends the program with code 2 when there is none."""
    try:
        return find_app(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name.partition(':')[0]}.".startswith(f"{error.name}."):
            ctx.fail(UNABLE_TO_LOAD + MODULE_NOT_FOUND.format(error.name, name, os.getcwd()))
        reason = traceback.format_exc()
    except AttributeError as error:
        if _raised_by_search(error):
            ctx.fail(f"{UNABLE_TO_LOAD}{error}")
        reason = traceback.format_exc()
    except Exception:  # noqa: BLE001 the user's module may raise anything
        reason = traceback.format_exc()
    ctx.fail(UNABLE_TO_LOAD + LOADING_FAILED.format(name, reason))


def _raised_by_search(error: BaseException) -> bool:
    """Was this raised by the search itself, and not by the user's module?"""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == find_app.__module__


def _add_options_of_the_app(ctx: click.Context, user_options: Mapping[str, Any]) -> None:
    """Give the command about to run the options that the app declared for it, for this one run."""
    name = ctx.invoked_subcommand
    if name is None or not user_options:
        return
    preload = sorted(user_options.get("preload", ()), key=_spelling)
    own = sorted(user_options.get(name, ()), key=_spelling) if name in ("worker", "beat", "events") else []
    if not preload and not own:
        return
    command = celery.commands[name]
    params, callback = command.params, command.callback
    command.params = [*params, *(option for option in (*own, *preload) if option not in params)]
    if preload:
        command.callback = consume_preload_options(callback)

    def restore() -> None:
        command.params, command.callback = params, callback

    ctx.call_on_close(restore)


def _spelling(option: click.Parameter) -> str:
    return option.name or ""


def main(app: Any = None, argv: Sequence[str] | None = None) -> Any:
    """Run the command line.

    Arguments:
        app: the app to use where ``--app`` names none, as ``app.start()`` wants it.  Errors of the
            command line are then raised, not printed, and the exit code is returned.
        argv: the words after the program's name; those of the process without it.
    """
    words = list(sys.argv[1:] if argv is None or argv is sys.argv else argv)
    if app is None:
        return celery(args=words, auto_envvar_prefix="CELERY")
    return celery.main(args=words, standalone_mode=False, obj=app)


def __getattr__(name: str) -> Any:
    # Where Celery's users find the objects of the commands, such as `celery.bin.celery.report`.
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return celery.commands[name]
