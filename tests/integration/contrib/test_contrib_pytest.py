"""The fixtures, as a project uses them; and the debugger, as somebody who connects to it sees it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest

from tests.support.processes import end
from tests.support.wait import wait_until
from tests.support.worker import clean_environment

CONFTEST = """
import pytest

pytest_plugins = ("celery_clone.contrib.pytest",)

@pytest.fixture(scope="session")
def celery_config():
    return {"task_default_queue": "mine", "task_default_priority": 1}

@pytest.fixture(scope="session")
def celery_includes():
    return ["shared"]
"""

SHARED = """
from celery_clone import shared_task

@shared_task
def twice(x):
    return 2 * x
"""

TESTS = """
import pytest
from celery_clone import current_app

def test_app(celery_app):
    assert celery_app.conf.task_default_queue == "mine"

@pytest.mark.celery(task_default_queue="other", task_always_eager=True)
def test_marker(celery_app):
    assert celery_app.conf.task_default_queue == "other"
    @celery_app.task
    def add(x, y):
        return x + y
    assert add.delay(1, 2).get() == 3

def test_worker(celery_app, celery_worker):
    @celery_app.task
    def mul(x, y):
        return x * y
    assert mul.delay(4, 4).get(timeout=10) == 16
    assert celery_app.tasks["shared.twice"].delay(4).get(timeout=10) == 8

def test_session_worker(celery_session_app, celery_session_worker, celery_worker):
    assert current_app.conf.task_default_priority == 1
    assert celery_session_app.tasks["shared.twice"].delay(4).get(timeout=10) == 8

def test_session_worker_again(celery_session_app, celery_session_worker):
    assert celery_session_app.tasks["celery.ping"].delay().get(timeout=10) == "pong"

def test_current(depends_on_current_app, celery_app):
    assert current_app.main == celery_app.main
"""


@pytest.fixture
def project(tmp_path):
    """A project with tests."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "shared.py").write_text(SHARED)
    (tmp_path / "test_project.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider --strict-markers\npythonpath = .\n")

    def run(**environment):
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly"],
            cwd=tmp_path,
            env=clean_environment(environment),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return ended.stdout + ended.stderr

    return run


def test_the_fixtures_give_apps_and_workers(project):
    assert "6 passed" in project()
    assert "3 passed, 3 skipped" in project(NO_WORKER="1")


DEBUGGED = """
import sys
from celery_clone.contrib import rdb

def work(x):
    y = x + 1
    rdb.set_trace()
    return y

print("got", work(2), flush=True)
print("got", work(3), flush=True)
"""


def test_a_task_is_debugged_through_a_socket(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", DEBUGGED],
            env=clean_environment({"CELERY_RDB_PORT": "6950"}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        for session, (words, told) in enumerate(((["p 100 + y", "c"], "103"), (["y = 9", "exit"], "")), 1):
            ready = wait_until(
                lambda count=session: re.findall(r"Ready to connect: telnet (\S+) (\d+)", log.read_text())[count - 1 :],
                describe=log.read_text,
            )
            with (
                socket.create_connection((ready[0][0], int(ready[0][1])), 10) as client,
                client.makefile("rw") as lines,
            ):
                for word in words:
                    print(word, file=lines, flush=True)
                assert told in lines.read()
        assert process.wait(10) == 0
        assert "Session with 127.0.0.1" in log.read_text()
        assert "got 3\n" in log.read_text()
        assert "got 9\n" in log.read_text()
    finally:
        end(process)
