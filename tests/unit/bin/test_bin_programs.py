"""From options to beat, to a monitor of events, and to messages that move."""

from __future__ import annotations

import os
import sys
import warnings

import pytest
from click.testing import CliRunner

from celery_clone import Celery
from celery_clone.bin import events as events_module
from celery_clone.bin.base import CLIContext
from celery_clone.bin.beat import beat
from celery_clone.bin.events import events
from celery_clone.bin.migrate import migrate


class Program:
    """Stands where a program would: notes its options."""

    def __init__(self):
        self.options = None

    def __call__(self, *words, **options):
        self.options = {**options, "words": words} if words else options
        return self

    def run(self):
        self.options["ran"] = True


@pytest.fixture
def app():
    app = Celery("proj", broker="memory://", set_as_current=False)
    app.conf.worker_hijack_root_logger = False
    app.Beat = Program()
    return app


def run(app, command, *words, **how):
    context = CLIContext(app, workdir=None, no_color=how.get("no_color", False), quiet=how.get("quiet", False))
    return CliRunner().invoke(command, words, obj=context)


# -- beat


def test_beat_is_given_its_options(app):
    words = ("-s", "here", "-S", "proj:Scheduler", "--max-interval", "7", "-n", "b@h", "-l", "info", "-f", "b.log")
    given = run(app, beat, *words, "--enable-remote-control", quiet=True, no_color=True)
    assert given.exit_code == 0, given.output
    assert app.Beat.options == {
        "ran": True,
        "schedule": "here",
        "scheduler": "proj:Scheduler",
        "max_interval": 7,
        "hostname": "b@h",
        "loglevel": 20,
        "logfile": "b.log",
        "pidfile": None,
        "remote_control": True,
        "quiet": True,
        "no_color": True,
    }


def test_beat_falls_back_on_settings_and_takes_some_from_its_words(app):
    app.conf.update(beat_schedule_filename="there", beat_pidfile="b.pid", beat_logfile="b.log")
    given = run(app, beat, "--", "beat.scheduler=proj:Other", "beat_sync_every=3")
    assert given.exit_code == 0, given.output
    assert app.Beat.options["schedule"] == "there"
    assert app.Beat.options["pidfile"] == "b.pid"
    assert app.Beat.options["logfile"] == "b.log"
    assert app.Beat.options["remote_control"] is None
    assert app.conf.beat_sync_every == 3


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--", "no_such_setting=1"], 2, "no_such_setting"),
        (["--uid", "no-such-user"], 1, "User does not exist: no-such-user"),
        (["--max-interval", "soon"], 2, "not a valid integer"),
    ],
)
def test_beat_is_not_started_with_what_makes_no_sense(app, words, code, told):
    given = run(app, beat, *words)
    assert given.exit_code == code
    assert told in given.output
    assert app.Beat.options is None


def test_a_second_beat_does_not_go_into_the_background(app, tmp_path, monkeypatch):
    monkeypatch.setattr("celery_clone.platforms.is_running", lambda pid: True)
    monkeypatch.setattr("celery_clone.platforms.is_perhaps_celery", lambda pid: True)
    (tmp_path / "beat.pid").write_text("1\n")
    assert run(app, beat, "--detach", "--pidfile", str(tmp_path / "beat.pid")).exit_code == 73


@pytest.mark.parametrize("command", [beat, events])
def test_another_python_goes_on_with_the_same_words(app, command, monkeypatch, tmp_path):
    begun = []

    def execute(program, words):
        begun.append((program, words))
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(os, "execvp", execute)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "celery_clone", "beat"])
    monkeypatch.setenv("CELERY_BECAME_PID", "")
    given = run(app, command, "--executable", "/opt/python")
    assert begun == [("/opt/python", ["/opt/python", "-m", "celery_clone", "beat"])]
    assert given.exit_code == 1
    assert "/opt/python" in given.output


# -- events


@pytest.fixture
def monitors(monkeypatch):
    """The dump and the camera, which note their options."""
    dump, camera = Program(), Program()
    monkeypatch.setattr(events_module, "evdump", dump)
    monkeypatch.setattr(events_module, "evcam", camera)
    return dump, camera


@pytest.mark.parametrize("option", ["--dump", "-d"])
def test_events_are_dumped(app, monitors, option):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = run(app, events, option)
    assert given.exit_code == 0, given.output
    assert monitors[0].options == {"app": app}


def test_a_camera_is_given_its_options(app, monitors):
    app.conf.events_pidfile = "cam.pid"
    given = run(app, events, "-c", "proj.Camera", "-F", "2.5", "-r", "10/m", "-l", "DEBUG", "-f", "cam.log")
    assert given.exit_code == 0, given.output
    assert monitors[1].options == {
        "words": ("proj.Camera",),
        "app": app,
        "freq": 2.5,
        "maxrate": "10/m",
        "loglevel": 10,
        "logfile": "cam.log",
        "pidfile": "cam.pid",
    }


def test_without_curses_there_is_no_screen_and_the_way_out_is_told(app, monkeypatch):
    monkeypatch.delitem(sys.modules, "celery_clone.events.cursesmon", raising=False)
    monkeypatch.setitem(sys.modules, "curses", None)
    given = run(app, events)
    assert given.exit_code == 2
    assert "--dump" in given.output


# -- migrate


def test_tasks_get_another_queue_and_are_gone_from_the_old_one(app):
    ids = [app.send_task("proj.add", (n,)).id for n in range(3)]
    other = app.send_task("proj.mul").id
    words = ("-t", "0.1", "-Q", "celery:renamed", "memory://", "memory://")

    copied = run(app, migrate, "-T", "proj.mul", *words)
    assert copied.exit_code == 0, copied.output
    assert f"Migrating task 1/4: proj.mul[{other}]" in copied.output
    assert "1 task copied." in copied.output

    moved = run(app, migrate, "-a", "-n", "2", "-T", "proj.add", *words)
    assert moved.exit_code == 0, moved.output
    assert moved.output.endswith("2 tasks moved.\n")

    with app.connection() as connection:
        channel = connection.default_channel
        there = [channel.basic_get("renamed", no_ack=True).headers["id"] for _ in range(3)]
        here = [channel.basic_get("celery", no_ack=True).headers["id"] for _ in range(2)]
        assert channel.basic_get("celery") is None
    assert there[0] == other
    # Each of the others is in one place: given back to the old one, in whatever order, or moved.
    assert sorted([*there[1:], *here]) == sorted([*ids, other])
