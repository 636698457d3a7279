"""What this machine has and how busy it is.

Called by the worker to choose the size of its pool, by its heartbeat for the
load, and by people who want to know the free disk space.
Reads the system and changes nothing.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator
from functools import cached_property
from math import ceil
from typing import Any, NamedTuple

__all__ = (
    "AUTO_CONCURRENCY",
    "CpuBudget",
    "available_cpu_count",
    "cgroup_cpu_quota",
    "cpu_budget",
    "df",
    "is_auto_concurrency",
    "load_average",
)

#: What a user writes to have the size of the pool chosen.
AUTO_CONCURRENCY = "auto"

CGROUP_ROOT = "/sys/fs/cgroup"
PROC_SELF_CGROUP = "/proc/self/cgroup"


# -- processors ------------------------------------------------------------


class CpuBudget(NamedTuple):
    """How many processors to use: ``count``, at most the ``available`` ones.

    ``quota`` is how many the container may use, ``None`` if it was not asked or
    has no limit.
    """

    count: int  # type: ignore[assignment]
    available: int
    quota: float | None


def is_auto_concurrency(value: Any) -> bool:
    """Return true for the word ``auto``, in any case and with spaces around it."""
    return isinstance(value, str) and value.strip().lower() == AUTO_CONCURRENCY


def available_cpu_count() -> int:
    """Return how many processors this process may run on; two if the system does not tell."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 2
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 2


def cpu_budget(use_cgroup_quota: bool = True) -> CpuBudget:
    """Return how many processors a pool should be made for.

    With ``use_cgroup_quota`` a container's limit is rounded up, so that half a
    processor counts as one.
    """
    available = available_cpu_count()
    quota = cgroup_cpu_quota() if use_cgroup_quota else None
    count = available if quota is None else min(available, max(1, ceil(quota)))
    return CpuBudget(count, available, quota)


# -- limits of containers --------------------------------------------------


def cgroup_cpu_quota() -> float | None:
    """Return how many processors the control groups allow, ``None`` for no limit.

    The groups around ours bind too, so the smallest limit on the way up counts.
    """
    for root, group, read_limit in _hierarchies():
        limits = [limit for limit in map(read_limit, _folders_up(root, group)) if limit is not None]
        if limits:
            return min(limits)
    return None


def _hierarchies() -> Iterator[tuple[str, str, Callable[[str], float | None]]]:
    """Yield where to look for limits: mount point, our group in it, and how to read them.

    Version 2 comes first.  Where the groups are hidden the mount points
    themselves are looked at.
    """
    version_1: tuple[str, str] | None = None
    version_2: str | None = None
    for line in (_text_of(PROC_SELF_CGROUP) or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, separator, group = rest.partition(":")
        if not separator:
            continue
        if number == "0" and not controllers:
            version_2 = group
        elif "cpu" in controllers.split(","):
            version_1 = (controllers, group)
    if version_1 is None and version_2 is None:
        version_1, version_2 = ("cpu", "/"), "/"
    if version_2 is not None:
        yield CGROUP_ROOT, version_2, _limit_in_version_2
    if version_1 is not None:
        controllers, group = version_1
        # Named after all controllers in it; most systems link the short name.
        for mount in dict.fromkeys((controllers, "cpu")):
            yield posixpath.join(CGROUP_ROOT, mount), group, _limit_in_version_1


def _folders_up(root: str, group: str) -> Iterator[str]:
    """Yield the folder of a group and of all groups around it."""
    path = posixpath.normpath(f"/{group.lstrip('/')}")
    while True:
        yield posixpath.join(root, path.lstrip("/"))
        if path == "/":
            return
        path = posixpath.dirname(path)


def _limit_in_version_2(folder: str) -> float | None:
    words = (_text_of(posixpath.join(folder, "cpu.max")) or "").split()
    return _processors(*words) if len(words) == 2 else None


def _limit_in_version_1(folder: str) -> float | None:
    quota = _text_of(posixpath.join(folder, "cpu.cfs_quota_us"))
    period = _text_of(posixpath.join(folder, "cpu.cfs_period_us"))
    return None if quota is None or period is None else _processors(quota, period)


def _processors(quota: str, period: str) -> float | None:
    """Return quota by period; no limit is written as ``max`` or ``-1``."""
    try:
        microseconds, of_microseconds = int(quota), int(period)
    except ValueError:
        return None
    return microseconds / of_microseconds if microseconds > 0 and of_microseconds > 0 else None


def _text_of(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None


# -- load and disk ---------------------------------------------------------


def load_average() -> tuple[float, ...]:
    """Return the load of the last one, five and fifteen minutes; zeros if unknown."""
    if not hasattr(os, "getloadavg"):
        return 0.0, 0.0, 0.0
    return tuple(ceil(load * 100) / 100 for load in os.getloadavg())


class df:
    """The disk that holds ``path``, as the command of that name shows it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    @property
    def total_blocks(self) -> float:
        """Size in kilobytes."""
        return self.stat.f_blocks * self.stat.f_frsize / 1024

    @property
    def available(self) -> float:
        """Kilobytes that users may still write."""
        return self.stat.f_bavail * self.stat.f_frsize / 1024

    @property
    def capacity(self) -> int:
        """Percentage in use."""
        used = self.stat.f_blocks - self.stat.f_bfree
        return ceil(used * 100.0 / (used + self.stat.f_bavail) + 0.5)

    @cached_property
    def stat(self) -> os.statvfs_result:
        """What the system says, asked once."""
        return os.statvfs(os.path.abspath(self.path))
