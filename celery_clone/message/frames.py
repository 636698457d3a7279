"""What parent and child say to each other: jobs down, reports up, and their bytes.

Made and read by ``concurrency`` on both sides, filled and understood by ``worker.dispatch`` and
the runner of ``app.trace``.  Values and bytes only: it owns no pipe and no process.

Frames are ``marshal`` texts, because both ends are one interpreter; values that marshal does not
know (dates and decimals in AMQP headers) are pickled, the first byte tells which.
"""

from __future__ import annotations

import marshal
import pickle
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = (
    "Began",
    "Ended",
    "Job",
    "Lost",
    "Overtime",
    "Report",
    "ReportReader",
    "Returned",
    "Unfit",
    "decode_job",
    "encode_job",
    "encode_reports",
)

TELL_BEGIN = 1
"""Flag of a job: report :class:`Began` at once (the job has limits, or is not known to be short)."""
WANT_SUMMARY = 2
"""Flag of a job: somebody in the parent wants the repr of the result (events, signals)."""
MAY_WAIT = 4
"""Flag of a job: its task is known to be short, so finished results may wait for it to end."""

LENGTH = struct.Struct("!I")
MARSHALLED, PICKLED = b"m", b"p"


class Job(NamedTuple):
    """What a child receives: one message to run, or one plain call.

    ``seq`` grows by one per parent.  Exactly one of ``raw`` (the whole envelope as Redis and SQLite
    carry it), ``parts`` (headers, properties, body, content type, content encoding, as AMQP and kombu
    give them) and ``call`` (a pickled ``(target, args, kwargs)``) is set.  ``facts`` holds what the
    message cannot know: ``delivery_info``, ``redelivered``.
    """

    seq: int
    task: str
    raw: bytes | None = None
    parts: tuple[dict[str, Any], dict[str, Any], bytes | str, str | None, str | None] | None = None
    facts: Mapping[str, Any] | None = None
    flags: int = 0
    call: bytes | None = None


class Began(NamedTuple):
    """A child took the job; *at* is :func:`time.monotonic` of this machine."""

    seq: int
    pid: int
    at: float


class Ended(NamedTuple):
    """The job came to its end in the child.

    *outcome* is an ``execution.outcome.Outcome`` in packed form: this floor lies below it.
    """

    seq: int
    outcome: tuple[Any, ...]


class Unfit(NamedTuple):
    """The message could not be made into a run: *why* is a short word, *detail* a sentence."""

    seq: int
    why: str
    detail: str


class Lost(NamedTuple):
    """The child died with the job begun.  Made by the pool, never sent by a child."""

    seq: int
    pid: int
    exitcode: int | None


class Overtime(NamedTuple):
    """A time limit of *limit* seconds was reached.  Made by the pool, never sent by a child."""

    seq: int
    soft: bool
    limit: float


class Returned(NamedTuple):
    """A plain call ended: *value* is pickled ``(ok, result or exception)``."""

    seq: int
    value: bytes


Report = Began | Ended | Unfit | Lost | Overtime | Returned

BEGAN, ENDED, UNFIT, RETURNED = 0, 1, 2, 3


def dump(value: Any) -> bytes:
    """Serialise for the other end."""
    try:
        return MARSHALLED + marshal.dumps(value)
    except ValueError:
        return PICKLED + pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def load(data: bytes | memoryview) -> Any:
    """Inverse of :func:`dump`."""
    view = memoryview(data)
    if view[:1] == MARSHALLED:
        return marshal.loads(view[1:])
    return pickle.loads(view[1:])  # our own parent wrote it


def encode_job(job: Job) -> bytes:
    """One packet."""
    return dump(tuple(job))


def decode_job(data: bytes | memoryview) -> Job:
    """Inverse of :func:`encode_job`."""
    return Job(*load(data))


def encode_reports(reports: Sequence[Report]) -> bytes:
    """One length-prefixed frame of reports."""
    rows: list[tuple[Any, ...]] = []
    for report in reports:
        if isinstance(report, Ended):
            rows.append((ENDED, *report))
        elif isinstance(report, Began):
            rows.append((BEGAN, *report))
        elif isinstance(report, Unfit):
            rows.append((UNFIT, *report))
        elif isinstance(report, Returned):
            rows.append((RETURNED, *report))
        else:
            raise TypeError(f"{report!r} is made by the parent and is never sent by a child.")
    data = dump(rows)
    return LENGTH.pack(len(data)) + data


def decode_reports(data: bytes | memoryview) -> list[Report]:
    """The reports of one frame, without its length prefix."""
    reports: list[Report] = []
    for kind, *values in load(data):
        if kind == ENDED:
            reports.append(Ended(*values))
        elif kind == BEGAN:
            reports.append(Began(*values))
        elif kind == UNFIT:
            reports.append(Unfit(*values))
        else:
            reports.append(Returned(*values))
    return reports


class ReportReader:
    """Cuts a byte stream into frames of reports.  Owned by the pool, one per child."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Report]:
        """Take what was read from the child and give the reports that are complete."""
        buffer = self._buffer
        buffer += data
        start, size = 0, LENGTH.size
        frames: list[bytes] = []
        while len(buffer) - start >= size:
            (length,) = LENGTH.unpack_from(buffer, start)
            end = start + size + length
            if len(buffer) < end:
                break
            frames.append(bytes(buffer[start + size : end]))
            start = end
        del buffer[:start]
        for frame in frames:
            yield from decode_reports(frame)
