"""``celery migrate``: publish the messages of one broker at another.

Called by ``bin.celery``.  It opens the connections and prints; the rest is in ``contrib.migrate``.
"""

from __future__ import annotations

from typing import Any

import click
from kombu import Connection

# Imported for what it does: kombu learns of the embedded broker.
from celery_clone import transport  # noqa: F401
from celery_clone.contrib.migrate import migrate_tasks
from celery_clone.utils.text import pluralize

from .base import CeleryCommand, CeleryOption, handle_preload_options

__all__ = ("migrate",)

MIGRATING = "Migrating task {count}/{total}: {task}[{id}]"
MOVED = "{count} {tasks} moved."
COPIED = "{count} {tasks} copied. They are at the source, too; use --ack-messages to remove them there."

#: Times that a broker is tried, one second apart.
TRIES = 3


@click.command(cls=CeleryCommand)
@click.argument("source")
@click.argument("destination")
@click.option(
    "-n", "--limit", cls=CeleryOption, type=int, help_group="Migration Options", help="Migrate so many tasks at most."
)
@click.option(
    "-t",
    "--timeout",
    cls=CeleryOption,
    type=float,
    help_group="Migration Options",
    help="Seconds to wait for a task before it is done; 1 without it.",
)
@click.option(
    "-a",
    "--ack-messages",
    cls=CeleryOption,
    is_flag=True,
    help_group="Migration Options",
    help="Remove the tasks from the source.",
)
@click.option(
    "-T",
    "--tasks",
    cls=CeleryOption,
    help_group="Migration Options",
    help="Migrate tasks of these names only, separated by commas.",
)
@click.option(
    "-Q",
    "--queues",
    cls=CeleryOption,
    help_group="Migration Options",
    help="Migrate these queues only, separated by commas; old:new gives a queue a new name.",
)
@click.option(
    "-F",
    "--forever",
    cls=CeleryOption,
    is_flag=True,
    help_group="Migration Options",
    help="Go on until interrupted.",
)
@click.pass_context
@handle_preload_options
def migrate(
    ctx: click.Context,
    source: str,
    destination: str,
    limit: int | None,
    timeout: float | None,
    ack_messages: bool,
    tasks: str | None,
    queues: str | None,
    forever: bool,
    **kwargs: Any,
) -> None:
    """Migrate tasks from one broker to another.

    A task is published at DESTINATION before it is removed from SOURCE; both are URLs.

    Warning:

        Stop producers and workers of both brokers first, and have a copy of the tasks.
    """

    def tell(state: Any, body: Any, message: Any) -> None:
        fields = {**(body if isinstance(body, dict) else {}), **message.headers}
        line = MIGRATING.format(count=state.count, total=state.strtotal, task=fields.get("task"), id=fields.get("id"))
        ctx.obj.echo(line)

    given: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    with Connection(source) as here, Connection(destination) as there:
        for connection in (here, there):
            connection.ensure_connection(max_retries=TRIES, interval_start=1, interval_step=0)
        state = migrate_tasks(
            here,
            there,
            app=ctx.obj.app,
            callback=tell,
            limit=limit,
            ack_messages=ack_messages,
            tasks=tasks,
            queues=queues,
            forever=forever,
            **given,
        )
    text = MOVED if ack_messages else COPIED
    ctx.obj.echo(text.format(count=state.count, tasks=pluralize(state.count, "task")))
