"""Malformed messages of every kind, each between two good ones: the good ones run, the bad are kept."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.brokers import EACH, Arena, envelope, load_project, open_arena, start_server
from tests.support.messages import call_headers
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = """
import json, os
from pathlib import Path
from celery_clone import Celery
from kombu import Exchange, Queue

app = Celery("project", broker=os.environ["BROKER"], set_as_current=False)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])
if app.conf.broker_url.startswith("amqp"):
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "celery.dead"}
    app.conf.task_queues = [Queue("celery", Exchange("celery"), "celery", queue_arguments=dead)]

@app.task(ignore_result=True)
def note(name):
    descriptor = os.open(Path(__file__).parent / "done", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{name}\\n".encode())
    os.close(descriptor)

@app.task(ignore_result=True, acks_late=True)
def note_late(name):
    note.run(name)
"""

BODY = b'[["odd"], {}, {}]'
HUGE = "x" * 100_000
"""As large as fits into a frame of AMQP with the rest."""


class Odd(NamedTuple):
    """One odd message: what is published, or (where the broker keeps texts) the text itself."""

    name: str
    body: bytes = BODY
    headers: dict[str, Any] = {}
    how: dict[str, Any] = {}
    text: bytes | None = None


def usual(task: str = "project.note") -> dict[str, Any]:
    """Headers of a call that can be run."""
    return call_headers(task, argsrepr="('odd',)", ignore_result=True)


def odd_headers() -> Iterator[Odd]:
    """Each header absent, null, of a wrong type and huge."""
    for name in usual():
        without = {key: value for key, value in usual().items() if key != name}
        yield Odd(f"header {name} absent", headers=without)
        for kind, value in {"null": None, "number": 17, "list": ["x"], "object": {"x": "y"}, "huge": HUGE}.items():
            yield Odd(f"header {name} {kind}", headers={**usual(), name: value})
    for name, value in {"compression": "nosuch", "losses": "many", "redelivered": "often", "eta": "9" * 500}.items():
        yield Odd(f"header {name} of no sense", headers={**usual(), name: value})
    yield Odd("no headers at all")


def odd_bodies() -> Iterator[Odd]:
    """Bodies truncated, of a wrong shape, encoding or compression, too deep, and of fifty megabytes."""
    as_pickle = {"content_type": "application/x-python-serialize", "content_encoding": "binary"}
    for task in ("project.note", "project.note_late"):
        headers = usual(task)
        yield Odd(f"{task} body empty", b"", headers)
        yield Odd(f"{task} body truncated", BODY[:-5], headers)
        yield Odd(f"{task} body no JSON", b"words", headers)
        yield Odd(f"{task} body no text", b"\xff\xfe\x00", headers)
        yield Odd(f"{task} body of another shape", b'{"x": 1}', headers)
        yield Odd(f"{task} body a number", b"17", headers)
        yield Odd(f"{task} body of two parts", b'[["odd"], {}]', headers)
        yield Odd(f"{task} arguments no list", b"[3, {}, {}]", headers)
        yield Odd(f"{task} keywords no mapping", b"[[], 3, {}]", headers)
        yield Odd(f"{task} embedded no mapping", b"[[], {}, 3]", headers)
        yield Odd(f"{task} too deep", b"[" * 100_000, headers)
        yield Odd(f"{task} pickled", pickle.dumps((("odd",), {}, {})), headers, as_pickle)
        yield Odd(f"{task} of an unknown kind", BODY, headers, {"content_type": "application/nosuch"})
        yield Odd(f"{task} of an unknown encoding", BODY, headers, {"content_encoding": "nosuch"})
        yield Odd(f"{task} compressed wrongly", BODY, {**headers, "compression": "application/x-gzip"})
        yield Odd(f"{task} compression cut", zlib.compress(BODY)[:-4], {**headers, "compression": "application/x-gzip"})
    yield Odd("fifty megabytes of noise", b"[" + b"x" * 50_000_000, usual())
    yield Odd("unknown task", BODY, usual("project.nosuch"))
    yield Odd("pickled, of the first protocol", pickle.dumps({"task": "project.note", "id": "x"}), {}, as_pickle)


def odd_properties() -> Iterator[Odd]:
    """Each property absent, null, of a wrong type and huge; texts that are no message."""
    for name in envelope()["properties"]:
        message = envelope(usual(), BODY)
        del message["properties"][name]
        yield Odd(f"property {name} absent", text=json.dumps(message).encode())
        for kind, value in {"null": None, "number": 17, "list": ["x"], "object": {"x": "y"}, "huge": HUGE}.items():
            message["properties"][name] = value
            yield Odd(f"property {name} {kind}", text=json.dumps(message).encode())
    for name in envelope():
        message = envelope(usual(), BODY)
        del message[name]
        yield Odd(f"{name} absent", text=json.dumps(message).encode())
        for kind, value in {"null": None, "number": 17, "list": ["x"], "text": "*"}.items():
            message[name] = value
            yield Odd(f"{name} {kind}", text=json.dumps(message).encode())
    for tag in ("", "\n", "a\nb", "../..", '"', "\\", "\0", "00000000-0000-0000-0000-000000000000", "é" * 50, HUGE):
        message = envelope(usual(), BODY)
        message["properties"]["delivery_tag"] = tag
        yield Odd(f"tag {tag[:10]!r}", text=json.dumps(message).encode())
    whole = json.dumps(envelope(usual(), BODY)).encode()
    for name, text in {
        "nothing": b"",
        "noise": bytes(range(256)),
        "zeros": b"\0" * 100,
        "a number": b"17",
        "null": b"null",
        "a list": b"[1, 2]",
        "too deep": b"[" * 100_000,
        "cut": whole[:-30],
        "twice": whole + whole,
        "not base64": whole.replace(base64.b64encode(BODY), b"*"),
        "latin-1": whole.replace(b"an-id", "é".encode("latin-1")),
    }.items():
        yield Odd(f"text {name}", text=text)


class Table:
    """A project on one broker with a worker that gets everything."""

    def __init__(self, arena: Arena, folder: Path) -> None:
        self.arena, self.folder = arena, folder
        (folder / "project.py").write_text(PROJECT)
        arena.put("celery", b'[["first"], {}, {}]', usual())  # declares the queue and that of its dead
        self.tasks: Any = load_project(folder / "project.py", arena.environment)
        self.workers: list[WorkerProcess] = []

    def worker(self) -> WorkerProcess:
        worker = WorkerProcess(
            "project", ["-c", "2", "-n", "w@here"], folder=self.folder, environment=self.arena.environment
        )
        self.workers.append(worker)
        return worker.start()

    def ran(self) -> list[str]:
        path = self.folder / "done"
        return path.read_text().split() if path.exists() else []

    def serve(self, odds: list[Odd]) -> None:
        for number, odd in enumerate(odds):
            self.tasks.note.delay(f"good-{number}")
            if odd.text is not None:
                self.arena.put_text("celery", odd.text)
            else:
                self.arena.put("celery", odd.body, odd.headers, **odd.how)
        self.tasks.note.delay("last")


@pytest.fixture(scope="module", params=EACH)
def broker(request: pytest.FixtureRequest) -> str:
    """The name of each broker, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_malformed_messages_are_kept_and_cost_nobody_else_anything(request, broker, tmp_path, record_property):
    odds = [*odd_headers(), *odd_bodies()]
    if broker != "amqp":
        odds += odd_properties()
    record_property("kinds", len(odds))
    assert len(odds) > 60
    with open_arena(broker, request.getfixturevalue, tmp_path) as arena:
        table = Table(arena, tmp_path)
        try:
            worker = table.worker()
            table.serve(odds)
            good = {"first", "last", *(f"good-{number}" for number in range(len(odds)))}

            def accounted() -> bool:
                # What is odd and harmless runs; what has no sense is kept; what has expired is said to be over.
                ran, expired = table.ran(), worker.log().count("Discarding revoked task")
                return good <= {*ran} and ran.count("odd") + arena.waiting("celery.dead") + expired == len(odds)

            wait_until(
                accounted,
                90,
                lambda: (
                    f"{len(good - {*table.ran()})} good are missing, {table.ran().count('odd')} odd ran,"
                    f" {arena.waiting('celery.dead')} are kept, of {len(odds)}\n{worker.log()[-4000:]}"
                ),
                every=0.5,
            )
            assert worker.exit_code is None
            assert "Restarted" not in worker.log() and "Unrecoverable" not in worker.log()
            assert "exited with" not in worker.log(), "no process of the pool was lost"
            kept = arena.waiting("celery.dead")
            assert kept > 60
            assert broker == "amqp" or all(reason for reason, _ in arena.dead("celery"))
            assert worker.stop(15) == 0
            # What a crash in a loop would look like: the same worker once more.
            again = table.worker()
            table.tasks.note_late.delay("again")
            wait_until(lambda: "again" in table.ran(), 10, again.log)
            wait_until(lambda: not arena.taken(), 5, lambda: f"{arena.taken()} are taken")
            assert arena.waiting("celery.dead") == kept
            assert again.stop(15) == 0
        finally:
            for each in table.workers:
                each.close()
            table.tasks.app.close()
