"""Looking into a process that misbehaves: memory, blocking calls, stacks.

Called by the remote commands ``memdump`` and ``memsample``, by the handler of
``USR1`` and by people.  Nothing here runs unless somebody asks.
Memory is only known if the package ``psutil`` is installed.
"""

from __future__ import annotations

import gc
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pprint import pprint
from typing import Any

from celery_clone.local import try_import
from celery_clone.platforms import signals
from celery_clone.utils.text import WhateverIO

__all__ = ("blockdetection", "sample_mem", "memdump", "sample", "humanbytes", "mem_rss", "ps", "cry")

UNITS: tuple[tuple[float, str], ...] = (
    (2.0**40, "TB"),
    (2.0**30, "GB"),
    (2.0**20, "MB"),
    (2.0**10, "KB"),
    (0.0, "b"),
)

_process: Any = None
_mem_sample: list[str | None] = []


# -- blocking calls --------------------------------------------------------


def _on_blocking(signum: int, frame: Any) -> None:
    raise RuntimeError(f"Blocking detection timed-out at: {inspect.getframeinfo(frame)}")


@contextmanager
def blockdetection(timeout: float | None) -> Iterator[None]:
    """Raise :exc:`RuntimeError` where the body is if it takes more than ``timeout`` seconds.

    Uses the alarm of the process, so only in the main thread.  Without a
    timeout it does nothing.
    """
    if not timeout:
        yield
        return
    handler_before = signals["ALRM"]
    signals["ALRM"] = _on_blocking
    try:
        signals.arm_alarm(timeout)
        yield
    finally:
        signals.reset_alarm()
        if handler_before is not _on_blocking:
            signals["ALRM"] = handler_before


# -- memory ----------------------------------------------------------------


def ps() -> Any:
    """Return this process as ``psutil.Process``, ``None`` without that package."""
    global _process
    psutil = try_import("psutil")
    if psutil is not None and (_process is None or _process.pid != os.getpid()):
        _process = psutil.Process(os.getpid())
    return _process


def mem_rss() -> str | None:
    """Return the memory in use as a text such as ``31.2MB``, ``None`` if unknown."""
    process = ps()
    return None if process is None else humanbytes(process.memory_info().rss)


def sample_mem() -> str | None:
    """Remember the memory in use for :func:`memdump` and return it."""
    current = mem_rss()
    _mem_sample.append(current)
    return current


def memdump(samples: int = 10, file: Any = None) -> None:
    """Print up to ``samples`` of the remembered values and the memory after a collection."""
    if ps() is None:
        print("- rss: (psutil not installed).", file=file)
        return
    remembered = list(_mem_sample)
    _mem_sample.clear()
    if len(remembered) > samples:
        remembered = list(sample(remembered, samples))
    gc.collect()
    if remembered:
        print("- rss (sample):", file=file)
    for value in remembered:
        print(f"-    > {value},", file=file)
    print(f"- rss (end): {mem_rss()}.", file=file)


def sample(x: Sequence[Any], n: int, k: int = 0) -> Iterator[Any]:
    """Yield ``n`` items of ``x`` at equal distances, from position ``k``."""
    yield from x[k :: max(len(x) // n, 1)][:n]


def hfloat(f: float, p: int = 5) -> str | int:
    """Return a number with ``p`` digits, without a point if it is whole."""
    return int(f) if int(f) == f else f"{f:.{p}}"


def humanbytes(s: float) -> str:
    """Return a number of bytes in the largest unit that fits, such as ``1.5KB``."""
    size, unit = next((size, unit) for size, unit in UNITS if s >= size)
    return f"{hfloat(s / size if size else s)}{unit}"


# -- stacks ----------------------------------------------------------------


def cry(out: Any = None, sepchr: str = "=", seplen: int = 49) -> str:
    """Return what every thread is doing, with its local variables; also written to ``out``."""
    target = WhateverIO() if out is None else out
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    rule = sepchr * seplen
    for ident, frame in sys._current_frames().items():
        if ident not in names:
            continue  # left over from the process we were forked from
        print(names[ident], rule, sep="\n", file=target)
        traceback.print_stack(frame, file=target)
        print(rule, "LOCAL VARIABLES", rule, sep="\n", file=target)
        pprint(frame.f_locals, stream=target)
        print("\n", file=target)
    return str(target.getvalue())
