"""The commands people type all day, against a worker on each broker: exit codes, and what they say.

What does not depend on the broker is typed on the embedded one alone.  One worker for each broker, and one program that forks for every command: each has a process of its own and none
imports anything.  What a command prints in detail is for the unit tests of ``bin``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from celery_clone.platforms import EX_FAILURE, EX_OK, EX_UNAVAILABLE
from tests.support.brokers import EACH, open_arena, start_server
from tests.support.processes import end
from tests.support.worker import WorkerProcess, clean_environment

NO_SUCH_WORDS = 2
"""The exit code of the command line for words it does not know."""

PROJECT = """
import os
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])

@app.task
def add(x, y):
    return x + y
"""

PROGRAM = """
import importlib, json, os, pkgutil, sys, traceback
import celery_clone.bin, project
from celery_clone.bin import celery as program

for module in pkgutil.iter_modules(celery_clone.bin.__path__):
    importlib.import_module(f"celery_clone.bin.{module.name}")
for line in sys.stdin:
    words = json.loads(line)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        for descriptor in (1, 2):
            os.dup2(writing, descriptor)
        os.close(reading)
        os.close(writing)
        sys.stdin = open(os.devnull)
        sys.argv[:] = ["celery", *words]
        code = 0
        try:
            program.main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as output:
        said = output.read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said]), flush=True)
"""


class Step(NamedTuple):
    """A command, its exit code, and what it says; ``{id}`` is the task called first, ``{late}`` one that waits."""

    words: str
    says: str
    code: int = EX_OK


ON_EACH_BROKER = [
    Step("status", r"w1@here: OK(.|\n)*1 node online"),
    Step("result {id}", r"^3$"),
    Step("inspect ping", r"w1@here: OK\s+pong"),
    Step("inspect ping -d nobody@nowhere -t 0.3", r"No nodes replied within time constraint", EX_UNAVAILABLE),
    Step("inspect active", r"- empty -"),
    Step("inspect stats", r'"health": \{'),
    Step("inspect query_task nobody", r"\{\}"),
    Step("control enable_events", r"task events enabled"),
    Step("control disable_events", r"task events disabled"),
    Step("control add_consumer video", r"add consumer video"),
    Step("control cancel_consumer video", r"no longer consuming from video"),
    Step("control pool_grow 1", r"pool will grow"),
    Step("control heartbeat", r"w1@here: OK"),
    Step("control terminate KILL nobody", r"terminate: tasks unknown"),
    Step("amqp exchange.declare exch direct", r"^OK$"),
    Step("amqp queue.declare letters", r"queue:letters messages:0 consumers:0\nOK"),
    Step("amqp basic.publish hello '' letters", r"^OK$"),
    Step("amqp basic.get letters", r"hello"),
    Step("amqp queue.purge letters", r"1 messages? deleted"),
    Step("amqp queue.delete letters", r"^OK$"),
    Step("purge -f -Q nosuch", r"No messages purged from 1 queue"),
    Step("purge -f", r"(No messages p|P)urged"),
    Step("graph workers", r"^digraph dependencies \{"),
]

ON_ONE = [
    Step("report", r"software -> celery:5\.7\.0"),
    Step("result -t project.add {id}", r"^3$"),
    Step("inspect ping --json", r'^\{"w1@here": \{"ok": "pong"\}\}$'),
    Step("inspect ping -d w1@here", r"pong"),
    Step("inspect reserved", r"- empty -"),
    Step("inspect scheduled", r"'eta': .*'{late}'"),
    Step("inspect revoked", r"- empty -"),
    Step("inspect registered", r"\* project\.add$"),
    Step("inspect registered max_retries", r"\* project\.add \[max_retries=3\]"),
    Step("inspect conf", r'"broker_url"'),
    Step("inspect active_queues", r"'name': 'celery'"),
    Step("inspect clock", r'"clock": \d+'),
    Step("inspect report", r"software -> celery"),
    Step("inspect query_task {late}", r'"{late}": \['),
    Step("inspect memdump 2", r"rss"),
    Step("inspect memsample", r"w1@here: OK"),
    Step("inspect pnig", r"Did you mean 'ping'\?", NO_SUCH_WORDS),
    Step("control rate_limit project.add 10/m", r"new rate limit set successfully"),
    Step("control rate_limit project.add 10/x", r"ERROR(.|\n)*'10/x'"),
    Step("control rate_limit project.nosuch 1/s", r"ERROR\s+unknown task"),
    Step("control time_limit project.add 10 20", r"time limits set successfully"),
    Step("control pool_shrink 1", r"pool will shrink"),
    Step("control autoscale 3 1", r"Autoscale not enabled"),
    Step("control pool_restart", r"Pool restarts not enabled"),
    Step("control revoke {late}", r"flagged as revoked"),
    Step("inspect revoked", r"{late}"),
    Step("control revoke_by_stamped_headers monitor=1", r"flagged as revoked"),
    Step("control shutdwn", r"Did you mean 'shutdown'\?", NO_SUCH_WORDS),
    Step("amqp nosuch", r"No such command 'nosuch'", NO_SUCH_WORDS),
    Step("migrate memory:// memory:// -n 1 -T 0.1", r"0 tasks copied"),
    Step("graph bootsteps", r"^digraph dependencies \{"),
    Step("shell --python", r"InteractiveConsole"),
    Step("logtool stats w1.log", r"Task success: 1"),
    Step("events --help", r"--dump"),
    Step("upgrade settings nosuchfile", r"'nosuchfile': No such file", EX_FAILURE),
    Step("multi names 2 -n x", r"^celery1@x\ncelery2@x$"),
    Step("multi show 1", r"worker --detach"),
    Step("call project.nosuch", r"^[-0-9a-f]{36}$"),
    Step("call project.add -a '[1'", r"is not JSON", NO_SUCH_WORDS),
    Step("call project.add --eta tomorrow", r"ISO 8601", NO_SUCH_WORDS),
    Step("nosuch", r"No such command 'nosuch'", NO_SUCH_WORDS),
]


class Place(NamedTuple):
    """Where commands are typed: with a worker there, and two tasks sent."""

    run: Callable[[str], tuple[int, str]]
    ids: dict[str, str]
    worker: WorkerProcess


@pytest.fixture(scope="module", params=EACH)
def broker(request: pytest.FixtureRequest) -> str:
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.fixture
def place(broker: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    (tmp_path / "project.py").write_text(PROJECT)
    options = ["-c", "1", "-n", "w1@here"]
    # Results that other programs can read, too.
    results = {"RESULTS": f"sqlite:///{tmp_path}/results.db"} if broker == "amqp" else {}
    with (
        open_arena(broker, request.getfixturevalue, tmp_path) as arena,
        WorkerProcess(
            "project",
            options,
            folder=tmp_path,
            environment={**arena.environment, **results},
            log_file=tmp_path / "w1.log",
        ) as worker,
    ):
        program: Any = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=tmp_path,
            env={**clean_environment({**arena.environment, **results}), "PYTHONPATH": os.pathsep.join(["", *sys.path])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def run(line: str) -> tuple[int, str]:
            words = [word.strip("'") for word in line.split()]
            print(json.dumps(["-A", "project", *words]), file=program.stdin, flush=True)
            code, said = json.loads(program.stdout.readline())
            return code, said

        try:
            ids = {
                "id": run("call project.add -a [1,2]")[1].strip(),
                "late": run("call project.add -a [1,2] --countdown 3600")[1].strip(),
            }
            worker.wait_for_log(f"{ids['id']}. succeeded")
            yield Place(run, ids, worker)
        finally:
            program.stdin.close()
            end(program)
            program.stdout.close()


def test_every_command_says_what_it_did_and_ends_with_its_code(place: Place, broker: str) -> None:
    wrong = []
    for step in [*(ON_ONE if broker == "sqlite" else ()), *ON_EACH_BROKER]:
        words, says = (re.sub(r"\{(id|late)\}", lambda name: place.ids[name[1]], text) for text in step[:2])
        code, said = place.run(words)
        if code != step.code or not re.search(says, said, re.MULTILINE) or "Traceback" in said:
            wrong.append(f"celery {words}\n  ended with {code} ({step.code}) and said, not {says!r}:\n{said}")
    assert not wrong, "\n".join(wrong)
    # Nobody is left to say that it ended.
    assert place.run("control shutdown -t 0.3")[0] == EX_UNAVAILABLE
    assert place.worker.wait(10) == 0
