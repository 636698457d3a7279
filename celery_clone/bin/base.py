"""What commands are made of: the context object, option groups, and the types of values.

Used by every module of ``bin`` and by commands that other packages add.
It may not know any command, and may not talk to a broker.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import cached_property, update_wrapper
from importlib import import_module
from inspect import Parameter, signature
from numbers import Integral
from pprint import pformat
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click import ParamType

from celery_clone._state import get_current_app
from celery_clone.exceptions import CeleryCommandException, ImproperlyConfigured
from celery_clone.local import try_import
from celery_clone.platforms import EX_FAILURE, EX_UNAVAILABLE
from celery_clone.signals import user_preload_options
from celery_clone.utils.log import mlevel
from celery_clone.utils.suggest import hint
from celery_clone.utils.text import indent, str_to_list
from celery_clone.utils.time import maybe_iso8601

__all__ = (
    "COMMA_SEPARATED_LIST",
    "ISO8601",
    "ISO8601_OR_FLOAT",
    "JSON_ARRAY",
    "JSON_OBJECT",
    "LOG_LEVEL",
    "CLIContext",
    "CeleryCommand",
    "CeleryDaemonCommand",
    "CeleryOption",
    "CommaSeparatedList",
    "DaemonOption",
    "ISO8601DateTime",
    "ISO8601DateTimeOrFloat",
    "JsonArray",
    "JsonObject",
    "LogLevel",
    "become",
    "consume_preload_options",
    "explained",
    "handle_preload_options",
    "handle_remote_command_error",
)

BROKER_UNREACHABLE = (
    "Could not connect to the message broker. Please make sure your broker (e.g., RabbitMQ or Redis) is "
    "running and the connection settings are correct. Reason: {0}"
)
NO_SUCH_TRANSPORT = "No such transport:"
"""How kombu's error about the scheme of a URL begins; its class is a plain KeyError."""

UNKNOWN_SCHEME = (
    "There is no transport for broker URLs that begin with {asked!r}.{hint} Known are: {known}. "
    "Check broker_url, CELERY_BROKER_URL and the option -b."
)
COMMAND_FAILED = "Unable to run the `{0}` command. Reason: {1}"


class CLIContext:
    """What the global options said; every command gets it as ``ctx.obj``.

    Arguments:
        app: the app to act on; the current app without it.
        no_color: print without colours?
        workdir: the directory changed to, if any.
        quiet: print results only?
    """

    def __init__(self, app: Any, no_color: bool, workdir: Any, quiet: bool = False) -> None:
        self.app = app or get_current_app()
        self.no_color = no_color
        self.workdir = workdir
        self.quiet = quiet

    @cached_property
    def OK(self) -> str:  # noqa: N802 Celery's name
        """The word for success."""
        return self.style("OK", fg="green", bold=True)

    @cached_property
    def ERROR(self) -> str:  # noqa: N802 Celery's name
        """The word for failure."""
        return self.style("ERROR", fg="red", bold=True)

    def style(self, message: Any = None, **kwargs: Any) -> str:
        """*message* with colours, unless they are unwanted; *kwargs* as of :func:`click.style`."""
        return str(message) if self.no_color else click.style(message, **kwargs)

    def secho(self, message: Any = None, **kwargs: Any) -> None:
        """Print *message* in the style given by *kwargs*, as of :func:`click.secho`."""
        if self.no_color:
            self._plain(message, kwargs)
        else:
            click.secho(message, **kwargs)

    def echo(self, message: Any = None, **kwargs: Any) -> None:
        """Print *message*; *kwargs* as of :func:`click.echo`."""
        if self.no_color:
            self._plain(message, kwargs)
        else:
            click.echo(message, **kwargs)

    def error(self, message: Any = None, **kwargs: Any) -> None:
        """Print *message* to standard error; *kwargs* as of :meth:`secho`."""
        self.secho(message, **{**kwargs, "err": True})

    def _plain(self, message: Any, kwargs: dict[str, Any]) -> None:
        where = {key: kwargs[key] for key in ("file", "nl", "err") if key in kwargs}
        click.echo(message, color=False, **where)

    def pretty(self, n: Any) -> tuple[str, str]:
        """The answer of a worker as a word and a text for people."""
        if isinstance(n, list):
            return self.OK, self.pretty_list(n)
        if isinstance(n, dict):
            if "ok" in n or "error" in n:
                return self.pretty_dict_ok_error(n)
            text = json.dumps(n, sort_keys=True, indent=4, default=str)
            return self.OK, text if self.no_color else _highlighted(text)
        return self.OK, n if isinstance(n, str) else pformat(n)

    def pretty_list(self, n: Sequence[Any]) -> str:
        """A line for each item."""
        if not n:
            return "- empty -"
        bullet = self.style("*", fg="white")
        return "\n".join(f"{bullet} {item}" for item in n)

    def pretty_dict_ok_error(self, n: dict[str, Any]) -> tuple[str, str]:
        """What stands under ``ok`` or ``error``, indented."""
        key, word = ("ok", self.OK) if "ok" in n else ("error", self.ERROR)
        return word, indent(self.pretty(n[key])[1], 4)

    def say_chat(self, direction: str, title: str, body: str = "", show_body: bool = False) -> None:
        """Tell of a message to (``->``) or from (``<-``) workers; the latter not if quiet."""
        if self.quiet:
            if direction == "<-":
                return
            self.echo(f" {title}")
        else:
            self.echo(f"{self.style(direction, fg='white', bold=True)}  {title}")
        if body and show_body:
            self.echo(body)


def _highlighted(text: str) -> str:
    """Coloured JSON where pygments is installed; loading it takes longer than most commands."""
    pygments = try_import("pygments")
    if pygments is None:
        return text
    lexer = import_module("pygments.lexers").JsonLexer()
    formatter = import_module("pygments.formatters").Terminal256Formatter()
    painted: str = pygments.highlight(text, lexer, formatter)
    return painted.rstrip("\n")


def explained(error: BaseException) -> tuple[str, int] | None:
    """What to say, and the exit code, for an error that the user caused or can help; ``None`` for others."""
    if isinstance(error, ImproperlyConfigured):
        return str(error), EX_FAILURE
    if isinstance(error, KeyError) and str(error.args[0]).startswith(NO_SUCH_TRANSPORT):
        asked = str(error.args[0]).removeprefix(NO_SUCH_TRANSPORT).partition(".")[0].strip()
        known = sorted(name for name in import_module("kombu.transport").TRANSPORT_ALIASES if name.islower())
        near = hint(asked, known)
        return UNKNOWN_SCHEME.format(asked=asked, hint=near, known=", ".join(known)), EX_FAILURE
    # Nobody can have raised it before kombu was loaded, which need not be done for this.
    kombu_exceptions = sys.modules.get("kombu.exceptions")
    if kombu_exceptions is not None and isinstance(error, kombu_exceptions.OperationalError):
        return BROKER_UNREACHABLE.format(error), EX_UNAVAILABLE
    return None


def handle_remote_command_error(command: str, exc: Exception) -> NoReturn:
    """End a command that talks to workers with the right words and code.

    Raises:
        CeleryCommandException: with exit code 69; errors of click are raised as they are.
    """
    if isinstance(exc, click.ClickException):
        raise exc
    text, _ = explained(exc) or (COMMAND_FAILED.format(command, exc), EX_UNAVAILABLE)
    raise CeleryCommandException(message=text, exit_code=EX_UNAVAILABLE) from exc


# -- options that the app adds to every command


def handle_preload_options(f: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command that takes the click context first: ``user_preload_options`` is sent before it runs.

    The signal tells the options that the app added to every command (``app.user_options["preload"]``).
    Those that *f* cannot accept are left out of its arguments.
    """
    return _with_preload_options(f, lambda args: args[0] if args else click.get_current_context())


def consume_preload_options(fun: Any) -> Any:
    """As :func:`handle_preload_options`, for a command that may not take the context."""
    return fun if fun is None else _with_preload_options(fun, lambda args: click.get_current_context())


def _with_preload_options(
    command: Callable[..., Any], context_of: Callable[[Sequence[Any]], Any]
) -> Callable[..., Any]:
    if _tells_preload_options(command):
        return command

    def telling(*args: Any, **kwargs: Any) -> Any:
        app = context_of(args).obj.app
        names = [option.name for option in app.user_options.get("preload", ()) if option.name in kwargs]
        if names:
            user_preload_options.send(sender=command, app=app, options={name: kwargs[name] for name in names})
        unwanted = {name for name in names if not _accepts(command, name)}
        return command(*args, **{key: value for key, value in kwargs.items() if key not in unwanted})

    wrapped: Any = update_wrapper(telling, command)
    wrapped._handles_preload_options = True
    return telling


def _tells_preload_options(command: Any) -> bool:
    while command is not None:
        if getattr(command, "_handles_preload_options", False):
            return True
        command = getattr(command, "__wrapped__", None)
    return False


def _accepts(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = signature(function).parameters
    except (TypeError, ValueError):
        return False
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return True
    return name in parameters and parameters[name].kind is not Parameter.POSITIONAL_ONLY


# -- options and commands


class CeleryOption(click.Option):
    """An option that stands under a heading of its own in the help.

    Arguments:
        help_group: the heading.
        default_value_from_context: a key of ``ctx.obj`` whose value is the default.
        args, kwargs: as of :class:`click.Option`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.help_group: str | None = kwargs.pop("help_group", None)
        self.default_value_from_context: str | None = kwargs.pop("default_value_from_context", None)
        super().__init__(*args, **kwargs)

    def get_default(self, ctx: click.Context, *args: Any, **kwargs: Any) -> Any:
        """The default value; see :meth:`click.Option.get_default`."""
        if self.default_value_from_context:
            self.default = ctx.obj[self.default_value_from_context]
        return super().get_default(ctx, *args, **kwargs)


class CeleryCommand(click.Command):
    """A command whose help shows the options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "help_group", None) or "Options", []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class DaemonOption(CeleryOption):
    """An option of programs that run in the background; a setting stands in when it is not given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("help_group", "Daemonization Options")
        kwargs.setdefault("callback", self.daemon_setting)
        super().__init__(args, **kwargs)

    def daemon_setting(self, ctx: click.Context, opt: CeleryOption, value: Any) -> Any:
        """*value*, else the setting named after command and option, such as ``worker_pidfile``."""
        return value or getattr(ctx.obj.app.conf, f"{ctx.command.name}_{self.name}", None)


class CeleryDaemonCommand(CeleryCommand):
    """A command whose program may run in the background."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            DaemonOption("--logfile", "-f", help="File to log to; standard error without it."),
            DaemonOption("--pidfile", help="File that holds the id of the process; none without it."),
            DaemonOption("--uid", help="User to become, by number or name."),
            DaemonOption("--gid", help="Group to become, by number or name."),
            DaemonOption("--umask", help="Mask for files and directories made (octal if it begins with 0)."),
            DaemonOption("--executable", help="The Python to run when the program starts itself anew."),
        ]


#: Environment variable with the id of the process that changed to the Python of ``--executable``.
BECAME_PID = "CELERY_BECAME_PID"


def become(ctx: click.Context, executable: str | None) -> None:
    """Go on as the Python program *executable*, if one is given: with the same words, from where it all began.

    Raises:
        click.FileError: it cannot be run.
    """
    if not executable or os.environ.get(BECAME_PID) == str(os.getpid()):
        return
    os.chdir(ctx.meta.get("celery.start_folder") or os.curdir)
    os.environ[BECAME_PID] = str(os.getpid())
    try:
        os.execvp(executable, [executable, *sys.orig_argv[1:]])
    except OSError as error:
        raise click.FileError(executable, error.strerror) from error


# -- types of values

if TYPE_CHECKING:
    _ValueType = ParamType[Any]
else:
    _ValueType = ParamType  # generic in later versions of click only


class CommaSeparatedList(_ValueType):
    """``a,b,c``."""

    name = "comma separated list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return str_to_list(value)


class _Json(_ValueType):
    """A value in JSON, of one Python type."""

    wanted: type = object
    called = ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, self.wanted):
            return value
        try:
            found = json.loads(value)
        except (TypeError, ValueError) as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)
        if not isinstance(found, self.wanted):
            self.fail(f"{value} was not {self.called}", param, ctx)
        return found


class JsonArray(_Json):
    """A list, in JSON."""

    name = "json array"
    wanted = list
    called = "an array"


class JsonObject(_Json):
    """A dictionary, in JSON."""

    name = "json object"
    wanted = dict
    called = "an object"


class ISO8601DateTime(_ValueType):
    """A time such as ``2025-06-01T12:00:00Z``."""

    name = "iso-86091"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return maybe_iso8601(value)
        except (TypeError, ValueError) as error:
            self.fail(f"{value!r} is not a time in ISO 8601: {error}", param, ctx)


class ISO8601DateTimeOrFloat(_ValueType):
    """A time, or a number of seconds."""

    name = "iso-86091 or float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return float(value)
        except (TypeError, ValueError):
            return ISO8601.convert(value, param, ctx)


class LogLevel(click.Choice[Any]):
    """The name of a level, in any case; converted to its number."""

    def __init__(self) -> None:
        super().__init__(("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Integral):
            return value
        return mlevel(super().convert(value.upper(), param, ctx))


JSON_ARRAY = JsonArray()
JSON_OBJECT = JsonObject()
ISO8601 = ISO8601DateTime()
ISO8601_OR_FLOAT = ISO8601DateTimeOrFloat()
LOG_LEVEL = LogLevel()
COMMA_SEPARATED_LIST = CommaSeparatedList()
