"""``celery inspect``, ``celery control`` and ``celery status``: ask running workers, and tell them what to do.

Called by ``bin.celery``.  Which commands there are, and what arguments they take, is read from the panel
of the worker (``worker.control``); sending and collecting replies is done by ``app.control``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import click
from click.shell_completion import CompletionItem
from kombu.utils.json import dumps

from celery_clone.exceptions import CeleryCommandException
from celery_clone.platforms import EX_UNAVAILABLE
from celery_clone.utils.suggest import hint
from celery_clone.utils.text import indent, pluralize
from celery_clone.worker.control import Panel

from .base import (
    COMMA_SEPARATED_LIST,
    CeleryCommand,
    CeleryOption,
    handle_preload_options,
    handle_remote_command_error,
)

__all__ = ("control", "inspect", "status")

NO_REPLY = "No nodes replied within time constraint"

remote_option = partial(click.option, cls=CeleryOption, help_group="Remote Control Options")


def remote_options(command: Any) -> Any:
    """The options of all commands that talk to workers."""
    for option in (
        remote_option("-j", "--json", is_flag=True, help="Print the replies as JSON."),
        remote_option(
            "-d", "--destination", type=COMMA_SEPARATED_LIST, help="Ask these nodes alone, separated by commas."
        ),
        remote_option("-t", "--timeout", type=float, default=1.0, help="Seconds to wait for replies."),
    ):
        command = option(command)
    return command


# -- the commands of workers


def commands_of_type(kind: str) -> dict[str, Any]:
    """The commands of the panel that are ``"inspect"`` or ``"control"``, by name."""
    visible = ((name, meta) for name, meta in Panel.meta.items() if meta.type == kind and meta.visible)
    return dict(sorted(visible))


def list_option(kind: str) -> Callable[[Any], Any]:
    """The option that lists the commands of a kind."""

    def show(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
        if not wanted:
            return
        formatter = click.HelpFormatter()
        with formatter.section(f"{kind.capitalize()} Commands"):
            formatter.write_dl(
                [
                    (f"{name} {meta.signature}" if meta.signature else name, meta.help or "")
                    for name, meta in commands_of_type(kind).items()
                ]
            )
        click.echo(formatter.getvalue(), nl=False)
        ctx.exit()

    return click.option(
        "--list",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help=f"List available {kind} commands and exit.",
    )


def command_argument(kind: str) -> Callable[[Any], Any]:
    """The argument that names a command of a kind; shells complete it."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        known = commands_of_type(kind).items()
        return [CompletionItem(name, help=meta.help) for name, meta in known if name.startswith(incomplete)]

    return click.argument("command", shell_complete=complete)


def compiled_arguments(kind: str, command: str, words: Sequence[str]) -> dict[str, Any]:
    """The arguments of a command from the words behind it.

    Raises:
        click.UsageError: there is no such command of this *kind*, or the words do not fit.
    """
    known = commands_of_type(kind)
    if command not in known:
        raise click.UsageError(
            f"Command {command} not recognized.{hint(command, known)} Available {kind} commands: {', '.join(known)}"
        )
    meta = known[command]
    declared = [*(meta.args or ())]
    if len(words) > len(declared) and not meta.variadic:
        raise click.UsageError(f"Command {command!r} takes arguments: {meta.signature or 'none'}")
    arguments: dict[str, Any] = {}
    for (name, convert), word in zip(declared, words, strict=False):
        try:
            arguments[name] = word if convert is None else convert(word)
        except (TypeError, ValueError) as error:
            raise click.UsageError(f"Command {command!r}: {name} cannot be {word!r}: {error}") from error
    if meta.variadic:
        arguments[meta.variadic] = [*words[len(declared) :]]
    return arguments


# -- replies


def _say_reply(ctx: click.Context, replies: Mapping[str, Any], show_reply: bool = False) -> None:
    """Print the reply of one worker, as it comes in."""
    node, reply = next(iter(replies.items()))
    word, text = ctx.obj.pretty(reply)
    name = ctx.obj.style(f"{node}: ", fg="cyan", bold=True)
    ctx.obj.say_chat("->", f"{name}{word}", indent(text, 4) if show_reply else "", show_body=show_reply)


def _ask(command: str, ask: Callable[[], Any]) -> Any:
    """The replies to what *ask* sends.

    Raises:
        CeleryCommandException: with exit code 69, if there are none, or the broker is away.
    """
    try:
        replies = ask()
    except Exception as error:  # noqa: BLE001 always ends the command, with the right words
        handle_remote_command_error(command, error)
    if not replies:
        raise CeleryCommandException(message=NO_REPLY, exit_code=EX_UNAVAILABLE)
    return replies


def _count_nodes(ctx: click.Context, replies: Any) -> None:
    if not ctx.obj.quiet:
        ctx.obj.echo(f"\n{len(replies)} {pluralize(len(replies), 'node')} online.")


@click.command(cls=CeleryCommand)
@remote_options
@click.pass_context
@handle_preload_options
def status(ctx: click.Context, timeout: float, destination: Sequence[str] | None, json: bool, **kwargs: Any) -> None:
    """Show list of workers that are online."""
    callback = None if json else partial(_say_reply, ctx)
    client = ctx.obj.app.control.inspect(timeout=timeout, destination=destination, callback=callback)
    replies = _ask("status", client.ping)
    if json:
        ctx.obj.echo(dumps(replies))
    else:
        _count_nodes(ctx, replies)


@click.command(cls=CeleryCommand, context_settings={"allow_extra_args": True})
@command_argument("inspect")
@list_option("inspect")
@remote_options
@click.pass_context
@handle_preload_options
def inspect(
    ctx: click.Context,
    command: str,
    timeout: float,
    destination: Sequence[str] | None,
    json: bool,
    **kwargs: Any,
) -> None:
    """Inspect the workers by sending them the COMMAND inspect command.

    The broker must be able to broadcast: RabbitMQ, Redis and SQLite are.
    """
    arguments = compiled_arguments("inspect", command, ctx.args)
    callback = None if json else partial(_say_reply, ctx, show_reply=True)
    client = ctx.obj.app.control.inspect(timeout=timeout, destination=destination, callback=callback)
    replies = _ask(f"inspect {command}", lambda: client._request(command, **arguments))
    if json:
        ctx.obj.echo(dumps(replies))
    else:
        _count_nodes(ctx, replies)


@click.command(cls=CeleryCommand, context_settings={"allow_extra_args": True})
@command_argument("control")
@list_option("control")
@remote_options
@click.pass_context
@handle_preload_options
def control(
    ctx: click.Context,
    command: str,
    timeout: float,
    destination: Sequence[str] | None,
    json: bool,
    **kwargs: Any,
) -> None:
    """Send the COMMAND control command to the workers.

    The broker must be able to broadcast: RabbitMQ, Redis and SQLite are.
    """
    arguments = compiled_arguments("control", command, ctx.args)
    callback = None if json else partial(_say_reply, ctx, show_reply=True)
    broadcast = partial(
        ctx.obj.app.control.broadcast,
        command,
        timeout=timeout,
        destination=destination,
        callback=callback,
        reply=True,
        arguments=arguments,
    )
    replies = _ask(f"control {command}", broadcast)
    if json:
        ctx.obj.echo(dumps(replies))
