"""Results, groups and chords shared with real Celery on one Redis, byte for byte."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_clone import Celery, states
from celery_clone.exceptions import ChordError, TaskRevokedError
from celery_clone.execution.context import Context
from tests.support.wait import wait_until
from tests.support.worker import clean_environment

PROLOGUE = """
import json, sys
from celery import Celery, group, chord
from celery.app.task import Context
from celery.exceptions import ChordError
app = Celery("shop", broker=sys.argv[1], backend=sys.argv[1])
app.conf.update(json.loads(sys.argv[2]))
backend = app.backend

@app.task(name="sum")
def add_up(numbers):
    return sum(numbers)

def member(at, group_id, body, task_id):
    return Context(id=task_id, group=group_id, group_index=at, chord=dict(body))
"""

TheirSide = Callable[..., str]


@pytest.fixture
def theirs(celery_python: Path, redis_url: str, tmp_path: Path) -> TheirSide:
    """Run a program of real Celery on this test's Redis; gives what it printed."""

    def run(program: str, **conf: Any) -> str:
        done = subprocess.run(
            [celery_python, "-c", PROLOGUE + program, redis_url, json.dumps(conf)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=clean_environment(),
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def our_app(redis_url: str) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(**conf: Any) -> Celery:
        app = Celery("shop", broker=redis_url, backend=redis_url, set_as_current=False)
        app.conf.update(conf)
        app.task(name="sum")(sum)
        made.append(app)
        return app

    yield make
    for app in made:
        app.backend.close()
        app.amqp.close() if hasattr(app.amqp, "close") else None
        app.close()


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def without_date(payload: bytes) -> bytes:
    """A stored meta with the time of its end made the same."""
    date = json.loads(payload)["date_done"]
    return payload.replace(json.dumps(date).encode(), b"DATE") if date else payload


STORING = {
    "a value": ("backend.mark_as_done('t', {'a': [1, 2.5, None, 'ü']}, request=Context(id='t'))"),
    "in a group": ("backend.mark_as_done('t', 1, request=Context(id='t', group='g', parent_id='p', root_id='r'))"),
    "without a request": "backend.store_result('t', {'done': 1}, 'PROGRESS')",
    "an error": "backend.mark_as_failure('t', ValueError('x', 3), 'Traceback', request=Context(id='t'))",
    "a retry": "backend.mark_as_retry('t', KeyError('k'), 'Traceback', request=Context(id='t'))",
    "revoked": "backend.mark_as_revoked('t', 'terminated', request=Context(id='t'))",
    "begun": "backend.mark_as_started('t', pid=7, hostname='w@h')",
    "an argument that is no JSON": "backend.mark_as_failure('t', ValueError({1, 2}), '', request=Context(id='t'))",
}


@pytest.mark.parametrize("how", STORING.values(), ids=STORING.keys())
def test_both_store_the_same_bytes(
    how: str, theirs: TheirSide, our_app: Callable[..., Celery], server: redis.Redis
) -> None:
    theirs(how)
    their_bytes = server.getdel("celery-task-meta-t")

    exec(how, {"backend": our_app().backend, "Context": Context})
    our_bytes = server.getdel("celery-task-meta-t")

    assert without_date(our_bytes) == without_date(their_bytes)


def test_extended_results_are_the_same_bytes(
    theirs: TheirSide, our_app: Callable[..., Celery], server: redis.Redis
) -> None:
    how = (
        "backend.mark_as_done('t', 1, request=Context(id='t', task='a.b', args=[1], kwargs={'k': 2}, "
        "hostname='w@h', retries=3, delivery_info={'routing_key': 'q'}, stamped_headers=['s'], stamps={'s': 'v'}))"
    )
    theirs(how, result_extended=True)
    their_bytes = server.getdel("celery-task-meta-t")

    exec(how, {"backend": our_app(result_extended=True).backend, "Context": Context})
    our_bytes = server.getdel("celery-task-meta-t")

    assert without_date(our_bytes) == without_date(their_bytes)


@pytest.mark.parametrize("serializer", ["json", "yaml", "msgpack", "pickle"])
def test_each_reads_what_the_other_stored(serializer: str, theirs: TheirSide, our_app: Callable[..., Celery]) -> None:
    conf = {"result_serializer": serializer, "result_accept_content": [serializer]}
    backend = our_app(**conf).backend
    backend.mark_as_done("ours", {"a": [1, None]}, request=Context(id="ours"))
    backend.mark_as_failure("ours-failed", ValueError("x", 3), "Traceback")

    said = theirs(
        """
backend.mark_as_done("theirs", {"a": [1, None]}, request=Context(id="theirs"))
backend.mark_as_failure("theirs-failed", ValueError("x", 3), "Traceback")
print(app.AsyncResult("ours").get(timeout=5), repr(app.AsyncResult("ours-failed").result))
""",
        **conf,
    )

    assert said == "{'a': [1, None]} ValueError('x', 3)"
    app = backend.app
    assert app.AsyncResult("theirs").get(timeout=5) == {"a": [1, None]}
    failed = app.AsyncResult("theirs-failed")
    assert repr(failed.result) == "ValueError('x', 3)"
    assert failed.traceback == "Traceback"


def test_errors_of_celery_keep_their_type_in_both_directions(
    theirs: TheirSide, our_app: Callable[..., Celery], server: redis.Redis
) -> None:
    backend = our_app().backend
    backend.mark_as_failure("ours", ChordError("no body"))

    said = theirs(
        """
error = app.AsyncResult("ours").result
print(type(error) is ChordError, error)
backend.mark_as_failure("theirs", ChordError("no body"))
backend.mark_as_revoked("revoked", "terminated")
"""
    )

    assert said == "True no body"
    assert json.loads(server.get("celery-task-meta-ours") or b"")["result"]["exc_module"] == "celery.exceptions"
    assert type(backend.app.AsyncResult("theirs").result) is ChordError
    assert type(backend.app.AsyncResult("revoked").result) is TaskRevokedError


@pytest.mark.parametrize("compression", ["gzip", "bzip2"])
def test_compressed_results_are_read_by_both(
    compression: str, theirs: TheirSide, our_app: Callable[..., Celery], server: redis.Redis
) -> None:
    backend = our_app(result_compression=compression).backend
    backend.mark_as_done("ours", "x" * 500)

    said = theirs(
        """
print(len(app.AsyncResult("ours").get(timeout=5)))
backend.mark_as_done("theirs", "y" * 500)
""",
        result_compression=compression,
    )

    assert said == "500"
    assert backend.app.AsyncResult("theirs").get(timeout=5) == "y" * 500
    assert (server.get("celery-task-meta-ours") or b"").startswith(b"\x00celery-compressed\x00")


def test_a_success_of_either_side_is_not_overwritten_by_the_other(
    theirs: TheirSide, our_app: Callable[..., Celery]
) -> None:
    backend = our_app().backend
    backend.mark_as_done("ours", 1)

    theirs('backend.mark_as_failure("ours", KeyError()); backend.mark_as_done("theirs", 2)')
    backend.mark_as_failure("theirs", KeyError())

    assert backend.app.AsyncResult("ours").get(timeout=5) == 1
    assert backend.app.AsyncResult("theirs").get(timeout=5) == 2


def test_groups_are_saved_for_both(theirs: TheirSide, our_app: Callable[..., Celery]) -> None:
    app = our_app()
    app.GroupResult("ours", [app.AsyncResult("a"), app.AsyncResult("b")]).save()

    said = theirs(
        """
print(app.GroupResult.restore("ours").as_tuple())
app.GroupResult("theirs", [app.AsyncResult("a"), app.GroupResult("inner", [app.AsyncResult("b")])]).save()
"""
    )

    assert said == "(('ours', None), [(('a', None), None), (('b', None), None)])"
    inner = app.GroupResult("inner", [app.AsyncResult("b")])
    assert app.GroupResult.restore("theirs") == app.GroupResult("theirs", [app.AsyncResult("a"), inner])


def test_the_expiry_and_the_global_prefix_are_the_same(
    theirs: TheirSide, our_app: Callable[..., Celery], server: redis.Redis
) -> None:
    conf = {"result_expires": 1000, "result_backend_transport_options": {"global_keyprefix": "shop"}}
    our_app(**conf).backend.mark_as_done("ours", 1)
    theirs('backend.mark_as_done("theirs", 1)', **conf)

    keys = {key: server.ttl(key) for key in server.keys("*")}

    assert set(keys) == {b"shop_celery-task-meta-ours", b"shop_celery-task-meta-theirs"}
    assert all(990 < seconds <= 1000 for seconds in keys.values())


# --- chords of both -------------------------------------------------------------------


def sent(app: Celery) -> list[Any]:
    """Arguments of the task messages that wait."""
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("celery", no_ack=True)
        found = []
        while True:
            try:
                message = queue.get(block=False)
            except queue.Empty:
                queue.close()
                return found
            found.append((message.headers["task"], message.headers["id"], message.payload[0]))


CHORD = """
body = add_up.s()
body.freeze("body")
def end(at, value):
    backend.mark_as_done(f"m{at}", value, request=member(at, "g", body, f"m{at}"))
def start(size):
    backend.apply_chord(("g", [app.AsyncResult(f"m{at}") for at in range(size)]), body)
    backend.set_chord_size("g", size)
"""


class OurHalf:
    """The members of the chord that end here."""

    def __init__(self, app: Celery) -> None:
        self.app, self.backend = app, app.backend
        self.body = app.signature("sum", app=app)
        self.body.freeze("body")

    def start(self, size: int) -> None:
        self.backend.apply_chord(("g", [self.app.AsyncResult(f"m{at}") for at in range(size)]), self.body)
        self.backend.set_chord_size("g", size)

    def request(self, at: int) -> Context:
        return Context({"id": f"m{at}", "group": "g", "group_index": at, "chord": dict(self.body)})

    def end(self, at: int, value: Any) -> None:
        self.backend.mark_as_done(f"m{at}", value, request=self.request(at))


def test_a_chord_with_members_on_both_sides_is_ended_by_them(
    theirs: TheirSide, our_app: Callable[..., Celery], server: redis.Redis
) -> None:
    ours = OurHalf(our_app())
    ours.start(4)
    ours.end(3, 30)
    ours.end(1, 10)

    theirs(CHORD + "end(0, 0); end(2, 20)")

    assert sent(ours.app) == [("sum", "body", [[0, 10, 20, 30]])]
    left = {key.decode().removeprefix("celery-taskset-meta-g") for key in server.keys("celery-taskset*")}
    assert left == {".c"}


def test_a_chord_with_members_on_both_sides_is_ended_by_us(
    theirs: TheirSide, our_app: Callable[..., Celery], server: redis.Redis
) -> None:
    theirs(CHORD + "start(4); end(0, 0); end(2, 20); end(2, 20)")
    ours = OurHalf(our_app())
    ours.end(2, 20)
    assert sent(ours.app) == []

    ours.end(3, 30)
    ours.end(1, 10)

    assert sent(ours.app) == [("sum", "body", [[0, 10, 20, 30]])]
    left = {key.decode().removeprefix("celery-taskset-meta-g") for key in server.keys("celery-taskset*")}
    assert left == {".c"}


def test_members_that_come_again_after_the_body_was_sent_change_nothing_on_either_side(
    theirs: TheirSide, our_app: Callable[..., Celery]
) -> None:
    ours = OurHalf(our_app())
    ours.start(2)
    ours.end(0, 0)
    theirs(CHORD + "end(1, 1); end(0, 0)")
    ours.end(1, 1)

    assert len(sent(ours.app)) == 1
    assert ours.app.AsyncResult("body").state == states.PENDING


def test_a_member_that_failed_on_their_side_ends_our_chord(theirs: TheirSide, our_app: Callable[..., Celery]) -> None:
    ours = OurHalf(our_app())
    ours.start(2)
    theirs(
        CHORD
        + 'backend.mark_as_failure("m0", ValueError("x"), request=member(0, "g", body, "m0"), call_errbacks=False)'
    )

    ours.end(1, 1)

    with pytest.raises(ChordError, match="Dependency m0 raised ValueError"):
        ours.app.AsyncResult("body").get(timeout=5)


def test_a_member_that_failed_here_ends_their_chord(theirs: TheirSide, our_app: Callable[..., Celery]) -> None:
    theirs(CHORD + "start(2)")
    ours = OurHalf(our_app())
    ours.backend.mark_as_failure("m0", ValueError("x"), request=ours.request(0))

    said = theirs(CHORD + "end(1, 1); print(repr(app.AsyncResult('body').result))")

    assert said == "ChordError(\"Dependency m0 raised ValueError('x')\")"


def test_our_get_is_woken_by_their_store(
    celery_python: Path, redis_url: str, our_app: Callable[..., Celery], server: redis.Redis
) -> None:
    program = """
import time
while not backend.client.pubsub_numsub("celery-task-meta-t")[0][1]:
    time.sleep(0.01)
backend.mark_as_done("t", "theirs")
"""
    other = subprocess.Popen(
        [celery_python, "-c", PROLOGUE + program, redis_url, "{}"], stdin=subprocess.DEVNULL, env=clean_environment()
    )

    try:
        assert our_app().AsyncResult("t").get(timeout=20) == "theirs"
    finally:
        assert other.wait(20) == 0


def test_their_get_is_woken_by_our_store(
    celery_python: Path, redis_url: str, our_app: Callable[..., Celery], server: redis.Redis
) -> None:
    other = subprocess.Popen(
        [celery_python, "-c", PROLOGUE + 'print(app.AsyncResult("t").get(timeout=20))', redis_url, "{}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    wait_until(lambda: server.pubsub_numsub("celery-task-meta-t")[0][1], 20, "them to wait")

    our_app().backend.mark_as_done("t", "ours")

    assert other.communicate(timeout=20)[0].strip() == "ours"
