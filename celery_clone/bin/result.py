"""``celery result``: what became of a call.

Called by ``bin.celery``.
"""

from __future__ import annotations

from typing import Any

import click

from celery_clone.exceptions import CeleryCommandException
from celery_clone.platforms import EX_FAILURE
from celery_clone.utils.suggest import hint

from .base import CeleryCommand, CeleryOption, handle_preload_options

__all__ = ("result",)


@click.command(cls=CeleryCommand)
@click.argument("task_id")
@click.option(
    "-t",
    "--task",
    cls=CeleryOption,
    help_group="Result Options",
    help="Name of the task, if it has a result backend of its own.",
)
@click.option(
    "--traceback",
    cls=CeleryOption,
    is_flag=True,
    help_group="Result Options",
    help="Print the traceback of a failed task instead, without waiting.",
)
@click.pass_context
@handle_preload_options
def result(ctx: click.Context, task_id: str, task: str | None, traceback: bool) -> None:
    """Print the return value for a given task id.

    Waits until there is one. Of a task that failed the error goes to standard error, and the exit code is 1.
    """
    app = ctx.obj.app
    if task is not None and task not in app.tasks:
        raise click.BadParameter(f"There is no task {task!r}.{hint(task, app.tasks)}", ctx, param_hint="--task")
    found = (app.tasks[task] if task else app).AsyncResult(task_id)
    try:
        ctx.obj.echo(found.traceback if traceback else _value(found))
    except NotImplementedError as error:
        raise CeleryCommandException(message=str(error), exit_code=EX_FAILURE) from error


def _value(found: Any) -> Any:
    """The value of a result, waited for.

    Raises:
        CeleryCommandException: the task failed.
    """
    value = found.get(propagate=False)
    if found.failed():
        message = found.traceback or f"{type(value).__name__}: {value}"
        raise CeleryCommandException(message=message, exit_code=EX_FAILURE)
    return value
