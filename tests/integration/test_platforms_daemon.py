"""A process that goes into the background, for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from celery_clone.platforms import EX_CANTCREAT, Pidfile, create_pidlock, is_running
from tests.support.wait import wait_until

PROGRAM = """
import os, sys, time
from celery_clone.platforms import create_pidlock, detached

folder = sys.argv[1]
with detached(pidfile=folder + "/pid", logfile=folder + "/log", workdir=folder, umask=0o027):
    lock = create_pidlock(folder + "/pid")
    with open("facts", "w") as facts:
        print(os.getsid(0), os.getpgid(0), os.getcwd(), file=facts)
    print("nobody reads this")
    os.rename("facts", "ready")
    time.sleep(60)
"""


@pytest.fixture
def daemon(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    wait_until((tmp_path / "ready").exists, 10, lambda: "the daemon to be ready")
    pid = int((tmp_path / "pid").read_text())
    yield pid, done, tmp_path
    os.kill(pid, signal.SIGKILL)


def test_a_daemon_leaves_its_session_and_its_streams(daemon):
    pid, started, folder = daemon
    session, group, directory = (folder / "ready").read_text().split()
    assert int(session) == int(group) != pid
    assert directory == str(folder)
    assert started.stdout == ""
    assert os.readlink(f"/proc/{pid}/fd/1") == os.devnull
    assert oct((folder / "ready").stat().st_mode & 0o777) == "0o640"


def test_a_second_daemon_does_not_start_beside_the_first(daemon):
    pid, _, folder = daemon
    second = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("detached(", "detached(fake=True, "), str(folder)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == os.EX_CANTCREAT
    assert f"(pid: {pid})" in second.stderr


def test_a_process_that_has_ended_does_not_run_even_if_nobody_took_it_away():
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert is_running(process.pid)
        process.kill()
        wait_until(lambda: not is_running(process.pid), 10)
        os.kill(process.pid, 0)  # it is there still
    finally:
        process.wait()
    assert not is_running(process.pid)


# -- pid files


@pytest.fixture
def pidfile(tmp_path):
    return tmp_path / "w.pid"


@pytest.fixture
def process():
    """``process("sleep", "60")``: a program that runs until the end of the test, by its id."""
    begun = []

    def process(*words):
        # Under a name of its own: the folder of this Python may well be called celery.
        program = sys.executable if words[0] == "python" else None
        begun.append(subprocess.Popen(words, executable=program, stdin=subprocess.DEVNULL))
        return begun[-1].pid

    yield process
    for one in begun:
        one.kill()
        one.wait()


STAY = "import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["celery", "-A", "proj", "worker"], 1e9),
        (["worker_of_a_project"], 4e9),
    ],
    ids=["named celery", "a Python that ran when the file was written"],
)
def test_the_file_of_a_running_worker_ends_the_program(pidfile, process, capsys, words, written):
    pid = process("python", "-c", STAY, *words)
    pidfile.write_text(f"{pid}\n")
    os.utime(pidfile, (written, written))
    with pytest.raises(SystemExit) as ended:
        create_pidlock(pidfile)
    assert ended.value.code == EX_CANTCREAT
    assert f"already exists.\nSeems we're already running? (pid: {pid})" in capsys.readouterr().err
    assert pidfile.exists()


@pytest.mark.parametrize(
    "words",
    [["sleep", "60"], ["python", "-c", STAY]],
    ids=["another program", "a Python that began after the file was written"],
)
def test_a_file_whose_id_another_program_has_got_is_stale(pidfile, process, capsys, monkeypatch, words):
    for name in [name for name in os.environ if name.startswith("CELERY_")]:
        monkeypatch.delenv(name)
    pid = process(*words)
    pidfile.write_text(f"{pid}\n")
    os.utime(pidfile, (1e9, 1e9))
    assert Pidfile(pidfile).remove_if_stale()
    assert "Stale pidfile" in capsys.readouterr().err
