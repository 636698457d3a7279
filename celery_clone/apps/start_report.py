"""What a program that went into the background tells the one that started it: whether it is up.

Opened by the ``--detach`` of ``bin.worker`` and ``bin.beat``, whose first process waits for the word and ends with
the exit code that is true.  ``apps.worker`` and ``apps.beat`` give the word.  It lasts over an ``exec``.
It may not decide what *up* means, and may not keep a program from running that nobody listens to.
"""

from __future__ import annotations

import os
import select
import sys
import time

from celery_clone.platforms import EX_FAILURE, EX_OK, is_running

__all__ = ("DIED_AT_START", "StartReport", "tell_made", "tell_up")

DIED_AT_START = (
    "The {program} ended before it was up. Its log file {logfile} may tell why; or start it without --detach."
)

MADE_WITHIN_S = 30.0
"""How long the program may take until all its parts are made."""

UP_WITHIN_S = 2.0
"""How long it is waited for after that: a broker that is away lets it wait for hours, which is no failure."""

REPORT_TO = "CELERY_REPORT_START_TO"
"""Environment variable: id of the process that has to tell, and the descriptor to which."""

MADE, UP = b"m", b"u"


class StartReport:
    """A pipe from a program in the background to its first process.

    Arguments:
        program: what it is called in words.
        logfile: where it tells what is wrong.
    """

    def __init__(self, program: str, logfile: str | None) -> None:
        self.program = program
        self.logfile = logfile
        self.reader = self.writer = -1

    def open(self) -> None:
        """Make the pipe, before the fork."""
        self.reader, self.writer = os.pipe()

    def adopt(self) -> None:
        """Be the one that has to tell: called in the process that runs on."""
        os.close(self.reader)
        os.set_inheritable(self.writer, True)
        os.environ[REPORT_TO] = f"{os.getpid()} {self.writer}"
        os.write(self.writer, b"%d\n" % os.getpid())

    def wait(self) -> int:
        """Wait in the first process; returns its exit code, and says what is wrong if that is not 0."""
        os.close(self.writer)
        if self._came_up():
            return EX_OK
        print(DIED_AT_START.format(program=self.program, logfile=self.logfile or "(-f)"), file=sys.stderr, flush=True)
        return EX_FAILURE

    def _came_up(self) -> bool:
        said = b""
        deadline = time.monotonic() + MADE_WITHIN_S
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([self.reader], [], [], left)
            if not readable:
                break
            words = os.read(self.reader, 64)
            if not words:
                return False
            said += words
            if UP in said:
                return True
            if MADE in words:
                deadline = min(deadline, time.monotonic() + UP_WITHIN_S)
        pid, line_end, _ = said.partition(b"\n")
        return bool(line_end) and is_running(int(pid))


def tell_made() -> None:
    """Tell the process that started us that all is made, and that we begin to connect."""
    _tell(MADE)


def tell_up() -> None:
    """Tell the process that started us that we are up; it is told once."""
    _tell(UP)
    writer = _writer()
    if writer is not None:
        del os.environ[REPORT_TO]
        os.close(writer)


def _tell(word: bytes) -> None:
    writer = _writer()
    if writer is not None:
        try:
            os.write(writer, word)
        except OSError:
            pass  # it was ended, or has waited long enough


def _writer() -> int | None:
    """Where to tell; ``None`` if nobody waits for us.  Programs that we start inherit the variable, not our id."""
    pid, _, writer = os.environ.get(REPORT_TO, "").partition(" ")
    return int(writer) if pid == str(os.getpid()) else None
