"""Monitors as processes: the dump, a camera, and the screen, on events of a worker that runs."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from celery_clone import Celery
from tests.support.processes import dies_with_its_parent, end
from tests.support.wait import wait_until
from tests.support.worker import clean_environment

PROJECT = """
import os
from celery_clone import Celery
from celery_clone.events.snapshot import Polaroid

app = Celery("project", broker=os.environ["BROKER"])

@app.task(shared=False)
def add(x, y):
    return x + y

@app.task(shared=False)
def fail():
    raise ValueError("on purpose")

class Camera(Polaroid):
    clear_after = True
    def on_shutter(self, state):
        for uuid, task in state.tasks_by_time():
            print("picture of", task.name, task.state, flush=True)
"""

EVENTS = ("-m", "celery_clone", "-A", "project", "events")
DUMP = (*EVENTS, "--dump")
CAMERA = (*EVENTS, "--camera", "project:Camera", "-F", "0.1", "--pidfile", "camera.pid")
SCREEN = EVENTS


@pytest.fixture
def project(tmp_path, sqlite_url, start_worker):
    """A worker with events, and what a monitor of it needs."""
    (tmp_path / "project.py").write_text(PROJECT)
    start_worker("project", "-c", "1", "-E", "-n", "one@here", environment={"BROKER": sqlite_url})
    return tmp_path, {"BROKER": sqlite_url, "TERM": "xterm", "LINES": "40", "COLUMNS": "120"}


@pytest.fixture
def client(sqlite_url):
    app = Celery("client", broker=sqlite_url, set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def monitor(project):
    """``monitor(program)``: start it; returns the process and a function that reads what it has printed."""
    folder, environment = project
    started = []

    def monitor(program):
        log = folder / "monitor.log"
        with log.open("wb") as output:
            started.append(
                subprocess.Popen(
                    dies_with_its_parent([sys.executable, *program]),
                    cwd=folder,
                    env=clean_environment(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return started[-1], log.read_text

    yield monitor
    for process in started:
        end(process)


def test_events_are_dumped_until_interrupted(monitor, client):
    process, printed = monitor(DUMP)
    wait_until(lambda: "one@here [" in printed() and "heartbeat" in printed(), describe="a heartbeat")

    sent = client.send_task("project.add", (1, 2))

    wait_until(lambda: "task succeeded" in printed(), describe="the end of a task")
    assert f"task received: project.add({sent.id}) args=(1, 2) kwargs={{}}" in printed()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


def test_a_camera_takes_pictures_until_it_is_ended(monitor, client, project):
    process, printed = monitor(CAMERA)
    wait_until(lambda: "Taking snapshots with project:Camera (every 0.1 secs.)" in printed(), describe="the start")

    def photographed():
        client.send_task("project.add", (1, 2))
        return "picture of project.add SUCCESS" in printed()

    wait_until(photographed, describe="a picture", every=0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert not (project[0] / "camera.pid").exists()


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, program, folder, environment):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(sys.executable, [sys.executable, *program], clean_environment(environment))
        self.written = ""

    def read(self):
        while select.select([self.fd], [], [], 0.05)[0]:
            try:
                self.written += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                break
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]", "", self.written)

    def press(self, keys):
        self.written = ""
        os.write(self.fd, keys.encode())

    def wait(self, timeout=10):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        raise AssertionError("the program did not end")

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def terminal(project):
    opened = Terminal(SCREEN, *project)
    yield opened
    opened.close()


def test_the_screen_shows_workers_and_tasks_and_obeys_keys(terminal, client):
    wait_until(lambda: "one@here" in terminal.read(), describe=lambda: f"the worker on screen: {terminal.read()}")

    failed = client.send_task("project.fail")
    wait_until(lambda: failed.id in terminal.read(), describe="the task on screen")
    wait_until(lambda: "FAILURE" in terminal.read(), describe="its state")
    terminal.press("j")
    wait_until(lambda: "Selected:" in terminal.read(), describe="a selection")
    terminal.press("t")
    wait_until(lambda: "ValueError: on purpose" in terminal.read(), describe="a traceback")
    terminal.press(" ")
    wait_until(lambda: "Keys:" in terminal.read(), describe="the list again")
    terminal.press("i")
    wait_until(lambda: "Task details for" in terminal.read(), describe="details")
    terminal.press(" ")
    wait_until(lambda: "Keys:" in terminal.read(), describe="the list again")
    terminal.press("c")
    wait_until(lambda: "flagged as revoked" in terminal.read(), describe="an answer of the worker")

    # A page waits for a key; the interrupt ends it all the same.
    terminal.press("\x03")
    assert terminal.wait() == 0
