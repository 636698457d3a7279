"""What the kernel knows about processes: their children, their life, their cost.

Used by the servers, the worker harness, chaos tests and benchmarks. Reads ``/proc`` (Linux).
It may not end a process it was not given.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.support.wait import wait_until

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A TCP port of the loopback address that nobody uses at this moment.

    It is none of those the kernel gives to connections: it stays free for a server that starts slowly, and for one
    that is away for a while, whatever other processes of the tests do at the same time.
    """
    given = range(*map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()))
    # Not the tests' own source of chance: it is seeded alike in all processes of a run.
    candidates = random.SystemRandom().sample(range(10_000, 60_000), 1000)
    for port in sorted(candidates, key=given.__contains__):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no TCP port of the loopback address is free")


def dies_with_its_parent(command: Sequence[str]) -> list[str]:
    """*command*, prefixed so that the kernel kills it when the process that started it is gone.

    A test run that is killed cannot clean up; servers must not outlive it. Where ``setpriv`` is missing the
    command is returned as it is.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else list(command)


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of ``/proc/<pid>/stat`` after the command name, beginning with the state; None when gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def is_alive(pid: int) -> bool:
    """Whether *pid* runs; a zombie does not."""
    fields = _stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


def command_line(pid: int) -> str:
    """The command *pid* was started with, its arguments apart by blanks; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children_of(pid: int) -> list[int]:
    """Living direct children of *pid*, oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat_fields(int(entry.name))
            if fields is not None and fields[1] == str(pid) and fields[0] not in "ZX":
                found.append(int(entry.name))
    return sorted(found)


def tree_of(pid: int) -> list[int]:
    """*pid* and all its living descendants."""
    found = [pid] if is_alive(pid) else []
    for child in children_of(pid):
        found += tree_of(child)
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of *pids*, user and system, with that of their children that were waited for."""
    ticks = 0
    for pid in pids:
        fields = _stat_fields(pid)
        if fields is not None:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / TICKS_PER_SECOND


def pss_bytes(pids: Iterable[int]) -> int:
    """Memory of *pids* in bytes, pages shared by several processes divided among them."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def open_files_of(pid: int) -> dict[int, str]:
    """File descriptors of *pid* and what they lead to."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(entry.name)] = os.readlink(entry)
    return found


def send_signal(pid: int, signum: int) -> None:
    """Send *signum* to *pid*; a process that is already gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def end(process: subprocess.Popen[bytes], timeout: float = 10.0) -> int:
    """End *process* with TERM, after *timeout* seconds with KILL, and return its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait(timeout)


def end_all(pids: Iterable[int], timeout: float = 5.0) -> None:
    """KILL every one of *pids*, which the caller has started (or their descendants), and see them gone."""
    remaining = list(pids)
    for pid in remaining:
        send_signal(pid, signal.SIGKILL)
    wait_until(
        lambda: not any(is_alive(pid) for pid in remaining),
        timeout,
        f"the end of processes {remaining}",
    )
