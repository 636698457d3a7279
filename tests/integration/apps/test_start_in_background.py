"""``--detach``: the exit code of the command that returns tells whether the program in the background is up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from celery_clone.platforms import EX_CANTCREAT, EX_FAILURE, EX_OK, is_running
from tests.support.wait import wait_until
from tests.support.worker import clean_environment

PROJECT = """
import os
from celery_clone import Celery
from celery_clone.signals import beat_init, celeryd_after_setup

app = Celery("project", broker=os.environ["BROKER"])

def die(**kwargs):
    os._exit(7)

if os.environ.get("DIE_AT_START"):
    celeryd_after_setup.connect(die)
    app.conf.beat_scheduler = "project:no_such_scheduler"
"""


@pytest.fixture
def celery(tmp_path):
    """Run ``celery -A project <words>``; returns its exit code and what it said of errors."""
    (tmp_path / "project.py").write_text(PROJECT)

    def celery(*words, **environment):
        broker = f"sqlite:///{tmp_path}/broker.db"
        ended = subprocess.run(
            [sys.executable, "-m", "celery_clone", "-A", "project", *words],
            cwd=tmp_path,
            env=clean_environment({"BROKER": broker, **environment}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=40,
        )
        return ended.returncode, ended.stderr

    return celery


@contextmanager
def ended_afterwards(pidfile):
    pid = int(pidfile.read_text())
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_running(pid), 20, f"the end of {pid}")


@pytest.mark.parametrize("program", ["worker", "beat"])
def test_it_is_0_when_the_program_is_up_and_73_for_a_second_one(celery, tmp_path, program):
    pidfile = tmp_path / "program.pid"
    command = [program, "--detach", f"--pidfile={pidfile}", "-f", "program.log"]
    assert celery(*command)[0] == EX_OK
    with ended_afterwards(pidfile) as pid:
        assert is_running(pid)
        code, said = celery(*command)
        assert code == EX_CANTCREAT
        assert f"pid: {pid}" in said


@pytest.mark.parametrize("program", ["worker", "beat"])
def test_it_is_1_and_the_log_file_is_named_when_the_program_died_at_its_start(celery, program):
    code, said = celery(program, "--detach", "-f", "program.log", "--pidfile=program.pid", DIE_AT_START="1")
    assert code == EX_FAILURE
    assert f"The {program} ended before it was up." in said
    assert "program.log" in said


def test_a_worker_whose_broker_is_away_waits_for_it_in_the_background(celery, tmp_path):
    pidfile = tmp_path / "program.pid"
    away = "redis://127.0.0.1:1/0"
    assert celery("worker", "--detach", f"--pidfile={pidfile}", "-f", "program.log", BROKER=away)[0] == EX_OK
    with ended_afterwards(pidfile) as pid:
        assert is_running(pid)
        wait_until(lambda: "Cannot connect" in (tmp_path / "program.log").read_text(), 10, "it to try")
