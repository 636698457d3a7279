"""``celery upgrade settings``: rewrite a file of settings from their old names to the new ones.

Called by ``bin.celery``.  Only names are replaced; everything else in the file stays as it is.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

import click

from celery_clone.app.defaults import TO_NEW_KEY

from .base import CeleryCommand, CeleryOption, handle_preload_options

__all__ = ("settings", "upgrade")

NAMESPACE = "CELERY"
BACKUP_SUFFIX = ".orig"

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@click.group()
@click.pass_context
@handle_preload_options
def upgrade(ctx: click.Context) -> None:
    """Perform upgrade between versions."""


def _with_namespace(name: str) -> str:
    """The name of a setting where all begin with ``CELERY_``, as in Django's settings."""
    name = name.upper()
    return name if name.startswith(NAMESPACE) else f"{NAMESPACE}_{name}"


def rename_settings(text: str, spell: Callable[[str], str] = str) -> str:
    """Replace the old names of settings in *text*; *spell* says how a new name is written there."""

    def renamed(found: re.Match[str]) -> str:
        word = found[0]
        return spell(TO_NEW_KEY[word]) if word in TO_NEW_KEY else word

    return WORD.sub(renamed, text)


@upgrade.command(cls=CeleryCommand)
@click.argument("filename")
@click.option(
    "--django",
    cls=CeleryOption,
    is_flag=True,
    help_group="Upgrading Options",
    help="Write names as Django's settings have them: CELERY_TASK_SERIALIZER.",
)
@click.option(
    "--compat",
    cls=CeleryOption,
    is_flag=True,
    help_group="Upgrading Options",
    help="Write names in upper case, with CELERY_ in front.",
)
@click.option(
    "--no-backup",
    cls=CeleryOption,
    is_flag=True,
    help_group="Upgrading Options",
    help="Do not keep the file as it was (as FILENAME.orig).",
)
def settings(filename: str, django: bool, compat: bool, no_backup: bool) -> None:
    """Rewrite FILENAME so that settings have their present names."""
    click.echo(f"processing {filename}...", err=True)
    try:
        with open(filename, encoding="utf-8", newline="") as file:
            before = file.read()
        after = rename_settings(before, _with_namespace if django or compat else str)
        if after == before:
            click.echo("Does not seem to require any changes :-)")
            return
        if not no_backup:
            click.echo(f"writing backup to {filename}{BACKUP_SUFFIX}...", err=True)
            shutil.copy2(filename, filename + BACKUP_SUFFIX)
        with open(filename, "w", encoding="utf-8", newline="") as file:
            file.write(after)
    except OSError as error:
        raise click.FileError(filename, error.strerror) from error
    click.echo("Changes to your setting have been made!")
