"""``celery logtool``: what the log files of workers say about tasks.

Called by ``bin.celery``.  It reads text files and knows the lines that a worker writes about a task,
those of older versions too; no app is needed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from fileinput import FileInput
from typing import Any

import click

from .base import CeleryCommand, handle_preload_options

__all__ = ("Audit", "logtool")

LINE_START = re.compile(r"\[\d{4}-\d\d-\d\d ")
RECEIVED = re.compile(
    r"""[^]]*\][ ](?:
        Received\ task:\ (?P<old_name>[^\s\[]+)\[(?P<old_id>[^]]+)\]
      | Task\ (?P<name>[^\s\[]+)\[(?P<id>[^]]+)\]\ received
    )""",
    re.VERBOSE,
)
ENDED = re.compile(r"[^]]*\] Task (?P<name>[^\s\[]+)\[(?P<id>[^]]+)\] (?P<result>.+)")

#: A task that is tried again has not ended.
GOES_ON = ("retry:",)
SUCCESS = "succeeded"

REPORT = """
Report
======
Task total: {total}
Task errors: {errors}
Task success: {succeeded}
Task completed: {completed}
Tasks
=====
{types}
"""

Listener = Callable[[str], Any]


class Audit:
    """Reads log lines and keeps account of the tasks in them.

    Arguments:
        on_task_error: called with the line of a task that ended without success.
        on_trace: called with lines that belong to the one before, which comes first.
        on_debug: called with lines that are not about a task.
    """

    def __init__(
        self,
        on_task_error: Listener | None = None,
        on_trace: Listener | None = None,
        on_debug: Listener | None = None,
    ) -> None:
        self.on_task_error = on_task_error
        self.on_trace = on_trace
        self.on_debug = on_debug
        self.names: dict[str, str] = {}
        self.results: dict[str, str] = {}
        self.task_types: Counter[str] = Counter()
        self.failed: set[str] = set()
        self._line_before: str | None = None

    def run(self, lines: Iterable[str]) -> Audit:
        """Read all lines."""
        for line in lines:
            self.feed(line.rstrip("\n"))
        return self

    def feed(self, line: str) -> None:
        """Read a line."""
        if not LINE_START.match(line):
            self._tell(self.on_trace, "\n".join(filter(None, (self._line_before, line))))
            self._line_before = None
            return
        self._line_before = line
        received = RECEIVED.match(line)
        if received is not None:
            name, task_id = (received[f"old_{part}"] or received[part] for part in ("name", "id"))
            if task_id not in self.names:
                self.task_types[name] += 1
            self.names[task_id] = name
            return
        ended = ENDED.match(line)
        if ended is None:
            self._tell(self.on_debug, line)
        elif not ended["result"].startswith(GOES_ON):
            self._note_end(line, ended["id"], ended["result"])

    def _note_end(self, line: str, task_id: str, result: str) -> None:
        self.results[task_id] = result
        if SUCCESS not in result:
            self.failed.add(task_id)
            self._tell(self.on_task_error, line)

    @staticmethod
    def _tell(listener: Listener | None, line: str) -> None:
        if listener is not None:
            listener(line)

    def incomplete_tasks(self) -> list[str]:
        """The ids of tasks that were received and have not ended, in the order of the log."""
        return [task_id for task_id in self.names if task_id not in self.results]

    def report(self) -> dict[str, Any]:
        """The numbers."""
        return {
            "types": self.task_types.most_common(),
            "total": len(self.names),
            "errors": len(self.failed),
            "completed": len(self.results),
            "succeeded": len(self.results) - len(self.failed),
        }


def _lines(files: Sequence[str]) -> Iterator[str]:
    """The lines of *files*, or of standard input if there are none."""
    try:
        with FileInput(files, encoding="utf-8", errors="replace") as lines:
            yield from lines
    except OSError as error:
        raise click.FileError(str(error.filename), error.strerror) from error


@click.group()
@click.pass_context
@handle_preload_options
def logtool(ctx: click.Context) -> None:
    """Read the log files of workers.

    FILES are what was written with --logfile at level INFO or below; standard input without them.
    """


@logtool.command(cls=CeleryCommand)
@click.argument("files", nargs=-1)
@click.pass_context
def stats(ctx: click.Context, files: Sequence[str]) -> None:
    """Count the tasks."""
    numbers = Audit().run(_lines(files)).report()
    types = "\n".join(f"{name}: {count}" for name, count in numbers["types"])
    ctx.obj.echo(REPORT.format(**{**numbers, "types": types}))


@logtool.command(cls=CeleryCommand)
@click.argument("files", nargs=-1)
@click.pass_context
def traces(ctx: click.Context, files: Sequence[str]) -> None:
    """Print the tracebacks, each after the line it belongs to."""
    Audit(on_trace=ctx.obj.echo).run(_lines(files))


@logtool.command(cls=CeleryCommand)
@click.argument("files", nargs=-1)
@click.pass_context
def errors(ctx: click.Context, files: Sequence[str]) -> None:
    """Print the lines of tasks that ended without success."""
    Audit(on_task_error=ctx.obj.echo).run(_lines(files))


@logtool.command(cls=CeleryCommand)
@click.argument("files", nargs=-1)
@click.pass_context
def incomplete(ctx: click.Context, files: Sequence[str]) -> None:
    """Print the ids of tasks that were received and have not ended."""
    for task_id in Audit().run(_lines(files)).incomplete_tasks():
        ctx.obj.echo(f"Did not complete: {task_id}")


@logtool.command(cls=CeleryCommand)
@click.argument("files", nargs=-1)
@click.pass_context
def debug(ctx: click.Context, files: Sequence[str]) -> None:
    """Print the lines that are not about tasks."""
    Audit(on_debug=ctx.obj.echo).run(_lines(files))
