"""What cannot be used is refused at the call, or logged once and kept, while everything else goes on."""

from __future__ import annotations

import base64
import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import ContentDisallowed, DecodeError, EncodeError, OperationalError

from celery_clone import Celery, states
from celery_clone.exceptions import ImproperlyConfigured, InvalidTaskError, NotRegistered
from tests.support.brokers import EACH, EACH_WITH_TEXTS, Arena, envelope, load_project, open_arena, start_server
from tests.support.messages import call_headers
from tests.support.processes import free_port
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess, clean_environment

PROJECT = """
import json, os
from celery_clone import Celery
from kombu import Exchange, Queue

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ.get("RESULTS"), set_as_current=False)
app.conf.broker_transport_options = json.loads(os.environ.get("BROKER_OPTIONS", "{}"))
if "rpc" in os.environ.get("RESULTS", ""):
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "celery.dead"}
    app.conf.task_queues = [Queue("celery", Exchange("celery"), "celery", queue_arguments=dead)]

@app.task
def add(x, y):
    return x + y

@app.task(acks_late=True)
def add_late(x, y):
    return x + y
"""

UNREADABLE = (ContentDisallowed, DecodeError, InvalidTaskError)
RECORD = re.compile(r"^\[[^\]]*: (?P<level>WARNING|ERROR|CRITICAL)/\S+\] (?P<text>.*)$", re.MULTILINE)


class Shop:
    """A worker on one broker, and the app that sends to it."""

    def __init__(self, arena: Arena, folder: Path) -> None:
        self.arena = arena
        (folder / "project.py").write_text(PROJECT)
        self.project = load_project(folder / "project.py", arena.environment)
        self.app: Celery = self.project.app
        self.worker = WorkerProcess(
            "project", ["-c", "1", "-n", "w@here"], folder=folder, environment=arena.environment
        )

    def complaints(self) -> list[str]:
        """First lines of the log records that are worse than information."""
        return [found["text"] for found in RECORD.finditer(self.worker.log())]

    def refuses(self, put: Callable[[], Any], said: str, *, where: str = "celery") -> str:
        """*put* a message that cannot be used among others that can; what the log says about it.

        It is logged once, it is kept, and the worker runs what came before and after it.
        """
        before, buried, start = len(self.complaints()), len(self.arena.dead(where)), len(self.worker.log())
        first = self.project.add.delay(1, 1)
        put()
        last = self.project.add.delay(2, 2)
        assert (first.get(timeout=10), last.get(timeout=10)) == (2, 4)
        complaints = wait_until(lambda: self.complaints()[before:], 10, self.worker.log)
        wait_until(
            lambda: len(self.arena.dead(where)) == buried + 1,
            10,
            lambda: f"one more in {where}.dead, which holds {self.arena.dead(where)}; the log:\n{self.worker.log()}",
        )
        # The other task has run behind it, so everything that is said about it has been said.
        assert len(complaints) == 1, "\n".join(complaints)
        assert "Traceback" not in self.worker.log()[start:]
        record = self.worker.log()[self.worker.log().rindex(complaints[0]) :]
        assert said.lower() in record.lower()
        reason, _ = self.arena.dead(where)[-1]
        assert reason or self.arena.name == "amqp"
        return record


@pytest.fixture(scope="module", params=EACH)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp(f"bad-{request.param}")
    with open_arena(request.param, request.getfixturevalue, folder) as arena:
        arena.put("celery", b"[[1, 1], {}, {}]", good("first"))  # declares the queue and that of its dead
        one = Shop(arena, folder)
        with one.worker:
            yield one
            assert one.worker.stop(10) == 0, "it ends at once, since nothing counts as running"
        one.app.close()


@pytest.fixture
def text_shop(shop: Shop) -> Shop:
    """A shop whose broker keeps messages as texts, where tests choose one of those."""
    assert shop.arena.name != "amqp"
    return shop


with_texts = pytest.mark.parametrize("shop", EACH_WITH_TEXTS, indirect=True)


def good(task_id: str, **changes: Any) -> dict[str, Any]:
    """Headers of a call that can be run, with *changes*; a change to ``...`` leaves the header out."""
    return call_headers(**{"task": "project.add", "task_id": task_id, **changes})


# -- at the call


def test_wrong_arguments_are_a_type_error_as_python_words_it(shop):
    add = shop.project.add
    with pytest.raises(TypeError, match=r"^add\(\) missing 1 required positional argument: 'y'$"):
        add.delay(1)
    with pytest.raises(TypeError, match=r"^add\(\) takes 2 positional arguments but 3 were given$"):
        add.delay(1, 2, 3)
    with pytest.raises(TypeError, match=r"^add\(\) got an unexpected keyword argument 'z'$"):
        add.delay(1, 2, z=3)
    assert shop.arena.waiting("celery") == 0


def test_an_argument_that_cannot_be_serialized_is_named_and_nothing_is_sent(shop):
    before = len(shop.worker.log())
    with pytest.raises(EncodeError, match=r"Positional argument 1.*socket") as caught:
        import socket

        with socket.socket() as unserializable:
            shop.project.add.delay(1, unserializable)
    assert "json" in str(caught.value)
    with pytest.raises(EncodeError, match=r"Keyword argument 'y'\['deep'\]\[0\].*object"):
        shop.project.add.delay(1, y={"deep": [object()]})
    assert shop.project.add.delay(1, 1).get(timeout=10) == 2
    assert shop.worker.log()[before:].count(" received\n") == 1


# -- in the queue: well-formed messages that make no sense


def test_an_unknown_task_is_kept_and_its_caller_is_told(shop):
    result = None

    def put():
        nonlocal result
        result = shop.app.send_task("project.ad", (1, 2))

    record = shop.refuses(put, "Received unregistered task of type 'project.ad'")
    assert "'project.add'" in record
    with pytest.raises(NotRegistered, match=r"project\.ad"):
        result.get(timeout=10)


@pytest.mark.parametrize("task", ["add", "add_late"])
@pytest.mark.parametrize(
    ("body", "how", "said"),
    [
        (pickle.dumps(((1, 2), {}, {})), {"content_type": "application/x-python-serialize"}, "pickle"),
        (b"\x80\x04", {"content_type": "application/data", "content_encoding": "binary"}, "body"),
        (b"[[1, 2], {}, {", {}, "decode"),
        (b"", {}, "body"),
        (b"\xff\xfe\x00", {}, "decode"),
        (b"[[1, 2], {}]", {}, "list of three"),
        (b"[3, {}, {}]", {}, "positional"),
        (b"[[1, 2], 3, {}]", {}, "keyword"),
        (b"[[1, 2], {}, 3]", {}, "last part"),
        (b'"text"', {}, "list of three"),
        (b"[" * 100_000, {}, "decode"),
    ],
    ids=[
        "content type not accepted",
        "content type unknown",
        "truncated",
        "empty",
        "no text",
        "two parts",
        "arguments no list",
        "keywords no mapping",
        "options no mapping",
        "another value",
        "too deep",
    ],
)
def test_a_body_that_cannot_be_read_is_kept_and_its_caller_is_told(shop, task, body, how, said):
    task_id = f"unreadable-{time.monotonic_ns()}"
    headers = good(task_id, task=f"project.{task}")
    result = shop.app.AsyncResult(task_id)
    with shop.app.producer_pool.acquire(block=True) as producer:
        shop.app.backend.on_task_call(producer, task_id)
    reply = {"reply_to": shop.app.thread_oid, "correlation_id": task_id}
    shop.refuses(lambda: shop.arena.put("celery", body, headers, **how, **reply), said)
    with pytest.raises(UNREADABLE):
        result.get(timeout=10)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        (None, "no header 'task'"),
        ({"unrelated": 1}, "no header 'task'"),
        (good("x", id=...), "'id' of the message is missing"),
        (good("x", id=17), "'id' of the message is 17"),
        (good(""), "'id' of the message is ''"),
        (good("x", task=17), "'task' of the message is 17"),
        (good("x", task=None), "'task' of the message is None"),
        (good("x", eta="next Tuesday"), "eta"),
        (good("x", eta=[2030]), "eta"),
        (good("x", eta={}), "eta"),
        (good("x", expires="soon"), "expires"),
        (good("x", retries="three"), "retries"),
        (good("x", timelimit="soon"), "timelimit"),
        (good("x", timelimit=[1]), "timelimit"),
        (good("x", timelimit=["a", "b"]), "timelimit"),
        (good("x", group=5), "group"),
        (good("x", group_index="first"), "group_index"),
        (good("x", stamps=5), "stamps"),
        (good("x", stamped_headers="one"), "stamped_headers"),
        (good("x", compression="squeeze"), "squeeze"),
        (good("x", compression="zlib"), "zlib"),
    ],
    ids=lambda value: None if isinstance(value, str) else "headers",
)
def test_headers_that_are_missing_or_mistyped_are_named(shop, headers, said):
    shop.refuses(lambda: shop.arena.put("celery", b"[[1, 2], {}, {}]", headers), said)


def test_a_message_of_the_first_protocol_with_a_body_that_is_not_accepted_is_kept(shop):
    body = pickle.dumps({"task": "project.add", "id": "x", "args": (1, 2), "kwargs": {}})
    put = lambda: shop.arena.put("celery", body, {}, content_type="application/x-python-serialize")  # noqa: E731
    shop.refuses(put, "pickle")


# -- in the queue: texts that are no messages

TEXTS = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "zeros": b"\0" * 100,
    "words": b"hello",
    "truncated": json.dumps(envelope(good("x"))).encode()[:-30],
    "a number": b"17",
    "null": b"null",
    "a list": b"[1, 2]",
    "no body": json.dumps({"headers": good("x")}).encode(),
    "body not base64": json.dumps(envelope(good("x"), **{"body": "*"})).encode(),
    "body of a wrong kind": json.dumps(envelope(good("x"), **{"body": 17})).encode(),
    "headers no object": json.dumps(envelope(**{"headers": [1]})).encode(),
    "headers null": json.dumps(envelope(**{"headers": None})).encode(),
    "properties no object": json.dumps(envelope(good("x"), **{"properties": "x"})).encode(),
    "properties null": json.dumps(envelope({}, **{"properties": None})).encode(),
    "unknown encoding of the body": json.dumps(
        envelope(good("x"), **{"properties": {"body_encoding": "rot13", "delivery_tag": "x"}})
    ).encode(),
    "encoding of a wrong kind": json.dumps(
        envelope(good("x"), **{"properties": {"body_encoding": 5, "delivery_tag": "x"}})
    ).encode(),
    "content type of a wrong kind": json.dumps(envelope(good("x"), **{"content-type": 5})).encode(),
    "too deep": b"[" * 100_000,
    "a lone surrogate": json.dumps(envelope(good("x", task="\ud800"))).encode(),
    "not base64 in the usual layout": json.dumps(envelope(good("x"))).encode().replace(b'"body": "W1', b'"body": "1'),
}


@with_texts
@pytest.mark.parametrize("text", [*TEXTS.values()], ids=[*TEXTS])
def test_a_text_that_is_no_message_is_kept_with_the_reason(text_shop, text):
    text_shop.refuses(lambda: text_shop.arena.put_text("celery", text), "")
    reason, kept = text_shop.arena.dead("celery")[-1]
    assert reason
    assert kept == text or text_shop.arena.name == "redis" and kept.decode() == text.decode("utf-8", "backslashreplace")


@with_texts
def test_what_was_kept_can_be_sent_again_once_it_can_be_used(text_shop):
    task_id = f"mended-{time.monotonic_ns()}"
    text = json.dumps(envelope(good(task_id), b"[[1, 2]")).encode()
    text_shop.refuses(lambda: text_shop.arena.put_text("celery", text), "decode")
    _, kept = text_shop.arena.dead("celery")[-1]
    message = json.loads(kept)
    message["body"] = base64.b64encode(b"[[1, 2], {}, {}]").decode()
    text_shop.arena.put_text("celery", json.dumps(message).encode())
    wait_until(lambda: text_shop.app.AsyncResult(task_id).state == states.SUCCESS, 10, text_shop.worker.log)
    assert text_shop.app.AsyncResult(task_id).get(timeout=1) == 3


def test_nothing_is_left_taken_after_all_this(shop):
    assert shop.project.add_late.delay(1, 1).get(timeout=10) == 2
    wait_until(lambda: not shop.arena.taken(), 5, lambda: f"nothing to be taken, but {shop.arena.taken()}")
    assert shop.arena.waiting("celery") == 0


# -- where the broker or the store is not


def run(project: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery_clone", *words],
        cwd=project,
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a project whose broker is in the environment."""
    (tmp_path / "project.py").write_text(PROJECT)
    return tmp_path


@pytest.fixture
def project_with(folder: Path) -> Iterator[Callable[..., Any]]:
    """``project_with(BROKER=...)``: the project, imported here."""
    loaded: list[Any] = []

    def load(**environment: str) -> Any:
        loaded.append(load_project(folder / "project.py", environment))
        return loaded[-1]

    yield load
    for each in loaded:
        each.app.close()


def test_a_url_with_an_unknown_scheme_names_those_that_are_known(folder, project_with):
    ended = run(folder, "-A", "project", "worker", BROKER="rediss3://localhost")
    assert ended.returncode == 1
    assert "'rediss3'" in ended.stderr and "redis, " in ended.stderr and "Traceback" not in ended.stderr
    with pytest.raises(ImproperlyConfigured, match="'rediss3'") as caught:
        project_with(BROKER="rediss3://localhost").add.delay(1, 2)
    assert "redis, " in str(caught.value)


@pytest.mark.parametrize("scheme", ["redis://:secret@127.0.0.1", "amqp://guest:secret@127.0.0.1"])
def test_a_call_ends_within_its_deadline_when_the_broker_is_away(project_with, scheme):
    port = free_port()
    project = project_with(BROKER=f"{scheme}:{port}")
    started = time.monotonic()
    with pytest.raises(OperationalError) as caught:
        project.add.delay(1, 2)
    assert time.monotonic() - started < 11
    text = str(caught.value)
    assert f"127.0.0.1:{port}" in text and "secret" not in text
    assert "broker_url" in text or "running" in text, text


@pytest.mark.parametrize("scheme", ["redis://:secret@127.0.0.1", "amqp://guest:secret@127.0.0.1"])
def test_a_worker_tries_again_and_says_so_when_the_broker_is_away(folder, start_worker, scheme):
    port = free_port()
    worker = start_worker("project", "-c", "1", folder=folder, environment={"BROKER": f"{scheme}:{port}"}, wait=False)
    tries = worker.wait_for_log(r"Cannot connect to .*", 15, count=3)
    assert all(f"127.0.0.1:{port}" in each and "secret" not in each for each in tries), tries
    pauses = [float(found) for found in re.findall(r"Trying again in ([\d.]+) seconds", worker.log())]
    assert pauses == sorted(pauses) and pauses[0] < pauses[-1], worker.log()
    assert worker.stop(5) == 0


def test_without_a_result_store_a_call_runs_and_its_result_says_what_is_missing(folder, project_with, start_worker):
    broker = f"sqlite:///{folder}/broker.db"
    worker = start_worker("project", "-c", "1", folder=folder, environment={"BROKER": broker})
    result = project_with(BROKER=broker).add.delay(1, 2)
    worker.wait_for_log(rf"Task project\.add\[{result.id}\] succeeded in .*: 3")
    for ask in (lambda: result.get(timeout=1), lambda: result.state, result.ready):
        with pytest.raises(NotImplementedError, match="result_backend"):
            ask()


def test_an_app_that_cannot_be_found_ends_with_2_and_says_what_was_tried(folder):
    ended = run(folder, "-A", "projetc", "worker")
    assert ended.returncode == 2
    assert "projetc" in ended.stderr and str(folder) in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("place", ["missing/broker.db", "."])
def test_a_database_file_that_cannot_be_opened_is_named(folder, project_with, place):
    url = f"sqlite:///{folder}/{place}"
    started = time.monotonic()
    with pytest.raises(OperationalError) as caught:
        project_with(BROKER=url).add.delay(1, 2)
    assert str(folder) in str(caught.value)
    assert time.monotonic() - started < 11
    assert not (folder / "missing").exists()


@pytest.fixture(scope="module", params=EACH_WITH_TEXTS)
def where(request: pytest.FixtureRequest) -> str:
    """The name of a broker whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


def test_two_workers_with_one_name_are_warned_of(request, folder, start_worker, where):
    with open_arena(where, request.getfixturevalue, folder) as arena:
        start_worker("project", "-c", "1", "-n", "one@here", folder=folder, environment=arena.environment)
        second = start_worker("project", "-c", "1", "-n", "one@here", folder=folder, environment=arena.environment)
        second.wait_for_log(r"WARNING/.*one@here")
