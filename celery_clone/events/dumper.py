"""Prints events as they come: ``celery events --dump``."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from types import FrameType
from typing import Any

from kombu.common import ignore_errors

from celery_clone import _state
from celery_clone.utils.functional import LRUCache
from celery_clone.utils.time import humanize_seconds

__all__ = ("Dumper", "evdump")

MOST_TASKS = 4095
"""Tasks whose names and arguments are remembered for their later events."""

HUMAN_TYPES = {
    "worker-offline": "shutdown",
    "worker-online": "started",
    "worker-heartbeat": "heartbeat",
}

CONNECTION_ERROR = """\
-> Cannot connect to {url}: {error}.
Trying again {when}
"""


def humanize_type(type: str) -> str:
    """An event's type in words."""
    type = type.lower()
    return HUMAN_TYPES.get(type) or type.replace("-", " ")


def described(fields: Mapping[str, Any]) -> str:
    """The fields of an event in a fixed order."""
    return ", ".join(f"{name}={fields[name]}" for name in sorted(fields))


class Dumper:
    """Prints one line for each event to *out*."""

    def __init__(self, out: Any = sys.stdout) -> None:
        self.out = out
        self.tasks = LRUCache(limit=MOST_TASKS)

    def say(self, msg: str) -> None:
        """Print a line at once, as others may read it through a pipe."""
        print(msg, file=self.out)
        flush = getattr(self.out, "flush", None)
        if flush is not None:
            flush()

    def on_event(self, ev: dict[str, Any]) -> None:
        """Print an event."""
        fields = dict(ev)
        timestamp = datetime.fromtimestamp(fields.pop("timestamp"), timezone.utc)
        type = fields.pop("type").lower()
        hostname = fields.pop("hostname")
        if not type.startswith("task-"):
            self._line(hostname, timestamp, type, described(fields))
            return
        uuid = fields.pop("uuid")
        if type in ("task-received", "task-sent"):
            name, args, kwargs = (fields.pop(field, None) for field in ("name", "args", "kwargs"))
            self.tasks[uuid] = f"{name}({uuid}) args={args} kwargs={kwargs}"
        self.format_task_event(hostname, timestamp, type, self.tasks.get(uuid, f"({uuid})"), fields)

    def format_task_event(
        self, hostname: str, timestamp: datetime, type: str, task: str, event: Mapping[str, Any]
    ) -> None:
        """Print an event of a task; *task* is its name with its arguments."""
        self._line(hostname, timestamp, type, f"{task} {described(event)}")

    def _line(self, hostname: str, timestamp: datetime, type: str, rest: str) -> None:
        self.say(f"{hostname} [{timestamp}] {humanize_type(type)}{': ' if rest else ''}{rest}")


def receive(
    app: Any,
    handler: Callable[[dict[str, Any]], Any],
    cannot_connect: Callable[[str, BaseException, float], Any],
    lost: Callable[[BaseException], Any],
) -> None:
    """Give events to *handler* until interrupted, over as many connections as it takes.

    It returns when INT or TERM was sent while it waited for events.

    Arguments:
        cannot_connect: told of the URL, the error, and the seconds until the next try.
        lost: told why a connection was lost.

    Raises:
        KeyboardInterrupt, SystemExit: they were sent while it connected, or again.
    """
    connection = app.connection_for_read()

    def report(exc: BaseException, interval: float) -> None:
        cannot_connect(connection.as_uri(), exc, interval)

    with connection, ended_by_signals() as end:
        errors = (*connection.connection_errors, *connection.channel_errors)
        while not end.wanted:
            try:
                connection.ensure_connection(report)
                end.receiver = app.events.Receiver(connection, handlers={"*": handler})
                end.receiver.capture(limit=None)
            except errors as exc:
                lost(exc)
                ignore_errors(connection, connection.close)
            finally:
                end.receiver = None


class EndOfCapture:
    """Handler of process signals: a receiver is told to stop, and nothing is raised in the middle of a frame.

    What is left of a frame would be read as another one, and the broker waited for in vain.

    Attributes:
        receiver: what receives now, if anything does.
        wanted: was a signal sent?
    """

    def __init__(self) -> None:
        self.receiver: Any = None
        self.wanted = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.receiver is not None and not self.wanted:
            self.wanted = self.receiver.should_stop = True
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(0)


@contextmanager
def ended_by_signals() -> Iterator[EndOfCapture]:
    """Have INT and TERM end a capture in order; where they can be received, which is the main thread."""
    end = EndOfCapture()
    if threading.current_thread() is not threading.main_thread():
        yield end
        return
    before = {signum: signal.signal(signum, end) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)


def evdump(app: Any = None, out: Any = sys.stdout) -> None:
    """Print events until interrupted."""
    dumper = Dumper(out=out)
    dumper.say("-> evdump: starting capture...")
    try:
        receive(
            _state.app_or_default(app),
            dumper.on_event,
            lambda url, error, seconds: dumper.say(
                CONNECTION_ERROR.format(url=url, error=error, when=humanize_seconds(seconds, "in", " "))
            ),
            lambda error: dumper.say("-> Connection lost, attempting reconnect"),
        )
    except (KeyboardInterrupt, SystemExit):
        return


if __name__ == "__main__":
    evdump()
