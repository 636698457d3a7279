"""A virtual environment in which the distribution called ``celery`` is ours, with other people's packages from PyPI.

Used by the tests in ``tests/ecosystem``. It is built once, under ``.cache/`` of the repository, and used again as
long as what it is made of stays the same; one run builds it while others wait.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.servers import Unavailable

ROOT = Path(__file__).resolve().parents[2]
ECOSYSTEM = ROOT / "tests" / "ecosystem"
PROJECTS = ECOSYSTEM / "projects"
REQUIREMENTS = ECOSYSTEM / "requirements.txt"
WITHOUT_DEPENDENCIES = ECOSYSTEM / "requirements-without-dependencies.txt"
COMPAT = ROOT / "compat"


def ecosystem_python() -> Path:
    """The interpreter of the environment, of this interpreter's own Python version.

    Raises Unavailable when it cannot be built.
    """
    folder = ROOT / ".cache" / f"ecosystem-py{sys.version_info.major}.{sys.version_info.minor}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        python, contents = folder / "bin" / "python", folder / "made-of.txt"
        if not (python.exists() and contents.exists() and contents.read_text() == _made_of()):
            _build(folder)
            contents.write_text(_made_of())
        return python


def _made_of() -> str:
    parts = (REQUIREMENTS, WITHOUT_DEPENDENCIES, COMPAT / "pyproject.toml", COMPAT / "celery" / "__init__.py")
    return "".join([str(ROOT), (ROOT / "pyproject.toml").read_text(), *(part.read_text() for part in parts)])


def _build(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    _install(folder, [COMPAT, "-r", REQUIREMENTS])
    _install(folder, ["--no-deps", "-r", WITHOUT_DEPENDENCIES])
    # What was installed is a copy; the tests are to see each change of the code.
    _install(folder, ["--no-deps", "--editable", ROOT])


def _install(folder: Path, what: Sequence[str | Path]) -> None:
    installed = subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise Unavailable(f"pip could not install {' '.join(map(str, what))}; it said: {installed.stderr[-800:]}")


def environment_of(project: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Environment variables with which programs find *project* and read *settings*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    return {**kept, "PYTHONPATH": str(project), "PYTHONUNBUFFERED": "1", **settings}
