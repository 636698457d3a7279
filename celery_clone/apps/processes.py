"""Which processes were started with what: as ``/proc`` tells, where there is one.

Called by ``apps.multi``, which starts processes that are not its children.  It reads; it ends nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from celery_clone.platforms import is_running

__all__ = ("started_with", "was_started_with")

PROCESSES = Path("/proc")


def started_with(variable: str, value: str) -> list[int] | None:
    """Ids of the running processes whose environment has *variable* set to *value*; ``None`` if nobody can tell."""
    try:
        ids = [int(name) for name in os.listdir(PROCESSES) if name.isdigit()]
    except OSError:
        return None
    return [pid for pid in ids if was_started_with(pid, variable, value) and is_running(pid)] if ids else None


def was_started_with(pid: int, variable: str, value: str) -> bool:
    """Does the environment in which *pid* runs its program have *variable* set to *value*?"""
    try:
        environment = (PROCESSES / str(pid) / "environ").read_bytes()
    except OSError:  # it has ended, is somebody else's, or there is no such file system
        return False
    return f"{variable}={value}".encode() in environment.split(b"\0")
