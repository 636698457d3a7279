"""A worker as a process of its own, ours or real Celery's.

Used by integration, interop and chaos tests, by the demo's test and by the benchmarks.
It may not import the package under test: the worker is reached as an operator reaches it, by command line,
log, process signals and exit code.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.support.processes import children_of, dies_with_its_parent, end_all, is_alive, tree_of
from tests.support.wait import wait_until

READY = re.compile(r"\S+@\S+ ready\.\s*$", re.MULTILINE)


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without Celery's variables, plus *extra*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **(extra or {})}


class WorkerProcess:
    """``python -m <package> -A <app> worker <options>`` in *folder*, with its log collected.

    *python* and *package* choose the side: the default is this interpreter and ``celery_clone``; for real
    Celery hand in its interpreter and ``celery``. The log level has to be INFO or lower for ``start()`` to
    see the worker become ready; with another level give *ready_file*, a path that the project writes from
    a ``worker_ready`` handler.
    """

    def __init__(
        self,
        app: str,
        options: Sequence[str] = (),
        *,
        folder: Path | str,
        environment: Mapping[str, str] | None = None,
        python: Path | str = sys.executable,
        package: str = "celery_clone",
        log_level: str = "INFO",
        ready_file: Path | None = None,
        log_file: Path | None = None,
    ) -> None:
        self.command = [str(python), "-m", package, "-A", app, "worker", "-l", log_level, *options]
        self.folder = Path(folder)
        self.environment = clean_environment(environment)
        self._ready_file = ready_file
        if log_file is None:
            handle, name = tempfile.mkstemp(prefix="worker-", suffix=".out", dir=self.folder)
            os.close(handle)
            log_file = Path(name)
        self.log_file = log_file
        if package == "celery":
            # Killed, as they are at the end of most tests, real workers leave folders behind.
            self.environment.setdefault("TMPDIR", str(log_file.parent))
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: set[int] = set()

    def __enter__(self) -> WorkerProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<WorkerProcess {' '.join(self.command[1:])} in {self.folder}>"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The worker's main process. It stays known after its end."""
        assert self._process is not None, "the worker was not started; call start()"
        return self._process

    @property
    def pid(self) -> int:
        """Process id of the worker's main process."""
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code of the main process, negative for a signal; None while it runs."""
        return self.process.poll()

    def spawn(self) -> WorkerProcess:
        """Start the worker and return at once."""
        assert self._process is None or self.exit_code is not None, "the worker runs already"
        if self._ready_file is not None:
            self._ready_file.unlink(missing_ok=True)
        with self.log_file.open("ab") as output:
            self._process = subprocess.Popen(
                dies_with_its_parent(self.command),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def start(self, timeout: float = 20.0) -> WorkerProcess:
        """Start the worker and return when it is ready to take tasks; *timeout* in seconds."""
        self.spawn()
        self.wait_until_ready(timeout)
        return self

    def wait_until_ready(self, timeout: float = 20.0) -> None:
        """Return when the worker has said that it is ready; fail at once when it has ended instead."""

        def ready() -> bool:
            if self._ready_file is not None:
                said = self._ready_file.exists()
            else:
                said = READY.search(self.log()) is not None
            assert said or self.exit_code is None, f"{self!r} ended with {self.exit_code}:\n{self.log()}"
            return said

        wait_until(ready, timeout, lambda: f"{self!r} to be ready; its log:\n{self.log()}", every=0.01)

    def log(self) -> str:
        """All the worker has written, standard output and error together."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def wait_for_log(self, pattern: str, timeout: float = 10.0, count: int = 1) -> list[str]:
        """Return what matched *pattern* (a regular expression) when the log has it *count* times."""
        compiled = re.compile(pattern, re.MULTILINE)

        def found() -> list[str]:
            matches = [match.group(0) for match in compiled.finditer(self.log())]
            return matches if len(matches) >= count else []

        return wait_until(
            found, timeout, lambda: f"{count} x {pattern!r} in the log of {self!r}:\n{self.log()}"
        )

    def children(self) -> list[int]:
        """Process ids of the living direct children: with the prefork pool, its processes."""
        found = children_of(self.pid)
        self._seen.update(found)
        return found

    def tree(self) -> list[int]:
        """Process ids of the worker and all its living descendants."""
        found = tree_of(self.pid)
        self._seen.update(found)
        return found

    def wait_for_children(self, count: int, timeout: float = 5.0) -> list[int]:
        """Return the children when there are exactly *count* of them."""
        return wait_until(
            lambda: found if len(found := self.children()) == count else [],
            timeout,
            lambda: f"{count} children of {self!r}, which has {self.children()}; its log:\n{self.log()}",
        )

    def signal(self, signum: int) -> None:
        """Send *signum* to the main process."""
        self.tree()
        self.process.send_signal(signum)

    def wait(self, timeout: float = 20.0) -> int:
        """Return the exit code of the main process when it has ended; *timeout* in seconds."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self!r} did not end within {timeout:g} s; its log:\n{self.log()}"
            ) from None

    def stop(self, timeout: float = 20.0) -> int:
        """Warm shutdown with TERM: returns the exit code, fails when it takes longer than *timeout*."""
        if self.exit_code is None:
            self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> list[int]:
        """SIGKILL the main process alone, as the out-of-memory killer would; returns the pids left behind."""
        left = [pid for pid in self.tree() if pid != self.pid]
        self.process.kill()
        self.process.wait(10)
        return [pid for pid in left if is_alive(pid)]

    def close(self) -> None:
        """End whatever is left of the worker: main process, children, orphans. Legal twice."""
        process = self._process
        if process is None:
            return
        self.tree()
        # The worker is the leader of a session of its own, and its process group outlives it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        end_all(pid for pid in self._seen if is_alive(pid) and _belongs_to(pid, process.pid))


def _belongs_to(pid: int, session: int) -> bool:
    """Whether *pid* is still the process we saw: ids are used again, sessions tell them apart."""
    try:
        return os.getsid(pid) == session
    except ProcessLookupError:
        return False
