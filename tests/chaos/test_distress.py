"""A broker that is there and cannot help: out of memory, a replica, an alarm, mute, without disk.

The worker says so, waits, and goes on when it is over, with nothing lost; a call ends within its deadline.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError

from celery_clone import Celery
from celery_clone.exceptions import TimeoutError as ResultTimeout
from tests.support.brokers import load_project
from tests.support.rabbitmq import RabbitServer
from tests.support.redis import RedisServer
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

DISTRESS_S = float(os.environ.get("CHAOS_DISTRESS_S", "2.5"))
"""How long the broker cannot help."""

DEADLINE_S = 1
TASKS = 12
REFUSED = -1

PROJECT = """
import os, time
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ.get("RESULTS"), set_as_current=False)
app.conf.broker_transport_options = {"publish_deadline": 1}

@app.task(acks_late=True, ignore_result=True)
def late(number, seconds):
    time.sleep(seconds)
    with open(os.environ["DONE"], "a") as file:
        file.write(f"{number}\\n")

@app.task
def stored(seconds):
    time.sleep(seconds)
    return seconds
"""


class Patient:
    """A project on a broker that will be in distress."""

    def __init__(self, folder: Path, broker: str, results: str | None = None, home: Path | None = None) -> None:
        self.folder = home or folder
        self.done = self.folder / "done"
        (self.folder / "project.py").write_text(PROJECT)
        environment = {"BROKER": broker, "DONE": str(self.done), **({"RESULTS": results} if results else {})}
        self.tasks: Any = load_project(self.folder / "project.py", environment)
        self.worker = WorkerProcess(
            "project", ["-c", "2", "-n", "w@here"], folder=self.folder, environment=environment
        ).start()

    def runs(self) -> list[int]:
        """What ran, but for calls that were told to have failed: a server may have read them, and answered nobody."""
        lines = self.done.read_text().split() if self.done.exists() else []
        return [number for number in map(int, lines) if number != REFUSED]

    def goes_through(self, begin: Callable[[], Any], end: Callable[[], Any], said: str) -> None:
        """The distress begins while tasks run, lasts, and ends: nothing is lost or done twice."""
        for number in range(TASKS):
            self.tasks.late.delay(number, 0.15)
        wait_until(self.runs, 10, self.worker.log)
        begin()
        try:
            self.refuses_calls_in_time()
            if said:
                self.worker.wait_for_log(said, 20)
            threading.Event().wait(DISTRESS_S)  # the time itself is what is tested
            assert self.worker.exit_code is None, self.worker.log()
            held = len(self.worker.log())
        finally:
            end()
        assert held < 200_000, "it does not cry all the time"
        wait_until(lambda: sorted(self.runs()) == [*range(TASKS)], 30, lambda: f"{self.runs()}\n{self.worker.log()}")
        wait_until(self.takes_calls, 20, self.worker.log)
        wait_until(lambda: TASKS in self.runs(), 20, self.worker.log)
        assert sorted(self.runs()) == [*range(TASKS), *[TASKS] * self.runs().count(TASKS)]
        assert self.worker.stop(15) == 0

    def takes_calls(self) -> bool:
        try:
            self.tasks.late.delay(TASKS, 0)
        except OperationalError:
            return False
        return True

    def refuses_calls_in_time(self) -> None:
        since = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            self.tasks.late.delay(REFUSED, 0)
        assert time.monotonic() - since < DEADLINE_S + 1.5
        assert "did not take the message" in str(caught.value) or "file" in str(caught.value), caught.value

    def close(self) -> None:
        self.worker.close()
        self.tasks.app.close()


@contextmanager
def patient(*args: Any, **kwargs: Any) -> Iterator[Patient]:
    one = Patient(*args, **kwargs)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis of this module's own, as it is treated badly."""
    with RedisServer() as server:
        yield server


SAID = r"is there, but takes nothing now: .*"


@pytest.mark.redis
@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (("CONFIG", "SET", "maxmemory", "1mb"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
    ],
    ids=["out of memory", "a replica", "too few replicas"],
)
def test_redis_that_refuses_to_write_is_waited_for(server, tmp_path, begin, end):
    with redis.Redis.from_url(server.url()) as client, patient(tmp_path, server.new_database_url()) as one:
        one.goes_through(lambda: client.execute_command(*begin), lambda: client.execute_command(*end), SAID)


@pytest.mark.redis
def test_results_wait_for_a_store_that_refuses_to_write(server, tmp_path):
    results = server.new_database_url()
    broker = f"sqlite:///{tmp_path}/broker.db"
    with redis.Redis.from_url(server.url()) as client, patient(tmp_path, broker, results) as one:
        waiting = [one.tasks.stored.delay(0.4) for _ in range(3)]
        one.worker.wait_for_log("received", count=3)
        client.execute_command("CONFIG", "SET", "maxmemory", "1mb")
        try:
            one.worker.wait_for_log(r"Retry \(2/", 10)
        finally:
            client.execute_command("CONFIG", "SET", "maxmemory", "0")
        assert [result.get(timeout=10) for result in waiting] == [0.4] * 3
        assert "exited with" not in one.worker.log()


@pytest.mark.redis
def test_redis_that_does_not_answer_is_waited_for(server, tmp_path):
    with patient(tmp_path, server.new_database_url()) as one:
        one.goes_through(server.freeze, server.thaw, "")


@pytest.mark.rabbitmq
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_rabbitmq_with_a_memory_alarm_is_waited_for(tmp_path):
    with RabbitServer(management=False) as server, patient(tmp_path, server.url()) as one:
        begin = lambda: server.control("set_vm_memory_high_watermark", "0.00001")  # noqa: E731
        end = lambda: server.control("set_vm_memory_high_watermark", "0.6")  # noqa: E731
        one.goes_through(begin, end, "")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk may be made here: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a disk")
def test_a_full_disk_is_waited_for(small_disk, tmp_path):
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 512):
                    pass
            except OSError:
                pass  # it is full, which is what was wanted

    with patient(tmp_path, f"sqlite:///{small_disk}/broker.db") as one:
        one.goes_through(fill, ballast.unlink, "Free some disk space")


# -- mute from the beginning


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a server that accepts, and says nothing for ever."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        accepted: list[socket.socket] = []
        over = threading.Event()
        listener.settimeout(0.1)

        def accept() -> None:
            while not over.is_set():
                try:
                    accepted.append(listener.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        over.set()
        thread.join()
        for each in accepted:
            each.close()


def within(seconds: float, call: Callable[[], Any], errors: tuple[type[BaseException], ...] = ()) -> Any:
    """What *call* returns, or raises of *errors*, in *seconds*."""
    since = time.monotonic()
    try:
        return call()
    except errors as exc:
        return exc
    finally:
        assert time.monotonic() - since < seconds, time.monotonic() - since


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
@pytest.mark.parametrize("results", [None, "rpc://"], ids=["without results", "results as messages"])
def test_a_call_to_a_mute_broker_ends_in_time(mute, scheme, results):
    app = Celery("project", broker=f"{scheme}://127.0.0.1:{mute}", backend=results, set_as_current=False)
    app.conf.broker_transport_options = {"publish_deadline": DEADLINE_S}
    try:
        found = within(DEADLINE_S + 3.0, lambda: app.send_task("project.add", (1, 2)), (OperationalError,))
        assert isinstance(found, OperationalError)
    finally:
        app.close()


def test_a_call_ends_although_the_result_store_is_mute(mute, tmp_path):
    results = f"redis://127.0.0.1:{mute}"
    app = Celery("project", broker=f"sqlite:///{tmp_path}/b.db", backend=results, set_as_current=False)
    app.conf.redis_socket_timeout = 1.0
    try:
        result = within(2.0, lambda: app.send_task("project.add", (1, 2)))
        error = within(12.0, lambda: result.get(timeout=1), (Exception,))
        assert isinstance(error, (ResultTimeout, OperationalError, redis.exceptions.ConnectionError, OSError)), error
    finally:
        app.close()
