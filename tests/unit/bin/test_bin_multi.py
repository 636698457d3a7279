"""``celery multi``: what it prints, and with which code it ends."""

from __future__ import annotations

import io
import signal

import pytest
from click.testing import CliRunner

from celery_clone.bin.celery import celery
from celery_clone.bin.multi import MultiTool, take_signal

FILES = ("--pidfile=%n.pid", "--logfile=%n.log", "--executable=python")


def run(*words, **how):
    """The code, and what was printed to standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    code = MultiTool(stdout=out, stderr=err, **how).execute_from_commandline(["celery multi", *words])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nodes_that_do_not_run_are_down_and_that_is_no_failure(in_folder):
    assert run("stop", "a@h", *FILES) == (0, "celery multi v5.7.0 (collider)\n> a@h: DOWN\n", "")


def test_a_pid_file_without_a_process_id_is_told(in_folder):
    (in_folder / "a.pid").write_text("hello\n")
    assert run("kill", "a@h", *FILES, "--nosplash") == (0, "> a@h: DOWN\n  a.pid holds no process id.\n", "")


def test_quiet_prints_nothing(in_folder):
    assert run("stopwait", "a@h", "-q", *FILES) == (0, "", "")


def test_a_node_that_is_not_there_is_a_failure_with_the_nearest_name():
    assert run("get", "w1@h", "w2@h", *FILES) == (1, "", "There is no node 'w1@h' here. Did you mean 'w2@h'?\n")


def test_no_nodes_and_options_for_no_node_are_failures():
    assert run("start", "-A", "proj") == (1, "", "Which nodes? Give their names, or how many there are.\n")
    code, out, err = run("start", "a@h", "-c:b", "3", *FILES)
    assert (code, out) == (1, "")
    assert "There is no node 'b'" in err


def test_an_unknown_command_is_told_with_the_nearest_one():
    code, out, err = run("strat", "w1")
    assert code == 1
    assert "Invalid command: strat Did you mean 'start'?" in err
    assert "usage: celery multi start" in out


def test_help_explains_the_words():
    code, out, _ = run("help")
    assert code == 0
    assert "-Q:1-3 images,video" in out


@pytest.mark.parametrize(
    ("words", "expected", "left"),
    [
        (["w1", "-KILL", "w2"], signal.SIGKILL, ["w1", "w2"]),
        (["w1", "-SIGINT"], signal.SIGINT, ["w1"]),
        (["-15", "w1"], signal.SIGTERM, ["w1"]),
        (["w1", "-9"], signal.SIGKILL, ["w1"]),
        (["w1", "-c", "3", "--", "-9"], signal.SIGTERM, ["w1", "-c", "3", "--", "-9"]),
        (["w1", "-99", "-Q", "INT"], signal.SIGTERM, ["w1", "-99", "-Q", "INT"]),
    ],
)
def test_a_signal_is_an_option_of_its_own_anywhere(words, expected, left):
    assert take_signal(words) == (expected, left)


def click_run(*words):
    result = CliRunner().invoke(celery, words, auto_envvar_prefix="CELERY")
    return result.exit_code, result.output


def test_options_before_the_command_are_for_the_workers(in_folder, monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", "")  # to be restored: the command sets it for its children
    words = ("show", "a@h", "-c", "3", *FILES, "--", "x.y=1")
    code, output = click_run("-b", "memory://", "-C", "multi", *words)
    assert code == 0
    assert output == (
        "python -m celery_clone -C -b memory:// worker --detach -c 3 --pidfile=a.pid --logfile=a.log"
        " --executable=python -n a@h -- x.y=1\n"
    )


def test_the_folder_of_the_workers_is_the_one_that_multi_changed_to(in_folder, monkeypatch):
    (in_folder / "there").mkdir()
    code, output = click_run("--workdir", "there", "multi", "show", "a@h", *FILES)
    assert code == 0
    assert f"--workdir={in_folder}/there worker" in output


def test_the_code_of_the_tool_is_that_of_the_command():
    assert click_run("multi", "get", "b@h", "a@h", *FILES)[0] == 1
    assert click_run("multi")[0] == 1
    code, output = click_run("multi", "--help")
    assert code == 0
    assert "celery multi help" in output
