"""A process pool with a runner that does what the name of the job says, and a desk that collects reports."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from celery_clone.concurrency.procpool import Plan, ProcessPool
from celery_clone.exceptions import SoftTimeLimitExceeded
from celery_clone.message import frames
from tests.support.wait import wait_until


class Actor:
    """A runner whose results go to a file, one line for each run, when they are flushed."""

    def __init__(self, results: Path, begun: Path, *, flush_seconds: float = 0.0) -> None:
        self.results, self.begun, self.flush_seconds = results, begun, flush_seconds
        self.lines: list[str] = []
        self.lock = threading.Lock()

    def prepare(self) -> None:
        self.pid = os.getpid()

    @property
    def unsent(self) -> bool:
        return bool(self.lines)

    def flush(self) -> None:
        with self.lock:
            lines, self.lines = self.lines, []
        time.sleep(self.flush_seconds)
        append(self.results, "".join(lines))

    def finish(self) -> None:
        assert not self.lines

    def __call__(self, job: frames.Job, begin: Callable[[], None]) -> Any:
        what, _, argument = job.task.partition(":")
        if what == "refuse":
            return frames.Unfit(job.seq, "undecodable", argument)
        if what == "read":
            self.read(argument)
        begin()
        append(self.begun, f"{job.seq}\n")
        value = getattr(self, what)(argument, job)
        with self.lock:
            self.lines.append(f"{job.seq}\n")
        return frames.Ended(job.seq, ("SUCCESS", value or "", 0.0, None, False))

    def echo(self, argument: str, job: frames.Job) -> str:
        return argument

    def read(self, argument: str, job: frames.Job | None = None) -> str:
        """Before the run begins: die as often as the file *argument* says, then read on."""
        path = Path(argument)
        left = int(path.read_text())
        if left:
            path.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return "read"

    def size(self, argument: str, job: frames.Job) -> str:
        assert job.raw is not None
        return str(len(job.raw))

    def pid_of(self, argument: str, job: frames.Job) -> str:
        return str(os.getpid())

    def sleep(self, argument: str, job: frames.Job) -> str:
        """As a task that handles its soft limit."""
        try:
            time.sleep(float(argument))
        except SoftTimeLimitExceeded:
            return "soft"
        return "slept"

    def sleep_marked(self, argument: str, job: frames.Job) -> str:
        """As :meth:`sleep`, for long; says in the file *argument* that it has begun to handle its limit."""
        try:
            Path(argument).write_text("sleeping")
            time.sleep(30)
        except SoftTimeLimitExceeded:
            return "soft"
        return "slept"

    def until(self, argument: str, job: frames.Job) -> str:
        """Go on when there is a file *argument*."""
        while not Path(argument).exists():
            time.sleep(0.005)
        return "gone on"

    def spin(self, argument: str, job: frames.Job) -> str:
        until = time.monotonic() + float(argument)
        while time.monotonic() < until:
            pass
        return "spun"

    def stubborn(self, argument: str, job: frames.Job) -> str:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(float(argument))
        return "slept"

    def clean_up(self, argument: str, job: frames.Job) -> str:
        try:
            Path(argument).write_text("to be cleaned")
            time.sleep(30)
        finally:
            Path(argument).write_text("cleaned")
        return "slept"

    def leave(self, argument: str, job: frames.Job) -> None:
        raise SystemExit(int(argument))

    def interrupt(self, argument: str, job: frames.Job) -> None:
        raise KeyboardInterrupt

    def crash(self, argument: str, job: frames.Job) -> None:
        raise ValueError(argument)

    def vanish(self, argument: str, job: frames.Job) -> None:
        os._exit(int(argument))

    def fault(self, argument: str, job: frames.Job) -> None:
        faulthandler.disable()
        ctypes.string_at(0)

    def kill_self(self, argument: str, job: frames.Job) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_self_after(self, argument: str, job: frames.Job) -> None:
        time.sleep(float(argument))
        os.kill(os.getpid(), signal.SIGKILL)

    def close_all(self, argument: str, job: frames.Job) -> str:
        os.closerange(3, 256)
        return "closed"

    def fork_and_return(self, argument: str, job: frames.Job) -> str:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return "forked"

    def fork_and_exit(self, argument: str, job: frames.Job) -> str:
        pid = os.fork()
        if not pid:
            sys.exit(3)
        return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def fork_and_leave_it(self, argument: str, job: frames.Job) -> str:
        pid = os.fork()
        if not pid:
            time.sleep(float(argument))
            os._exit(0)
        return str(pid)

    def descriptors(self, argument: str, job: frames.Job) -> str:
        return str(len(os.listdir("/proc/self/fd")))

    def grow(self, argument: str, job: frames.Job) -> str:
        self.ballast = getattr(self, "ballast", b"") + b"x" * (int(argument) * 1024)
        return str(os.getpid())

    def grow_for_a_moment(self, argument: str, job: frames.Job) -> str:
        bytes(bytearray(b"x") * (int(argument) * 1024))
        return str(os.getpid())

    def index(self, argument: str, job: frames.Job) -> str:
        from billiard import current_process

        process = current_process()
        return f"{process.name} {process.index}"


def append(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


class Bench:
    """A started pool, the reports it gave, and shorthand to hand jobs over."""

    def __init__(self, pool: ProcessPool, results: Path, begun: Path, **how: Any) -> None:
        self.pool = pool
        self.reports: list[Any] = []
        self.results_path, self.begun_path = results, begun
        self.next_seq = 0
        pool.start(Actor(results, begun, **how), self.reports.extend)

    def submit(
        self,
        *tasks: str,
        flags: int = 0,
        raw: bytes = b"",
        limits: tuple[float | None, float | None] | None = None,
    ) -> list[int]:
        jobs = [frames.Job(self.next_seq + n, task, raw=raw, flags=flags) for n, task in enumerate(tasks)]
        self.next_seq += len(jobs)
        self.pool.submit(jobs, None if limits is None else [limits] * len(jobs))
        return [job.seq for job in jobs]

    def finals(self) -> list[Any]:
        return [r for r in self.reports if not isinstance(r, (frames.Began, frames.Overtime))]

    def final(self, seq: int) -> Any:
        return next((r for r in self.finals() if r.seq == seq), None)

    def value(self, seq: int) -> str:
        return str(self.final(seq).outcome[1])

    def serve_until(self, condition: Callable[[], Any], timeout: float = 10.0, what: str = "the pool") -> Any:
        """Serve the pool until *condition* holds."""
        return wait_until(lambda: self.pool.serve(0.01) or condition(), timeout, what, every=0.0)

    def ended(self, seqs: Sequence[int], timeout: float = 10.0) -> list[Any]:
        """The final reports of *seqs*, when all are there."""
        found: dict[int, Any] = {}

        def all_ended() -> bool:
            found.update({report.seq: report for report in reversed(self.finals())})
            return found.keys() >= set(seqs)

        self.serve_until(all_ended, timeout, f"the ends of {seqs}")
        return [found[seq] for seq in seqs]

    def begun(self, seq: int, timeout: float = 10.0) -> int:
        """The pid of the child that runs *seq*, when it runs."""
        self.serve_until(lambda: seq in self.pool.begun(), timeout, f"the begin of {seq}")
        return self.pool.begun()[seq][0]

    def runs(self) -> list[int]:
        """The jobs whose code was entered, in order."""
        return numbers(self.begun_path)

    def results(self) -> list[int]:
        """The jobs whose result was stored, in order."""
        return numbers(self.results_path)

    def all_up(self) -> None:
        """Wait until every child takes jobs."""
        members = self.pool._members
        self.serve_until(
            lambda: len(members) == self.pool.size and all(m.slot.ready for m in members.values()),
            what="children that are up",
        )


def numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """``bench(processes, ...)``: a pool that is started, and stopped after the test."""
    opened: list[Bench] = []

    def open_bench(
        processes: int = 2, *, plan: Plan | None = None, flush_seconds: float = 0.0, **how: Any
    ) -> Bench:
        folder = tmp_path / str(len(opened))
        folder.mkdir()
        pool = ProcessPool(processes, plan, **how)
        opened.append(Bench(pool, folder / "results", folder / "begun", flush_seconds=flush_seconds))
        return opened[-1]

    yield open_bench
    for one in opened:
        one.pool.stop(deadline=0.0)
