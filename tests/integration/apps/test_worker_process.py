"""``celery worker`` as an operator meets it: its banner, its log, process signals, exit codes, the background."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import free_port, is_alive
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess, clean_environment

PROJECT = """
import os, sys, time
from pathlib import Path
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"])

@app.task
def nap(seconds, file):
    Path(file).write_text("begun")
    time.sleep(seconds)
    Path(file).write_text("ended")

@app.task
def say(words):
    print(words)
"""


@pytest.fixture
def project(tmp_path, sqlite_url):
    """The folder of a project; its broker is a file there."""
    (tmp_path / "project.py").write_text(PROJECT)
    return tmp_path


@pytest.fixture
def worker(project, sqlite_url, start_worker):
    """``worker("-c", "1", ...)``: a worker of the project that is ready."""

    def worker(*options, **how):
        environment = {"BROKER": sqlite_url, **how.pop("environment", {})}
        return start_worker("project", *options, environment=environment, **how)

    return worker


@pytest.fixture
def command(project, sqlite_url):
    """``command("-A", "project", "call", ...)``: run the command line; (exit code, output)."""

    def command(*words, timeout=20, **environment):
        ended = subprocess.run(
            [sys.executable, "-m", "celery_clone", *words],
            cwd=project,
            env=clean_environment({"BROKER": sqlite_url, **environment}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return ended.returncode, ended.stdout + ended.stderr

    return command


@pytest.fixture
def call(command):
    """``call("nap", 30, "file")``: send a task to the worker."""

    def call(task, *args):
        import json

        code, output = command("-A", "project", "call", f"project.{task}", "-a", json.dumps([*map(_plain, args)]))
        assert code == 0, output
        return output.strip()

    return call


def _plain(value):
    return str(value) if isinstance(value, Path) else value


@pytest.fixture
def napping(worker, call, tmp_path):
    """A worker with a task that runs for a long time; and the file the task tells about itself in."""

    def napping(*options, seconds=60, **how):
        file = tmp_path / "nap"
        given = worker("-c", "1", *options, **how)
        call("nap", seconds, file)
        wait_until(lambda: file.exists() and file.read_text() == "begun", 10, lambda: given.log())
        return given, file

    return napping


# -- the start


def test_a_worker_shows_its_banner_and_says_when_it_is_ready(worker):
    given = worker("-c", "2", "-n", "w1@here")
    log = given.log()
    banner = log[log.index(" --------------") :]
    assert re.match(
        r" -------------- w1@here v5\.7\.0 \(collider\)\n"
        r"--- \*{5} ----- \n"
        r"-- \*{7} ---- Linux-\S+ \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n"
        r"- \*\*\* --- \* --- \n"
        r"- \*\* ---------- \[config\]\n"
        r"- \*\* ---------- \.> app:         project:0x[0-9a-f]+\n"
        r"- \*\* ---------- \.> transport:   sqlite:///\S+\n"
        r"- \*\* ---------- \.> results:     disabled://\n"
        r"- \*\*\* --- \* --- \.> concurrency: 2 \(prefork\)\n"
        r"-- \*{7} ---- \.> task events: OFF \(enable -E to monitor tasks in this worker\)\n"
        r"--- \*{5} ----- \n"
        r" -------------- \[queues\]\n"
        r"                \.> celery           exchange=celery\(direct\) key=celery\n"
        r"                \n\n"
        r"\[tasks\]\n"
        r"  \. project\.nap\n"
        r"  \. project\.say\n\n",
        banner,
    ), banner
    assert re.search(r"^\[[-\d]+ [:\d]+,\d+: INFO/MainProcess\] w1@here ready\.$", log, re.MULTILINE)


def test_a_quiet_worker_shows_no_banner(project, sqlite_url, start_worker):
    with WorkerProcess("project", ["-c", "1"], folder=project, environment={"BROKER": sqlite_url}) as given:
        given.stop()
        given.command[3:3] = ["-q"]
        given.log_file.write_text("")
        given.start()
        assert "[config]" not in given.log()


def test_what_tasks_print_is_logged_and_the_log_goes_into_a_file(worker, call, tmp_path):
    log = tmp_path / "w1.log"
    given = worker("-c", "1", "-n", "w1@here", "-f", "%n.log", ready_file=log, wait=False)
    wait_until(lambda: log.exists() and "w1@here ready." in log.read_text(), 20, given.log)
    call("say", "hello there")
    wait_until(
        lambda: re.search(r"WARNING/ForkPoolWorker-1\] hello there$", log.read_text(), re.MULTILINE),
        10,
        log.read_text,
    )
    assert "ready." not in given.log()


def test_waiting_tasks_can_be_deleted_at_the_start(worker, call):
    call("say", "old news")
    call("say", "old news")
    given = worker("-c", "1", "--purge")
    assert "purge: Erased 2 messages from the queue." in given.log()
    call("say", "fresh news")
    given.wait_for_log("fresh news")
    assert "old news" not in given.log()


def test_the_process_shows_what_it_is(worker):
    pytest.importorskip("setproctitle")
    given = worker("-c", "1", "-n", "w1@here")
    title = Path(f"/proc/{given.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    assert title.startswith("[celeryd: w1@here:MainProcess] -active- (")
    assert "-n w1@here" in title


# -- the end


@pytest.mark.parametrize(
    ("signum", "code", "words"),
    [
        (signal.SIGTERM, 0, ["worker: Warm shutdown (MainProcess)"]),
        (
            signal.SIGINT,
            1,
            [
                "worker: Hitting Ctrl+C again will initiate cold shutdown, terminating all running tasks!",
                "worker: Warm shutdown (MainProcess)",
            ],
        ),
        (
            signal.SIGQUIT,
            0,
            ["worker: Hitting Ctrl+C again will terminate all running tasks!", "worker: Cold shutdown (MainProcess)"],
        ),
    ],
    ids=["TERM", "INT", "QUIT"],
)
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_an_idle_worker_ends_at_once_with_the_code_of_the_signal(worker, pool, signum, code, words):
    given = worker("-c", "1", "-P", pool)
    given.signal(signum)
    assert given.wait(5) == code
    said = [line for line in given.log().splitlines() if line.startswith("worker: ")]
    assert said == words
    assert not given.children()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_warm_shutdown_waits_for_the_running_task(napping, signum):
    given, file = napping(seconds=2)
    given.signal(signum)
    assert given.wait(10) == (1 if signum == signal.SIGINT else 0)
    assert file.read_text() == "ended"


@pytest.mark.parametrize(
    "signums",
    [[signal.SIGQUIT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGQUIT]],
    ids=["QUIT", "INT INT", "TERM QUIT"],
)
def test_a_cold_shutdown_does_not_wait_for_the_running_task(napping, signums):
    given, file = napping()
    children = given.children()
    for number, signum in enumerate(signums, 1):
        given.signal(signum)
        given.wait_for_log(r"^worker: (Warm|Cold) shutdown", count=number)
    assert given.wait(5) == (1 if signums[0] == signal.SIGINT else 0)
    assert file.read_text() == "begun"
    assert not [pid for pid in children if is_alive(pid)]


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_the_third_ctrl_c_ends_the_worker_whatever_it_does(napping, pool):
    given, file = napping("-P", pool)
    children = given.children()
    for phase in ("Warm shutdown", "Cold shutdown"):
        given.signal(signal.SIGINT)
        given.wait_for_log(phase)
    if given.exit_code is None:
        given.signal(signal.SIGINT)
    assert given.wait(2) == 1
    assert file.read_text() == "begun"
    wait_until(lambda: not [pid for pid in children if is_alive(pid)], 2, lambda: "the processes to end")


def test_term_can_be_made_to_mean_quit(napping):
    given, file = napping(environment={"REMAP_SIGTERM": "SIGQUIT"})
    given.signal(signal.SIGTERM)
    assert given.wait(5) == 0
    assert "worker: Cold shutdown (MainProcess)" in given.log()
    assert file.read_text() == "begun"


def test_a_hang_up_runs_the_worker_again_in_the_same_process(worker, call):
    given = worker("-c", "1")
    children = given.children()
    given.signal(signal.SIGHUP)
    given.wait_for_log(r"ready\.$", count=2)
    assert "Restarting celery worker (" in given.log()
    assert given.exit_code is None
    wait_until(lambda: not [pid for pid in children if is_alive(pid)], 5, lambda: "the old processes to end")
    call("say", "still here")
    given.wait_for_log("still here")
    assert given.stop() == 0


def test_usr1_shows_what_every_thread_is_doing(worker):
    given = worker("-c", "1")
    given.signal(signal.SIGUSR1)
    given.wait_for_log("LOCAL VARIABLES")
    assert "MainThread" in given.log()
    assert given.stop() == 0


def test_usr2_opens_a_debugger_where_the_worker_stands_and_the_worker_goes_on(worker, call):
    given = worker("-c", "1", environment={"CELERY_RDBSIG": "1", "CELERY_RDB_PORT": str(free_port())})
    given.signal(signal.SIGUSR2)
    said = given.wait_for_log(r"Ready to connect: telnet \S+ \d+")[0].split()
    with socket.create_connection((said[-2], int(said[-1])), 10) as client, client.makefile("rw") as lines:
        print("p 'fourty' + 'two'\nw\nc", file=lines, flush=True)
        heard = lines.read()
    assert "fourtytwo" in heard
    assert "loops.py" in heard
    call("say", "still here")
    given.wait_for_log("still here")
    assert given.stop() == 0


# -- pid files and the background


def test_a_second_worker_with_the_same_pid_file_ends_with_73(worker, project):
    first = worker("-c", "1", "--pidfile", "%n.pid", "-n", "w1@here")
    pidfile = project / "w1.pid"
    assert pidfile.read_text() == f"{first.pid}\n"
    second = worker("-c", "1", "--pidfile", "%n.pid", "-n", "w1@here", wait=False)
    assert second.wait(10) == 73
    assert "ERROR: Pidfile" in second.log()
    assert first.stop() == 0
    assert not pidfile.exists()


def test_a_worker_runs_in_the_background(command, call, project):
    code, output = command(
        *("-A", "project", "worker", "--detach", "-c", "1", "-l", "info"),
        *("--pidfile", "w.pid", "--logfile", "w.log"),
    )
    assert code == 0, output
    pidfile, log = project / "w.pid", project / "w.log"
    wait_until(lambda: log.exists() and "ready." in log.read_text(), 20, lambda: "the worker in the background")
    pid = int(pidfile.read_text())
    try:
        assert os.getsid(pid) != os.getsid(0)
        call("say", "from behind")
        wait_until(lambda: "from behind" in log.read_text(), 10, log.read_text)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not pidfile.exists(), 10, log.read_text)
        wait_until(lambda: not is_alive(pid), 10, log.read_text)
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


# -- what cannot be


def test_an_app_that_is_not_there_ends_with_2(command):
    code, output = command("-A", "nosuchproject", "worker")
    assert code == 2
    assert "The module nosuchproject was not found." in output


def test_a_broker_of_an_unknown_kind_ends_with_1_and_names_the_known_ones(command):
    code, output = command("-A", "project", "worker", BROKER="rediss2://host")
    assert code == 1
    assert "Did you mean 'rediss'?" in output
    assert "Known are: amqp," in output


@pytest.mark.skipif(os.geteuid() != 0, reason="only for the superuser")
def test_root_may_not_accept_pickle(command):
    code, output = command("-A", "project", "worker", "--", 'accept_content=(json)["json", "pickle"]')
    assert code == 1
    assert "pickle is a very bad idea" in output


# -- two workers


def test_a_worker_with_a_name_that_is_taken_says_so(worker):
    worker("-c", "1", "-n", "twin@here")
    second = worker("-c", "1", "-n", "twin@here")
    second.wait_for_log("Another worker on this broker is named twin@here")
