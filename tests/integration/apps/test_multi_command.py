"""``celery multi`` with real workers: they are up when it says so, and have ended when it says so."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.processes import is_alive
from tests.support.wait import wait_until
from tests.support.worker import clean_environment

PROJECT = """
import os
from celery_clone import Celery

app = Celery("proj", broker=os.environ["BROKER"])
if os.environ.get("CELERY_DETACHED_PID") and os.environ.get("FAILS"):
    raise SystemExit("not today")
"""


@pytest.fixture
def multi(tmp_path, sqlite_url):
    """``multi("start", "w1")``: (exit code, output); what is left of the workers is ended after the test."""
    (tmp_path / "proj.py").write_text(PROJECT)

    def multi(*words, **environment):
        options = ("-A", "proj", "-c", "1", "-l", "INFO", "--pidfile=run/%n.pid", "--logfile=log/%n%I.log")
        ended = subprocess.run(
            [sys.executable, "-m", "celery_clone", "multi", *words, *options],
            cwd=tmp_path,
            env=clean_environment({"BROKER": sqlite_url, **environment}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=40,
        )
        return ended.returncode, ended.stdout + ended.stderr

    yield multi
    for file in (tmp_path / "run").glob("*.pid"):
        os.kill(int(file.read_text()), signal.SIGKILL)


def test_a_node_is_started_started_again_and_stopped(multi, tmp_path):
    code, output = multi("start", "w1@here")
    assert (code, output) == (0, "celery multi v5.7.0 (collider)\n> Starting nodes...\n\t> w1@here: OK\n")
    first = int((tmp_path / "run/w1.pid").read_text())
    assert is_alive(first)

    code, output = multi("start", "w1@here")
    assert code == 1
    assert "w1@here: FAILED\n" in output
    assert "* ERROR: Pidfile (run/w1.pid) already exists.\n" in output

    code, output = multi("restart", "w1@here", "-INT")
    assert code == 0
    assert re.search(
        rf"> Stopping nodes\.\.\.\n\t> w1@here: INT -> {first}\n> Waiting for 1 node -> {first}\.\.\.\.+\n"
        r"\t> w1@here: OK\n> Restarting node w1@here: OK\n$",
        output,
    )
    second = int((tmp_path / "run/w1.pid").read_text())
    assert is_alive(second) and not is_alive(first)
    wait_until(lambda: "w1@here ready." in (tmp_path / "log/w1.log").read_text(), 10)

    code, output = multi("stopwait", "w1@here")
    assert code == 0
    assert output.endswith("\t> w1@here: OK\n> w1@here: DOWN\n")
    assert not is_alive(second)
    assert not (tmp_path / "run/w1.pid").exists()


def test_a_worker_that_dies_in_the_background_is_a_failure(multi):
    code, output = multi("start", "w1@here", FAILS="1")
    assert code == 1
    assert "\t> w1@here: * Child terminated with exit code 1\nFAILED\n" in output
    assert "log/w1.log may tell why" in output
