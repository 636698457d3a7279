"""Beat as a process: it sends on time, answers pings, ends in order, and ends with the worker it is part of."""

from __future__ import annotations

import shelve
import signal
import subprocess
import sys

import pytest

from celery_clone import Celery
from tests.support.processes import command_line, dies_with_its_parent, end, is_alive
from tests.support.wait import wait_until
from tests.support.worker import clean_environment

PROJECT = """
import os
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.beat_schedule = {
    "tick": {"task": "project.note", "schedule": 0.2, "args": (os.environ["NOTES"],)},
    "daily": {"task": "project.note", "schedule": 86400.0, "args": (os.environ["NOTES"],)},
}

@app.task(shared=False)
def note(path):
    with open(path, "a") as file:
        file.write("x")
"""

COMMAND = (
    *("-m", "celery_clone", "-A", "project", "beat", "-l", "INFO", "-s", "schedule"),
    *("--enable-remote-control", "-n", "beat@here", "--pidfile", "beat.pid"),
)


@pytest.fixture
def project(tmp_path, sqlite_url):
    """A project with an entry that is due five times a second."""
    (tmp_path / "project.py").write_text(PROJECT)
    return tmp_path, {"BROKER": sqlite_url, "NOTES": str(tmp_path / "notes")}


@pytest.fixture
def beat(project):
    """``beat()``: start the program; returns the process and its log's path."""
    folder, environment = project
    started = []

    def beat():
        log = folder / f"beat-{len(started)}.log"
        with log.open("wb") as output:
            started.append(
                subprocess.Popen(
                    dies_with_its_parent([sys.executable, *COMMAND]),
                    cwd=folder,
                    env=clean_environment(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return started[-1], log

    yield beat
    for process in started:
        end(process)


def notes(project):
    path = project[0] / "notes"
    return path.read_text() if path.exists() else ""


def test_a_worker_runs_what_beat_sends_until_beat_is_told_to_end(project, beat, start_worker):
    start_worker("project", "-c", "1", environment=project[1])
    process, log = beat()

    wait_until(lambda: len(notes(project)) >= 3, describe=lambda: f"three runs; the log:\n{log.read_text()}")
    process.send_signal(signal.SIGTERM)

    assert process.wait(10) == 0
    assert not (project[0] / "beat.pid").exists()
    with shelve.open(str(project[0] / "schedule"), flag="r") as written:
        assert written["entries"]["tick"].total_run_count >= 3
        assert written["entries"]["daily"].total_run_count == 0
    assert "Scheduler: Sending due task tick (project.note)" in log.read_text()


def test_beat_answers_a_ping(project, beat, sqlite_url):
    beat()
    app = Celery("client", broker=sqlite_url, set_as_current=False)

    answer = wait_until(lambda: app.control.inspect(destination=["beat@here"], timeout=0.5).ping(), describe="a pong")

    assert answer == {"beat@here": {"ok": "pong"}}
    assert app.control.broadcast("stats", destination=["beat@here"], reply=True, timeout=0.3) == []
    app.close()


def test_a_second_beat_with_the_same_file_does_not_run_the_same_again(project, beat, start_worker):
    first, log = beat()
    wait_until(lambda: "Sending due task tick" in log.read_text(), describe="the first run")
    first.kill()
    first.wait(10)

    second, log = beat()

    wait_until(lambda: "Sending due task tick" in log.read_text(), describe="the first run of the second beat")
    assert "Sending due task daily" not in log.read_text()
    second.send_signal(signal.SIGINT)
    assert second.wait(10) == 0


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_beat_inside_a_worker_ends_with_it(project, start_worker, how):
    worker = start_worker("project", "-c", "1", "-B", "-s", "schedule", environment=project[1])
    wait_until(lambda: notes(project), describe=lambda: f"a run; the log:\n{worker.log()}")
    tree = worker.tree()
    assert len(tree) == 3, [command_line(pid) for pid in tree]

    if how == "stopped":
        assert worker.stop() == 0
    else:
        worker.kill()

    wait_until(lambda: not any(is_alive(pid) for pid in tree), describe="the end of beat")
    if how == "stopped":
        with shelve.open(str(project[0] / "schedule"), flag="r") as written:
            assert written["entries"]["tick"].total_run_count >= 1
