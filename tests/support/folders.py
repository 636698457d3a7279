"""Folders of the tests' own in the system's temporary folder, which do not outlive them.

Used by ``conftest`` and by the servers beside it. Who has a folder holds a lock on it; a run that was killed has
let go of its locks, and the next run removes what it left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "celery-clone-test-"
BEING_MADE_S = 60.0
"""How long a folder is left alone on which there may just not be a lock yet."""

_locks: dict[Path, int] = {}


def own_folder(kind: str) -> Path:
    """A new folder for what *kind* says, to be given back to :func:`remove_folder`."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-"))
    lock = _locked(folder)
    assert lock is not None, f"somebody has a lock on {folder}, which was made just now"
    _locks[folder] = lock
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it. Legal twice."""
    shutil.rmtree(folder, ignore_errors=True)
    lock = _locks.pop(folder, None)
    if lock is not None:
        os.close(lock)


def sweep() -> None:
    """Remove folders whose owners are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            age_s = time.time() - folder.stat().st_mtime
            lock = _locked(folder) if age_s > BEING_MADE_S else None
        except OSError:
            continue  # somebody was faster, or it is another user's
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor with the lock on *folder*; ``None`` if another has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
