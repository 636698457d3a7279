"""``celery purge``: delete what waits in task queues.

Called by ``bin.celery``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from celery_clone.utils.suggest import hint
from celery_clone.utils.text import pluralize

from .base import COMMA_SEPARATED_LIST, CeleryCommand, CeleryOption, handle_preload_options

__all__ = ("purge",)

QUESTION = """\
{warning}: This will remove all tasks from {queues}: {names}.
         There is no undo for this operation!

(to skip this prompt use the -f option)
Are you sure you want to delete all tasks?"""


@click.command(cls=CeleryCommand, context_settings={"allow_extra_args": True})
@click.option("-f", "--force", cls=CeleryOption, is_flag=True, help_group="Purging Options", help="Do not ask.")
@click.option(
    "-Q",
    "--queues",
    cls=CeleryOption,
    type=COMMA_SEPARATED_LIST,
    help_group="Purging Options",
    help="Purge these queues, separated by commas; all known ones without it.",
)
@click.option(
    "-X",
    "--exclude-queues",
    cls=CeleryOption,
    type=COMMA_SEPARATED_LIST,
    help_group="Purging Options",
    help="Do not purge these queues, separated by commas.",
)
@click.pass_context
@handle_preload_options
def purge(
    ctx: click.Context,
    force: bool,
    queues: Sequence[str] | None,
    exclude_queues: Sequence[str] | None,
    **kwargs: Any,
) -> None:
    """Erase all messages from all known task queues.

    Warning:

        There's no undo operation for this command.
    """
    if ctx.args:
        raise click.UsageError(f"purge takes no words, but got {' '.join(ctx.args)!r}. Name queues with -Q.", ctx)
    app = ctx.obj.app
    names = sorted(set(queues or app.amqp.queues) - set(exclude_queues or ()))
    count = f"{len(names)} {{}}{pluralize(len(names), 'queue')}"
    if names and not force:
        question = QUESTION.format(
            warning=ctx.obj.style("WARNING", fg="red"),
            queues=pluralize(len(names), "queue"),
            names=", ".join(names),
        )
        click.confirm(question, abort=True)
    with app.connection_for_write() as connection:
        erased = sum(_purge(ctx, connection, name) for name in names)
    if erased:
        ctx.obj.echo(f"Purged {erased} {pluralize(erased, 'message')} from {count.format('known task ')}.")
    else:
        ctx.obj.echo(f"No messages purged from {count.format('')}.")


def _purge(ctx: click.Context, connection: Any, name: str) -> int:
    """Purge one queue; returns how many messages were erased, 0 if there is no such queue."""
    try:
        return int(connection.default_channel.queue_purge(name) or 0)
    except connection.channel_errors as error:
        ctx.obj.error(f"Cannot purge {name!r}: {error}.{hint(name, ctx.obj.app.amqp.queues)}")
        return 0
