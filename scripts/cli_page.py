"""The reference page of the command line: every command with its options, from the commands themselves.

Called by ``scripts/make_docs.py``, which writes ``docs/reference/cli.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from celery_clone.bin.celery import celery

__all__ = ("cli_page",)

HEAD = """# The `celery` command

Written by `make docs` from the commands. `celery COMMAND --help` shows the same in the terminal. An option of the
first table stands before or behind the name of the command; those of a command stand behind it. Exit codes: 0 for
success, 1 for a failure, 2 for a wrong command line, 64 for a wrong use, 69 when no worker answered.

Commands of other packages (entry points of the group `celery.commands`) are listed by `celery --help`.
"""

OWN = ("celery_clone.",)


def cli_page() -> str:
    """The page about all commands."""
    context = click.Context(celery, info_name="celery")
    parts = [HEAD, "## celery\n", *options_of(celery, context)]
    for name in sorted(celery.list_commands(context)):
        command = celery.get_command(context, name)
        if command is not None and (command.callback is None or command.callback.__module__.startswith(OWN)):
            parts += section(command, click.Context(command, info_name=name, parent=context), 2)
    return "\n".join(parts)


def section(command: click.Command, context: click.Context, depth: int) -> Iterator[str]:
    """One command, and what is below it."""
    yield f"\n{'#' * depth} {context.command_path}\n"
    text = plain(command.help or command.short_help or "")
    if text:
        yield f"{text}\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```sh\n{context.command_path} {usage}".rstrip() + "\n```\n"
    yield from options_of(command, context)
    if isinstance(command, click.Group):
        for name in sorted(command.list_commands(context)):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from section(below, click.Context(below, info_name=name, parent=context), depth + 1)


def options_of(command: click.Command, context: click.Context) -> Iterator[str]:
    """The table of a command's options."""
    options = [option for option in command.get_params(context) if isinstance(option, click.Option)]
    rows = [option.get_help_record(context) for option in options]
    known = [row for row in rows if row is not None and not row[0].endswith("--help")]
    if known:
        yield "| option | meaning |\n|---|---|"
        yield from (f"| `{cell(spelling)}` | {cell(plain(meaning))} |" for spelling, meaning in known)
        yield ""


def plain(text: str) -> str:
    """A help text as a paragraph of Markdown: examples that the terminal shows as they are become code."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\f", "").strip()):
        if paragraph.lstrip().startswith("\b"):
            lines = [line.strip() for line in paragraph.splitlines()[1:]]
            if not any(re.fullmatch(r"-+", line) for line in lines):
                paragraphs.append("```console\n" + "\n".join(lines) + "\n```")
            continue
        paragraphs.append(" ".join(paragraph.split()).replace("%%", "%"))
    return "\n\n".join(paragraphs)


def cell(text: str) -> str:
    """A text in a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
