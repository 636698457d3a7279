"""``celery amqp``: declare, delete, look into and publish to queues and exchanges by hand.

Called by ``bin.celery``; works with every transport of kombu, as far as it keeps declarations.  The
commands can also be given one after the other at a prompt, ``celery amqp repl``, where they share one channel.
"""

from __future__ import annotations

import pprint
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from celery_clone.local import try_import
from celery_clone.platforms import EX_UNAVAILABLE

from .base import CLIContext, handle_preload_options

__all__ = ("AMQPContext", "amqp")

NOT_CONNECTED = "Not connected to broker. Please retry..."
NO_REPL = "The prompt needs the package click-repl. Install it: celery_clone[repl]."


class AMQPContext:
    """The connection that the commands of one prompt share.

    Owned by the group ``amqp``, which closes it when the command line ends.
    """

    def __init__(self, cli_context: CLIContext) -> None:
        self.cli_context = cli_context
        self.connection: Any = None
        self.channel: Any = None
        self.reconnect()

    @property
    def app(self) -> Any:
        """The app whose broker this is."""
        return self.cli_context.app

    def respond(self, retval: Any) -> None:
        """Print an answer of the broker."""
        self.cli_context.echo(retval if isinstance(retval, str) else pprint.pformat(retval))

    def echo_error(self, exception: object) -> None:
        """Print an error."""
        self.cli_context.error(f"{self.cli_context.ERROR}: {exception}")

    def echo_ok(self) -> None:
        """Print that the command was carried out."""
        self.cli_context.echo(self.cli_context.OK)

    def reconnect(self) -> None:
        """Connect anew; says whether that worked."""
        self.close()
        self.connection = self.app.connection()
        self.cli_context.echo(f"-> connecting to {self.connection.as_uri()}.")
        try:
            self.connection.connect()
        except (*self.connection.connection_errors, OSError) as error:
            self.echo_error(error)
            return
        self.cli_context.secho("-> connected.", fg="green", bold=True)
        self.channel = self.connection.default_channel

    def close(self) -> None:
        """Let go of the connection.  Legal twice."""
        connection, self.connection, self.channel = self.connection, None, None
        if connection is not None:
            connection.close()

    def carry_out(self, command: Callable[[Any], Any]) -> None:
        """Call *command* with the channel, and print how that went.

        A channel that refused something is closed by the broker, so a new one is made after an error.
        """
        if self.channel is None:
            self.echo_error(NOT_CONNECTED)
            self.reconnect()
        else:
            try:
                answer = command(self.channel)
            except Exception as error:  # noqa: BLE001 drivers have errors of their own; all are shown
                self.echo_error(error)
                self.reconnect()
            else:
                if answer is not None:
                    self.respond(answer)
                self.echo_ok()
                return
        if not self._at_prompt():
            click.get_current_context().exit(EX_UNAVAILABLE)

    @staticmethod
    def _at_prompt() -> bool:
        context: click.Context | None = click.get_current_context()
        while context is not None:
            if context.info_name == "repl":
                return True
            context = context.parent
        return False


@click.group(invoke_without_command=True)
@click.pass_context
@handle_preload_options
def amqp(ctx: click.Context) -> None:
    """AMQP Administration Shell.

    Also works for non-AMQP transports (but not ones that store declarations in memory).
    """
    if not isinstance(ctx.obj, AMQPContext):
        ctx.obj = AMQPContext(ctx.obj)
        ctx.call_on_close(ctx.obj.close)


def argument(name: str, type: Any = str, **kwargs: Any) -> Callable[[Any], Any]:
    """A word after a command; false if it may be missing."""
    return click.argument(name, type=type, **kwargs)


flag = partial(argument, type=bool, default=False)


@amqp.command(name="exchange.declare")
@argument("exchange")
@argument("type")
@flag("passive")
@flag("durable")
@flag("auto_delete")
@click.pass_obj
def exchange_declare(amqp_context: AMQPContext, /, **words: Any) -> None:
    """Declare an exchange."""

    def declare(channel: Any) -> None:
        channel.exchange_declare(**words)

    amqp_context.carry_out(declare)


@amqp.command(name="exchange.delete")
@argument("exchange")
@argument("if_unused", bool)
@click.pass_obj
def exchange_delete(amqp_context: AMQPContext, /, **words: Any) -> None:
    """Delete an exchange."""

    def delete(channel: Any) -> None:
        channel.exchange_delete(**words)

    amqp_context.carry_out(delete)


@amqp.command(name="queue.bind")
@argument("queue")
@argument("exchange")
@argument("routing_key")
@click.pass_obj
def queue_bind(amqp_context: AMQPContext, /, **words: Any) -> None:
    """Have an exchange bring messages to a queue."""

    def bind(channel: Any) -> None:
        channel.queue_bind(**words)

    amqp_context.carry_out(bind)


@amqp.command(name="queue.declare")
@argument("queue")
@flag("passive")
@flag("durable")
@flag("auto_delete")
@click.pass_obj
def queue_declare(amqp_context: AMQPContext, /, **words: Any) -> None:
    """Declare a queue, and tell how full it is."""

    def declare(channel: Any) -> str:
        return _coloured(amqp_context, "queue:{} messages:{} consumers:{}".format(*channel.queue_declare(**words)))

    amqp_context.carry_out(declare)


@amqp.command(name="queue.delete")
@argument("queue")
@flag("if_unused")
@flag("if_empty")
@click.pass_obj
def queue_delete(amqp_context: AMQPContext, /, **words: Any) -> None:
    """Delete a queue and its messages."""

    def delete(channel: Any) -> str:
        return _coloured(amqp_context, f"{channel.queue_delete(**words) or 0} messages deleted.")

    amqp_context.carry_out(delete)


@amqp.command(name="queue.purge")
@argument("queue")
@click.pass_obj
def queue_purge(amqp_context: AMQPContext, queue: str) -> None:
    """Delete the messages of a queue."""

    def purge(channel: Any) -> str:
        return _coloured(amqp_context, f"{channel.queue_purge(queue=queue) or 0} messages deleted.")

    amqp_context.carry_out(purge)


@amqp.command(name="basic.get")
@argument("queue")
@flag("no_ack")
@click.pass_obj
def basic_get(amqp_context: AMQPContext, queue: str, no_ack: bool) -> None:
    """Take a message from a queue; unless acknowledged it goes back when the connection ends."""

    def get(channel: Any) -> Any:
        message = channel.basic_get(queue, no_ack=no_ack)
        if message is None:
            return "No messages in queue. basic.publish something."
        return {name: getattr(message, name) for name in ("body", "properties", "delivery_info")}

    amqp_context.carry_out(get)


@amqp.command(name="basic.publish")
@argument("msg")
@argument("exchange")
@argument("routing_key")
@flag("mandatory")
@flag("immediate")
@click.pass_obj
def basic_publish(amqp_context: AMQPContext, /, msg: str, **words: Any) -> None:
    """Publish a text."""

    def publish(channel: Any) -> None:
        message = channel.prepare_message(msg.encode(), content_type="text/plain", content_encoding="utf-8")
        channel.basic_publish(message, **words)

    amqp_context.carry_out(publish)


@amqp.command(name="basic.ack")
@argument("delivery_tag", int)
@click.pass_obj
def basic_ack(amqp_context: AMQPContext, delivery_tag: int) -> None:
    """Acknowledge a message."""

    def ack(channel: Any) -> None:
        channel.basic_ack(delivery_tag)

    amqp_context.carry_out(ack)


def _coloured(amqp_context: AMQPContext, text: str) -> str:
    return amqp_context.cli_context.style(text, fg="cyan", bold=True)


click_repl = try_import("click_repl")
if click_repl is not None:
    click_repl.register_repl(amqp)
else:

    @amqp.command(name="repl")
    def repl() -> None:
        """Give commands one after the other (needs the package click-repl)."""
        raise click.UsageError(NO_REPL)
