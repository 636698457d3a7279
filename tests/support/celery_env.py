"""A virtual environment with real Celery 5.7.0: the other side of interop tests and benchmarks.

Used by ``conftest`` and by the benchmarks. It is built once, under ``.cache/`` of the repository, and used
again; one run builds it while others wait.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.support.servers import Unavailable

VERSION = "5.7.0"
REQUIREMENT = f"celery[auth,msgpack,redis,sqlalchemy,yaml]=={VERSION}"
ROOT = Path(__file__).resolve().parents[2]


def celery_python() -> Path:
    """The interpreter of an environment that has real Celery, of this interpreter's own Python version.

    ``REAL_CELERY_PYTHON`` may name an interpreter that has it already. Raises Unavailable when the
    environment cannot be built.
    """
    given = os.environ.get("REAL_CELERY_PYTHON")
    if given:
        if _has_celery(Path(given)):
            return Path(given)
        raise Unavailable(f"{given} has no celery {VERSION}; install it there or unset REAL_CELERY_PYTHON")
    folder = ROOT / ".cache" / f"celery-{VERSION}-py{sys.version_info.major}.{sys.version_info.minor}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        python, contents = folder / "bin" / "python", folder / "requirement.txt"
        if not (contents.exists() and contents.read_text() == REQUIREMENT and _has_celery(python)):
            _build(folder)
            contents.write_text(REQUIREMENT)
        return python


def needs(python: Path, package: str) -> None:
    """Have *package*, which is imported by that name, in the environment of *python*; installs it if it is not there."""
    asked = subprocess.run([python, "-c", f"import {package}"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if asked.returncode != 0:
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", package], stdin=subprocess.DEVNULL, capture_output=True, check=True
        )


def _has_celery(python: Path) -> bool:
    if not python.exists():
        return False
    asked = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('celery'))"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() == VERSION


def _build(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    installed = subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "install", "--quiet", REQUIREMENT],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise Unavailable(
            f"pip could not install {REQUIREMENT}; install it yourself and name that interpreter in "
            f"REAL_CELERY_PYTHON. pip said: {installed.stderr.strip()[-500:]}"
        )
