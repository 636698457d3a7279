"""The guide "Next Steps", typed from top to bottom as in ``examples/next-steps.md``.

On the embedded broker in every run.  ``TEST_NEXT_STEPS=all`` types it on Redis and RabbitMQ, too, and everywhere
what is marked as slow: ten workers, and folders of the system.
"""

from __future__ import annotations

import contextlib
import doctest
import fcntl
import importlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.brokers import start_server
from tests.support.processes import end
from tests.support.wait import wait_until
from tests.support.worker import clean_environment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EVERYTHING = os.environ.get("TEST_NEXT_STEPS") == "all"
FENCE = re.compile(r"^```(\w+) ?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]|\r|\x1b[=>]")
ASIDE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

BROKERS = [
    "sqlite",
    pytest.param("redis", marks=[pytest.mark.redis, pytest.mark.skipif(not EVERYTHING, reason="TEST_NEXT_STEPS=all")]),
    pytest.param(
        "amqp", marks=[pytest.mark.rabbitmq, pytest.mark.skipif(not EVERYTHING, reason="TEST_NEXT_STEPS=all")]
    ),
]


class Terminal:
    """A terminal in which one program runs after the other; what it shows is kept."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.shown = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    def start(self, command: str) -> None:
        """Start a program that stays."""
        self.shown = ""
        ours, its = pty.openpty()
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.folder,
            env={**self.environment, "TERM": "xterm", "COLUMNS": "200", "LINES": "50"},
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
        )
        os.close(its)
        self._reader = threading.Thread(target=self._read, args=(ours,))
        self._reader.start()

    def _read(self, end_: int) -> None:
        with contextlib.suppress(OSError), os.fdopen(end_, "rb", buffering=0) as file:
            while data := file.read(65536):
                self.shown += data.decode(errors="replace")

    def interrupt(self) -> None:
        """Ctrl-C; the program is to end in order, if not with 0: a worker says so that it was interrupted."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)
        assert self.process.wait(30) in (0, 1), self.shown
        self.join()

    def join(self) -> None:
        if self._reader is not None:
            self._reader.join(10)

    def await_(self, want: str) -> None:
        """Wait until it shows this."""
        wait_until(lambda: agrees("...\n" + want + "...\n", self.shown), 12, lambda: f"{want}\nShown:\n{self.shown}")


def agrees(want: str, got: str) -> bool:
    """Is this what was to be shown?  Dots stand for anything, and spaces are not counted."""
    words = " ".join(COLOURS.sub("", got).split())
    first, *others = (" ".join(part.split()) for part in want.split("..."))
    if not others:
        return words == first
    if not (words.startswith(first) and words.endswith(others[-1])):
        return False
    at = len(first)
    for part in others[:-1]:
        found = words.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return at <= len(words) - len(others[-1])


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Each command (or ``^C``, or nothing) of a block, with what is to be shown after it."""
    command, want = "", ""
    for line in block.replace("\\\n", "\\\n\x00").splitlines():
        if command.endswith("\\"):
            command += "\n" + line.lstrip("\x00")
        elif line.startswith("$ ") or line == "^C":
            if command or want:
                yield command, want
            command, want = line.removeprefix("$ "), ""
        else:
            want += line + "\n"
    yield command, want


def type_(command: str, want: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a command that ends, and look at what it shows."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    shown = done.stdout
    assert done.returncode == 0, f"{command}\n{shown}"
    assert not want or agrees(want, shown), f"$ {command}\nExpected:\n{want}\nShown:\n{shown}"


@pytest.fixture(scope="module", params=BROKERS)
def broker(request: pytest.FixtureRequest) -> str:
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.fixture
def folder(broker: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder above ``proj``, with ``celery`` on the path, and the settings of the broker."""
    url = request.getfixturevalue({"amqp": "rabbitmq_url"}.get(broker, f"{broker}_url"))
    shutil.copytree(EXAMPLES / "proj", tmp_path / "proj", ignore=shutil.ignore_patterns("__pycache__"))
    program = tmp_path / "bin" / "celery"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom celery_clone.__main__ import main\n\nsys.exit(main())\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", f"sqlite:///{tmp_path}/results.db" if broker == "amqp" else url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def session(folder: Path) -> Iterator[Any]:
    """Names of the Python session; the app is closed after it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    yield names
    app = importlib.import_module("proj.celery").app
    app.backend.close() if hasattr(app.backend, "close") else None
    app.close()
    for name in [name for name in sys.modules if name.partition(".")[0] == "proj"]:
        del sys.modules[name]


@pytest.fixture
def leaves_no_nodes(folder: Path) -> Iterator[None]:
    """``celery multi`` writes into folders of the system where it may; a node of another is not touched."""
    folders = [Path("/var/run/celery"), Path("/var/log/celery")]
    names = ("w1", *(f"celery{number}" for number in range(1, 11)))
    with (Path(tempfile.gettempdir()) / "celery-clone-next-steps.lock").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)  # the guide's node names are the same on each broker
        before = {path for place in folders for path in place.glob("*")}
        if any(folders[0].joinpath(f"{name}.pid").exists() for name in names):
            pytest.skip("a node of that name runs here")
        yield
        for path in {path for place in folders for path in place.glob("*")} - before:
            if path.stem.partition("-")[0] in names:
                path.unlink()


@pytest.mark.timeout(300)
def test_the_guide_can_be_typed_from_top_to_bottom(
    folder: Path, session: dict[str, Any], leaves_no_nodes: None
) -> None:
    environment = {**clean_environment(), "COLUMNS": "200"}
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        environment[name] = os.environ[name]
    terminals: dict[str, Terminal] = {}
    runner = doctest.DocTestRunner(optionflags=ASIDE, verbose=False)
    wrong: list[str] = []
    typed = 0
    try:
        for found in FENCE.finditer((EXAMPLES / "next-steps.md").read_text()):
            language, how, block = found.groups()
            if how == "slow" and not EVERYTHING:
                continue
            if language == "pycon":
                test = doctest.DocTestParser().get_doctest(block, session, "next-steps", "next-steps.md", 0)
                runner.run(test, out=wrong.append, clear_globs=False)
                session.update(test.globs)
                assert not wrong, "".join(wrong) + "".join(one.shown for one in terminals.values())
                continue
            for command, want in commands(block):
                typed += 1
                if not how.startswith("terminal"):
                    type_(command, want, folder, environment)
                    continue
                terminal = terminals.setdefault(how, Terminal(folder, environment))
                if command == "^C":
                    terminal.interrupt()
                elif command:
                    terminal.start(command)
                if want.strip("\n") not in ("", "..."):
                    terminal.await_(want)
    finally:
        for terminal in terminals.values():
            if terminal.process is not None:
                end(terminal.process)
            terminal.join()
    assert typed > 20 and runner.tries > 40
