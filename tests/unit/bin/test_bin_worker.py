"""From options to a worker."""

from __future__ import annotations

import logging
import os
import sys

import click
import pytest
from click.testing import CliRunner

import celery_clone.bin.worker as command
from celery_clone import Celery, platforms
from celery_clone.bin.base import CLIContext
from celery_clone.bin.celery import celery
from celery_clone.bin.worker import AUTOSCALE, HOSTNAME, worker
from celery_clone.concurrency.solo import TaskPool as SoloPool
from celery_clone.exceptions import ImproperlyConfigured, SecurityError
from celery_clone.utils.nodenames import gethostname


class Program:
    """Stands where the worker program would: notes its options and ends with a code."""

    def __init__(self, **options):
        self.options = options
        self.started = False
        self.exitcode = None
        self.fails_with = None

    def __call__(self, **options):
        if self.fails_with is not None:
            raise self.fails_with
        self.options = options
        return self

    def start(self):
        self.started = True


@pytest.fixture
def app():
    app = Celery("proj", broker="memory://", set_as_current=False)
    app.Worker = Program()
    return app


def run(app, *words, quiet=False, no_color=False, **kwargs):
    context = CLIContext(app, no_color=no_color, workdir=None, quiet=quiet)
    return CliRunner().invoke(worker, words, obj=context, **kwargs)


def options_of(app, *words, **kwargs):
    given = run(app, *words, **kwargs)
    assert given.exit_code == 0, given.output
    assert app.Worker.started
    return app.Worker.options


# -- every option arrives


def test_without_options_the_settings_decide(app):
    given = options_of(app)
    assert given["hostname"] == f"celery@{gethostname()}"
    assert given["loglevel"] == logging.WARNING
    assert given["optimization"] == "default"
    assert given["pool_cls"].__module__ == "celery_clone.concurrency.prefork"
    assert given["schedule_filename"] == app.conf.beat_schedule_filename
    assert given["quiet"] is False
    undecided = {
        *("concurrency", "time_limit", "soft_time_limit", "max_tasks_per_child", "max_memory_per_child"),
        *("prefetch_multiplier", "pool_start_method", "task_events", "queues", "exclude_queues", "include"),
        *("heartbeat_interval", "autoscale", "scheduler", "logfile", "pidfile", "statedb", "no_color"),
    }
    assert {name for name in undecided if given[name] is not None} == set()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["-n", "w1@there"], "hostname", "w1@there"),
        (["-n", "there"], "hostname", "celery@there"),
        (["-n", "w1@%h"], "hostname", f"w1@{gethostname()}"),
        (["-l", "debug"], "loglevel", logging.DEBUG),
        (["-O", "fair"], "optimization", "fair"),
        (["-c", "3"], "concurrency", 3),
        (["-c", "AUTO"], "concurrency", "auto"),
        (["-c", "0"], "concurrency", None),
        (["-P", "solo"], "pool_cls", SoloPool),
        (["--prefetch-multiplier", "0"], "prefetch_multiplier", 0),
        (["--time-limit", "1.5"], "time_limit", 1.5),
        (["--soft-time-limit", "1"], "soft_time_limit", 1.0),
        (["--max-tasks-per-child", "9"], "max_tasks_per_child", 9),
        (["--max-memory-per-child", "9000"], "max_memory_per_child", 9000),
        (["--pool-start-method", "spawn"], "pool_start_method", "spawn"),
        (["-Q", "a,b"], "queues", ["a", "b"]),
        (["-X", "c"], "exclude_queues", ["c"]),
        (["-I", "a.tasks,b.tasks"], "include", ["a.tasks", "b.tasks"]),
        (["--purge"], "purge", True),
        (["--discard"], "purge", True),
        (["--without-gossip"], "without_gossip", True),
        (["--without-mingle"], "without_mingle", True),
        (["--without-heartbeat"], "without_heartbeat", True),
        (["-S", "state.%n", "-n", "w1@h"], "statedb", "state.w1"),
        (["--pidfile", "%n.pid", "-n", "w1@h"], "pidfile", "w1.pid"),
        (["-f", "%n.log"], "logfile", "%n.log"),
        (["--executable", "/opt/python"], "executable", "/opt/python"),
        (["-s", "mine"], "schedule_filename", "mine"),
        (["--scheduler", "my:Scheduler"], "scheduler", "my:Scheduler"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_option_is_handed_to_the_worker(app, words, name, value):
    assert options_of(app, *words)[name] == value


def test_features_are_handed_to_the_worker_where_they_are_built(app, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: object())
    given = options_of(app, "-E", "-B", "--heartbeat-interval", "3", "--autoscale", "10,3")
    assert (given["task_events"], given["beat"], given["heartbeat_interval"]) == (True, True, 3)
    assert given["autoscale"] == (10, 3)


@pytest.mark.parametrize("words", [["-E"], ["-B"], ["--heartbeat-interval", "3"], ["--autoscale", "10"]])
def test_a_feature_that_is_not_built_is_refused_and_not_ignored(app, monkeypatch, words):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    given = run(app, *words)
    assert given.exit_code == 2
    assert f"{words[0]} is not part of this version" in given.output
    assert not app.Worker.started


def test_talk_and_colours_follow_the_global_options(app):
    assert options_of(app, quiet=True, no_color=True)["quiet"] is True
    assert app.Worker.options["no_color"] is True


def test_settings_stand_in_for_the_options_of_daemons(app):
    app.conf.update(worker_pidfile="%n.pid", worker_logfile="w.log", worker_state_db="db")
    given = options_of(app)
    assert (given["pidfile"], given["logfile"], given["statedb"]) == ("celery.pid", "w.log", "db")


def test_a_configured_pool_is_used_unless_another_is_asked_for(app):
    app.conf.worker_pool = "solo"
    assert options_of(app)["pool_cls"] is SoloPool
    assert options_of(app, "-P", "prefork")["pool_cls"].__module__ == "celery_clone.concurrency.prefork"


def test_prefetching_can_be_turned_off(app):
    options_of(app, "--disable-prefetch")
    assert app.conf.worker_disable_prefetch is True


def test_words_that_are_no_options_are_settings(app):
    options_of(app, "--", "worker.prefetch_multiplier=7", "broker_heartbeat=9", "_proc_alive_timeout=5")
    conf = app.conf
    assert (conf.worker_prefetch_multiplier, conf.broker_heartbeat, conf.worker_proc_alive_timeout) == (7, 9, 5)


# -- wrong values


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-c", "some"], "must be a non-negative integer or 'auto', got 'some'"),
        (["-c", "-1"], "must be a non-negative integer or 'auto', got '-1'"),
        (["-P", "nonsense"], "'nonsense' is not one of 'prefork'"),
        (["-P", "custom"], "CELERY_CUSTOM_WORKER_POOL is not set"),
        (["-l", "loud"], "'LOUD' is not one of"),
        (["--autoscale", "1,2,3"], "Expected one or two numbers"),
        (["--autoscale", "many"], "Expected one or two integers"),
        (["--umask", "none"], "'none' is no number"),
        (["word"], "Cannot read 'word' as a setting"),
        (["worker.concurency=3"], "Did you mean 'worker_concurrency'?"),
        (["worker.prefetch_multiplier=many"], "Unable to parse extra configuration from command line."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_value_ends_with_2_and_says_what_is_right(app, words, text):
    given = run(app, *words)
    assert given.exit_code == 2
    assert text in given.output
    assert not app.Worker.started


@pytest.mark.parametrize(("value", "expected"), [("10,3", (10, 3)), ("3,10", (10, 3)), ("5", (5, 0)), ((4, 2), (4, 2))])
def test_autoscale_takes_the_largest_and_the_smallest_number(value, expected):
    assert AUTOSCALE.convert(value, None, None) == expected


def test_node_names_are_completed():
    assert HOSTNAME.convert("w1@other", None, None) == "w1@other"
    assert HOSTNAME.convert("@other", None, None) == "celery@other"


def test_beat_cannot_be_embedded_on_windows(app, monkeypatch):
    app.IS_WINDOWS = True
    given = run(app, "-B")
    assert given.exit_code == 2
    assert "-B option does not work on Windows" in given.output


# -- how it ends


@pytest.mark.parametrize("code", [0, 1, 73])
def test_the_exit_code_is_that_of_the_worker(app, code):
    app.Worker.exitcode = code
    assert run(app).exit_code == code


def test_a_worker_that_names_no_code_ends_with_0(app):
    assert run(app).exit_code == 0


@pytest.mark.parametrize("error", [SecurityError("not as root"), ImproperlyConfigured("queue 'x' is not declared")])
def test_what_the_worker_refuses_is_said_without_a_traceback(app, error):
    app.Worker.fails_with = error
    given = CliRunner().invoke(celery, ["worker"], obj=app)
    assert given.exit_code == 1
    assert str(error) in given.output
    assert isinstance(given.exception, SystemExit)


def test_a_log_file_that_cannot_be_written_is_named(app):
    app.Worker.fails_with = FileNotFoundError(2, "No such file or directory", "/nowhere/w.log")
    given = run(app, "-f", "/nowhere/w.log")
    assert given.exit_code == 1
    assert "'/nowhere/w.log': No such file or directory" in given.output


def test_other_errors_of_the_system_are_not_hidden(app):
    app.Worker.fails_with = OSError(28, "No space left on device")
    assert isinstance(run(app).exception, OSError)


def test_a_user_that_does_not_exist_ends_with_1(app):
    given = run(app, "--uid", "nobody-of-this-name")
    assert given.exit_code == 1
    assert "Cannot become user nobody-of-this-name" in given.output
    assert not app.Worker.started


@pytest.mark.parametrize(("text", "mask"), [("022", 0o022), ("63", 63)])
def test_the_mask_of_new_files_is_set(app, text, mask):
    before = os.umask(0o077)
    try:
        options_of(app, "--umask", text)
        assert os.umask(before) == mask
    finally:
        os.umask(before)


# -- into the background


@pytest.fixture
def replaced(monkeypatch, tmp_path):
    """What this process would become, and where."""
    replaced = []
    monkeypatch.setenv("CELERY_DETACHED_PID", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "C_FAKEFORK", "1")  # the switch that is there for this
    monkeypatch.setattr(os, "execvp", lambda program, argv: replaced.append((program, argv, os.getcwd())))
    monkeypatch.setattr(platforms.signals, "reset", lambda *names: None)
    before = os.umask(0o022)
    yield replaced
    os.umask(before)


def test_detaching_runs_the_same_command_line_again_in_the_background(app, replaced, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "celery_clone", "-A", "proj", "worker", "-ED"])
    assert run(app, "--detach").exit_code == 0
    expected = [sys.executable, "-m", "celery_clone", "-A", "proj", "worker", "-ED"]
    assert replaced == [(sys.executable, expected, str(tmp_path))]
    assert not app.Worker.started


def test_in_the_background_it_does_not_detach_again(app, replaced, monkeypatch):
    run(app, "--detach")
    assert len(replaced) == 1
    assert options_of(app, "--detach", "--uid", "nobody-of-this-name")
    assert len(replaced) == 1


def test_another_python_may_run_in_the_background(app, replaced):
    run(app, "--detach", "--executable", "/opt/python")
    assert replaced[0][0] == "/opt/python"
    assert replaced[0][1][0] == "/opt/python"


def test_a_log_file_that_cannot_be_written_is_noticed_before(app, replaced):
    given = run(app, "-D", "-f", "/nowhere/at/all.log")
    assert given.exit_code != 0
    assert not replaced


def test_a_program_that_cannot_be_started_is_told_in_the_log(app, replaced, monkeypatch, caplog):
    def refuse(program, argv):
        raise FileNotFoundError(program)

    monkeypatch.setattr(os, "execvp", refuse)
    told = []
    monkeypatch.setattr(app.log, "setup_logging_subsystem", lambda *args, **kwargs: told.append(args))
    assert command.detach("/nowhere/python", ["-m", "x"], app=app, logfile="%n.log", hostname="w@h") == 1
    assert told == [("ERROR", "w.log")]
    assert "Can't exec '/nowhere/python -m x'" in caplog.text


def test_the_help_names_every_group():
    shown = CliRunner().invoke(worker, ["--help"]).output
    headings = ("Worker", "Pool", "Queue", "Embedded Beat", "Daemonization")
    assert all(f"{heading} Options:" in shown for heading in headings)
    assert "\nFeatures:" in shown
    assert isinstance(worker, click.Command)
