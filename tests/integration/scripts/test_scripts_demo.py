"""``make demo`` shows what it promises, and its exit status tells the truth."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


WRONG = {"\n90\n": "\n91\n", "TypeError: add() missing": "TypeError: add() wants"}
"""Answers of the tour, and others that are not true: a value, and an error."""


def run(script: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=50,
    )


def test_the_demonstration_runs_the_whole_tour_within_twenty_seconds() -> None:
    began = time.monotonic()
    done = run(ROOT / "scripts" / "demo.py")
    assert done.returncode == 0, done.stdout
    assert time.monotonic() - began < 20
    tried = re.search(r"(\d+) of (\d+) expressions as expected", done.stdout)
    assert tried is not None
    assert tried.group(1) == tried.group(2)
    assert int(tried.group(1)) >= 40
    for shown in ("[config]", "proj.tasks.add", "ready.", "received", "succeeded in", "exit code 0"):
        assert shown in done.stdout, shown


def test_wrong_answers_are_shown_and_make_the_exit_status_nonzero(tmp_path: Path) -> None:
    for folder in ("scripts", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    tour = tmp_path / "examples" / "tour.md"
    for right, wrong in WRONG.items():
        assert right in tour.read_text()
        tour.write_text(tour.read_text().replace(right, wrong, 1))
    done = run(tmp_path / "scripts" / "demo.py")
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("!!! expected: ") == len(WRONG), done.stdout
    assert all(wrong.strip() in done.stdout for wrong in WRONG.values())
