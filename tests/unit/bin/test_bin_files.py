"""Commands that read and write files: logtool and upgrade."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from celery_clone import Celery
from celery_clone.bin.base import CLIContext
from celery_clone.bin.logtool import Audit, logtool
from celery_clone.bin.upgrade import rename_settings, upgrade

LOG = """\
[2026-01-02 10:00:00,000: INFO/MainProcess] Connected to redis://localhost:6379//
[2026-01-02 10:00:00,100: INFO/MainProcess] celery@h ready.
[2026-01-02 10:00:01,000: INFO/MainProcess] Task proj.add[id-1] received
[2026-01-02 10:00:01,010: INFO/MainProcess] Task proj.mul[id-2] received
[2026-01-02 10:00:01,020: INFO/MainProcess] Received task: proj.add[id-3]
[2026-01-02 10:00:01,030: INFO/MainProcess] Task proj.add[id-4] received
[2026-01-02 10:00:01,100: INFO/ForkPoolWorker-1] Task proj.add[id-1] succeeded in 0.001s: 4
[2026-01-02 10:00:01,200: ERROR/ForkPoolWorker-2] Task proj.mul[id-2] raised unexpected: ValueError('no')
Traceback (most recent call last):
  File "tasks.py", line 1, in mul
ValueError: no
[2026-01-02 10:00:01,300: INFO/ForkPoolWorker-1] Task proj.add[id-3] retry: Retry in 1s
[2026-01-02 10:00:02,300: INFO/MainProcess] Task proj.add[id-3] received
[2026-01-02 10:00:02,400: INFO/ForkPoolWorker-1] Task proj.add[id-3] succeeded in 0.001s: 4
"""


@pytest.fixture
def ask(tmp_path):
    """``ask("stats")``: what a command of logtool prints about the log."""
    log = tmp_path / "worker.log"
    log.write_text(LOG)
    context = CLIContext(Celery("logs", set_as_current=False), no_color=True, workdir=None)

    def ask(command, *files, **kwargs):
        given = CliRunner().invoke(logtool, [command, *(files or [str(log)])], obj=context, **kwargs)
        return given.exit_code, given.output

    return ask


def test_tasks_are_counted_once_however_often_they_are_tried(ask):
    code, text = ask("stats")
    assert code == 0
    for line in (
        "Task total: 4",
        "Task errors: 1",
        "Task success: 2",
        "Task completed: 3",
        "proj.add: 3",
        "proj.mul: 1",
    ):
        assert f"\n{line}\n" in text


def test_errors_are_the_lines_of_failed_tasks(ask):
    assert ask("errors")[1] == next(line for line in LOG.splitlines(True) if "ValueError('no')" in line)


def test_traces_come_after_the_line_they_belong_to(ask):
    code, text = ask("traces")
    assert text.splitlines()[0].endswith("raised unexpected: ValueError('no')")
    assert text.splitlines()[1:] == [
        "Traceback (most recent call last):",
        '  File "tasks.py", line 1, in mul',
        "ValueError: no",
    ]


def test_tasks_that_have_not_ended_are_told(ask):
    assert ask("incomplete") == (0, "Did not complete: id-4\n")


def test_other_lines_are_told(ask):
    assert ask("debug")[1].splitlines() == LOG.splitlines()[:2]


def test_standard_input_is_read_without_files(ask):
    assert ask("incomplete", "-", input=LOG) == (0, "Did not complete: id-4\n")


def test_a_file_that_is_not_there_ends_with_1(ask):
    code, text = ask("stats", "/nowhere/at/all.log")
    assert code == 1
    assert "/nowhere/at/all.log" in text


def test_nobody_need_listen():
    assert Audit().run(LOG.splitlines()).report()["errors"] == 1


# -- settings


def rewrite(*words):
    context = CLIContext(Celery("settings", set_as_current=False), no_color=True, workdir=None)
    return CliRunner().invoke(upgrade, ["settings", *map(str, words)], obj=context)


OLD = 'CELERY_TASK_SERIALIZER = "json"\nBROKER_URL = "amqp://"\nMY_BROKER_URL = 1\nCELERYD_CONCURRENCY, x = 2, 3\n'


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], 'task_serializer = "json"\nbroker_url = "amqp://"\nMY_BROKER_URL = 1\nworker_concurrency, x = 2, 3\n'),
        (
            ["--django"],
            'CELERY_TASK_SERIALIZER = "json"\nCELERY_BROKER_URL = "amqp://"\nMY_BROKER_URL = 1\n'
            "CELERY_WORKER_CONCURRENCY, x = 2, 3\n",
        ),
    ],
    ids=["new names", "as in Django"],
)
def test_old_names_of_settings_are_rewritten_and_the_file_is_kept(tmp_path, options, expected):
    file = tmp_path / "celeryconfig.py"
    file.write_text(OLD)
    given = rewrite(file, *options)
    assert given.exit_code == 0
    assert file.read_text() == expected
    assert (tmp_path / "celeryconfig.py.orig").read_text() == OLD
    assert "Changes to your setting have been made!" in given.output


def test_rewriting_twice_changes_nothing(tmp_path):
    file = tmp_path / "celeryconfig.py"
    file.write_text(rename_settings(OLD))
    given = rewrite(file)
    assert "Does not seem to require any changes :-)" in given.output
    assert [path.name for path in tmp_path.iterdir()] == ["celeryconfig.py"]


def test_no_copy_is_kept_on_request(tmp_path):
    file = tmp_path / "celeryconfig.py"
    file.write_text(OLD)
    rewrite(file, "--no-backup", "--compat")
    assert [path.name for path in tmp_path.iterdir()] == ["celeryconfig.py"]
    assert "CELERY_BROKER_URL" in file.read_text()


def test_settings_that_are_not_there_end_with_1():
    given = rewrite("/nowhere/at/all.py")
    assert given.exit_code == 1
    assert "/nowhere/at/all.py" in given.output
