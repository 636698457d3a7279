"""``celery list``: what the broker knows.

Called by ``bin.celery``.
"""

from __future__ import annotations

import click

from .base import CeleryCommand, handle_preload_options

__all__ = ("bindings", "list_")


@click.group(name="list")
@click.pass_context
@handle_preload_options
def list_(ctx: click.Context) -> None:
    """Get info from broker.

    RabbitMQ must have its management plugin enabled.
    """


@list_.command(cls=CeleryCommand)
@click.pass_context
def bindings(ctx: click.Context) -> None:
    """Show which exchange brings messages to which queue, by which routing key."""
    app = ctx.obj.app
    with app.connection() as connection:
        app.amqp.TaskConsumer(connection).declare()
        try:
            found = connection.manager.get_bindings()
        except NotImplementedError as error:
            raise click.UsageError("Your transport cannot list bindings.", ctx) from error
        except ImportError as error:
            raise click.UsageError(f"Listing bindings needs another package: {error}.", ctx) from error
    rows = [("Queue", "Exchange", "Routing Key"), ("-" * 16,) * 3]
    rows += [(each["destination"], each["source"], each["routing_key"]) for each in found]
    for queue, exchange, routing_key in rows:
        ctx.obj.echo(f"{queue:<28} {exchange:<28} {routing_key}")
