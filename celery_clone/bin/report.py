"""``celery report``: versions and settings, for a bug report.

Called by ``bin.celery``.  It may only print what the app tells about itself.
"""

from __future__ import annotations

from typing import Any

import click

from .base import CeleryCommand, handle_preload_options

__all__ = ("report",)


@click.command(cls=CeleryCommand)
@click.pass_context
@handle_preload_options
def report(ctx: click.Context, **kwargs: Any) -> None:
    """Show versions and settings, for a bug report.

    Secrets are left out.
    """
    app = ctx.obj.app
    app.loader.import_default_modules()
    ctx.obj.echo(app.bugreport())
