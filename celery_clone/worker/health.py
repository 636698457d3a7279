"""Tells probes whether the worker is alive, and whether it really consumes: by files, over HTTP, or both.

A step of ``worker.worker``, which runs only where ``worker_health_file`` or ``worker_health_address`` is set; where
not, the statistics have what :func:`at_a_glance` says.  The loop leaves its facts behind in every second; a thread
judges them, touches the files and answers requests, so that a loop that stands still is seen.  Asking costs no
connection to the broker and starts no Python.

*Live* is a worker that a restart would not help: its loop turns, and its processes take what waits for them.  One
whose broker is away is live.  *Ready* is one that takes messages.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from celery_clone.bootsteps import StartStopStep
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.log import get_logger
from celery_clone.utils.nodenames import node_format

from . import state
from .lifecycle import Phase

__all__ = ("Facts", "Health", "Judgement", "judge")

logger = get_logger("celery.worker.health")

PERIOD_S = 1.0
"""How often the loop notes how it stands, and files are touched."""

STANDSTILL_S = 15.0
"""A loop that has not turned for so long stands still."""

STALL_S = 60.0
"""How long tasks may wait for processes that are free, where ``worker_health_stall`` does not say."""

CLIENT_S = 1.0
"""What a client gets to ask its question."""

REQUEST_BYTES = 2048

READY_SUFFIX = ".ready"


@dataclass(frozen=True, slots=True)
class Facts:
    """How the worker stood when its loop last turned; times are monotonic seconds.

    ``consumes``: it has a connection and takes messages.  ``waits_since``: since when tasks have waited although
    processes are free, with no task beginning or ending.  ``began_at``: when the task began that has run for
    longest.  ``in_loop``: a task runs in the loop's own thread.
    """

    turned_at: float
    consumes: bool = False
    ending: bool = False
    waits_since: float | None = None
    began_at: float | None = None
    in_loop: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """What probes are told, and why."""

    live: bool
    ready: bool
    reason: str


def judge(facts: Facts, now: float, stall_s: float, longest_s: float | None) -> Judgement:
    """How a worker with these facts is *now*."""
    still_s = now - facts.turned_at
    if facts.consumes and not facts.in_loop and still_s > STANDSTILL_S:
        return Judgement(False, False, f"the loop has not turned for {still_s:.0f} s")
    if facts.waits_since is not None and now - facts.waits_since > stall_s:
        return Judgement(False, False, f"tasks wait, but no process has begun one for {now - facts.waits_since:.0f} s")
    if longest_s is not None and facts.began_at is not None and now - facts.began_at > longest_s:
        return Judgement(False, False, f"a task has run for {now - facts.began_at:.0f} s")
    if facts.ending:
        return Judgement(True, False, "the worker ends")
    if not facts.consumes:
        return Judgement(True, False, "the worker is not connected to the broker")
    return Judgement(True, True, "the worker consumes")


def as_dict(judgement: Judgement) -> dict[str, Any]:
    """What ``inspect stats`` shows."""
    return {"live": judgement.live, "ready": judgement.ready, "reason": judgement.reason}


def at_a_glance(w: Any) -> dict[str, Any]:
    """What can be said of a worker that answers and is not watched by :class:`Health`."""
    now = time.monotonic()
    dispatcher = getattr(w.consumer, "dispatcher", None)
    consumes = dispatcher is not None and dispatcher.source is not None and not dispatcher.quiet
    ending = w.phase is not Phase.RUNNING or (dispatcher is not None and dispatcher.quiet)
    return as_dict(judge(Facts(turned_at=now, consumes=consumes, ending=ending), now, STALL_S, None))


class Health(StartStopStep):
    """Judges the worker and tells whoever asks."""

    name = "celery.worker.health.Health"
    requires = ("celery_clone.worker.components:Pool",)

    def __init__(
        self, w: Any, health_file: str | None = None, health_address: str | None = None, **kwargs: Any
    ) -> None:
        conf = w.app.conf
        file = health_file or conf.get("worker_health_file")
        self.file = Path(node_format(file, w.hostname)).absolute() if file else None
        self.address = parse_address(health_address or conf.get("worker_health_address"))
        self.enabled = bool(self.file or self.address)
        self.stall_s = float(conf.get("worker_health_stall", STALL_S))
        longest_s = conf.get("worker_health_longest_task")
        self.longest_s = None if longest_s is None else float(longest_s)
        self.facts = Facts(time.monotonic())
        self._progress: tuple[int, int] | None = None
        self._server: socket.socket | None = None
        self._thread: Thread | None = None
        self._timer: Any = None
        self._ending = Event()
        self._owner = 0
        super().__init__(w, **kwargs)

    # -- life

    def start(self, w: Any) -> None:
        """Open what is asked, and begin to look.

        Raises:
            ImproperlyConfigured: the address or the file cannot be used.
        """
        if self._thread is not None:
            return
        self._owner = os.getpid()
        if self.address is not None:
            self._server = listen(*self.address)
            os.register_at_fork(after_in_child=self._close_server)
            logger.info("Health: answering at http://%s:%s", *self._server.getsockname()[:2])
        if self.file is not None:
            self._tell_files(Judgement(True, False, "the worker starts"))
            logger.info("Health: writing %s", self.file)
        self.facts = Facts(time.monotonic())
        self._ending.clear()
        self._timer = w.timer.call_repeatedly(PERIOD_S, self.look, (w,))
        self._thread = Thread(target=self._run, args=(w,), name="celery-health", daemon=True)
        self._thread.start()

    def stop(self, w: Any) -> None:
        """Answer no more, and remove the files.  Legal early and twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._ending.set()
        thread.join(CLIENT_S + PERIOD_S)
        self._close_server()
        for path in self._files():
            path.unlink(missing_ok=True)

    def terminate(self, w: Any) -> None:
        """As :meth:`stop`."""
        self.stop(w)

    def info(self, w: Any) -> dict[str, Any]:
        """What ``inspect stats`` shows."""
        return {"health": as_dict(self.judgement())}

    # -- in the loop

    def look(self, w: Any) -> None:
        """Note how the worker stands."""
        now = time.monotonic()
        consumer, pool = w.consumer, w.pool
        dispatcher = getattr(consumer, "dispatcher", None)
        if dispatcher is None:
            self.facts = replace(self.facts, turned_at=now)
            return
        begun = pool.begun() if pool is not None else {}
        pending = len(dispatcher.flights) - dispatcher.credit.lent - len(begun)
        progress = (state.all_total_count[0], len(dispatcher.flights))
        since = self.facts.waits_since
        if pending <= 0 or len(begun) >= dispatcher.processes():
            since = None
        elif since is None or progress != self._progress:
            since = now
        self._progress = progress
        self.facts = Facts(
            turned_at=now,
            consumes=dispatcher.source is not None and not dispatcher.quiet,
            ending=w.phase is not Phase.RUNNING or dispatcher.quiet,
            waits_since=since,
            began_at=min((at for _, at in begun.values()), default=None),
        )

    # -- in the thread

    def judgement(self) -> Judgement:
        """How the worker is now."""
        return judge(self.facts, time.monotonic(), self.stall_s, self.longest_s)

    def _run(self, w: Any) -> None:
        told: Judgement | None = None
        while not self._ending.is_set():
            self._look_from_outside(w)
            judgement = self.judgement()
            if self.file is not None:
                self._tell_files(judgement)
            if told is None or judgement.live != told.live:
                if not judgement.live:
                    logger.error("Health: %s", judgement.reason)
                told = judgement
            self._answer(time.monotonic() + PERIOD_S)

    def _look_from_outside(self, w: Any) -> None:
        """What can be seen although the loop stands still."""
        dispatcher = getattr(w.consumer, "dispatcher", None)
        if dispatcher is not None:
            consumes = dispatcher.source is not None and not dispatcher.quiet
            in_loop = dispatcher.pool_runs_here and bool(state.active_requests)
            self.facts = replace(self.facts, consumes=consumes, in_loop=in_loop)

    def _files(self) -> list[Path]:
        if self.file is None or self._owner != os.getpid():
            return []
        return [self.file, self.file.with_name(self.file.name + READY_SUFFIX)]

    def _tell_files(self, judgement: Judgement) -> None:
        text = as_json(judgement)
        for path, is_so in zip(self._files(), (judgement.live, judgement.ready), strict=False):
            try:
                if is_so:
                    path.write_text(text)
                else:
                    path.unlink(missing_ok=True)
            except OSError as exc:
                if self._thread is None:
                    raise ImproperlyConfigured(
                        f"worker_health_file: {path} cannot be written: {exc.strerror}."
                    ) from exc
                # A full disk: the probe sees an old file, and that is true.
                logger.warning("Health: %s cannot be written: %s", path, exc.strerror)

    def _answer(self, until: float) -> None:
        """Answer what is asked in the meantime."""
        server = self._server
        if server is None:
            self._ending.wait(max(0.0, until - time.monotonic()))
            return
        while not self._ending.is_set() and (left := until - time.monotonic()) > 0:
            try:
                server.settimeout(left)
                client, _ = server.accept()
            except TimeoutError:
                return
            except OSError:
                self._ending.wait(left)
                return
            with client, suppress(OSError):
                client.settimeout(CLIENT_S)
                client.sendall(response(client.recv(REQUEST_BYTES), self.judgement()))

    def _close_server(self) -> None:
        """Let go of the address; in a forked process, which must not keep it, too."""
        server, self._server = self._server, None
        if server is not None:
            server.close()


def as_json(judgement: Judgement) -> str:
    """A judgement as people and programs read it."""
    return json.dumps({**as_dict(judgement), "pid": os.getpid()}) + "\n"


def response(request: bytes, judgement: Judgement) -> bytes:
    """The HTTP response to a request: 200 or 503 for ``/live`` and ``/ready``."""
    words = request.split(b"\r\n", 1)[0].split(b" ")
    path = words[1].split(b"?")[0].rstrip(b"/") if len(words) == 3 else b"?"
    asked = {b"/live": judgement.live, b"/ready": judgement.ready, b"": judgement.ready}.get(path)
    if asked is None or words[0] not in (b"GET", b"HEAD"):
        status, body = "404 Not Found", "Ask for /live or /ready.\n"
    else:
        status, body = ("200 OK" if asked else "503 Service Unavailable"), as_json(judgement)
    kind = "text/plain" if asked is None else "application/json"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return (head if words[0] == b"HEAD" else head + body).encode()


def parse_address(address: str | None) -> tuple[str, int] | None:
    """Host and port of ``host:port``, ``:port`` (all addresses of the machine) or ``port`` (this machine alone).

    Raises:
        ImproperlyConfigured: it is none of these.
    """
    if not address:
        return None
    host, colon, port = str(address).rpartition(":")
    try:
        number = int(port)
        if not 0 <= number <= 65535:
            raise ValueError(port)
    except ValueError as exc:
        raise ImproperlyConfigured(
            f"worker_health_address is {address!r}: write host:port, :port for all addresses of this machine, or "
            "port for this machine alone."
        ) from exc
    return host.strip("[]") or ("" if colon else "127.0.0.1"), number


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at this address.

    Raises:
        ImproperlyConfigured: the address cannot be used.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as exc:
        raise ImproperlyConfigured(
            f"worker_health_address: cannot listen at {host or '*'}:{port}: {exc.strerror}. Another worker may use it; "
            "give each its own."
        ) from exc
