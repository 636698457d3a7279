"""Folders of the tests: gone when they are given back, and after a run that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.folders import BEING_MADE_S, own_folder, remove_folder

ROOT = Path(__file__).parents[3]
MAKE = "from tests.support.folders import own_folder; print(own_folder('x'), flush=True); input()"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def made_long_ago(folder: Path) -> None:
    seconds = folder.stat().st_mtime - 2 * BEING_MADE_S
    os.utime(folder, (seconds, seconds))


def test_a_folder_is_there_until_it_is_given_back(temporary):
    folder = own_folder("x")
    (folder / "file").touch()

    remove_folder(folder)
    remove_folder(folder)
    assert list(temporary.iterdir()) == []


def test_what_a_killed_run_left_goes_with_the_next_and_what_others_use_stays(temporary):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    run = [sys.executable, "-c", MAKE]
    with subprocess.Popen(run, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        theirs = Path(other.stdout.readline().strip())
        made_long_ago(theirs)
        mine = own_folder("x")
        made_long_ago(mine)
        assert theirs.exists()

        other.kill()
        other.wait()
        next_one = own_folder("x")
        assert sorted(temporary.iterdir()) == sorted([mine, next_one])
    remove_folder(mine)
    remove_folder(next_one)
