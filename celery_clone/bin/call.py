"""``celery call``: send a task by its name.

Called by ``bin.celery``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from .base import (
    ISO8601,
    ISO8601_OR_FLOAT,
    JSON_ARRAY,
    JSON_OBJECT,
    CeleryCommand,
    CeleryOption,
    handle_preload_options,
)

__all__ = ("call",)

calling_option = partial(click.option, cls=CeleryOption, help_group="Calling Options")
routing_option = partial(click.option, cls=CeleryOption, help_group="Routing Options")


@click.command(cls=CeleryCommand)
@click.argument("name")
@calling_option("-a", "--args", type=JSON_ARRAY, default="[]", help="Positional arguments, as in '[2, 2]'.")
@calling_option("-k", "--kwargs", type=JSON_OBJECT, default="{}", help="Keyword arguments, as in '{\"x\": 2}'.")
@calling_option("--eta", type=ISO8601, help="Run at this time (ISO 8601), not before.")
@calling_option("--countdown", type=float, help="Run after so many seconds, not before.")
@calling_option("--expires", type=ISO8601_OR_FLOAT, help="Do not run after this time, or so many seconds.")
@calling_option("--serializer", default="json", help="How arguments are written.")
@routing_option("--queue", help="Send to this queue.")
@routing_option("--exchange", help="Send to this exchange.")
@routing_option("--routing-key", help="Send with this routing key.")
@click.pass_context
@handle_preload_options
def call(ctx: click.Context, name: str, **options: Any) -> None:
    """Call a task by name.

    Prints the id of the call, which `celery result` takes.
    """
    ctx.obj.echo(ctx.obj.app.send_task(name, **options).id)
