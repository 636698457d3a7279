"""The files under ``extra/``: init scripts that are run, and command lines that are read."""

from __future__ import annotations

import configparser
import getpass
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from celery_clone.bin.celery import celery
from tests.support.worker import clean_environment

EXTRA = Path(__file__).parents[3] / "extra"

PROJECT = """
import os
from celery_clone import Celery

app = Celery("proj", broker=os.environ["BROKER"])
"""

SETTINGS = """
CELERY_BIN={folder}/celery
CELERY_APP=proj
CELERYD_NODES=w1@here
CELERYD_OPTS="-c 1 -Q:w1 some"
CELERYD_CHDIR={folder}
CELERYD_USER={user}
CELERYD_PID_FILE={folder}/run/%n.pid
CELERYD_LOG_FILE={folder}/log/%n%I.log
CELERYBEAT_PID_FILE={folder}/run/beat.pid
CELERYBEAT_LOG_FILE={folder}/log/beat.log
CELERYBEAT_OPTS="--schedule={folder}/schedule"
CELERY_CREATE_DIRS=1
"""


@pytest.fixture
def service(tmp_path, sqlite_url):
    """``service("celeryd", "start")``: (exit code, output)."""
    (tmp_path / "proj.py").write_text(PROJECT)
    (tmp_path / "settings").write_text(SETTINGS.format(folder=tmp_path, user=getpass.getuser()))
    (tmp_path / "settings").chmod(0o644)
    program = tmp_path / "celery"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m celery_clone "$@"\n')
    program.chmod(0o755)

    def service(script, command):
        ended = subprocess.run(
            [str(EXTRA / "generic-init.d" / script), command],
            env=clean_environment(
                {
                    "BROKER": sqlite_url,
                    "CELERY_CONFIG_FILE": str(tmp_path / "settings"),
                    "PYTHONPATH": str(EXTRA.parent),
                }
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=40,
        )
        return ended.returncode, ended.stdout + ended.stderr

    yield service
    service("celeryd", "kill")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("unit", ["celery.service", "celery@w1.service", "celerybeat.service"])
def test_units_are_understood_by_systemd(unit, tmp_path):
    name, at, _ = unit.partition("@")
    (tmp_path / unit).write_text((EXTRA / "systemd" / (f"{name}@.service" if at else unit)).read_text())

    looked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )

    # Other units of this machine may have faults of their own.
    said = [line for line in (looked.stdout + looked.stderr).splitlines() if unit.partition(".")[0] in line]
    assert not said, said


def test_workers_are_a_service(service, tmp_path):
    assert service("celeryd", "status") == (3, f"{tmp_path}/run/w1.pid: down\n")
    code, output = service("celeryd", "start")
    assert code == 0, output
    assert "> w1@here: OK" in output
    pid = (tmp_path / "run/w1.pid").read_text().strip()
    assert service("celeryd", "status") == (0, f"{tmp_path}/run/w1.pid: running, process {pid}\n")
    assert (tmp_path / "log/w1.log").stat().st_mode & 0o002 == 0, "everybody may write to the log"
    code, output = service("celeryd", "dryrun")
    assert "--app=proj worker --detach" in output
    assert "-Q some" in output
    code, output = service("celeryd", "stop")
    assert code == 0, output
    assert service("celeryd", "status")[0] == 3


def test_settings_that_others_may_write_are_not_read_as_root(service, tmp_path):
    if getpass.getuser() != "root":
        pytest.skip("only root has something to lose")
    (tmp_path / "settings").chmod(0o666)
    code, output = service("celerybeat", "status")
    assert code == 6
    assert "may not be writable by others" in output


def commands():
    """Each command line of the service files that is no shell script, as words."""
    for file in sorted((EXTRA / "supervisord").glob("*.conf")):
        config = configparser.RawConfigParser(inline_comment_prefixes=(";",))
        config.read(file)
        for section in config.sections():
            yield file.name, shlex.split(config[section]["command"])
    for file in sorted((EXTRA / "macOS").glob("*.plist")):
        yield file.name, plistlib.loads(file.read_bytes())["ProgramArguments"]
    for file in sorted((EXTRA / "systemd").glob("*.service")):
        text = file.read_text().replace("\\\n", " ")
        for key, shell in re.findall(r"^(Exec\w+)=/bin/sh -c '(.*)'$", text, re.MULTILINE):
            # What the settings hold is not known here.
            words = shlex.split(shell.removeprefix("exec ").replace("$CELERYD_LOG_LEVEL", "INFO"))
            yield f"{file.name} {key}", [word for word in words if word not in ("$CELERYD_OPTS", "$CELERYBEAT_OPTS")]


@pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in commands()])
def test_command_lines_of_the_files_are_understood(words):
    name, *rest = [word for word in words[1:] if not word.startswith("--app=")]
    command = celery.commands[name]
    assert name in ("worker", "beat", "multi")
    if name == "multi":
        assert rest[0] in ("start", "stopwait", "restart")
        return
    known = {spelling for param in command.params for spelling in param.opts}
    assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known
