"""Walk through the guide against a real worker on the embedded broker.

Called by ``make demo``. It starts ``celery -A proj worker`` for ``examples/proj`` with a database in a
temporary folder, runs every expression of ``examples/tour.md``, prints each with its answer, compares the
answers, shows the worker's banner and log and stops the worker. The exit status is 0 only if every answer
was right and the worker ended as it should.
"""

from __future__ import annotations

import doctest
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
READY = re.compile(r" ready\.\s*$", re.MULTILINE)

Write = Callable[[str], Any]


class Tour(doctest.DocTestRunner):
    """Runs examples and shows them as an interactive session would."""

    def report_start(self, out: Write, test: doctest.DocTest, example: doctest.Example) -> None:
        """Show the expression."""
        lines = example.source.rstrip("\n").split("\n")
        out("\n".join([f">>> {lines[0]}", *(f"... {line}" for line in lines[1:])]) + "\n")

    def report_success(self, out: Write, test: doctest.DocTest, example: doctest.Example, got: str) -> None:
        """Show the answer, which is the expected one."""
        out(example.want if example.exc_msg else got)

    def report_failure(self, out: Write, test: doctest.DocTest, example: doctest.Example, got: str) -> None:
        """Show the answer and what was expected instead."""
        out(f"{got}!!! expected: {example.want or 'nothing'}\n")

    def report_unexpected_exception(
        self, out: Write, test: doctest.DocTest, example: doctest.Example, exc_info: Any
    ) -> None:
        """Show the error nobody expected."""
        out(f"!!! expected: {example.want or 'no error'}\n{doctest._exception_traceback(exc_info)}\n")  # type: ignore[attr-defined]


def sections(text: str) -> list[tuple[str, str]]:
    """Title and body of every second-level section, with the code fences taken out."""
    plain = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    parts = re.split(r"^## (.+)$", plain, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def walk(path: Path) -> doctest.TestResults:
    """Run the expressions of *path*, section by section, in one namespace."""
    tour = Tour(optionflags=doctest.ELLIPSIS, verbose=True)
    names: dict[str, Any] = {"__name__": "__main__"}
    for title, body in sections(path.read_text()):
        print(f"\n--- {title} ---", flush=True)
        test = doctest.DocTestParser().get_doctest(body, names, title, str(path), 0)
        tour.run(test, out=_say, clear_globs=False)
        names = test.globs
    return doctest.TestResults(tour.failures, tour.tries)


def _say(text: str) -> None:
    sys.__stdout__.write(text)
    sys.__stdout__.flush()


def celery_command() -> list[str]:
    """The ``celery`` program of this environment, or the module when it is not installed as one."""
    installed = Path(sys.executable).parent / "celery-clone"
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "celery_clone"]


def wait_until_ready(worker: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether the worker has said that it is ready, in time and alive."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and worker.poll() is None:
        if READY.search(log.read_text(errors="replace")):
            return True
        time.sleep(0.02)
    return False


def stop(worker: subprocess.Popen[bytes]) -> int | None:
    """Warm shutdown; the exit code, or None when the worker had to be killed."""
    if worker.poll() is None:
        worker.send_signal(signal.SIGTERM)
    try:
        return worker.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        return None


def main() -> int:
    """Run the demonstration; the exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="celery-clone-demo-") as folder:
        # The worker and this process have to name the same file, whatever the caller's environment says.
        url = f"sqlite:///{folder}/proj.db"
        for name in [name for name in os.environ if name.startswith("CELERY_")]:
            del os.environ[name]
        os.environ.update(CELERY_BROKER_URL=url, CELERY_RESULT_BACKEND=url)
        os.chdir(EXAMPLES)
        sys.path.insert(0, str(EXAMPLES))
        log = Path(folder) / "worker.log"
        command = [*celery_command(), "-A", "proj", "worker", "-l", "INFO", "-c", "2", "-Q", "celery,hipri"]
        print("$ celery", *command[command.index("-A") :], flush=True)
        with log.open("wb") as output:
            worker = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            ready = wait_until_ready(worker, log)
            ready_s = time.monotonic() - began
            shown = log.read_text(errors="replace")
            print(shown, flush=True)
            if not ready:
                ended = worker.poll()
                how = f"ended with exit code {ended}" if ended is not None else "is still starting"
                print(f"The worker was not ready after {ready_s:.1f} s: it {how}. Its log is above.")
                return 1
            failed, tried = walk(EXAMPLES / "tour.md")
        finally:
            exit_code = stop(worker)
        print("\n--- The worker's log since then ---")
        print(log.read_text(errors="replace")[len(shown) :], flush=True)
    took = time.monotonic() - began
    print(
        f"{tried - failed} of {tried} expressions as expected; worker ready after {ready_s:.1f} s, "
        f"ended with exit code {exit_code}; {took:.1f} s in all."
    )
    return 0 if failed == 0 and tried > 0 and exit_code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
